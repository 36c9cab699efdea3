//! `cargo xtask clean`.

use std::process::ExitCode;

use crate::problem::{Outcome, Problem};
use crate::process::{must, say};
use crate::workspace::Workspace;

/// Remove what the set-up fetched and built: guests, OpenVINO and the optional engines, the guest toolchain, and the runs' folders.
#[derive(clap::Args, Debug)]
pub struct CleanArgs {
    /// Everything that cargo built as well.
    #[arg(long)]
    all: bool,
}

/// Removes the folders.
pub fn run(workspace: &Workspace, args: &CleanArgs) -> Outcome<ExitCode> {
    let runs = workspace.output("");
    for folder in [
        workspace.guests(),
        workspace.guest_target(),
        workspace.openvino(),
        workspace.onnxruntime(),
        workspace.libtorch(),
        workspace.toolchain(),
        runs,
    ] {
        if folder.exists() {
            std::fs::remove_dir_all(&folder).map_err(|error| Problem::io("remove", &folder, &error))?;
            say(format_args!("removed {}", folder.display()));
        }
    }
    if args.all {
        must(workspace.cargo().arg("clean"), "remove the target folder by hand")?;
    }
    Ok(ExitCode::SUCCESS)
}
