//! Damaged files, through the binary: each is refused with one exit code, and words for what was seen, where, and what was wanted.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics says where"
)]

mod files;
mod vault;

use cloister_tests::{Run, says};

/// A run that has to end with this code, and its error to hold these words.
#[track_caller]
pub(crate) fn refused(case: &str, run: &Run, code: i32, wanted: &[&str]) {
    assert_eq!(run.code, code, "{case}: {}{}", run.stdout, run.stderr);
    for words in wanted {
        assert!(says(&run.stderr, words), "{case}: no {words:?} in: {}", run.stderr);
    }
}
