//! `cargo xtask demo`.

use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus};

use crate::problem::Outcome;
use crate::process::{run as run_program, say};
use crate::setup::{self, Prepared, host::Profile};
use crate::workspace::Workspace;

/// Set up, then train the digits model in a federation of three nodes on this machine.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  cargo xtask demo\n  cargo xtask demo -- -o json\n  cargo xtask demo -- --help")]
pub struct DemoArgs {
    /// What goes to `cloister demo`.
    #[arg(last = true, value_name = "ARGUMENTS")]
    rest: Vec<String>,
}

/// Sets up and runs the demo; its exit code is ours.
pub fn run(workspace: &Workspace, args: &DemoArgs) -> Outcome<ExitCode> {
    let prepared = setup::prepare(workspace, Profile::Dev)?;
    run_federation(
        workspace,
        &prepared,
        &workspace.root().join("examples/digits"),
        "demo",
        &args.rest,
    )
}

/// Runs the federation that an example's folder plans, with this process's streams.
pub fn run_federation(
    workspace: &Workspace,
    prepared: &Prepared,
    example: &Path,
    name: &str,
    rest: &[String],
) -> Outcome<ExitCode> {
    let mut command = Command::new(&prepared.cloister);
    command.arg("demo");
    let out = workspace.output(name);
    for (option, value) in [
        ("--guests", prepared.guests.as_path()),
        ("--example", example),
        ("--out", &out),
    ] {
        if !given(rest, option) {
            command.arg(option).arg(value);
        }
    }
    command.args(rest);
    prepared.apply(&mut command);
    say(format_args!("[{name}] starting the federation"));
    let status = run_program(&mut command, "run `cargo xtask setup`, then try again")?;
    Ok(exit_code(status))
}

/// Whether the arguments already name an option (`--out DIR` or `--out=DIR`).
fn given(arguments: &[String], option: &str) -> bool {
    arguments.iter().any(|argument| {
        argument
            .strip_prefix(option)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    })
}

/// A program's exit code as ours; a signal counts as failure.
pub fn exit_code(status: ExitStatus) -> ExitCode {
    status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .map_or(ExitCode::FAILURE, ExitCode::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_is_found_in_both_forms() {
        let arguments = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        assert!(given(&arguments(&["--out", "x"]), "--out"));
        assert!(given(&arguments(&["-o", "json", "--out=x"]), "--out"));
        assert!(!given(&arguments(&["--output", "json"]), "--out"));
    }
}
