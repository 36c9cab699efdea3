//! Native libraries out of Python's wheels, each pinned by version and digest, whatever Python the machine has.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::problem::{Outcome, Problem};
use crate::process::{must, works};

/// A file of the package index.
#[derive(Debug)]
pub struct Wheel {
    /// The package.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// The platform in the file's name.
    pub platform: &'static str,
    /// The digest of the file.
    pub sha256: &'static str,
}

/// Unpacks members of a wheel: arguments are the wheel, the folder, and the members' paths. A file goes into the folder by its last
/// name; of a path that ends in a slash, everything below it, with its folders, into one of the path's last name.
const UNPACK: &str = "\
import os, shutil, sys, zipfile
wheel, folder, members = sys.argv[1], sys.argv[2], sys.argv[3:]
with zipfile.ZipFile(wheel) as archive:
    names = archive.namelist()
    for member in members:
        if member.endswith('/'):
            below = os.path.dirname(member.rstrip('/'))
            taken = [(name, os.path.relpath(name, below)) for name in names if name.startswith(member) and not name.endswith('/')]
        else:
            taken = [(member, os.path.basename(member))]
        for name, to in taken:
            path = os.path.join(folder, to)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with archive.open(name) as source, open(path, 'wb') as target:
                shutil.copyfileobj(source, target, 1 << 20)
";

/// A Python that has pip.
pub fn python() -> Option<&'static str> {
    ["python3", "python"]
        .into_iter()
        .find(|name| works(Command::new(name).args(["-m", "pip", "--version"])))
}

impl Wheel {
    /// Downloads the file into an empty folder and compares its digest.
    ///
    /// # Errors
    /// Pip fails ([`Fetch::Unreachable`]), or what came is another file.
    pub fn fetch(&self, python: &str, download: &Path) -> Result<PathBuf, Fetch> {
        make_empty(download)?;
        let mut pip = Command::new(python);
        pip.args([
            "-m",
            "pip",
            "download",
            "--disable-pip-version-check",
            "--progress-bar",
            "off",
            "--no-deps",
        ])
        .args([
            "--only-binary=:all:",
            "--python-version",
            "3.11",
            "--implementation",
            "cp",
            "--abi",
            "cp311",
        ])
        .args(["--platform", self.platform, "--dest"])
        .arg(download)
        .arg(format!("{}=={}", self.name, self.version));
        must(&mut pip, "check the network and pip's index settings").map_err(Fetch::Unreachable)?;
        let wheel = only_wheel(download)?;
        let digest = sha256(&wheel)?;
        if digest != self.sha256 {
            return Err(Fetch::Wrong(Problem::new(
                format!(
                    "{} has the SHA-256 {digest}, wanted {} ({} {})",
                    wheel.display(),
                    self.sha256,
                    self.name,
                    self.version
                ),
                "the index or the way to it serves another file: fetch it over another network, or name a folder of libraries \
                 that you trust by the environment variable that `cargo xtask --help` names",
            )));
        }
        Ok(wheel)
    }
}

/// Why a wheel is not there.
#[derive(Debug)]
pub enum Fetch {
    /// Pip could not get it.
    Unreachable(Problem),
    /// Something else than that.
    Wrong(Problem),
}

impl From<Problem> for Fetch {
    fn from(problem: Problem) -> Self {
        Self::Wrong(problem)
    }
}

impl From<Fetch> for Problem {
    fn from(fetch: Fetch) -> Self {
        match fetch {
            Fetch::Unreachable(problem) | Fetch::Wrong(problem) => problem,
        }
    }
}

/// Unpacks members of a wheel into a folder that is there.
pub fn unpack(python: &str, wheel: &Path, folder: &Path, members: &[String]) -> Outcome<()> {
    must(
        Command::new(python)
            .args(["-c", UNPACK])
            .arg(wheel)
            .arg(folder)
            .args(members),
        "check that the disk has 1 GiB to spare, then run it again",
    )
}

fn only_wheel(folder: &Path) -> Outcome<PathBuf> {
    let entries = std::fs::read_dir(folder).map_err(|error| Problem::io("read", folder, &error))?;
    let mut wheels = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "whl"));
    wheels.next().ok_or_else(|| {
        Problem::new(
            format!("pip left no wheel in {}", folder.display()),
            "run the same `pip download` by hand and read what it says",
        )
    })
}

/// Makes an empty folder, removing what an interrupted run left.
pub fn make_empty(folder: &Path) -> Outcome<()> {
    if folder.exists() {
        std::fs::remove_dir_all(folder).map_err(|error| Problem::io("remove", folder, &error))?;
    }
    std::fs::create_dir_all(folder).map_err(|error| Problem::io("make", folder, &error))
}

/// The SHA-256 of a file, in lower-case hexadecimal.
fn sha256(path: &Path) -> Outcome<String> {
    let mut file = File::open(path).map_err(|error| Problem::io("open", path, &error))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file
            .read(&mut buffer)
            .map_err(|error| Problem::io("read", path, &error))?;
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_hexadecimal() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        assert_eq!(
            sha256(&path).unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn a_folder_is_emptied() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("a/b");
        make_empty(&inner).unwrap();
        std::fs::write(inner.join("left"), "x").unwrap();
        make_empty(&inner).unwrap();
        assert_eq!(std::fs::read_dir(&inner).unwrap().count(), 0);
    }
}
