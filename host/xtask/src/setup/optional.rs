//! What the set-ups of optional engines share: nothing stands in for them, so what is missing is an error.

use std::path::{Path, PathBuf};

use super::wheel;
use crate::problem::{Outcome, Problem};
use crate::process::say;

/// The folder that a variable names, which must hold these files; none where it is not set.
pub fn named(variable: &str, files: &[&str]) -> Outcome<Option<PathBuf>> {
    let Some(folder) = std::env::var_os(variable).filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let folder = std::path::absolute(&folder).map_err(|error| Problem::io("find", Path::new(&folder), &error))?;
    match files.iter().find(|name| !folder.join(name).is_file()) {
        None => {
            say(format_args!("[setup] taking {} as {variable} says", folder.display()));
            Ok(Some(folder))
        }
        Some(missing) => Err(Problem::new(
            format!("{variable} names {}, but no {missing} is there", folder.display()),
            format!("name the folder that holds the libraries, or unset {variable} to have pinned ones fetched"),
        )),
    }
}

/// Whether a folder holds all of these files.
pub fn complete(folder: &Path, files: &[&str]) -> bool {
    files.iter().all(|name| folder.join(name).is_file())
}

/// A Python that has pip, on a machine that the pinned wheels are for.
pub fn python() -> Outcome<&'static str> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Err(Problem::new(
            "the pinned wheels of the optional engines are for Linux on x86-64",
            "run this on such a machine; everything else of the tests runs without them",
        ));
    }
    wheel::python().ok_or_else(|| {
        Problem::new(
            "no python3 with pip on this machine, which fetches the optional engines' libraries",
            "install pip (Debian: apt-get install python3-pip)",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_complete_with_all_files_only() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!complete(folder.path(), &["a", "b"]));
        std::fs::write(folder.path().join("a"), "").unwrap();
        assert!(!complete(folder.path(), &["a", "b"]));
        std::fs::write(folder.path().join("b"), "").unwrap();
        assert!(complete(folder.path(), &["a", "b"]));
    }
}
