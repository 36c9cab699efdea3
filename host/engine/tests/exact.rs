//! What engines compute in f32, beside a reference interpreter in f64: gradients of whole models, and everything that a training
//! graph can be told, all elements of all outputs.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::needless_range_loop,
    reason = "a test that panics says where, and a skipped one says so; indices read as in the formulas"
)]

mod common;
#[path = "exact/ir.rs"]
mod ir;
// It names the nodes that it computes as `crate::ir`: in the crate that it comes from those of the graph, here those of the file.
#[path = "../../graph/src/tests/interpreter/mod.rs"]
mod interpreter;
#[path = "../../graph/tests/common/onnx_file.rs"]
#[allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "shared by tests that each use a part of it"
)]
mod onnx_file;

use std::collections::BTreeMap;

use cloister_engine::Backend;
use cloister_graph::{EngineGraph, Loss, Model, Optimizer, PortKind, TrainOptions, samples, train};
use cloister_tensor::{Dtype, Tensor, TensorMap};

use common::{Training, backends, batch, distance, noise, run};
use interpreter::{Array, compute};

/// What gradients in f32 may be off by, relative to their length: L2 over all elements of all parameters.
const MOST: f64 = 1e-5;

/// All outputs of a graph on these inputs, in f64.
fn exact(graph: &EngineGraph, inputs: &[(String, Tensor)]) -> BTreeMap<String, Array> {
    let file = ir::Nodes::read(graph.bytes());
    let given = inputs.iter().map(|(name, tensor)| (name, tensor));
    let mut values: BTreeMap<String, Array> = file
        .constants
        .iter()
        .chain(given)
        .map(|(name, tensor)| (name.clone(), Array::of(tensor)))
        .collect();
    for node in &file.nodes {
        let operands: Vec<Option<&Array>> = node
            .inputs
            .iter()
            .map(|name| name.as_ref().map(|name| &values[name]))
            .collect();
        let result = compute(node, &operands);
        values.insert(node.outputs[0].clone(), result);
    }
    let outputs = graph.outputs().iter();
    outputs
        .map(|port| (port.name.clone(), values[&port.name].clone()))
        .collect()
}

/// Relative L2 distance of the outputs of a kind, over all their elements; `None` if there are none, or all are zeros.
fn apart(seen: &TensorMap, wanted: &BTreeMap<String, Array>, kind: &str) -> Option<f64> {
    let (mut difference, mut size) = (0.0, 0.0);
    for (name, wanted) in wanted.iter().filter(|(name, _)| name.starts_with(kind)) {
        assert_eq!(seen[name].shape().dims(), wanted.shape, "{name}");
        for (seen, wanted) in seen[name].to_f64_vec().iter().zip(&wanted.values) {
            difference += (seen - wanted).powi(2);
            size += wanted.powi(2);
        }
    }
    (size > 0.0).then(|| (difference / size).sqrt())
}

fn outputs(training: &mut Training, inputs: &[(String, Tensor)]) -> TensorMap {
    run(training.compiled.as_mut(), inputs, None)
        .unwrap()
        .into_iter()
        .collect()
}

/// A model after a few steps of gradient descent: what a step in the middle of a training starts from, and better conditioned
/// than random numbers.
fn settled(model: &Model, rows: usize) -> TensorMap {
    let graph = common::trained(model, Optimizer::Sgd, rows, false).training;
    let engines = backends();
    let engine = engines.last().unwrap();
    let mut training = Training::new(engine.as_ref(), &graph, model, 0.02);
    for step in 0..20 {
        assert!(training.step(&batch(&graph, step)).is_finite());
    }
    training.tensors
}

#[test]
fn gradients_of_whole_models_are_those_in_f64() {
    for (name, file, rows) in [
        ("MLP", samples::mlp(64, 32, 4, 2), 16),
        ("CNN", samples::cnn(64, 4, 4, 3), 8),
        ("residual network", samples::resnet(192, 4, 4, 14, 5), 8),
        ("bottleneck network", samples::bottleneck(3072, 2, 4, 26, 7), 4),
        ("encoder", samples::encoder(64, 16, 4, 2, 11), 4),
    ] {
        let model = samples::parsed(&file.unwrap()).unwrap();
        let weights = settled(&model, rows);
        let graph = common::trained(&model, Optimizer::None, rows, true).training;
        let mut wanted = None;
        for backend in backends() {
            let mut training = Training::new(backend.as_ref(), &graph, &model, 0.0);
            training.tensors.clone_from(&weights);
            let inputs = training.inputs(&batch(&graph, 50));
            let seen = outputs(&mut training, &inputs);
            let wanted = wanted.get_or_insert_with(|| exact(&graph, &inputs));
            let gradients = apart(&seen, wanted, "grad/").unwrap();
            let loss = apart(&seen, wanted, "loss").unwrap();
            eprintln!(
                "{name} on {}: gradients {gradients:.1e}, loss {loss:.1e} from f64",
                backend.name()
            );
            assert!(gradients <= MOST, "{name} on {}: {gradients}", backend.name());
            assert!(loss <= MOST, "{name} on {}: {loss}", backend.name());
        }
    }
}

const NESTEROV: Optimizer = Optimizer::Nesterov { momentum: 0.9 };
const ADAMW: Optimizer = Optimizer::AdamW {
    beta1: 0.9,
    beta2: 0.99,
    epsilon: 1e-8,
};

/// Inputs for every port: small numbers where nothing else is said, and state as if steps had been taken.
fn inputs(graph: &EngineGraph, model: &Model, loss: Loss) -> Vec<(String, Tensor)> {
    let weights = model.initial_weights();
    let input = |(seed, port): (usize, &cloister_graph::Port)| {
        let count: usize = port.shape.iter().product();
        let shares = || noise(7 + seed as u64, count).into_iter().map(|value| value.abs());
        let values: Vec<f32> = match &port.kind {
            PortKind::Parameter(name) | PortKind::Statistic(name) => return (port.name.clone(), weights[name].clone()),
            PortKind::Labels if port.dtype == Dtype::I64 => {
                let labels = (0..count).map(|row| (row % 2) as i64).collect();
                return (port.name.clone(), Tensor::from_i64(&port.shape, labels).unwrap());
            }
            PortKind::Step => return (port.name.clone(), Tensor::scalar_i64(3)),
            PortKind::LearningRate => vec![0.05],
            // Shares of each row, which sum to 1.
            PortKind::Labels if loss == Loss::SoftCrossEntropy => {
                let raw: Vec<f32> = shares().collect();
                let width = *port.shape.last().unwrap();
                raw.chunks(width)
                    .flat_map(|row| row.iter().map(|value| value / row.iter().sum::<f32>()))
                    .collect()
            }
            PortKind::Labels => shares().collect(),
            PortKind::State { .. } => shares().map(|value| value * 0.1).collect(),
            PortKind::Data(name) if name.starts_with("mask/") => shares().map(|value| f32::from(value > 0.3)).collect(),
            _ => noise(1000 + seed as u64, count),
        };
        (port.name.clone(), Tensor::from_f32(&port.shape, values).unwrap())
    };
    graph.inputs().iter().enumerate().map(input).collect()
}

/// A layer whose elements a dropout in training form takes out.
fn with_dropout() -> Model {
    let mut file = onnx_file::Model::new(17);
    file.parameter("weight", &[1, 8]);
    file.node("MatMul", &["x", "weight"], &["units"], &[]);
    file.floats("ratio", &[], &[0.25]);
    file.truths("trains", &[], &[1]);
    file.node("Dropout", &["units", "ratio", "trains"], &["kept"], &[]);
    samples::parsed(&file.finish("kept", 16)).unwrap()
}

fn compare(what: &str, backend: &dyn Backend, model: &Model, options: &TrainOptions) {
    let graph = train(model, options).unwrap().training;
    let inputs = inputs(&graph, model, options.loss);
    let mut training = Training::new(backend, &graph, model, 0.0);
    let (seen, wanted) = (outputs(&mut training, &inputs), exact(&graph, &inputs));
    assert_eq!(seen.len(), wanted.len());
    for kind in ["loss", "grad/", "next/"] {
        let Some(apart) = apart(&seen, &wanted, kind) else {
            continue;
        };
        eprintln!("{what} on {}: {kind} {apart:.1e} from f64", backend.name());
        assert!(apart <= MOST, "{what} on {}: {kind} {apart}", backend.name());
    }
    // And it is what was asked for: the parameters moved.
    let weights = model.initial_weights();
    let next = |name: &String| seen.get(&format!("next/{name}"));
    let moved: TensorMap = weights
        .keys()
        .filter_map(|name| Some((name.clone(), next(name)?.clone())))
        .collect();
    assert!(
        options.optimizer == Optimizer::None || distance(&moved, &weights) > 1e-4,
        "{what}"
    );
}

#[test]
fn whatever_a_training_graph_is_told_is_computed_as_in_f64() {
    let mlp = samples::parsed(&samples::mlp(16, 12, 2, 9).unwrap()).unwrap();
    let cnn = samples::parsed(&samples::cnn(64, 2, 2, 4).unwrap()).unwrap();
    let dropout = with_dropout();
    let told = |optimizer, change: &dyn Fn(&mut TrainOptions)| {
        let mut options = TrainOptions::new(optimizer, 4);
        options.gradients = true;
        change(&mut options);
        options
    };
    let loss = |loss| move |options: &mut TrainOptions| options.loss = loss;
    let decay = |options: &mut TrainOptions| options.weight_decay = 0.01;
    let cases: [(&str, &Model, TrainOptions); 10] = [
        ("Nesterov", &mlp, told(NESTEROV, &|_| ())),
        ("Nesterov with decay", &cnn, told(NESTEROV, &decay)),
        ("AdamW", &mlp, told(ADAMW, &decay)),
        ("AdamW on a CNN", &cnn, told(ADAMW, &decay)),
        ("soft labels", &mlp, told(NESTEROV, &loss(Loss::SoftCrossEntropy))),
        ("mean squared error", &mlp, told(ADAMW, &loss(Loss::MeanSquaredError))),
        (
            "binary cross entropy",
            &mlp,
            told(NESTEROV, &loss(Loss::BinaryCrossEntropy)),
        ),
        (
            "clipping",
            &cnn,
            told(Optimizer::Sgd, &|options| options.clip_norm = Some(0.01)),
        ),
        (
            "a norm that need not be clipped",
            &mlp,
            told(ADAMW, &|options| options.clip_norm = Some(1e3)),
        ),
        ("dropout", &dropout, told(NESTEROV, &|options| options.batch = 2)),
    ];
    for backend in backends() {
        for (what, model, options) in &cases {
            compare(what, backend.as_ref(), model, options);
        }
    }
}
