//! What cargo says in JSON: `cargo metadata`, and the messages of a build.
//!
//! Read by hand, so that this program asks no feature of a crate that the host shares with it: every build of the
//! workspace then uses the same builds of its dependencies.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};

use serde::Deserialize;

use crate::problem::{Outcome, Problem};
use crate::process::{output, shown};

/// The answer of `cargo metadata --no-deps`.
#[derive(Debug, Deserialize)]
pub struct Metadata {
    /// The members of the workspace.
    pub packages: Vec<Package>,
    /// Where builds go.
    pub target_directory: PathBuf,
    /// The folder of the root manifest.
    pub workspace_root: PathBuf,
}

/// A member of the workspace.
#[derive(Debug, Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its Cargo.toml.
    pub manifest_path: PathBuf,
    /// What it depends on.
    pub dependencies: Vec<Dependency>,
}

/// A dependency as its manifest states it.
#[derive(Debug, Deserialize)]
pub struct Dependency {
    /// `dev`, `build`, or nothing for a normal one.
    pub kind: Option<String>,
    /// The folder of a dependency inside the workspace.
    pub path: Option<PathBuf>,
}

/// Something that a build made.
#[derive(Debug, Default, Deserialize)]
pub struct Artifact {
    /// The target's name.
    #[serde(default)]
    pub target: Target,
    /// All files.
    #[serde(default)]
    pub filenames: Vec<PathBuf>,
    /// The program, where the target is one.
    #[serde(default)]
    pub executable: Option<PathBuf>,
}

/// A target of a package.
#[derive(Debug, Default, Deserialize)]
pub struct Target {
    /// Its name.
    pub name: String,
}

/// Runs `cargo metadata`, given a command that already names cargo and the folder.
pub fn metadata(mut cargo: Command) -> Outcome<Metadata> {
    let next = "start xtask as `cargo xtask ...` inside the workspace, and correct the Cargo.toml that cargo names";
    cargo.args(["metadata", "--no-deps", "--format-version", "1"]);
    let done = output(&mut cargo, next)?;
    if !done.status.success() {
        let words = String::from_utf8_lossy(&done.stderr);
        return Err(Problem::new(format!("cargo metadata failed: {}", words.trim()), next));
    }
    serde_json::from_slice(&done.stdout)
        .map_err(|error| Problem::new(format!("cargo metadata cannot be read: {error}"), next))
}

/// Runs a build that writes its messages as JSON to stdout, and hands each artifact to `artifact`.
pub fn build(command: &mut Command, next: &str, mut artifact: impl FnMut(Artifact)) -> Outcome<ExitStatus> {
    command.args(["--message-format", "json-render-diagnostics"]);
    let lost = |command: &Command, error| Problem::new(format!("cannot run `{}`: {error}", shown(command)), next);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| lost(command, error))?;
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Some(found) = artifact_of(&line) {
                artifact(found);
            }
        }
    }
    child.wait().map_err(|error| lost(command, error))
}

/// The artifact that a line of a build's messages tells of.
fn artifact_of(line: &str) -> Option<Artifact> {
    #[derive(Deserialize)]
    struct Message {
        reason: String,
        #[serde(flatten)]
        artifact: Artifact,
    }
    let message: Message = serde_json::from_str(line).ok()?;
    (message.reason == "compiler-artifact").then_some(message.artifact)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn artifacts_are_found_among_the_messages() {
        let line = r#"{"reason":"compiler-artifact","package_id":"x","target":{"name":"cloister","kind":["bin"]},
            "filenames":["/t/cloister"],"executable":"/t/cloister","fresh":true}"#;
        let found = artifact_of(line).unwrap();
        assert_eq!(found.target.name, "cloister");
        assert_eq!(found.executable, Some(PathBuf::from("/t/cloister")));
        assert!(artifact_of(r#"{"reason":"build-finished","success":true}"#).is_none());
        assert!(artifact_of("warning: something").is_none());
    }

    #[test]
    fn an_executable_may_be_null() {
        let line =
            r#"{"reason":"compiler-artifact","target":{"name":"a"},"filenames":["/t/a.wasm"],"executable":null}"#;
        let found = artifact_of(line).unwrap();
        assert!(found.executable.is_none() && found.filenames.len() == 1);
    }
}
