//! libtorch, an optional engine: its libraries and headers out of PyTorch's wheel, and the plug-in that is compiled against them.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::optional;
use super::wheel::{self, Wheel, make_empty};
use crate::problem::{Outcome, Problem};
use crate::process::{must, say};
use crate::workspace::Workspace;

/// A folder of the libraries and the plug-in that is taken instead.
pub const FOLDER_VARIABLE: &str = "CLOISTER_LIBTORCH_DIR";

/// The version that the plug-in's binding fits.
const VERSION: &str = "2.13.0";

/// Wheels, and what is taken out of each. The package index has PyTorch for machines with a graphics processor: its CPU library links
/// two of CUDA's, which are loaded and never called.
const WHEELS: [(Wheel, &[&str]); 3] = [
    (
        Wheel {
            name: "torch",
            version: VERSION,
            platform: "manylinux_2_28_x86_64",
            sha256: "60fcdcb2f3876e21146cb4524ef06397d727ca9ad5f020818547e25075fe3cb7",
        },
        &[
            "torch/lib/libtorch_cpu.so",
            "torch/lib/libc10.so",
            "torch/lib/libgomp.so.1",
            "torch/include/",
        ],
    ),
    (
        Wheel {
            name: "nvidia-cuda-cupti",
            version: "13.0.85",
            platform: "manylinux_2_25_x86_64",
            sha256: "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
        },
        &["nvidia/cu13/lib/libcupti.so.13"],
    ),
    (
        Wheel {
            name: "nvidia-cuda-runtime",
            version: "13.0.96",
            platform: "manylinux2014_x86_64",
            sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
        },
        &["nvidia/cu13/lib/libcudart.so.13"],
    ),
];

const PLUGIN: &str = "libcloister_torch.so";
const LIBRARIES: [&str; 5] = [
    "libtorch_cpu.so",
    "libc10.so",
    "libgomp.so.1",
    "libcupti.so.13",
    "libcudart.so.13",
];

/// By which names a linker finds the libraries. Nothing of CUDA's part of PyTorch is linked.
const LINKS: [(&str, &str); 4] = [
    ("libtorch.so", "libtorch_cpu.so"),
    ("libtorch_cpu.so", "libtorch_cpu.so"),
    ("libc10.so", "libc10.so"),
    ("libgomp.so", "libgomp.so.1"),
];

/// The folder of the libraries and the plug-in, fetched and built if need be.
pub fn provide(workspace: &Workspace) -> Outcome<PathBuf> {
    let all: Vec<&str> = LIBRARIES.into_iter().chain([PLUGIN]).collect();
    if let Some(folder) = optional::named(FOLDER_VARIABLE, &all)? {
        return Ok(folder);
    }
    let folder = workspace.libtorch().join(VERSION);
    let development = workspace.libtorch().join("development");
    if !optional::complete(&folder, &LIBRARIES) || !development.join("include").is_dir() {
        fetch(workspace, &folder, &development)?;
    }
    link_names(&folder, &development.join("lib"))?;
    build_plugin(workspace, &folder, &development)?;
    Ok(folder)
}

/// The folder of the libraries and the plug-in where they are already there; nothing is fetched.
pub fn at_hand(workspace: &Workspace) -> Outcome<Option<PathBuf>> {
    let all: Vec<&str> = LIBRARIES.into_iter().chain([PLUGIN]).collect();
    if let Some(folder) = optional::named(FOLDER_VARIABLE, &all)? {
        return Ok(Some(folder));
    }
    let folder = workspace.libtorch().join(VERSION);
    Ok(optional::complete(&folder, &all).then_some(folder))
}

fn fetch(workspace: &Workspace, folder: &Path, development: &Path) -> Outcome<()> {
    let python = optional::python()?;
    say(format_args!(
        "[setup] libtorch {VERSION}: fetching PyTorch's wheel and two of CUDA's by pip (515 MiB), to take {} libraries and the \
         headers out (500 MiB); no Python of them is kept",
        LIBRARIES.len()
    ));
    let download = workspace.libtorch().join("wheel");
    make_empty(folder)?;
    make_empty(development)?;
    for (wheel, members) in WHEELS {
        let file = wheel.fetch(python, &download)?;
        let (trees, files): (Vec<String>, Vec<String>) = members
            .iter()
            .map(|member| (*member).to_owned())
            .partition(|member| member.ends_with('/'));
        wheel::unpack(python, &file, folder, &files)?;
        wheel::unpack(python, &file, development, &trees)?;
        std::fs::remove_dir_all(&download).map_err(|error| Problem::io("remove", &download, &error))?;
    }
    say(format_args!(
        "[setup] libtorch {VERSION}: unpacked into {}",
        folder.display()
    ));
    Ok(())
}

fn link_names(folder: &Path, links: &Path) -> Outcome<()> {
    make_empty(links)?;
    for (name, file) in LINKS {
        let link = links.join(name);
        symlink(folder.join(file), &link).map_err(|error| Problem::io("make", &link, &error))?;
    }
    Ok(())
}

/// A cargo in the plug-in's own workspace.
pub fn plugin_cargo(workspace: &Workspace, subcommand: &str) -> Command {
    let mut cargo = workspace.cargo();
    cargo
        .current_dir(workspace.root().join("host/engine-libtorch/plugin"))
        .args([subcommand, "--release", "--locked", "--target-dir"])
        .arg(workspace.libtorch().join("plugin"))
        .env("LIBTORCH", workspace.libtorch().join("development"))
        .env_remove("LIBTORCH_USE_PYTORCH");
    cargo
}

fn build_plugin(workspace: &Workspace, folder: &Path, development: &Path) -> Outcome<()> {
    let next = "read the compiler's message above; it needs a C++ compiler (Debian: apt-get install g++)";
    say(format_args!(
        "[setup] libtorch: building the plug-in against {} (some minutes the first time)",
        development.display()
    ));
    must(&mut plugin_cargo(workspace, "build"), next)?;
    let built = workspace.libtorch().join("plugin/release").join(PLUGIN);
    let place = folder.join(PLUGIN);
    std::fs::copy(&built, &place).map_err(|error| Problem::io("copy", &built, &error))?;
    Ok(())
}
