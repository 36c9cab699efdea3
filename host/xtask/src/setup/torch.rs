//! PyTorch, for the benches alone: a virtual environment of its own below the target folder. Nothing that trains depends on it.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::problem::{Outcome, Problem};
use crate::process::{must, output, say, works};
use crate::workspace::Workspace;

/// A virtual environment with PyTorch that is taken instead.
const ENVIRONMENT_VARIABLE: &str = "CLOISTER_TORCH_VENV";
/// Where a bench reads which Python has PyTorch.
pub const PYTHON_VARIABLE: &str = "CLOISTER_TORCH_PYTHON";

const PACKAGE: &str = "torch==2.15.0";
/// PyPI's package for x86-64 is the one for CUDA; with all that it asks for it unpacks to 5 GB, and is downloaded first.
const ROOM_BYTES: u64 = 9 << 30;

/// The Python that has PyTorch, set up if need be.
pub fn provide(workspace: &Workspace) -> Outcome<PathBuf> {
    if let Some(folder) = std::env::var_os(ENVIRONMENT_VARIABLE).filter(|value| !value.is_empty()) {
        let python = PathBuf::from(folder).join("bin/python");
        if has_torch(&python) {
            return Ok(python);
        }
        return Err(Problem::new(
            format!("{ENVIRONMENT_VARIABLE}: {} cannot import torch", python.display()),
            format!("name a virtual environment with {PACKAGE}, or unset {ENVIRONMENT_VARIABLE} to have one set up"),
        ));
    }
    let folder = workspace.builds().join("torch-venv");
    let python = folder.join("bin/python");
    if has_torch(&python) {
        return Ok(python);
    }
    if let Some(room) = room_bytes(workspace.builds())?
        && room < ROOM_BYTES
    {
        return Err(Problem::new(
            format!(
                "PyTorch takes {} GB below {} while it is set up, and {} GB are free",
                ROOM_BYTES >> 30,
                workspace.builds().display(),
                room >> 30
            ),
            format!("make room, or name a virtual environment that has {PACKAGE} by {ENVIRONMENT_VARIABLE}"),
        ));
    }
    say(format_args!(
        "[setup] PyTorch: {PACKAGE} from PyPI with all it depends on, 5 GB, into {}; for this bench alone",
        folder.display()
    ));
    must(
        Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder),
        "install Python's venv (Debian: apt-get install python3-venv)",
    )?;
    must(
        Command::new(&python).args([
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--no-cache-dir",
            PACKAGE,
        ]),
        "check the network and that PyPI can be reached",
    )?;
    if has_torch(&python) {
        Ok(python)
    } else {
        Err(Problem::new(
            format!("{} cannot import torch although it was installed", python.display()),
            format!("run `{} -c 'import torch'` and read what it says", python.display()),
        ))
    }
}

fn has_torch(python: &Path) -> bool {
    python.is_file() && works(Command::new(python).args(["-c", "import torch"]))
}

/// Free bytes of the disk that holds a folder; none where `df` cannot say.
fn room_bytes(folder: &Path) -> Outcome<Option<u64>> {
    let mut command = Command::new("df");
    command.args(["--output=avail", "-B1"]).arg(folder);
    let answer = output(&mut command, "install coreutils")?;
    let text = String::from_utf8_lossy(&answer.stdout);
    Ok(text.lines().nth(1).and_then(|line| line.trim().parse().ok()))
}
