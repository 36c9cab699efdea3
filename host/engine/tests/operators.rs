//! Every operator, and models exported by PyTorch, on both backends: the same loss, the same gradients, and for the models
//! those that PyTorch computed in float64.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that panics says where, and a skipped one says so"
)]

mod common;

use std::path::PathBuf;

use cloister_engine::Backend;
use cloister_graph::{EngineGraph, Limits, Model, Optimizer, PortKind, TrainOptions, train};
use cloister_tensor::{Dtype, Tensor, TensorMap};

use common::{backends, compile, distance, run};

#[path = "../../graph/tests/common/operators.rs"]
#[allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "shared by tests that each use a part of it"
)]
mod operators;
#[path = "../../graph/tests/common/references.rs"]
#[allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "shared by tests that each use a part of it"
)]
mod references;

fn outputs(backend: &dyn Backend, graph: &EngineGraph, inputs: &[(String, Tensor)]) -> TensorMap {
    let mut compiled = compile(backend, graph);
    run(compiled.as_mut(), inputs, None).unwrap().into_iter().collect()
}

/// Loss and gradients of a small model, weights as in its file: how far the backends are apart.
fn apart(file: &[u8]) -> f64 {
    let model = Model::parse(file, &Limits::default()).unwrap();
    let graph = train(&model, &TrainOptions::new(Optimizer::None, 2)).unwrap().training;
    let weights = model.initial_weights();
    let inputs: Vec<(String, Tensor)> = graph
        .inputs()
        .iter()
        .map(|port| {
            let tensor = match &port.kind {
                PortKind::Labels => Tensor::from_i64(&[2], vec![1, 0]).unwrap(),
                PortKind::Data(_) => Tensor::from_f32(&port.shape, vec![0.3, -0.7]).unwrap(),
                _ => weights[&port.name].clone(),
            };
            (port.name.clone(), tensor)
        })
        .collect();
    let seen: Vec<TensorMap> = backends()
        .iter()
        .map(|backend| outputs(backend.as_ref(), &graph, &inputs))
        .collect();
    seen.windows(2)
        .map(|pair| distance(&pair[0], &pair[1]))
        .fold(0.0, f64::max)
}

#[test]
fn every_operator_on_both_alike() {
    let mut wrong = Vec::new();
    for (family, make) in operators::families() {
        let mut models = Vec::new();
        make(&mut models);
        for (name, file) in models {
            println!("{family}: {name}");
            let apart = apart(&file);
            if apart.is_nan() || apart > 1e-5 {
                wrong.push(format!("{family}: {name}: {apart} apart"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn as_in_pytorch(name: &str, opset: &str) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../graph/tests/pytorch");
    let file = std::fs::read(folder.join(format!("{name}.{opset}.onnx"))).unwrap();
    let reference = references::read(&folder.join(format!("{name}.txt")));
    let model = Model::parse(&file, &Limits::default()).unwrap();
    let mut options = TrainOptions::new(Optimizer::None, references::BATCH);
    options.dropout = false;
    let graph = train(&model, &options).unwrap().training;
    let inputs: Vec<(String, Tensor)> = graph
        .inputs()
        .iter()
        .map(|port| {
            let values = match &port.kind {
                PortKind::Labels => references::labels(),
                PortKind::Data(_) if port.dtype == Dtype::I64 => references::tokens(),
                PortKind::Data(_) => references::units("x", port.shape.iter().product()),
                _ => references::values(&port.name, &port.shape),
            };
            let tensor = match port.dtype {
                Dtype::I64 => Tensor::from_i64(&port.shape, values.iter().map(|&value| value as i64).collect()),
                _ => Tensor::from_f32(&port.shape, values.iter().map(|&value| value as f32).collect()),
            };
            (port.name.clone(), tensor.unwrap())
        })
        .collect();
    for backend in backends() {
        let seen = outputs(backend.as_ref(), &graph, &inputs);
        let what = format!("{name}.{opset} on {}", backend.name());
        references::compare(&what, &reference, 2e-4, model.parameters().len(), |output| {
            seen[output].to_f64_vec()
        });
    }
}

#[test]
fn residual_networks_as_in_pytorch() {
    as_in_pytorch("resnet18", "20");
    as_in_pytorch("resnet56v2", "17");
    as_in_pytorch("mobilenetv2", "20");
}

#[test]
fn transformers_as_in_pytorch() {
    as_in_pytorch("vit", "17");
    as_in_pytorch("vit", "24");
    as_in_pytorch("bert", "17");
    as_in_pytorch("bert", "20");
}

#[test]
fn further_layers_as_in_pytorch() {
    as_in_pytorch("groups", "17");
    as_in_pytorch("groups", "24");
}
