//! `cargo xtask test --backends`: the optional engines, set up, built and held to what every engine must do.

use std::process::{Command, ExitCode};

use crate::problem::Outcome;
use crate::process::{must, say};
use crate::setup;
use crate::workspace::Workspace;

use super::TestArgs;
use super::checks::licences_of;
use super::run::counted;
use super::stages::Checked;

/// The crates of the optional engines, which no other stage compiles.
pub const CRATES: [&str; 2] = ["cloister-engine-onnxruntime", "cloister-engine-libtorch"];
/// What has them by its features.
const FEATURES: &str = "cloister-runner/onnxruntime,cloister-runner/libtorch";

/// Leaves the optional engines out of a command over the whole workspace.
pub fn left_out(command: &mut Command) -> &mut Command {
    for name in CRATES {
        command.args(["--exclude", name]);
    }
    command
}

/// Sets up, lints, and runs the tests.
pub fn run(workspace: &Workspace, args: &TestArgs) -> Outcome<ExitCode> {
    let openvino = setup::openvino::provide(workspace)?;
    let onnxruntime = setup::onnxruntime::provide(workspace)?;
    let libtorch = setup::libtorch::provide(workspace)?;

    say("\n== lints of the optional engines");
    let next = "correct what clippy names above";
    let mut lints = workspace.cargo();
    lints.args([
        "clippy",
        "--all-targets",
        "--quiet",
        "-p",
        CRATES[0],
        "-p",
        CRATES[1],
        "-p",
        "cloister",
    ]);
    lints.args([
        "--features",
        "cloister/onnxruntime,cloister/libtorch",
        "--",
        "--deny",
        "warnings",
    ]);
    must(&mut lints, next)?;
    let mut lints = setup::libtorch::plugin_cargo(workspace, "clippy");
    must(lints.args(["--quiet", "--", "--deny", "warnings"]), next)?;

    if let Checked::Skipped(why) = licences_of(workspace, &["host/engine-libtorch/plugin/Cargo.toml"])? {
        say(format_args!("licences of the plug-in are not checked: {why}"));
    }

    say("\n== tests of the optional engines");
    // One process a test where nextest is there: each loads its library anew, as a runner does.
    let (mut command, stream) = super::run::runner(workspace, args);
    for name in CRATES {
        command.args(["-p", name]);
    }
    command.args(["-p", "cloister-runner", "--features", FEATURES]);
    super::run::finish(&mut command, args);
    command
        .env(setup::onnxruntime::FOLDER_VARIABLE, &onnxruntime)
        .env(setup::libtorch::FOLDER_VARIABLE, &libtorch);
    if let Some(openvino) = &openvino {
        command.env(setup::openvino::FOLDER_VARIABLE, openvino);
    }
    let (counts, passed) = counted(command, stream)?;
    say(format_args!("\nONNX Runtime  {}", onnxruntime.display()));
    say(format_args!("libtorch      {}", libtorch.display()));
    match &openvino {
        Some(folder) => say(format_args!("compared with tract and OpenVINO in {}", folder.display())),
        None => say("compared with tract"),
    }
    say(counts);
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
