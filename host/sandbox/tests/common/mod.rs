//! What the sandbox's tests share: built guests, a small federation of one node.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cloister_data::{Batch, BatchOrder};
use cloister_engine::{Backend, CompileOptions, tract::Tract};
use cloister_graph::{EngineGraph, Limits, Model, Optimizer, TrainOptions, TrainedGraphs, samples};
use cloister_sandbox::{
    CallLimits, Grants, Module, ModuleError, PassOrder, RoundInfo, RowBatches, Rows, RowsError, Sandbox, SandboxLimits,
    ScalarRange, SettingValue, SharedGraph, TrainCall, TrainError, TrainOutcome, UpdateKind,
};
use cloister_tensor::{Tensor, TensorMap};

pub const INPUTS: usize = 4;
pub const HIDDEN: usize = 8;
pub const CLASSES: usize = 3;
pub const ROWS: u64 = 70;
pub const BATCH: usize = 32;
pub const REST: usize = 6;

/// A built guest; nothing (and a line on stderr) where none are built.
pub fn guest(name: &str) -> Option<Vec<u8>> {
    let Some(dir) = std::env::var_os("CLOISTER_GUESTS_DIR") else {
        eprintln!("SKIPPED: CLOISTER_GUESTS_DIR is not set; `cargo xtask test` builds the guests and sets it");
        return None;
    };
    let path = PathBuf::from(dir).join(format!("{name}.wasm"));
    Some(std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}

pub fn sandbox() -> Sandbox {
    Sandbox::new(SandboxLimits::default()).unwrap()
}

/// A sandbox and a guest in it.
pub fn loaded(name: &str) -> Option<(Sandbox, Module)> {
    let file = guest(name)?;
    let sandbox = sandbox();
    let module = sandbox.load(name, &file).unwrap();
    Some((sandbox, module))
}

/// Rows whose label is the input that is largest.
pub struct Fake(pub u64);

impl Rows for Fake {
    fn rows(&self) -> u64 {
        self.0
    }

    fn ahead_bytes(&self, _order: BatchOrder) -> u64 {
        0
    }

    fn batches(&self, pass: &PassOrder) -> Result<RowBatches, RowsError> {
        let order = pass.order;
        let count = self.0 as usize;
        let mut at: Vec<usize> = (0..count).collect();
        if let Some(seed) = order.seed {
            at.sort_by_key(|&row| {
                (row as u64 + 1)
                    .wrapping_mul(seed | 1)
                    .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            });
        }
        let batches: Vec<Vec<usize>> = at.chunks(order.batch).map(<[usize]>::to_vec).collect();
        let full = move |batch: &Vec<usize>| !order.drop_last || batch.len() == order.batch;
        let batches = batches.into_iter().filter(full).skip(order.first);
        let batches = batches.take(order.most.unwrap_or(usize::MAX));
        Ok(Box::new(batches.map(|rows| Ok(batch(&rows).into()))))
    }
}

fn batch(rows: &[usize]) -> Batch {
    let value = |row: usize, input: usize| (((row * 37 + input * 101) % 97) as f32) / 97.0;
    let x: Vec<f32> = rows
        .iter()
        .flat_map(|&row| (0..INPUTS).map(move |input| value(row, input)))
        .collect();
    let label = |row: usize| {
        (0..CLASSES)
            .max_by(|&a, &b| value(row, a).total_cmp(&value(row, b)))
            .unwrap() as i64
    };
    let labels = rows.iter().map(|&row| label(row)).collect();
    let tensors = TensorMap::from([
        ("x".to_owned(), Tensor::from_f32(&[rows.len(), INPUTS], x).unwrap()),
        ("labels".to_owned(), Tensor::from_i64(&[rows.len()], labels).unwrap()),
    ]);
    Batch {
        rows: rows.len(),
        tensors,
    }
}

pub fn model() -> Model {
    Model::parse(&samples::mlp(INPUTS, HIDDEN, CLASSES, 1).unwrap(), &Limits::default()).unwrap()
}

pub fn graphs_for(batch: usize) -> TrainedGraphs {
    let optimizer = Optimizer::Momentum { momentum: 0.9 };
    cloister_graph::train(&model(), &TrainOptions::new(optimizer, batch)).unwrap()
}

pub fn compiled(graph: &EngineGraph) -> SharedGraph {
    Arc::new(Mutex::new(
        Tract::new().compile(graph, &CompileOptions::default()).unwrap(),
    ))
}

/// The graphs `train` and `train@6`.
pub fn graphs() -> BTreeMap<String, SharedGraph> {
    let entry = |name: &str, batch| (name.to_owned(), compiled(&graphs_for(batch).training));
    BTreeMap::from([entry("train", BATCH), entry(&format!("train@{REST}"), REST)])
}

pub fn limits() -> CallLimits {
    CallLimits {
        guest_memory_bytes: 32 << 20,
        tensor_memory_bytes: 4 << 20,
        handles: 10_000,
        call: Duration::from_secs(2),
        compute: Duration::from_secs(1),
        log_bytes: 4096,
        ..CallLimits::default()
    }
}

pub fn grants() -> Grants {
    let range = |min, max| ScalarRange { min, max };
    Grants {
        scalars: BTreeMap::from([
            ("learning_rate".to_owned(), range(0.0, 1.0)),
            ("step".to_owned(), range(1.0, 1e9)),
        ]),
        reads: BTreeSet::from(["loss".to_owned()]),
        ..Grants::default()
    }
}

pub fn train_call(module: &Module) -> TrainCall {
    TrainCall {
        module: module.clone(),
        settings: BTreeMap::new(),
        grants: grants(),
        graphs: graphs(),
        model: model().initial_weights(),
        datasets: BTreeMap::from([("train".to_owned(), Arc::new(Fake(ROWS)) as Arc<dyn Rows>)]),
        round: RoundInfo {
            index: 1,
            count: 10,
            seed: 7,
            step: 0,
        },
        update: UpdateKind::Model,
        limits: limits(),
    }
}

/// A call in which the rows are there: what fails is a module's doing.
pub fn train(sandbox: &Sandbox, call: TrainCall) -> Result<TrainOutcome, ModuleError> {
    sandbox.train(call).map_err(|error| match error {
        TrainError::Module(error) => error,
        other => panic!("{other}"),
    })
}

pub fn settings(values: &[(&str, SettingValue)]) -> BTreeMap<String, SettingValue> {
    values
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.clone()))
        .collect()
}

pub fn text(value: &str) -> SettingValue {
    SettingValue::Text(value.to_owned())
}
