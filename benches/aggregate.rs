//! Aggregation of updates of 100 MB by the guest aggregate-fedavg, through runner and sandbox, beside a native loop.
//!
//! `cargo xtask bench aggregate`
#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a bench ends where something is wrong, and prints what it measured"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;
use std::process::ExitCode;
use std::time::Duration;

use cloister_benches::{Table, guest, timed};
use cloister_runner::{
    AggregateRequest, BackendChoice, Runner, RunnerOptions, SharedSlots, SharedTensors, WorkerUpdate,
};
use cloister_sandbox::{CallLimits, RoundInfo, UpdateKind};
use cloister_tensor::{Tensor, TensorMap};
use criterion::Criterion;

const LAYERS: usize = 25;
const LAYER_VALUES: usize = 1_000_000;
const ROWS: [u64; 3] = [100, 300, 200];

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("runner") {
        return cloister_runner::runner_main();
    }
    let mut criterion = Criterion::default().configure_from_args();
    let mut table = Table::default();
    if let Some(module) = guest("aggregate-fedavg") {
        aggregation(&mut criterion, &mut table, &module);
    }
    criterion.final_summary();
    table.print();
    ExitCode::SUCCESS
}

fn model(value: f32) -> SharedTensors {
    let layer = |at: usize| {
        let tensor = Tensor::from_f32(&[LAYER_VALUES], vec![value; LAYER_VALUES]);
        (format!("layer{at:02}"), tensor.expect("as many values as elements"))
    };
    let tensors: TensorMap = (0..LAYERS).map(layer).collect();
    SharedTensors::copy_of(&tensors).expect("there is memory for a model")
}

/// The guest's own sum, in this process: `mean += rows / rows so far * (update - mean)`.
fn native(updates: &[WorkerUpdate]) -> Vec<Vec<f32>> {
    let mut means: Vec<Vec<f32>> = Vec::new();
    let mut total = 0;
    for update in updates {
        total += update.rows;
        let share = (update.rows as f64 / total as f64) as f32;
        let tensors = update.tensors.to_map().expect("the layout was checked");
        for (at, tensor) in tensors.values().enumerate() {
            let new = tensor.as_f32().expect("aligned f32");
            match means.get_mut(at) {
                None => means.push(new.to_vec()),
                Some(mean) => mean
                    .iter_mut()
                    .zip(new)
                    .for_each(|(mean, new)| *mean += share * (new - *mean)),
            }
        }
    }
    means
}

fn aggregation(criterion: &mut Criterion, table: &mut Table, module: &[u8]) {
    let mut options = RunnerOptions::new(std::env::current_exe().expect("this program has a path"));
    options.backend = BackendChoice::Tract;
    let mut runner = Runner::start(options).expect("the runner starts");
    runner.load_module("fedavg", module).expect("the guest loads");
    let updates: Vec<WorkerUpdate> = ROWS
        .iter()
        .zip(["a", "b", "c"])
        .map(|(&rows, node)| WorkerUpdate {
            node: node.to_owned(),
            rows,
            tensors: model(rows as f32),
        })
        .collect();
    let request = AggregateRequest {
        module: "fedavg".to_owned(),
        settings: BTreeMap::new(),
        model: model(0.0),
        statistics: BTreeSet::new(),
        round: RoundInfo {
            index: 1,
            count: 10,
            seed: 7,
            step: 0,
        },
        update: UpdateKind::Model,
        slots: SharedSlots::default(),
        limits: CallLimits::default(),
        timeout: Duration::from_secs(600),
    };
    let mut group = criterion.benchmark_group("aggregate");
    group.sample_size(10);
    let ours = || {
        let mut next = updates.clone().into_iter();
        let reply = runner
            .aggregate(&request, &mut || Ok(next.next()))
            .expect("the guest aggregates");
        black_box(&reply.tensors);
        reply.elapsed
    };
    let reference = || timed(|| black_box(native(&updates)));
    table.side_by_side(
        &mut group,
        "3 updates of 100 MB: runner and guest / native",
        "-",
        ours,
        reference,
    );
    group.finish();
}
