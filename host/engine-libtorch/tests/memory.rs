//! Memory over many runs, as for every engine; a binary of its own, so that no other test grows the process meanwhile.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that panics says where, and a skipped one says so"
)]

#[path = "../../engine/tests/common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};

use cloister_graph::{EngineGraph, samples};

use common::suite;

#[test]
fn a_thousand_runs_take_no_more_memory_than_a_few() {
    let dir = std::env::var_os("CLOISTER_LIBTORCH_DIR").expect("`cargo xtask test --backends` sets it up and names it");
    let libtorch = cloister_engine_libtorch::load(&PathBuf::from(dir)).unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/steps/mlp.sgd.torchstep");
    // The file's network, as wide as the leak of a step in a hundred needs to show.
    let text = std::fs::read_to_string(path).unwrap();
    let text = text
        .replace("[24, 64]", "[2048, 64]")
        .replace("[24]", "[2048]")
        .replace("[4, 24]", "[4, 2048]");
    let step = EngineGraph::load(text.as_bytes()).unwrap();
    let model = samples::parsed(&samples::mlp(64, 2048, 4, 1).unwrap()).unwrap();
    suite::a_thousand_runs_take_no_more_memory_than_a_few(&libtorch, &step, &model);
}
