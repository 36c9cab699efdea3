//! Shared set-up of the tests: the built binary, run as a person at a terminal would.
//!
//! `cargo xtask test` builds the binary and the guests and names both by `CLOISTER_BIN` and `CLOISTER_GUESTS_DIR`.

pub mod federation;
pub mod processes;

use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// What a run of the binary left.
#[derive(Clone, Debug)]
pub struct Run {
    /// The exit code; -1 when a signal ended it.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Run {
    /// The last JSON object of stdout: the whole of it, or what follows the last line that is a lone `{`.
    pub fn json(&self) -> serde_json::Result<serde_json::Value> {
        let start = self.stdout.rfind("\n{\n").map_or(0, |at| at + 1);
        serde_json::from_str(&self.stdout[start..])
    }
}

/// The built binary.
pub fn binary() -> PathBuf {
    if let Some(named) = std::env::var_os("CLOISTER_BIN") {
        return PathBuf::from(named);
    }
    // `target/PROFILE/deps/TEST-HASH`: the binary stands one folder higher.
    let own = std::env::current_exe().unwrap_or_default();
    own.ancestors()
        .nth(2)
        .map(|folder| folder.join("cloister"))
        .unwrap_or_default()
}

/// The folder of the built guests: as the environment names it, else `target/guests`.
pub fn guests() -> PathBuf {
    std::env::var_os("CLOISTER_GUESTS_DIR").map_or_else(|| root().join("target/guests"), PathBuf::from)
}

/// The root of the workspace.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map(PathBuf::from)
        .unwrap_or_default()
}

/// Runs the binary with nothing on its stdin.
pub fn cloister<I, S>(arguments: I) -> io::Result<Run>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let done = Command::new(binary()).args(arguments).stdin(Stdio::null()).output()?;
    Ok(Run {
        code: done.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&done.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&done.stderr).into_owned(),
    })
}

/// What a person reads in an error: without its frame and the breaks of its lines.
pub fn words(stderr: &str) -> String {
    let text = stderr.replace('│', " ");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether an error says these words. Where its lines are broken, be it behind a hyphen or within a path, makes no difference.
pub fn says(stderr: &str, wanted: &str) -> bool {
    let bare = |text: &str| -> String {
        text.chars()
            .filter(|sign| !sign.is_whitespace() && *sign != '│')
            .collect()
    };
    bare(stderr).contains(&bare(wanted))
}
