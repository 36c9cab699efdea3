//! What went wrong and what to do next.

use std::path::Path;

/// The result of a step.
pub type Outcome<T> = Result<T, Problem>;

/// A step that failed: what happened, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{what}\n  what to do: {next}")]
pub struct Problem {
    what: String,
    next: String,
}

impl Problem {
    /// A problem in words.
    pub fn new(what: impl Into<String>, next: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            next: next.into(),
        }
    }

    /// A file or folder that could not be read, written or made.
    pub fn io(verb: &str, path: &Path, error: &std::io::Error) -> Self {
        Self::new(
            format!("cannot {verb} {}: {error}", path.display()),
            "check that the folder exists, that it is yours, and that the disk is not full",
        )
    }
}
