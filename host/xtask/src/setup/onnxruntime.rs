//! ONNX Runtime, an optional engine: one library out of its wheel.

use std::path::PathBuf;

use super::optional;
use super::wheel::{self, Wheel, make_empty};
use crate::problem::{Outcome, Problem};
use crate::process::say;
use crate::workspace::Workspace;

/// A folder of the library that is taken instead of the pinned wheel.
pub const FOLDER_VARIABLE: &str = "CLOISTER_ONNXRUNTIME_DIR";

const WHEEL: Wheel = Wheel {
    name: "onnxruntime",
    version: "1.31.1",
    platform: "manylinux_2_28_x86_64",
    sha256: "5752bd508126ae7c49894d3b9d2e83f0c3d487319246d04c444b393308d7ad7f",
};

const LIBRARIES: [&str; 1] = ["libonnxruntime.so.1.31.1"];

/// The folder of the library, fetched if need be.
pub fn provide(workspace: &Workspace) -> Outcome<PathBuf> {
    if let Some(folder) = optional::named(FOLDER_VARIABLE, &LIBRARIES)? {
        return Ok(folder);
    }
    let folder = workspace.onnxruntime().join(WHEEL.version);
    if optional::complete(&folder, &LIBRARIES) {
        return Ok(folder);
    }
    let python = optional::python()?;
    say(format_args!(
        "[setup] ONNX Runtime {}: fetching its wheel by pip (23 MiB), to take one library out",
        WHEEL.version
    ));
    let download = workspace.onnxruntime().join("wheel");
    let wheel = WHEEL.fetch(python, &download)?;
    make_empty(&folder)?;
    let members = LIBRARIES.map(|name| format!("onnxruntime/capi/{name}"));
    wheel::unpack(python, &wheel, &folder, &members)?;
    std::fs::remove_dir_all(&download).map_err(|error| Problem::io("remove", &download, &error))?;
    say(format_args!(
        "[setup] ONNX Runtime {}: unpacked into {}",
        WHEEL.version,
        folder.display()
    ));
    Ok(folder)
}
