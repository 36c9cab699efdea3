//! Where the real quotes are: taken in by path (`#[path]`) by every test, bench and fuzz target that uses them.

use std::path::{Path, PathBuf};

/// The folder of real quotes and their `manifest.json`: `tests/vectors/tdx`, or the one that `CLOISTER_TEST_VECTORS` names.
pub(crate) fn folder() -> PathBuf {
    if let Some(named) = std::env::var_os("CLOISTER_TEST_VECTORS") {
        return PathBuf::from(named);
    }
    let above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let mut folders = above.map(|folder| folder.join("tests/vectors/tdx"));
    folders
        .find(|folder| folder.join("manifest.json").exists())
        .expect("tests/vectors/tdx is part of the repository")
}
