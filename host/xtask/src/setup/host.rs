//! The `cloister` binary.

use std::path::PathBuf;

use crate::cargo;
use crate::problem::{Outcome, Problem};
use crate::process::{say, shown};
use crate::workspace::Workspace;

/// How the binary is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// For the demo, the examples and the tests: dependencies optimised, no debug info.
    Dev,
    /// For benches and distribution.
    Release,
}

const NEXT: &str =
    "read the compiler's message above; on a machine with little memory try again with CARGO_BUILD_JOBS=1";

/// Builds `cloister` and says where it is.
pub fn build(workspace: &Workspace, profile: Profile) -> Outcome<PathBuf> {
    say("[setup] building the cloister binary (some minutes the first time)");
    let mut command = workspace.cargo();
    // The whole workspace is selected, as the tests do: then both stand on the same dependencies with the same features.
    command.args(["build", "--workspace", "--bin", "cloister"]);
    if profile == Profile::Release {
        command.arg("--release");
    }
    let mut built = None;
    let status = cargo::build(&mut command, NEXT, |artifact| {
        if artifact.target.name == "cloister" && artifact.executable.is_some() {
            built = artifact.executable;
        }
    })?;
    match built {
        Some(path) if status.success() => Ok(path),
        _ => Err(Problem::new(
            format!(
                "the cloister binary did not build (`{}` ended with {status})",
                shown(&command)
            ),
            NEXT,
        )),
    }
}
