//! Memory over many runs, as for every engine; a binary of its own, so that no other test grows the process meanwhile.
#![allow(clippy::expect_used, reason = "a test that panics says where")]

#[path = "../../engine/tests/memory.rs"]
mod same;
