//! Where things are: the workspace, its target folder, and the folders that the set-up fills.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cargo::{self, Metadata};
use crate::problem::Outcome;

/// Variables that `cargo run` sets for this process and that a nested cargo must not see:
/// build scripts that watch them would run again each time.
const NESTED: [&str; 4] = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"];

/// The workspace and its folders.
#[derive(Debug)]
pub struct Workspace {
    root: PathBuf,
    target: PathBuf,
    cargo: PathBuf,
}

impl Workspace {
    /// Finds the workspace of this program, and the target folder that cargo uses for it
    /// (`CARGO_TARGET_DIR` and `build.target-dir` are honoured).
    pub fn locate() -> Outcome<Self> {
        let cargo = std::env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from);
        let package = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let mut command = Command::new(&cargo);
        command.current_dir(&package);
        let metadata = cargo::metadata(command)?;
        Ok(Self {
            root: metadata.workspace_root,
            target: metadata.target_directory,
            cargo,
        })
    }

    /// The root of the workspace.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The workspace of the guest modules.
    pub fn guest_workspace(&self) -> PathBuf {
        self.root.join("guest-modules")
    }

    /// The built guests: `NAME.wasm` each.
    pub fn guests(&self) -> PathBuf {
        self.target.join("guests")
    }

    /// The target folder of the guests' own builds.
    pub fn guest_target(&self) -> PathBuf {
        self.target.join("guest-build")
    }

    /// The unpacked OpenVINO runtime.
    pub fn openvino(&self) -> PathBuf {
        self.target.join("openvino")
    }

    /// The unpacked ONNX Runtime, an optional engine.
    pub fn onnxruntime(&self) -> PathBuf {
        self.target.join("onnxruntime")
    }

    /// The unpacked libtorch, an optional engine, with what its plug-in is built from.
    pub fn libtorch(&self) -> PathBuf {
        self.target.join("libtorch")
    }

    /// Where cargo builds.
    pub fn builds(&self) -> &Path {
        &self.target
    }

    /// Builds, corpus and findings of the fuzz targets.
    pub fn fuzz(&self) -> PathBuf {
        self.target.join("fuzz")
    }

    /// The unpacked guest toolchain, where rustup has none.
    pub fn toolchain(&self) -> PathBuf {
        self.target.join("toolchain")
    }

    /// What a run of the demo or of an example leaves behind.
    pub fn output(&self, name: &str) -> PathBuf {
        self.target.join("runs").join(name)
    }

    /// The cargo that started this program, in the root of the workspace.
    pub fn cargo(&self) -> Command {
        let mut command = Command::new(&self.cargo);
        command.current_dir(&self.root);
        for (name, _) in std::env::vars_os() {
            if NESTED.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
                command.env_remove(name);
            }
        }
        command
    }

    /// What cargo knows about the members of the workspace.
    pub fn metadata(&self) -> Outcome<Metadata> {
        cargo::metadata(self.cargo())
    }
}
