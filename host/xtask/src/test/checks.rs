//! Checks that run no test: formatting, lints, licences.

use crate::problem::{Outcome, Problem};
use crate::process::{must, works};
use crate::setup::toolchain::Toolchain;
use crate::workspace::Workspace;

use super::backends::left_out;
use super::stages::Checked;

/// Formatting of host, guests and fuzz targets.
pub fn format(workspace: &Workspace) -> Outcome<()> {
    must(
        workspace.cargo().args(["fmt", "--all", "--check"]),
        "run `cargo fmt --all`",
    )?;
    for folder in
        ["guest-modules", "tests/fuzz", "host/engine-libtorch/plugin"].map(|folder| workspace.root().join(folder))
    {
        let mut command = workspace.cargo();
        command.current_dir(&folder).args(["fmt", "--all", "--check"]);
        must(&mut command, &format!("run `cargo fmt --all` in {}", folder.display()))?;
    }
    Ok(())
}

/// Clippy over the host's crates with all targets; a warning is an error.
pub fn lints(workspace: &Workspace) -> Outcome<()> {
    let mut command = workspace.cargo();
    command.args(["clippy", "--workspace", "--all-targets", "--quiet"]);
    left_out(&mut command).args(["--", "--deny", "warnings"]);
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

/// The fuzz targets compile: what they call changes with the host, and nothing else would notice. Without instrumentation, in the
/// host's own folder of builds, so that what is the same there is compiled once.
pub fn fuzz_targets(workspace: &Workspace) -> Outcome<Checked> {
    if !works(std::process::Command::new("c++").arg("--version")) {
        return Ok(Checked::Skipped(
            "there is no C++ compiler, which libFuzzer needs".into(),
        ));
    }
    let folder = workspace.root().join("tests/fuzz");
    let mut fetch = workspace.cargo();
    fetch.current_dir(&folder).args(["fetch", "--locked", "--quiet"]);
    let fetched = fetch
        .output()
        .map_err(|error| Problem::io("run cargo in", &folder, &error))?;
    if !fetched.status.success() {
        let words = String::from_utf8_lossy(&fetched.stderr).into_owned();
        if words.contains("--locked") {
            let next = format!(
                "run `cargo metadata --format-version 1` in {}, and keep what it writes",
                folder.display()
            );
            return Err(Problem::new("the lock file of the fuzz targets is out of date", next));
        }
        let last = words.lines().last().unwrap_or_default();
        return Ok(Checked::Skipped(format!("their dependencies can't be had: {last}")));
    }
    let mut command = workspace.cargo();
    command
        .current_dir(&folder)
        .args(["check", "--locked", "--bins", "--quiet", "--target-dir"])
        .arg(workspace.builds());
    must(&mut command, "correct the targets in tests/fuzz").map(Into::into)
}

/// cargo-deny's checks that need no network, over host and guests.
pub fn licences(workspace: &Workspace) -> Outcome<Checked> {
    licences_of(workspace, &["Cargo.toml", "guest-modules/Cargo.toml"])
}

/// The same for these manifests.
pub fn licences_of(workspace: &Workspace, manifests: &[&str]) -> Outcome<Checked> {
    if !works(workspace.cargo().args(["deny", "--version"])) {
        return Ok(Checked::Skipped(
            "cargo-deny is not installed (`cargo install --locked cargo-deny`)".into(),
        ));
    }
    for manifest in manifests {
        let manifest = workspace.root().join(manifest);
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
