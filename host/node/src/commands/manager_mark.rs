//! The mark of a manager's state that a participant keeps: against a manager that was put back, or made anew.

use std::path::Path;

use cloister_manager::{Mark, Witness};

use crate::files;
use crate::ui::{Exit, failed};

/// Longest kept mark, in bytes.
const MAX_MARK_BYTES: u64 = 4096;

/// A mark that was kept.
pub(super) fn read(path: &Path) -> Result<Mark, miette::Report> {
    parse(&files::read(path, MAX_MARK_BYTES)?, &path.display().to_string())
}

fn parse(bytes: &[u8], origin: &str) -> Result<Mark, miette::Report> {
    serde_json::from_slice(bytes).map_err(|error| {
        failed(
            Exit::Usage,
            format!("{origin} is no kept mark: {error}"),
            Some("`cloister manager status --keep` writes one".into()),
        )
    })
}

/// Keeps the mark that a manager shows, unless one is kept already that it does not continue. A manager that waits for shares shows none,
/// and nothing changes.
pub(super) fn keep(path: &Path, shown: &[u8]) -> Result<(), miette::Report> {
    if shown.is_empty() {
        return Ok(());
    }
    let shown_mark = parse(shown, "the manager's answer")?;
    let mut witness = Witness::new();
    if path.exists() {
        // The first look takes whatever was kept.
        let _ = witness.observe(&read(path)?);
    }
    witness.observe(&shown_mark).map_err(|refused| {
        failed(
            Exit::Denied,
            format!("this is not the manager that {} was kept of: {refused}", path.display()),
            Some("nothing was sent, and the kept mark stands: ask the other participants what they kept".into()),
        )
    })?;
    files::write(path, shown)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that panics says where")]

    use cloister_manager::StoreId;
    use cloister_tensor::Digest;

    use super::*;

    fn mark(store: u8, version: u64) -> Vec<u8> {
        let mark = Mark {
            store: StoreId::from_bytes([store; 16]),
            version,
            digest: Digest::of(&version.to_be_bytes()),
            lines: version,
            line: Digest::of(b"line"),
        };
        serde_json::to_vec(&mark).unwrap()
    }

    #[test]
    fn a_manager_put_back_or_made_anew_does_not_take_the_place_of_what_was_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kept.mark");
        for shown in [mark(1, 5), mark(1, 7), Vec::new()] {
            keep(&path, &shown).unwrap();
        }
        for shown in [mark(1, 6), mark(2, 1), mark(2, 9), b"{}".to_vec()] {
            keep(&path, &shown).unwrap_err();
            assert_eq!(std::fs::read(&path).unwrap(), mark(1, 7));
        }
        std::fs::write(&path, "no mark").unwrap();
        keep(&path, &mark(1, 9)).unwrap_err();
        assert_eq!(std::fs::read(&path).unwrap(), b"no mark");
    }
}
