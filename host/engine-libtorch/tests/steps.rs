//! Steps in TorchScript on libtorch, against the ONNX training graphs of the same models on the other engines, and against what
//! PyTorch computed in float64. `benches/torch_step.py` made the steps; `cargo xtask test --backends` sets up what this needs.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that panics says where, and a skipped one says so"
)]

#[path = "../../engine/tests/common/mod.rs"]
mod common;
#[path = "../../graph/tests/common/references.rs"]
#[allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "shared by tests that each use a part of it"
)]
mod references;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cloister_engine::{Backend, CompileOptions, EngineError};
use cloister_engine_libtorch::Libtorch;
use cloister_graph::{EngineGraph, Limits, Model, Optimizer, PortKind, TrainOptions, samples, train};
use cloister_tensor::{Dtype, Tensor, TensorMap};

use common::{BATCH, Training, backends, batch, compile, distance, run, trained};

fn libtorch() -> Libtorch {
    let dir = std::env::var_os("CLOISTER_LIBTORCH_DIR").expect("`cargo xtask test --backends` sets it up and names it");
    cloister_engine_libtorch::load(&PathBuf::from(dir)).unwrap()
}

fn step(name: &str) -> EngineGraph {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/steps").join(name);
    EngineGraph::load(&std::fs::read(path).unwrap()).unwrap()
}

/// A step of these lines, with `x` [2, 3] in and `y` out.
fn small(shape: &str, lines: &str) -> EngineGraph {
    let text =
        format!("cloister torchscript step 1\ninput\tx\tF32\t[2, 3]\tdata\noutput\ty\tF32\t{shape}\toutput\n{lines}\n");
    EngineGraph::load(text.as_bytes()).unwrap()
}

fn x() -> Tensor {
    Tensor::from_f32(&[2, 3], vec![1.0, -2.0, 3.0, -4.0, 5.0, -6.0]).unwrap()
}

type Named<'a> = BTreeMap<&'a str, (Dtype, &'a [usize], &'a PortKind)>;

fn ports(ports: &[cloister_graph::Port]) -> Named<'_> {
    let named = ports
        .iter()
        .map(|port| (port.name.as_str(), (port.dtype, &port.shape[..], &port.kind)));
    named.collect()
}

const MOMENTUM: Optimizer = Optimizer::Momentum { momentum: 0.9 };
const ADAM: Optimizer = Optimizer::Adam {
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
};

#[test]
fn small_models_train_as_on_the_other_engines() {
    let libtorch = libtorch();
    let mlp = samples::mlp(64, 24, 4, 2).unwrap();
    let cnn = samples::cnn(64, 4, 4, 3).unwrap();
    for (name, file, optimizer, rate) in [
        ("mlp.sgd", &mlp, Optimizer::Sgd, 0.05),
        ("mlp.adam", &mlp, ADAM, 0.003),
        ("cnn.momentum", &cnn, MOMENTUM, 0.02),
    ] {
        let model = samples::parsed(file).unwrap();
        let graph = trained(&model, optimizer, BATCH, false).training;
        let step = step(&format!("{name}.torchstep"));
        assert_eq!(ports(step.inputs()), ports(graph.inputs()), "{name}");
        assert_eq!(ports(step.outputs()), ports(graph.outputs()), "{name}");
        assert_eq!(step.classes(), graph.classes(), "{name}");
        let trained = |backend: &dyn Backend, graph: &EngineGraph| {
            let mut training = Training::new(backend, graph, &model, rate);
            let losses: Vec<f64> = (0..24).map(|at| training.step(&batch(graph, at % 3))).collect();
            (losses, training.tensors)
        };
        let (losses, tensors) = trained(&libtorch, &step);
        assert!(
            losses[21..].iter().sum::<f64>() < 0.7 * losses[..3].iter().sum::<f64>(),
            "{name}: {losses:?}"
        );
        for backend in backends() {
            let what = format!("{name} on {}", backend.name());
            let (other_losses, other_tensors) = trained(backend.as_ref(), &graph);
            for (loss, other) in losses.iter().zip(&other_losses) {
                assert!(
                    (loss - other).abs() <= 1e-5 * (1.0 + loss.abs()),
                    "{what}: {loss} {other}"
                );
            }
            let apart = distance(&tensors, &other_tensors);
            assert!(apart <= 1e-5, "{what}: {apart} apart");
            println!("{what}: {apart:.1e} apart after 24 steps");
        }
    }
}

#[test]
fn gradients_of_residual_networks_are_those_of_pytorch_in_float64_and_of_the_other_engines() {
    let libtorch = libtorch();
    for (name, opset) in [("resnet18", "20"), ("resnet56v2", "17")] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../graph/tests/pytorch");
        let file = std::fs::read(folder.join(format!("{name}.{opset}.onnx"))).unwrap();
        let reference = references::read(&folder.join(format!("{name}.txt")));
        let model = Model::parse(&file, &Limits::default()).unwrap();
        let graph = train(&model, &TrainOptions::new(Optimizer::None, references::BATCH))
            .unwrap()
            .training;
        let step = step(&format!("narrow-{name}.none.torchstep"));
        assert_eq!(ports(step.inputs()), ports(graph.inputs()), "{name}");
        assert_eq!(ports(step.outputs()), ports(graph.outputs()), "{name}");
        let inputs: Vec<(String, Tensor)> = step
            .inputs()
            .iter()
            .map(|port| {
                let values = match &port.kind {
                    PortKind::Labels => references::labels(),
                    PortKind::Data(_) => references::units("x", port.shape.iter().product()),
                    _ => references::values(&port.name, &port.shape),
                };
                let tensor = match port.dtype {
                    Dtype::I64 => Tensor::from_i64(&port.shape, values.iter().map(|value| *value as i64).collect()),
                    _ => Tensor::from_f32(&port.shape, values.iter().map(|value| *value as f32).collect()),
                };
                (port.name.clone(), tensor.unwrap())
            })
            .collect();
        let outputs = |backend: &dyn Backend, graph: &EngineGraph| -> TensorMap {
            let mut compiled = compile(backend, graph);
            run(compiled.as_mut(), &inputs, None).unwrap().into_iter().collect()
        };
        let seen = outputs(&libtorch, &step);
        references::compare(name, &reference, 2e-4, model.parameters().len(), |output| {
            seen[output].to_f64_vec()
        });
        for backend in backends() {
            let apart = distance(&seen, &outputs(backend.as_ref(), &graph));
            assert!(apart <= 2e-4, "{name}: {apart} from {}", backend.name());
            println!("{name}: {apart:.1e} from {}", backend.name());
        }
    }
}

#[test]
fn an_output_that_is_an_input_has_memory_of_its_own() {
    let mut compiled = compile(&libtorch(), &small("[2, 3]", "v0 = detach(i0)\nreturn v0"));
    let given = x();
    let outputs = compiled.run(&[("x", given.clone())], None).unwrap();
    assert_eq!(outputs[0].1, given);
    assert_ne!(outputs[0].1.bytes().as_ptr(), given.bytes().as_ptr());
    let mut compiled = compile(&libtorch(), &small("[3, 2]", "v0 = transpose(i0, 0, 1)\nreturn v0"));
    let outputs = compiled.run(&[("x", given)], None).unwrap();
    assert_eq!(outputs[0].1.to_f32_vec().unwrap(), [1.0, -4.0, -2.0, 5.0, 3.0, -6.0]);
}

#[test]
fn what_libtorch_refuses_is_an_error_in_its_words_and_the_engine_lives_on() {
    let libtorch = libtorch();
    // Operands that no form of the operator takes.
    let refused = libtorch.compile(
        &small("[2, 3]", "v0 = conv2d(i0, 1.5)\nreturn v0"),
        &CompileOptions::default(),
    );
    let error = refused.map(|_| ()).unwrap_err();
    assert!(
        matches!(error, EngineError::Compile { .. }) && error.to_string().contains("conv2d"),
        "{error}"
    );
    let failing = [
        (
            "[2, 3]",
            "v0 = reshape(i0, [7])\nreturn v0",
            "invalid for input of size 6",
        ),
        ("[2, 3]", "v0 = reshape(i0, [3, 2])\nreturn v0", "wanted F32 [2, 3]"),
        (
            "[2, 3]",
            "v0 = sum(i0)\nv1 = leaf(i0)\nv2 = gradients(v0, [v1])\nreturn v2",
            "does not require grad",
        ),
        // Four terabytes.
        (
            "[2, 3]",
            "v0 = reshape(i0, [6, 1])\nv1 = expand(v0, [6, 200000000000])\nv2 = contiguous(v1, memory_format=0)\nreturn v2",
            "memory",
        ),
    ];
    for (shape, lines, words) in failing {
        let mut compiled = compile(&libtorch, &small(shape, lines));
        let error = compiled.run(&[("x", x())], None).unwrap_err();
        assert!(
            matches!(error, EngineError::Run { .. }) && error.to_string().contains(words),
            "{lines}: {error}"
        );
    }
    let mut compiled = compile(&libtorch, &small("[2, 3]", "v0 = relu(i0)\nreturn v0"));
    let outputs = compiled.run(&[("x", x())], None).unwrap();
    assert_eq!(outputs[0].1.to_f32_vec().unwrap(), [1.0, 0.0, 3.0, 0.0, 5.0, 0.0]);
}

#[test]
fn labels_outside_of_the_classes_and_what_comes_late_are_refused() {
    let libtorch = libtorch();
    let step = step("mlp.sgd.torchstep");
    let model = samples::parsed(&samples::mlp(64, 24, 4, 2).unwrap()).unwrap();
    let training = Training::new(&libtorch, &step, &model, 0.1);
    let good = training.inputs(&batch(&step, 0));
    let mut compiled = libtorch
        .compile(
            &step,
            &CompileOptions {
                threads: NonZeroUsize::new(1),
                ..CompileOptions::default()
            },
        )
        .unwrap();
    let wanted = run(compiled.as_mut(), &good, None).unwrap();
    let mut outside = good.clone();
    let labels = outside.iter().position(|(name, _)| name == "labels").unwrap();
    outside[labels].1 = Tensor::from_i64(&[BATCH], vec![4; BATCH]).unwrap();
    let error = run(compiled.as_mut(), &outside, None).unwrap_err();
    assert!(error.to_string().contains("out of bounds"), "{error}");
    let error = run(compiled.as_mut(), &good, Some(Duration::ZERO)).unwrap_err();
    assert!(matches!(error, EngineError::Deadline { .. }), "{error}");
    for deadline in [None, Some(Duration::from_secs(600)), Some(Duration::MAX)] {
        assert_eq!(run(compiled.as_mut(), &good, deadline).unwrap(), wanted);
    }
}

#[test]
fn each_engine_runs_its_own_language_and_names_the_other() {
    let model = samples::parsed(&samples::logistic(64, 4, 1).unwrap()).unwrap();
    let graph = trained(&model, Optimizer::Sgd, BATCH, false).training;
    let refused = libtorch().compile(&graph, &CompileOptions::default());
    let error = refused.map(|_| ()).unwrap_err().to_string();
    assert!(
        error.contains("it is ONNX") && error.contains("torch_step.py"),
        "{error}"
    );
    for backend in backends() {
        let refused = backend.compile(&step("mlp.sgd.torchstep"), &CompileOptions::default());
        let error = refused.map(|_| ()).unwrap_err();
        assert!(
            matches!(error, EngineError::TorchScript { .. }),
            "{}: {error}",
            backend.name()
        );
    }
}
