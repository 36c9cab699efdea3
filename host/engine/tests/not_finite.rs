//! What each engine makes of numbers that are none: a loss need not show them, which is why they are kept out of rows and transforms,
//! and looked for in every update.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests"
)]

mod common;

use cloister_engine::Backend;
use cloister_engine::tract::Tract;
use cloister_graph::{Optimizer, samples};
use cloister_tensor::{Tensor, TensorMap};
use common::{BATCH, CLASSES, INPUTS, backends, batch, compile, openvino, trained};

/// The parameters that the broken cell goes into first: an update is refused by them.
const NEXT: &str = "next/fc1.weight";

/// One step of an MLP on rows of which one cell is `value`: its loss, and the outputs that are not finite.
fn step(backend: &dyn Backend, value: f32) -> (f32, Vec<String>) {
    let bytes = samples::mlp(INPUTS, 24, CLASSES, 2).unwrap();
    let model = samples::parsed(&bytes).unwrap();
    let graph = trained(&model, Optimizer::Sgd, BATCH, true).training;
    let mut inputs: TensorMap = model.initial_weights();
    inputs.extend(batch(&graph, 1));
    let mut x = inputs["x"].as_f32().unwrap().to_vec();
    x[5] = value;
    inputs.insert("x".into(), Tensor::from_f32(&[BATCH, INPUTS], x).unwrap());
    inputs.insert("learning_rate".into(), Tensor::scalar_f32(0.1));
    inputs.insert("step".into(), Tensor::from_i64(&[1], vec![1]).unwrap());
    let named: Vec<_> = graph
        .inputs()
        .iter()
        .map(|port| (port.name.as_str(), inputs[&port.name].clone()))
        .collect();
    let outputs = compile(backend, &graph).run(&named, None).unwrap();
    let loss = outputs
        .iter()
        .find(|(name, _)| name == "loss")
        .unwrap()
        .1
        .first_f64()
        .unwrap() as f32;
    let broken = outputs
        .into_iter()
        .filter(|(_, tensor)| tensor.first_not_finite().is_some());
    (loss, broken.map(|(name, _)| name).collect())
}

#[test]
fn numbers_that_are_none_show_in_no_sure_place() {
    let (loss, broken) = step(&Tract::new(), f32::NAN);
    assert!(
        loss.is_nan() && broken.contains(&NEXT.to_owned()),
        "tract: {loss}, {broken:?}"
    );
    if let Some(openvino) = openvino() {
        // Its ReLU makes 0 of NaN: the loss looks sound, the parameters that saw the row do not.
        let (loss, broken) = step(&openvino, f32::NAN);
        assert!(
            loss.is_finite() && broken.contains(&NEXT.to_owned()),
            "openvino: {loss}, {broken:?}"
        );
    }
}

#[test]
fn an_infinite_cell_shows_in_the_loss_of_every_engine() {
    for engine in backends() {
        let (loss, broken) = step(engine.as_ref(), f32::INFINITY);
        assert!(
            loss.is_nan() && broken.contains(&NEXT.to_owned()),
            "{}: {loss}, {broken:?}",
            engine.name()
        );
    }
}
