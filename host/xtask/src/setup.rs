//! Set-up: each step is skipped when its result is there, says what it does, and fails with what to do next.

mod debian;
pub mod guests;
pub mod host;
pub mod libtorch;
pub mod onnxruntime;
pub mod openvino;
mod optional;
pub mod toolchain;
pub mod torch;
mod wheel;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use crate::problem::Outcome;
use crate::process::say;
use crate::workspace::Workspace;

/// Fetch the guest toolchain and OpenVINO, build the guests and the `cloister` binary.
#[derive(clap::Args, Debug)]
pub struct SetupArgs {
    /// Build the binary with the release profile.
    #[arg(long)]
    release: bool,
}

/// What the set-up leaves for the programs that run after it.
#[derive(Debug)]
pub struct Prepared {
    /// The `cloister` binary.
    pub cloister: PathBuf,
    /// The folder of the built guests.
    pub guests: PathBuf,
    /// The folder of the OpenVINO libraries; none where only tract can serve.
    pub openvino: Option<PathBuf>,
}

impl Prepared {
    /// Gives a program the paths by environment, as tests and benches read them.
    pub fn apply(&self, command: &mut Command) {
        command
            .env("CLOISTER_BIN", &self.cloister)
            .env("CLOISTER_GUESTS_DIR", &self.guests);
        match &self.openvino {
            Some(folder) => command.env(openvino::FOLDER_VARIABLE, folder),
            None => command.env_remove(openvino::FOLDER_VARIABLE),
        };
    }
}

/// Runs all steps.
pub fn prepare(workspace: &Workspace, profile: host::Profile) -> Outcome<Prepared> {
    let toolchain = toolchain::provide(workspace)?;
    let openvino = openvino::provide(workspace)?;
    let guests = guests::build(workspace, &toolchain)?;
    let cloister = host::build(workspace, profile)?;
    Ok(Prepared {
        cloister,
        guests,
        openvino,
    })
}

/// `cargo xtask setup`.
pub fn run(workspace: &Workspace, args: &SetupArgs) -> Outcome<ExitCode> {
    let prepared = prepare(
        workspace,
        if args.release {
            host::Profile::Release
        } else {
            host::Profile::Dev
        },
    )?;
    say(format_args!("[setup] binary    {}", prepared.cloister.display()));
    say(format_args!("[setup] guests    {}", prepared.guests.display()));
    match &prepared.openvino {
        Some(folder) => say(format_args!("[setup] OpenVINO  {}", folder.display())),
        None => say("[setup] OpenVINO  none: tract serves"),
    }
    Ok(ExitCode::SUCCESS)
}
