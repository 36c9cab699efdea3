//! What both backends must do alike. The tests on OpenVINO need its folder in `CLOISTER_OPENVINO_DIR`.

#![allow(
    clippy::unwrap_used,
    clippy::type_complexity,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that panics says where, and a skipped one says so"
)]

mod common;

use std::time::{Duration, Instant};

use cloister_engine::{CompileOptions, EngineError, openvino};
use cloister_graph::{Optimizer, samples};
use cloister_tensor::{Tensor, TensorMap};

use common::{BATCH, Training, backends, batch, compile, distance, run, sample_models, suite, trained};

fn optimizers() -> [(&'static str, Optimizer, f32); 3] {
    [
        ("sgd", Optimizer::Sgd, 0.05),
        ("momentum", MOMENTUM, 0.02),
        ("adam", ADAM, 0.003),
    ]
}

const MOMENTUM: Optimizer = Optimizer::Momentum { momentum: 0.9 };
const ADAM: Optimizer = Optimizer::Adam {
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
};

#[test]
fn every_sample_trains_on_both_alike() {
    for (model_name, model) in sample_models() {
        for (optimizer_name, optimizer, rate) in optimizers() {
            let what = format!("{model_name} with {optimizer_name}");
            let graphs = trained(&model, optimizer, BATCH, false);
            let mut seen: Vec<(String, Vec<f64>, TensorMap)> = Vec::new();
            for backend in backends() {
                let mut training = Training::new(backend.as_ref(), &graphs.training, &model, rate);
                let losses: Vec<f64> = (0..24)
                    .map(|step| training.step(&batch(&graphs.training, step % 3)))
                    .collect();
                assert!(losses.iter().all(|loss| loss.is_finite()), "{what}: {losses:?}");
                let (first, last) = (losses[..3].iter().sum::<f64>(), losses[21..].iter().sum::<f64>());
                assert!(last < 0.7 * first, "{what} on {}: {losses:?}", backend.name());
                seen.push((backend.name().to_owned(), losses, training.tensors));
            }
            for pair in seen.windows(2) {
                let [(one, losses, tensors), (other, other_losses, other_tensors)] = pair else {
                    unreachable!()
                };
                for (loss, other_loss) in losses.iter().zip(other_losses) {
                    assert!(
                        (loss - other_loss).abs() <= 1e-5 * (1.0 + loss.abs()),
                        "{what}: {loss} {other_loss}"
                    );
                }
                let apart = distance(tensors, other_tensors);
                assert!(apart <= 1e-5, "{what}: {one} and {other} are {apart} apart");
            }
        }
    }
}

#[test]
fn evaluation_counts_the_hits_on_both_alike() {
    for (model_name, model) in sample_models() {
        let graphs = trained(&model, Optimizer::Sgd, BATCH, false);
        let mut seen = Vec::new();
        for backend in backends() {
            let mut training = Training::new(backend.as_ref(), &graphs.training, &model, 0.05);
            for step in 0..20 {
                training.step(&batch(&graphs.training, step));
            }
            training.compiled = compile(backend.as_ref(), &graphs.evaluation);
            let data = batch(&graphs.evaluation, 77);
            let inputs = training.inputs(&data);
            let outputs: TensorMap = run(training.compiled.as_mut(), &inputs, None)
                .unwrap()
                .into_iter()
                .collect();
            let correct = outputs["correct"].to_i64_vec().unwrap();
            assert_eq!(outputs["correct"].shape().dims(), [1]);
            let logits = outputs["logits"].to_f32_vec().unwrap();
            let best = |row: &[f32]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as i64;
            let labels = data["labels"].to_i64_vec().unwrap();
            let hits = logits
                .chunks(logits.len() / BATCH)
                .zip(&labels)
                .filter(|(row, label)| best(row) == **label);
            assert_eq!(hits.count() as i64, correct[0], "{model_name}");
            assert!(correct[0] as usize > BATCH / 2, "{model_name}: {correct:?}");
            seen.push(outputs);
        }
        for pair in seen.windows(2) {
            assert_eq!(pair[0]["correct"], pair[1]["correct"]);
            let apart = distance(&pair[0], &pair[1]);
            assert!(apart <= 1e-5, "{model_name}: {apart}");
        }
    }
}

#[test]
fn gradients_are_those_of_finite_differences_in_f64() {
    let model = samples::parsed(&samples::mlp(6, 5, 3, 9).unwrap()).unwrap();
    let graph = trained(&model, Optimizer::None, 4, true).training;
    let data = batch(&graph, 5);
    let labels: Vec<i64> = data["labels"]
        .to_i64_vec()
        .unwrap()
        .iter()
        .map(|label| label % 3)
        .collect();
    let data = TensorMap::from([
        ("x".to_owned(), data["x"].clone()),
        ("labels".to_owned(), Tensor::from_i64(&[4], labels.clone()).unwrap()),
    ]);
    let weights = model.initial_weights();
    let x = data["x"].to_f64_vec();
    let values = |name: &str| weights[name].to_f64_vec();
    let names = ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"];
    let start: Vec<Vec<f64>> = names.iter().map(|name| values(name)).collect();
    let loss = |p: &[Vec<f64>]| mlp_loss(&x, &labels, &p[0], &p[1], &p[2], &p[3]);
    for backend in backends() {
        let training = Training::new(backend.as_ref(), &graph, &model, 0.0);
        let inputs = training.inputs(&data);
        let mut compiled = training.compiled;
        let outputs: TensorMap = run(compiled.as_mut(), &inputs, None).unwrap().into_iter().collect();
        assert!((outputs["loss"].first_f64().unwrap() - loss(&start)).abs() < 1e-6);
        for (at, name) in names.iter().enumerate() {
            let gradient = outputs[&format!("grad/{name}")].to_f64_vec();
            for (element, seen) in gradient.iter().enumerate() {
                let difference = |by: f64| {
                    let mut moved = start.clone();
                    moved[at][element] += by;
                    loss(&moved)
                };
                let wanted = (difference(1e-5) - difference(-1e-5)) / 2e-5;
                assert!(
                    (seen - wanted).abs() < 1e-6,
                    "{} {name}[{element}]: {seen} {wanted}",
                    backend.name()
                );
            }
        }
    }
}

/// The MLP sample and its loss, written out in f64.
fn mlp_loss(x: &[f64], labels: &[i64], w1: &[f64], b1: &[f64], w2: &[f64], b2: &[f64]) -> f64 {
    let linear = |row: &[f64], weight: &[f64], bias: &[f64]| -> Vec<f64> {
        weight
            .chunks(row.len())
            .zip(bias)
            .map(|(w, b)| w.iter().zip(row).map(|(w, x)| w * x).sum::<f64>() + b)
            .collect()
    };
    let of_row = |(row, &label): (&[f64], &i64)| {
        let hidden: Vec<f64> = linear(row, w1, b1).into_iter().map(|value| value.max(0.0)).collect();
        let logits = linear(&hidden, w2, b2);
        let total: f64 = logits.iter().map(|logit| logit.exp()).sum();
        total.ln() - logits[label as usize]
    };
    x.chunks(x.len() / labels.len()).zip(labels).map(of_row).sum::<f64>() / labels.len() as f64
}

#[test]
fn what_does_not_fit_a_port_is_refused_before_anything_runs() {
    let (_, model) = sample_models().remove(0);
    let graph = trained(&model, Optimizer::Sgd, BATCH, false).training;
    for backend in backends() {
        suite::what_does_not_fit_a_port_is_refused(backend.as_ref(), &graph, &model);
    }
}

#[test]
fn a_run_ends_at_its_deadline_and_the_engine_lives_on() {
    let model = samples::parsed(&samples::mlp(1024, 2048, 4, 1).unwrap()).unwrap();
    let graph = trained(&model, MOMENTUM, 256, false).training;
    for backend in backends() {
        let training = Training::new(backend.as_ref(), &graph, &model, 0.001);
        let inputs = training.inputs(&batch(&graph, 0));
        let mut compiled = training.compiled;
        let begin = Instant::now();
        let wanted = run(compiled.as_mut(), &inputs, None).unwrap();
        let full = begin.elapsed();
        let begin = Instant::now();
        let error = run(compiled.as_mut(), &inputs, Some(Duration::from_millis(1))).unwrap_err();
        let cut = begin.elapsed();
        assert!(
            matches!(error, EngineError::Deadline { after } if after.as_millis() == 1),
            "{error}"
        );
        println!("{}: {full:?} in full, {cut:?} with a deadline of 1 ms", backend.name());
        let error = run(compiled.as_mut(), &inputs, Some(Duration::ZERO)).unwrap_err();
        assert!(matches!(error, EngineError::Deadline { .. }), "{error}");
        for deadline in [None, Some(Duration::from_secs(600)), Some(Duration::MAX)] {
            assert_eq!(
                run(compiled.as_mut(), &inputs, deadline).unwrap(),
                wanted,
                "{}",
                backend.name()
            );
        }
    }
}

#[test]
fn runs_repeat_bit_by_bit_wherever_inputs_lie_and_leave_them_alone() {
    for (_, model) in sample_models() {
        let graph = trained(&model, MOMENTUM, BATCH, true).training;
        for backend in backends() {
            suite::runs_repeat_bit_by_bit(backend.as_ref(), &graph, &model);
        }
    }
}

#[test]
fn two_threads_run_side_by_side() {
    let (_, model) = sample_models().remove(2);
    let graph = trained(&model, Optimizer::Sgd, BATCH, false).training;
    for backend in backends() {
        suite::two_threads_run_side_by_side(backend.as_ref(), &graph, &model);
    }
}

#[test]
fn openvino_puts_outputs_into_pooled_buffers() {
    let Some(openvino) = common::openvino() else { return };
    let (_, model) = sample_models().remove(1);
    let graph = trained(&model, Optimizer::Sgd, BATCH, false).training;
    let training = Training::new(&openvino, &graph, &model, 0.1);
    let inputs = training.inputs(&batch(&graph, 0));
    let mut compiled = training.compiled;
    let mut places = std::collections::BTreeSet::new();
    for _ in 0..100 {
        for (_, tensor) in run(compiled.as_mut(), &inputs, None).unwrap() {
            assert_eq!(tensor.bytes().as_ptr() as usize % 64, 0);
            places.insert(tensor.bytes().as_ptr() as usize);
        }
    }
    assert!(places.len() <= compiled.outputs().len(), "{} places", places.len());
}

#[test]
fn the_number_of_threads_can_be_set_and_they_can_be_kept_on_cores() {
    let (_, model) = sample_models().remove(2);
    let graph = trained(&model, Optimizer::Sgd, BATCH, false).training;
    for backend in backends() {
        let options = CompileOptions {
            threads: std::num::NonZeroUsize::new(1),
            ..CompileOptions::default()
        };
        let step = |options: &CompileOptions| {
            let mut training = Training::new(backend.as_ref(), &graph, &model, 0.05);
            training.compiled = backend.compile(&graph, options).unwrap();
            let loss = training.step(&batch(&graph, 1));
            assert!(loss.is_finite());
            training.tensors
        };
        // Threads that are kept on cores compute what others do.
        let pinned = CompileOptions {
            pinning: true,
            ..options
        };
        assert_eq!(step(&options), step(&pinned), "{}", backend.name());
    }
}

#[test]
fn a_folder_without_the_libraries_is_refused_by_name() {
    let error = openvino::load(std::path::Path::new("/nowhere/at/all")).unwrap_err();
    assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
    let empty = std::env::temp_dir().join(format!("cloister-engine-{}", std::process::id()));
    std::fs::create_dir_all(&empty).unwrap();
    let error = openvino::load(&empty).unwrap_err();
    std::fs::remove_dir(&empty).unwrap();
    assert!(
        error.to_string().contains("libopenvino.so.2641: no such file"),
        "{error}"
    );
    assert!(matches!(error, EngineError::Library { .. }));
}
