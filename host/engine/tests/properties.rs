//! What holds for any numbers and sizes: engines agree, and nothing that a dataset may hold breaks one.
#![allow(
    clippy::unwrap_used,
    clippy::type_complexity,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that panics says where, and a skipped one says so"
)]

mod common;

use cloister_graph::{EngineGraph, Optimizer, samples};
use cloister_tensor::{Tensor, TensorMap};
use proptest::prelude::*;

use common::{Training, backends, noise, run, trained};

fn data(graph: &EngineGraph, x: Vec<f32>, labels: Vec<i64>) -> TensorMap {
    let port = graph.inputs().iter().find(|port| port.name == "x").unwrap();
    TensorMap::from([
        ("x".to_owned(), Tensor::from_f32(&port.shape, x).unwrap()),
        ("labels".to_owned(), Tensor::from_i64(&[labels.len()], labels).unwrap()),
    ])
}

/// All outputs of one run on every engine, in the order of the engines.
fn on_every_engine(graph: &EngineGraph, model: &cloister_graph::Model, data: &TensorMap) -> Vec<TensorMap> {
    let engines = backends();
    let runs = engines.iter().map(|backend| {
        let training = Training::new(backend.as_ref(), graph, model, 0.1);
        let inputs = training.inputs(data);
        let mut compiled = training.compiled;
        run(compiled.as_mut(), &inputs, None).unwrap().into_iter().collect()
    });
    runs.collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The loss and its gradient, whatever the sizes: written out in f64, and the same on every engine.
    #[test]
    fn a_logistic_regression_of_any_size_is_what_the_formula_says(
        rows in 1..9_usize,
        inputs in 1..17_usize,
        classes in 2..6_usize,
        seed in 0..1000_u64,
        spread in 0.01..8.0_f32,
    ) {
        let model = samples::parsed(&samples::logistic(inputs, classes, seed).unwrap()).unwrap();
        let graph = trained(&model, Optimizer::None, rows, true).training;
        let x: Vec<f32> = noise(seed, rows * inputs).into_iter().map(|value| value * spread).collect();
        let labels: Vec<i64> = (0..rows).map(|row| ((row as u64 * 5 + seed) % classes as u64) as i64).collect();
        let weights = model.initial_weights();
        let values = |part: &str| weights.iter().find(|(name, _)| name.ends_with(part)).unwrap().1.to_f64_vec();
        let (weight, bias) = (values("weight"), values("bias"));
        let mut loss = 0.0;
        let mut by_bias = vec![0.0; classes];
        for (row, &label) in x.chunks(inputs).zip(&labels) {
            let logits: Vec<f64> = weight
                .chunks(inputs)
                .zip(&bias)
                .map(|(w, b)| w.iter().zip(row).map(|(w, x)| w * f64::from(*x)).sum::<f64>() + b)
                .collect();
            let total: f64 = logits.iter().map(|logit| logit.exp()).sum();
            loss += (total.ln() - logits[label as usize]) / rows as f64;
            for (class, sum) in by_bias.iter_mut().enumerate() {
                let hit = if class as i64 == label { 1.0 } else { 0.0 };
                *sum += (logits[class].exp() / total - hit) / rows as f64;
            }
        }
        let bias_name = weights.keys().find(|name| name.ends_with("bias")).unwrap().clone();
        for outputs in on_every_engine(&graph, &model, &data(&graph, x, labels)) {
            let seen = outputs["loss"].first_f64().unwrap();
            prop_assert!((seen - loss).abs() < 1e-4 * (1.0 + loss.abs()), "loss {} {}", seen, loss);
            for (seen, wanted) in outputs[&format!("grad/{bias_name}")].to_f64_vec().iter().zip(&by_bias) {
                prop_assert!((seen - wanted).abs() < 1e-4, "gradient {} {}", seen, wanted);
            }
        }
    }

    /// Any bits as features and any numbers as labels: a run gives its outputs, of their shapes, and the engine runs on. What is no
    /// number in them is found by those who take the outputs.
    #[test]
    fn no_numbers_of_a_dataset_break_an_engine(
        x in prop::collection::vec(any::<u32>().prop_map(f32::from_bits), 4 * 6),
        labels in prop::collection::vec(prop_oneof![any::<i64>(), -2..6_i64], 4),
    ) {
        let model = samples::parsed(&samples::mlp(6, 5, 3, 9).unwrap()).unwrap();
        let graph = trained(&model, Optimizer::Sgd, 4, true).training;
        for outputs in on_every_engine(&graph, &model, &data(&graph, x.clone(), labels.clone())) {
            for port in graph.outputs() {
                prop_assert_eq!(outputs[&port.name].shape().dims(), &port.shape[..]);
            }
        }
        let good = data(&graph, noise(1, 24), vec![0, 1, 2, 0]);
        for outputs in on_every_engine(&graph, &model, &good) {
            prop_assert!(outputs["loss"].first_f64().unwrap().is_finite());
        }
    }
}
