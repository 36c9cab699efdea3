//! The tests themselves: by nextest where it is installed, else by cargo.

use std::io::IsTerminal;
use std::process::Command;

use crate::problem::Outcome;
use crate::process::{Stream, must, say, watch, works};
use crate::setup::{Prepared, toolchain};
use crate::workspace::Workspace;

use super::TestArgs;
use super::backends::left_out;
use super::summary::Counts;

const NEXT: &str = "read the failures above";

/// Compiles the tests.
pub fn build(workspace: &Workspace, prepared: &Prepared) -> Outcome<()> {
    let mut command = workspace.cargo();
    if has_nextest(workspace) {
        command.args(["nextest", "run", "--workspace", "--no-run"]);
    } else {
        command.args(["test", "--workspace", "--lib", "--bins", "--tests", "--no-run"]);
    }
    left_out(&mut command);
    prepared.apply(&mut command);
    must(&mut command, "read the compiler's message above")
}

/// Runs the tests of all crates; says how many there were and whether all passed.
pub fn tests(workspace: &Workspace, prepared: &Prepared, args: &TestArgs) -> Outcome<(Counts, bool)> {
    let (mut command, stream) = runner(workspace, args);
    left_out(command.arg("--workspace"));
    finish(&mut command, args);
    prepared.apply(&mut command);
    counted(command, stream)
}

/// A command that runs tests, without what it runs, and the stream that its counts come on.
pub fn runner(workspace: &Workspace, args: &TestArgs) -> (Command, Stream) {
    let mut command = workspace.cargo();
    if has_nextest(workspace) {
        command.args(["nextest", "run", "--no-fail-fast", "--no-tests", "pass"]);
        if args.long {
            command.args(["--run-ignored", "all"]);
        }
        return (command, Stream::Stderr);
    }
    say("cargo-nextest is not installed: tests run by cargo, one crate after the other");
    command.args(["test", "--lib", "--bins", "--tests", "--no-fail-fast"]);
    (command, Stream::Stdout)
}

/// Puts at its end what goes to the tests.
pub fn finish(command: &mut Command, args: &TestArgs) {
    if command.get_args().next().is_some_and(|first| first == "test") {
        command.arg("--");
        if args.long {
            command.arg("--include-ignored");
        }
    }
    command.args(&args.rest);
}

/// Runs the tests of the guests' kit.
pub fn guest_tests(workspace: &Workspace) -> Outcome<(Counts, bool)> {
    counted(toolchain::host_tests(workspace), Stream::Stdout)
}

/// Runs the examples in the documentation.
pub fn doctests(workspace: &Workspace, prepared: &Prepared) -> Outcome<(Counts, bool)> {
    let mut command = workspace.cargo();
    left_out(command.args(["test", "--workspace", "--doc", "--no-fail-fast"]));
    prepared.apply(&mut command);
    counted(command, Stream::Stdout)
}

/// Runs a command over tests, and adds up what it counts.
pub fn counted(mut command: Command, stream: Stream) -> Outcome<(Counts, bool)> {
    if std::io::stderr().is_terminal() && std::env::var_os("CARGO_TERM_COLOR").is_none() {
        command.env("CARGO_TERM_COLOR", "always");
    }
    let mut counts = Counts::default();
    let status = watch(&mut command, stream, NEXT, |line| {
        if let Some(found) = Counts::of_line(line) {
            counts.add(found);
        }
    })?;
    Ok((counts, status.success()))
}

fn has_nextest(workspace: &Workspace) -> bool {
    works(workspace.cargo().args(["nextest", "--version"]))
}
