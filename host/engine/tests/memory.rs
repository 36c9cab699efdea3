//! Memory over many runs; a binary of its own, so that no other test grows the process meanwhile.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that panics says where, and a skipped one says so"
)]

mod common;

use cloister_graph::{Optimizer, samples};

use common::{backends, suite, trained};

#[test]
fn a_thousand_runs_take_no_more_memory_than_a_few() {
    let model = samples::parsed(&samples::mlp(256, 512, 4, 1).unwrap()).unwrap();
    let graph = trained(&model, Optimizer::Sgd, 8, false).training;
    for backend in backends() {
        suite::a_thousand_runs_take_no_more_memory_than_a_few(backend.as_ref(), &graph, &model);
    }
}
