//! Checks that run no test: formatting, lints, licences.

use crate::problem::{Outcome, Problem};
use crate::process::{must, works};
use crate::setup::toolchain::Toolchain;
use crate::workspace::Workspace;

use super::stages::Checked;

/// Formatting of host, guests and fuzz targets.
pub fn format(workspace: &Workspace) -> Outcome<()> {
    must(
        workspace.cargo().args(["fmt", "--all", "--check"]),
        "run `cargo fmt --all`",
    )?;
    for folder in [workspace.guest_workspace(), workspace.root().join("tests/fuzz")] {
        let mut command = workspace.cargo();
        command.current_dir(&folder).args(["fmt", "--all", "--check"]);
        must(&mut command, &format!("run `cargo fmt --all` in {}", folder.display()))?;
    }
    Ok(())
}

/// Clippy over the host's crates with all targets; a warning is an error.
pub fn lints(workspace: &Workspace) -> Outcome<()> {
    let mut command = workspace.cargo();
    command.args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "--deny",
        "warnings",
    ]);
    must(&mut command, "correct what clippy names above")
}

/// Clippy over the guests, for the target that they run on.
pub fn guest_lints(workspace: &Workspace, toolchain: &Toolchain) -> Outcome<Checked> {
    if !toolchain.has_clippy() {
        return Ok(Checked::Skipped(
            "Debian's compiler for WebAssembly brings no clippy".into(),
        ));
    }
    let mut command = toolchain.cargo(workspace, "clippy");
    command.args(["--release", "--workspace", "--quiet", "--", "--deny", "warnings"]);
    must(&mut command, "correct what clippy names above").map(Into::into)
}

/// cargo-deny's checks that need no network.
pub fn licences(workspace: &Workspace) -> Outcome<Checked> {
    if !works(workspace.cargo().args(["deny", "--version"])) {
        return Ok(Checked::Skipped(
            "cargo-deny is not installed (`cargo install --locked cargo-deny`)".into(),
        ));
    }
    for manifest in [
        workspace.root().join("Cargo.toml"),
        workspace.guest_workspace().join("Cargo.toml"),
    ] {
        if !manifest.is_file() {
            return Err(Problem::new(
                format!("{} is missing", manifest.display()),
                "restore it from version control",
            ));
        }
        let mut command = workspace.cargo();
        // It takes deny.toml from where it stands: the option that would name it moved between its versions.
        command
            .current_dir(workspace.root())
            .args(["deny", "--offline", "--all-features", "--manifest-path"])
            .arg(&manifest)
            .args(["check", "licenses", "bans", "sources"]);
        must(
            &mut command,
            "see deny.toml: replace the crate, or allow it there with the reason",
        )?;
    }
    Ok(Checked::Passed)
}
