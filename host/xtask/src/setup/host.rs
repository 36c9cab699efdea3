//! The `cloister` binary.

use std::io::BufReader;
use std::path::PathBuf;
use std::process::Stdio;

use cargo_metadata::Message;

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
    command.args([
        "build",
        "--package",
        "cloister",
        "--bin",
        "cloister",
        "--message-format",
        "json-render-diagnostics",
    ]);
    if profile == Profile::Release {
        command.arg("--release");
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| Problem::new(format!("cannot run `{}`: {error}", shown(&command)), NEXT))?;
    let mut built = None;
    if let Some(stdout) = child.stdout.take() {
        for message in Message::parse_stream(BufReader::new(stdout)) {
            if let Ok(Message::CompilerArtifact(artifact)) = message
                && artifact.target.name == "cloister"
                && let Some(executable) = artifact.executable
            {
                built = Some(executable.into_std_path_buf());
            }
        }
    }
    let status = child
        .wait()
        .map_err(|error| Problem::new(format!("`{}` was lost: {error}", shown(&command)), NEXT))?;
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
