//! Every operator as other tools write it, and whole models exported by PyTorch, against its gradients in float64.

use std::collections::BTreeMap;
use std::path::PathBuf;

use cloister_tensor::Dtype;

use super::interpreter::Array;
use super::run::run;
use crate::{Limits, Model, Optimizer, PortKind, TrainOptions, train};

#[path = "../../tests/common/operators.rs"]
#[allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "shared by tests that each use a part of it"
)]
mod operators;
#[path = "../../tests/common/references.rs"]
#[allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "shared by tests that each use a part of it"
)]
mod references;

pub(super) use operators::onnx_file::{self, numbers};

/// Every model of every family.
pub(super) fn all_operators() -> Vec<operators::Named> {
    let mut all = Vec::new();
    for (_, make) in operators::families() {
        make(&mut all);
    }
    all
}

fn by_finite_differences(family: &str) {
    for (name, file) in operators::family(family) {
        println!("{name}");
        super::gradients::check(&file, 2);
    }
}

macro_rules! families {
    ($($test:ident: $family:literal),* $(,)?) => {
        $(#[test] fn $test() { by_finite_differences($family); })*

        #[test]
        fn every_family_is_checked() {
            let all: Vec<&str> = operators::families().into_iter().map(|(name, _)| name).collect();
            assert_eq!(all, [$($family),*]);
        }
    };
}

families!(
    activations: "activations",
    normalizations: "normalizations",
    reductions: "reductions",
    rearrangements: "rearrangements",
    picks: "picks",
    products: "products",
    resizes: "resizes",
    convolutions: "convolutions",
    transposed_convolutions: "transposed convolutions",
    pools: "pools",
);

/// Reads, differentiates and runs a model of `references.py`, and compares with what PyTorch saw.
fn against_pytorch(name: &str, opset: &str) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/pytorch");
    let file = std::fs::read(folder.join(format!("{name}.{opset}.onnx"))).unwrap();
    let reference = references::read(&folder.join(format!("{name}.txt")));
    let model = Model::parse(&file, &Limits::default()).unwrap();
    let seen: Vec<&String> = model.parameters().iter().map(|(name, _)| name).collect();
    let graph = train(&model, &TrainOptions::new(Optimizer::None, references::BATCH))
        .unwrap()
        .training;
    let mut feeds = BTreeMap::new();
    for port in graph.inputs() {
        let count = port.shape.iter().product();
        let values = match &port.kind {
            PortKind::Labels => references::labels(),
            PortKind::Data(name) if name == "x" && port.dtype == Dtype::I64 => references::tokens(),
            PortKind::Data(name) if name == "x" => references::units("x", count),
            PortKind::Mask { .. } => vec![f64::NAN; count],
            _ => references::values(&port.name, &port.shape),
        };
        feeds.insert(port.name.clone(), Array::new(&port.shape, values));
    }
    // Dropout is left out of the references: a mask is taken along that undoes its scaling.
    for (at, ratio) in graph
        .metadata()
        .get("cloister.dropout")
        .into_iter()
        .flat_map(|text| text.split(' '))
        .enumerate()
    {
        let mask = feeds.get_mut(&format!("mask/{at}")).unwrap();
        mask.values.fill(1.0 - ratio.parse::<f64>().unwrap());
    }
    let outputs = run(&graph, &feeds);
    references::compare(&format!("{name}.{opset}"), &reference, 1e-5, seen.len(), |output| {
        outputs[output].values.clone()
    });
}

#[test]
fn resnet_18_as_in_pytorch() {
    against_pytorch("resnet18", "17");
    against_pytorch("resnet18", "20");
}

#[test]
fn resnet_56_v2_as_in_pytorch() {
    against_pytorch("resnet56v2", "17");
    against_pytorch("resnet56v2", "20");
}

#[test]
fn mobilenet_v2_as_in_pytorch() {
    against_pytorch("mobilenetv2", "17");
    against_pytorch("mobilenetv2", "20");
}

#[test]
fn vision_transformer_as_in_pytorch() {
    for opset in ["17", "20", "24"] {
        against_pytorch("vit", opset);
    }
}

#[test]
fn bert_as_in_pytorch() {
    against_pytorch("bert", "17");
    against_pytorch("bert", "20");
}

#[test]
fn further_layers_as_in_pytorch() {
    for opset in ["17", "20", "24"] {
        against_pytorch("groups", opset);
    }
}
