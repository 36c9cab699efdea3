//! The OpenVINO runtime: one wheel, pinned by version, build and digest, whatever Python the machine has.
//!
//! Only the native libraries are taken out of the wheel; no Python takes part in training.

use std::path::{Path, PathBuf};

use super::wheel::{self, Fetch, Wheel, make_empty, python};
use crate::problem::{Outcome, Problem};
use crate::process::say;
use crate::workspace::Workspace;

/// A folder of libraries that is taken instead of the pinned wheel.
pub const FOLDER_VARIABLE: &str = "CLOISTER_OPENVINO_DIR";

const VERSION: &str = "2026.4.1";
const BUILD: &str = "22982";
const WHEEL: Wheel = Wheel {
    name: "openvino",
    version: VERSION,
    platform: "manylinux_2_28_x86_64",
    sha256: "2d22b1da03f7caf74df30e9f6417d0ab2f637e4a38e08e1dcd294d2c37407aaf",
};

/// What the engine needs of the wheel: the library, its C face, the CPU plugin, the format that graphs come in, and the
/// thread pool that all of them link. Each finds the others by its run path, `$ORIGIN`. Another format's library would be
/// loaded, too, if it lay there.
const LIBRARIES: [&str; 5] = [
    "libopenvino.so.2641",
    "libopenvino_c.so.2641",
    "libopenvino_intel_cpu_plugin.so",
    "libopenvino_onnx_frontend.so.2641",
    "libtbb.so.12",
];

/// The folder of the libraries, fetched if need be; none where OpenVINO cannot be had and tract serves.
pub fn provide(workspace: &Workspace) -> Outcome<Option<PathBuf>> {
    if let Some(folder) = std::env::var_os(FOLDER_VARIABLE).filter(|value| !value.is_empty()) {
        return named(PathBuf::from(folder)).map(Some);
    }
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        say("[setup] OpenVINO: the pinned wheel is for Linux on x86-64; tract serves here");
        return Ok(None);
    }
    let folder = workspace.openvino().join(format!("{VERSION}-{BUILD}"));
    if complete(&folder) {
        remove_others(&folder)?;
        return Ok(Some(folder));
    }
    let Some(python) = python() else {
        say("[setup] OpenVINO: no python3 with pip on this machine, so tract serves; training is some times slower");
        say("        to have OpenVINO: install pip (Debian: apt-get install python3-pip), or name a folder that holds");
        say(format_args!("        {} by {FOLDER_VARIABLE}", LIBRARIES[1]));
        return Ok(None);
    };
    fetch(workspace, python, &folder)
}

/// A folder that the user named: it must hold the C library.
fn named(folder: PathBuf) -> Outcome<PathBuf> {
    let folder = std::path::absolute(&folder).map_err(|error| Problem::io("find", &folder, &error))?;
    let entries = std::fs::read_dir(&folder).map_err(|error| {
        Problem::new(
            format!("{FOLDER_VARIABLE} names {}, which cannot be read: {error}", folder.display()),
            format!("name the folder that holds libopenvino_c.so, or unset {FOLDER_VARIABLE} to have the pinned wheel fetched"),
        )
    })?;
    let there = entries
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().starts_with("libopenvino_c.so"));
    if !there {
        return Err(Problem::new(
            format!(
                "{FOLDER_VARIABLE} names {}, but no libopenvino_c.so is there",
                folder.display()
            ),
            format!("name the folder that holds the libraries, or unset {FOLDER_VARIABLE}"),
        ));
    }
    say(format_args!(
        "[setup] OpenVINO: taking {} as {FOLDER_VARIABLE} says",
        folder.display()
    ));
    Ok(folder)
}

fn complete(folder: &Path) -> bool {
    LIBRARIES.iter().all(|name| folder.join(name).is_file())
}

/// Takes out what an older set-up left: the host measures, and OpenVINO may load, whatever lies there.
fn remove_others(folder: &Path) -> Outcome<()> {
    let entries = std::fs::read_dir(folder).map_err(|error| Problem::io("read", folder, &error))?;
    for entry in entries.flatten() {
        if !LIBRARIES.iter().any(|name| entry.file_name() == *name) {
            let path = entry.path();
            std::fs::remove_file(&path).map_err(|error| Problem::io("remove", &path, &error))?;
        }
    }
    Ok(())
}

fn fetch(workspace: &Workspace, python: &str, folder: &Path) -> Outcome<Option<PathBuf>> {
    let download = workspace.openvino().join("wheel");
    say(format_args!(
        "[setup] OpenVINO {VERSION}: fetching its wheel by pip (56 MiB), to take {} libraries out",
        LIBRARIES.len()
    ));
    let wheel = match WHEEL.fetch(python, &download) {
        Ok(wheel) => wheel,
        Err(Fetch::Unreachable(problem)) => {
            say(format_args!("[setup] OpenVINO: {problem}"));
            say("[setup] OpenVINO cannot be had now, so tract serves; the next set-up tries again");
            return Ok(None);
        }
        Err(Fetch::Wrong(problem)) => return Err(problem),
    };
    let fresh = workspace.openvino().join("unpacking");
    make_empty(&fresh)?;
    let members = LIBRARIES.map(|name| format!("openvino/libs/{name}"));
    wheel::unpack(python, &wheel, &fresh, &members)?;
    std::fs::rename(&fresh, folder).map_err(|error| Problem::io("make", folder, &error))?;
    std::fs::remove_dir_all(&download).map_err(|error| Problem::io("remove", &download, &error))?;
    say(format_args!(
        "[setup] OpenVINO {VERSION}: unpacked into {}",
        folder.display()
    ));
    Ok(Some(folder.to_path_buf()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_folder_without_the_library_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = named(folder.path().to_path_buf()).unwrap_err().to_string();
        assert!(error.contains("no libopenvino_c.so is there"), "{error}");
        std::fs::write(folder.path().join("libopenvino_c.so.2641"), "").unwrap();
        assert_eq!(named(folder.path().to_path_buf()).unwrap(), folder.path());
    }

    #[test]
    fn a_folder_is_complete_with_all_libraries_only() {
        let folder = tempfile::tempdir().unwrap();
        for name in LIBRARIES {
            assert!(!complete(folder.path()));
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        assert!(complete(folder.path()));
        std::fs::write(folder.path().join("libopenvino_other_frontend.so"), b"").unwrap();
        remove_others(folder.path()).unwrap();
        assert!(complete(folder.path()));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), LIBRARIES.len());
    }
}
