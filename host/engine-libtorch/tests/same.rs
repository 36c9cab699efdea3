//! What every engine must do alike, on libtorch: the suite of `cloister-engine`, on steps in TorchScript. `benches/torch_step.py` made
//! them; `cargo xtask test --backends` sets up what this needs.
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

use cloister_engine::CompileOptions;
use cloister_engine_libtorch::Libtorch;
use cloister_graph::{EngineGraph, Model, Optimizer, samples};
use cloister_tensor::{Tensor, TensorMap};
use proptest::prelude::*;

use common::{BATCH, Training, backends, batch, compile, noise, run, suite, trained};

fn libtorch() -> Libtorch {
    let dir = std::env::var_os("CLOISTER_LIBTORCH_DIR").expect("`cargo xtask test --backends` sets it up and names it");
    cloister_engine_libtorch::load(&PathBuf::from(dir)).unwrap()
}

fn step(name: &str) -> EngineGraph {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/steps").join(name);
    EngineGraph::load(&std::fs::read(path).unwrap()).unwrap()
}

fn mlp() -> (EngineGraph, Model) {
    let model = samples::parsed(&samples::mlp(64, 24, 4, 2).unwrap()).unwrap();
    (step("mlp.sgd.torchstep"), model)
}

fn cnn() -> (EngineGraph, Model) {
    let model = samples::parsed(&samples::cnn(64, 4, 4, 3).unwrap()).unwrap();
    (step("cnn.momentum.torchstep"), model)
}

#[test]
fn what_does_not_fit_a_port_is_refused_before_anything_runs() {
    let (step, model) = mlp();
    suite::what_does_not_fit_a_port_is_refused(&libtorch(), &step, &model);
}

#[test]
fn runs_repeat_bit_by_bit_wherever_inputs_lie_and_leave_them_alone() {
    for (step, model) in [mlp(), cnn()] {
        suite::runs_repeat_bit_by_bit(&libtorch(), &step, &model);
    }
}

#[test]
fn two_threads_run_side_by_side() {
    let (step, model) = cnn();
    suite::two_threads_run_side_by_side(&libtorch(), &step, &model);
}

/// The evaluation graph of [`mlp`], as a step.
fn evaluation() -> EngineGraph {
    let text = format!(
        "cloister torchscript step 1
input\tx\tF32\t[{BATCH}, 64]\tdata
input\tlabels\tI64\t[{BATCH}]\tlabels
input\tfc1.weight\tF32\t[24, 64]\tparameter
input\tfc1.bias\tF32\t[24]\tparameter
input\tfc2.weight\tF32\t[4, 24]\tparameter
input\tfc2.bias\tF32\t[4]\tparameter
output\tloss\tF32\t[1]\tloss
output\tcorrect\tI64\t[1]\tcorrect
classes\t4
v0 = linear(i0, i2, i3)
v1 = relu(v0)
v2 = linear(v1, i4, i5)
v3 = cross_entropy_loss(v2, i1, None, 1, -100, 0.0)
v4 = reshape(v3, [1])
v5 = argmax(v2, 1)
v6 = eq(v5, i1)
v7 = sum(v6)
v8 = reshape(v7, [1])
return v4, v8
"
    );
    EngineGraph::load(text.as_bytes()).unwrap()
}

#[test]
fn evaluation_counts_the_hits_as_on_the_other_engines() {
    let (step, model) = mlp();
    let libtorch = libtorch();
    let mut training = Training::new(&libtorch, &step, &model, 0.05);
    for at in 0..20 {
        training.step(&batch(&step, at));
    }
    let steps = evaluation();
    let graph = trained(&model, Optimizer::Sgd, BATCH, false).evaluation;
    let data = batch(&steps, 77);
    let mut evaluated = |backend: &dyn cloister_engine::Backend, graph: &EngineGraph| -> TensorMap {
        training.compiled = compile(backend, graph);
        let inputs = training.inputs(&data);
        run(training.compiled.as_mut(), &inputs, None)
            .unwrap()
            .into_iter()
            .collect()
    };
    let seen = evaluated(&libtorch, &steps);
    assert!(seen["correct"].to_i64_vec().unwrap()[0] > BATCH as i64 / 2);
    for backend in backends() {
        let wanted = evaluated(backend.as_ref(), &graph);
        assert_eq!(seen["correct"], wanted["correct"], "{}", backend.name());
        let (loss, other) = (seen["loss"].first_f64().unwrap(), wanted["loss"].first_f64().unwrap());
        assert!((loss - other).abs() <= 1e-5 * (1.0 + other), "{loss} {other}");
    }
}

fn data(x: Vec<f32>, labels: Vec<i64>) -> TensorMap {
    TensorMap::from([
        ("x".to_owned(), Tensor::from_f32(&[BATCH, 64], x).unwrap()),
        ("labels".to_owned(), Tensor::from_i64(&[BATCH], labels).unwrap()),
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Any bits as features and any numbers as labels: outputs of their shapes, or, for a label outside of the classes, a refusal; and
    /// the engine runs on.
    #[test]
    fn no_numbers_of_a_dataset_break_it(
        x in prop::collection::vec(any::<u32>().prop_map(f32::from_bits), BATCH * 64),
        labels in prop::collection::vec(prop_oneof![4 => 0..4_i64, 1 => any::<i64>()], BATCH),
    ) {
        let (step, model) = mlp();
        let libtorch = libtorch();
        let mut training = Training::new(&libtorch, &step, &model, 0.1);
        // -100 is PyTorch's label for rows that do not count.
        let known = labels.iter().all(|label| (0..4).contains(label) || *label == -100);
        let inputs = training.inputs(&data(x, labels));
        match run(training.compiled.as_mut(), &inputs, None) {
            Ok(outputs) => {
                prop_assert!(known);
                for (port, (name, tensor)) in step.outputs().iter().zip(&outputs) {
                    prop_assert_eq!((&port.name, &port.shape[..]), (name, tensor.shape().dims()));
                }
            }
            Err(error) => prop_assert!(!known, "{}", error),
        }
        let good = data(noise(1, BATCH * 64), (0..BATCH as i64).map(|row| row % 4).collect());
        prop_assert!(training.step(&good).is_finite());
    }
}

#[test]
fn the_number_of_threads_can_be_set() {
    let (step, model) = cnn();
    let libtorch = libtorch();
    for threads in [1, 2] {
        let options = CompileOptions {
            threads: std::num::NonZeroUsize::new(threads),
            ..CompileOptions::default()
        };
        let mut training = Training::new(&libtorch, &step, &model, 0.05);
        training.compiled = cloister_engine::Backend::compile(&libtorch, &step, &options).unwrap();
        assert!(training.step(&batch(&step, 1)).is_finite());
    }
}
