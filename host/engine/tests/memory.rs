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

use common::{Training, backends, batch, trained};

#[test]
fn a_thousand_runs_take_no_more_memory_than_a_few() {
    let model = samples::parsed(&samples::mlp(256, 512, 4, 1).unwrap()).unwrap();
    let graph = trained(&model, Optimizer::Sgd, 8, false).training;
    for backend in backends() {
        let mut training = Training::new(backend.as_ref(), &graph, &model, 0.001);
        let data = batch(&graph, 0);
        for _ in 0..50 {
            training.step(&data);
        }
        let before = resident_bytes();
        for _ in 0..1000 {
            training.step(&data);
        }
        let grown = resident_bytes().saturating_sub(before);
        // One step puts out half a megabyte: a leak of one in a hundred would show.
        assert!(grown < 4 << 20, "{} grew by {grown} bytes", backend.name());
    }
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}
