//! What the tests share: the backends at hand, synthetic data, and a training loop over a training graph's ports.
#![allow(
    dead_code,
    unused_imports,
    missing_docs,
    unreachable_pub,
    reason = "shared by tests that each use a part of it"
)]

pub mod suite;

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use cloister_engine::openvino::{self, OpenVino};
use cloister_engine::{Backend, CompileOptions, Compiled, EngineError};
use cloister_graph::{EngineGraph, Model, Optimizer, Port, PortKind, TrainOptions, TrainedGraphs, samples, train};
use cloister_tensor::{Dtype, Shape, Tensor, TensorMap};

/// The engines that are compared. The same tests are compiled for each crate that has one, which names its own in `tests/common/engines.rs`.
mod engines {
    include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/engines.rs"));
}
pub use engines::backends;

/// OpenVINO out of the folder that `CLOISTER_OPENVINO_DIR` names; without it, `None`, said aloud.
pub fn openvino() -> Option<OpenVino> {
    static LOADED: OnceLock<Option<OpenVino>> = OnceLock::new();
    LOADED
        .get_or_init(|| match std::env::var_os("CLOISTER_OPENVINO_DIR") {
            Some(dir) => Some(openvino::load(&PathBuf::from(dir)).unwrap()),
            None => {
                eprintln!("SKIPPED: the tests on OpenVINO: CLOISTER_OPENVINO_DIR is not set");
                None
            }
        })
        .clone()
}

pub fn compile(backend: &dyn Backend, graph: &EngineGraph) -> Box<dyn Compiled> {
    backend
        .compile(graph, &CompileOptions::default())
        .unwrap_or_else(|error| panic!("{}: {error}", backend.name()))
}

pub const BATCH: usize = 16;
pub const CLASSES: usize = 4;
pub const INPUTS: usize = 64;

pub fn sample_models() -> Vec<(&'static str, Model)> {
    [
        ("logistic", samples::logistic(INPUTS, CLASSES, 1)),
        ("mlp", samples::mlp(INPUTS, 24, CLASSES, 2)),
        ("cnn", samples::cnn(INPUTS, 4, CLASSES, 3)),
    ]
    .into_iter()
    .map(|(name, bytes)| (name, samples::parsed(&bytes.unwrap()).unwrap()))
    .collect()
}

pub fn trained(model: &Model, optimizer: Optimizer, batch: usize, gradients: bool) -> TrainedGraphs {
    train(
        model,
        &TrainOptions {
            gradients,
            ..TrainOptions::new(optimizer, batch)
        },
    )
    .unwrap()
}

/// Numbers in -1..1, the same for the same seed.
pub fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// Rows around one centre a class.
pub fn batch(graph: &EngineGraph, seed: u64) -> TensorMap {
    let labels_port = graph.inputs().iter().find(|port| port.kind == PortKind::Labels);
    let x = graph
        .inputs()
        .iter()
        .find(|port| matches!(port.kind, PortKind::Data(_)))
        .unwrap();
    let rows = x.shape[0];
    let width: usize = x.shape[1..].iter().product();
    let labels: Vec<i64> = (0..rows)
        .map(|row| ((row as u64 * 7 + seed) % CLASSES as u64) as i64)
        .collect();
    let mut values = noise(seed + 100, rows * width);
    for (row, &label) in labels.iter().enumerate() {
        let centre = noise(label as u64 + 1, width);
        for (value, centre) in values[row * width..].iter_mut().zip(centre) {
            *value = 0.5 * *value + centre;
        }
    }
    let mut tensors = TensorMap::from([(x.name.clone(), Tensor::from_f32(&x.shape, values).unwrap())]);
    if labels_port.is_some() {
        tensors.insert("labels".into(), Tensor::from_i64(&[rows], labels).unwrap());
    }
    tensors
}

/// Parameters, statistics and optimizer state on their way through a training graph.
pub struct Training {
    pub compiled: Box<dyn Compiled>,
    pub tensors: TensorMap,
    pub step: i64,
    pub learning_rate: f32,
}

impl Training {
    pub fn new(backend: &dyn Backend, graph: &EngineGraph, model: &Model, learning_rate: f32) -> Self {
        let mut tensors = model.initial_weights();
        for port in graph.inputs() {
            if matches!(port.kind, PortKind::State { .. }) {
                tensors.insert(
                    port.name.clone(),
                    Tensor::zeros(Dtype::F32, Shape::new(&port.shape).unwrap()),
                );
            }
        }
        Self {
            compiled: compile(backend, graph),
            tensors,
            step: 1,
            learning_rate,
        }
    }

    pub fn inputs(&self, batch: &TensorMap) -> Vec<(String, Tensor)> {
        let tensor = |port: &Port| match port.kind {
            PortKind::Data(_) | PortKind::Labels => batch[&port.name].clone(),
            PortKind::LearningRate => Tensor::scalar_f32(self.learning_rate),
            PortKind::Step => Tensor::scalar_i64(self.step),
            _ => self.tensors[&port.name].clone(),
        };
        self.compiled
            .inputs()
            .iter()
            .map(|port| (port.name.clone(), tensor(port)))
            .collect()
    }

    /// One step; the loss before it.
    pub fn step(&mut self, batch: &TensorMap) -> f64 {
        let inputs = self.inputs(batch);
        let outputs = run(self.compiled.as_mut(), &inputs, None).unwrap();
        let mut loss = f64::NAN;
        let ports = self.compiled.outputs().to_vec();
        for (port, (name, tensor)) in ports.iter().zip(outputs) {
            assert_eq!(port.name, name);
            match &port.kind {
                PortKind::Loss => loss = tensor.first_f64().unwrap(),
                PortKind::NextParameter(of) | PortKind::NextStatistic(of) => {
                    self.tensors.insert(of.clone(), tensor);
                }
                PortKind::NextState { .. } => {
                    self.tensors
                        .insert(name.strip_prefix("next/").unwrap().to_owned(), tensor);
                }
                _ => {}
            }
        }
        self.step += 1;
        loss
    }
}

pub fn run(
    compiled: &mut dyn Compiled,
    inputs: &[(String, Tensor)],
    deadline: Option<Duration>,
) -> Result<Vec<(String, Tensor)>, EngineError> {
    let inputs: Vec<(&str, Tensor)> = inputs
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor.clone()))
        .collect();
    compiled.run(&inputs, deadline)
}

/// The distance of two sets of tensors, relative to the second: L2 over all elements.
pub fn distance<'a>(some: impl IntoIterator<Item = (&'a String, &'a Tensor)>, others: &TensorMap) -> f64 {
    let (mut difference, mut size) = (0.0, 0.0);
    for (name, tensor) in some {
        for (one, other) in tensor.to_f64_vec().iter().zip(others[name].to_f64_vec()) {
            difference += (one - other).powi(2);
            size += other.powi(2);
        }
    }
    (difference / size).sqrt()
}
