//! The tests themselves: by nextest where it is installed, else by cargo.

use std::io::IsTerminal;
use std::process::Command;

use crate::problem::Outcome;
use crate::process::{Stream, must, say, watch, works};
use crate::setup::Prepared;
use crate::workspace::Workspace;

use super::TestArgs;
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
    prepared.apply(&mut command);
    must(&mut command, "read the compiler's message above")
}

/// Runs the tests of all crates; says how many there were and whether all passed.
pub fn tests(workspace: &Workspace, prepared: &Prepared, args: &TestArgs) -> Outcome<(Counts, bool)> {
    let mut command = workspace.cargo();
    let stream = if has_nextest(workspace) {
        command.args(["nextest", "run", "--workspace", "--no-fail-fast", "--no-tests", "pass"]);
        if args.long {
            command.args(["--run-ignored", "all"]);
        }
        command.args(&args.rest);
        Stream::Stderr
    } else {
        say("cargo-nextest is not installed: tests run by cargo, one crate after the other");
        command.args([
            "test",
            "--workspace",
            "--lib",
            "--bins",
            "--tests",
            "--no-fail-fast",
            "--",
        ]);
        if args.long {
            command.arg("--include-ignored");
        }
        command.args(&args.rest);
        Stream::Stdout
    };
    counted(command, stream, prepared)
}

/// Runs the examples in the documentation.
pub fn doctests(workspace: &Workspace, prepared: &Prepared) -> Outcome<(Counts, bool)> {
    let mut command = workspace.cargo();
    command.args(["test", "--workspace", "--doc", "--no-fail-fast"]);
    counted(command, Stream::Stdout, prepared)
}

fn counted(mut command: Command, stream: Stream, prepared: &Prepared) -> Outcome<(Counts, bool)> {
    prepared.apply(&mut command);
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
