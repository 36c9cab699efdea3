//! `cargo xtask bench`.

use std::process::ExitCode;

use crate::demo::exit_code;
use crate::problem::Outcome;
use crate::process::run as run_program;
use crate::setup::{self, host::Profile};
use crate::workspace::Workspace;

/// The bench that stands beside PyTorch; it says so and ends where there is none.
const TRAINING: &str = "training";

/// Set up, then run the benches (release profile).
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  cargo xtask bench\n  cargo xtask bench vault\n  cargo xtask bench -- --quick\n  \
                        cargo xtask bench training\n  cargo xtask bench training -- resnet56\n\n`training` stands beside PyTorch, which \
                        it sets up below the target folder (5 GB from PyPI);\nCLOISTER_TORCH_VENV names a virtual environment that \
                        has it. Without a name, `training` is left out. It has a row of libtorch, too, once `cargo xtask test\n\
                        --backends` has fetched that. Of models that it does not run the rows of an earlier run stay."
)]
pub struct BenchArgs {
    /// One bench of benches/; all of them but `training` without it.
    name: Option<String>,
    /// What goes to criterion.
    #[arg(last = true, value_name = "ARGUMENTS")]
    rest: Vec<String>,
}

/// Sets up with the release profile and runs the benches.
pub fn run(workspace: &Workspace, args: &BenchArgs) -> Outcome<ExitCode> {
    let prepared = setup::prepare(workspace, Profile::Release)?;
    let (torch, libtorch) = match args.name.as_deref() {
        Some(TRAINING) => (
            Some(setup::torch::provide(workspace)?),
            setup::libtorch::at_hand(workspace)?,
        ),
        _ => (None, None),
    };
    let mut command = workspace.cargo();
    // Beside the binary, so that both are built on the same dependencies with the same features.
    command.args(["bench", "--package", "cloister", "--package", "cloister-benches"]);
    if libtorch.is_some() {
        command.args(["--features", "cloister-benches/libtorch"]);
    }
    match &args.name {
        Some(name) => command.args(["--bench", name]),
        None => command.arg("--benches"),
    };
    command.arg("--").args(&args.rest);
    prepared.apply(&mut command);
    match torch {
        Some(python) => command.env(setup::torch::PYTHON_VARIABLE, python),
        None => command.env_remove(setup::torch::PYTHON_VARIABLE),
    };
    match libtorch {
        Some(folder) => command.env(setup::libtorch::FOLDER_VARIABLE, folder),
        None => command.env_remove(setup::libtorch::FOLDER_VARIABLE),
    };
    let status = run_program(&mut command, "read cargo's message above")?;
    Ok(exit_code(status))
}
