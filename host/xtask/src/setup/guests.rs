//! The guest modules: built from source, each as one component `NAME.wasm`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::cargo;
use crate::problem::{Outcome, Problem};
use crate::process::{say, shown};
use crate::workspace::Workspace;

use super::toolchain::Toolchain;

const NEXT: &str =
    "read the compiler's message above; `cargo xtask clean` removes what an interrupted set-up may have left";

/// Builds every module of the guests' workspace and puts `NAME.wasm` (the package's name) into one folder.
pub fn build(workspace: &Workspace, toolchain: &Toolchain) -> Outcome<PathBuf> {
    say("[setup] building the guest modules");
    let mut command = toolchain.cargo(workspace, "build");
    command.args(["--release", "--locked", "--workspace"]);
    let mut modules: Vec<(String, PathBuf)> = Vec::new();
    let status = cargo::build(&mut command, NEXT, |artifact| {
        for file in artifact.filenames {
            if file.extension().is_some_and(|end| end == "wasm") {
                modules.push((artifact.target.name.replace('_', "-"), file));
            }
        }
    })?;
    if !status.success() {
        return Err(Problem::new(
            format!("the guests did not build (`{}` ended with {status})", shown(&command)),
            NEXT,
        ));
    }
    if modules.is_empty() {
        return Err(Problem::new(
            "the guests' build made no module",
            "look into guest-modules/Cargo.toml: its members are cdylibs",
        ));
    }
    collect(workspace, &modules)
}

/// Copies the modules into one folder and removes those that no longer exist in source.
fn collect(workspace: &Workspace, modules: &[(String, PathBuf)]) -> Outcome<PathBuf> {
    let folder = workspace.guests();
    std::fs::create_dir_all(&folder).map_err(|error| Problem::io("make", &folder, &error))?;
    let mut names = BTreeSet::new();
    for (name, file) in modules {
        let target = folder.join(format!("{name}.wasm"));
        // A node may have the older file open: the new one takes its place at once.
        let fresh = folder.join(format!("{name}.wasm.new"));
        std::fs::copy(file, &fresh).map_err(|error| Problem::io("copy to", &fresh, &error))?;
        std::fs::rename(&fresh, &target).map_err(|error| Problem::io("write", &target, &error))?;
        names.insert(format!("{name}.wasm"));
    }
    for entry in std::fs::read_dir(&folder)
        .map_err(|error| Problem::io("read", &folder, &error))?
        .flatten()
    {
        if !names.contains(entry.file_name().to_string_lossy().as_ref()) {
            std::fs::remove_file(entry.path()).map_err(|error| Problem::io("remove", &entry.path(), &error))?;
        }
    }
    say(format_args!(
        "[setup] {} guest modules in {}",
        names.len(),
        folder.display()
    ));
    Ok(folder)
}
