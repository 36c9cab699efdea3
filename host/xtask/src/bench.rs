//! `cargo xtask bench`.

use std::process::ExitCode;

use crate::demo::exit_code;
use crate::problem::Outcome;
use crate::process::run as run_program;
use crate::setup::{self, host::Profile};
use crate::workspace::Workspace;

/// Set up, then run the benches (release profile).
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  cargo xtask bench\n  cargo xtask bench vault\n  cargo xtask bench -- --quick")]
pub struct BenchArgs {
    /// One bench of benches/; all of them without it.
    name: Option<String>,
    /// What goes to criterion.
    #[arg(last = true, value_name = "ARGUMENTS")]
    rest: Vec<String>,
}

/// Sets up with the release profile and runs the benches.
pub fn run(workspace: &Workspace, args: &BenchArgs) -> Outcome<ExitCode> {
    let prepared = setup::prepare(workspace, Profile::Release)?;
    let mut command = workspace.cargo();
    // Beside the binary, so that both are built on the same dependencies with the same features.
    command.args(["bench", "--package", "cloister", "--package", "cloister-benches"]);
    match &args.name {
        Some(name) => command.args(["--bench", name]),
        None => command.arg("--benches"),
    };
    command.arg("--").args(&args.rest);
    prepared.apply(&mut command);
    let status = run_program(&mut command, "read cargo's message above")?;
    Ok(exit_code(status))
}
