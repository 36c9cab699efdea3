//! What steps of a parameter server are made of, over the socket to a runner process: gradients, an aggregator's slots.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that panics says where, and a skipped one says so"
)]

mod common;

use std::time::Duration;

use cloister_data::Format;
use cloister_graph::{Optimizer, TrainOptions};
use cloister_runner::{
    AggregateReply, AggregateRequest, Death, Runner, RunnerError, SharedSlots, SharedTensors, WorkerUpdate,
};
use cloister_sandbox::{ModuleErrorKind, UpdateKind};
use cloister_tensor::{Tensor, TensorMap};
use common::*;

fn gradient_request(step: u64) -> cloister_runner::TrainRequest {
    let mut request = train_request("train-ps");
    request.update = UpdateKind::Gradient;
    request.round.step = step;
    request
}

/// A runner whose graphs give gradients.
fn stepping() -> Option<Runner> {
    let module = guest("train-ps")?;
    let mut runner = runner();
    for (name, batch) in [("train", BATCH), ("train@6", REST)] {
        let graphs = cloister_graph::train(&model(), &TrainOptions::new(Optimizer::None, batch)).unwrap();
        runner.load_graph(name, graphs.training.bytes()).unwrap();
    }
    open_rows(&mut runner);
    runner.load_module("train-ps", &module).unwrap();
    Some(runner)
}

#[test]
fn a_step_gives_a_gradient_with_the_models_layout() {
    let Some(mut runner) = stepping() else { return };
    let seen: Vec<TensorMap> = (0..4)
        .map(|step| {
            let reply = runner.train(&gradient_request(step)).unwrap();
            assert_eq!(reply.rows, if step == 2 { REST } else { BATCH } as u64);
            assert_eq!(reply.metrics.len(), 1);
            reply.tensors.to_map().unwrap()
        })
        .collect();
    assert!(
        seen.windows(2).all(|pair| pair[0] != pair[1]),
        "each step has rows of its own"
    );
    assert!(seen[0].keys().eq(weights().to_map().unwrap().keys()));
    // A process that takes over goes on with the same bytes.
    runner.restart().unwrap();
    let again = runner.train(&gradient_request(3)).unwrap();
    assert_eq!(again.tensors.to_map().unwrap(), seen[3]);
}

#[test]
fn a_label_that_names_no_class_is_the_datasets_failure() {
    let Some(mut runner) = stepping() else { return };
    let rows = csv(ROWS) + "0.1,0.2,0.3,0.4,3\n";
    runner
        .open_dataset("rows.csv", file(&rows), Format::Csv, &spec(), &SALT)
        .unwrap();
    match runner.train(&gradient_request(0)) {
        Err(RunnerError::Dataset { name, message }) => {
            assert_eq!(name, "train");
            assert!(message.contains("row 71") && message.contains("label 3"), "{message}");
        }
        other => panic!("{other:?}"),
    }
}

fn request(attack_name: &str, slots: SharedSlots) -> AggregateRequest {
    let train = train_request("hostile");
    AggregateRequest {
        module: train.module,
        settings: attack(attack_name),
        model: train.model,
        statistics: names(&[]),
        round: train.round,
        update: UpdateKind::Gradient,
        slots,
        limits: train.limits,
        timeout: Duration::from_secs(60),
    }
}

fn aggregate(runner: &mut Runner, request: &AggregateRequest) -> Result<AggregateReply, RunnerError> {
    let mut update = Some(WorkerUpdate {
        node: "a".to_owned(),
        rows: 1,
        tensors: weights(),
    });
    runner.aggregate(request, &mut || Ok(update.take()))
}

fn elements() -> usize {
    weights()
        .to_map()
        .unwrap()
        .values()
        .map(|tensor| tensor.shape().elements())
        .sum()
}

#[test]
fn slots_go_from_call_to_call_and_through_a_checkpoint() {
    let Some(module) = guest("hostile-aggregator") else {
        return;
    };
    let mut runner = runner();
    runner.load_module("hostile", &module).unwrap();
    let mut slots = SharedSlots::default();
    assert!(slots.is_empty());
    for calls in 1..6 {
        let reply = aggregate(&mut runner, &request("count_calls", slots)).unwrap();
        let kept = reply.slots.to_map().unwrap();
        assert_eq!(kept["calls"].shape().dims(), [elements()]);
        assert_eq!(kept["calls"].first_f64(), Some(f64::from(calls)));
        // As a node does that was started again in between.
        slots = if calls == 3 {
            SharedSlots::copy_of(&kept).unwrap()
        } else {
            reply.slots
        };
    }
    let error = aggregate(&mut runner, &request("slot_not_finite", slots.clone())).unwrap_err();
    assert!(matches!(error, RunnerError::Module(error) if error.kind == ModuleErrorKind::NotFinite));
    // A call that keeps nothing of its own hands them on.
    let reply = aggregate(&mut runner, &request("none", slots.clone())).unwrap();
    assert_eq!(reply.slots.to_map().unwrap(), slots.to_map().unwrap());
}

#[test]
fn slots_of_another_model_are_refused_and_the_runner_goes_on() {
    let Some(module) = guest("hostile-aggregator") else {
        return;
    };
    let mut runner = runner();
    runner.load_module("hostile", &module).unwrap();
    let vector = |length: usize| Tensor::from_f32(&[length], vec![1.0; length]).unwrap();
    let slots = |names: &[&str], length: usize| {
        let tensors = names.iter().map(|name| ((*name).to_owned(), vector(length))).collect();
        SharedSlots::copy_of(&tensors).unwrap()
    };
    let right = elements();
    for (odd, wanted) in [
        (slots(&["m"], right - 1), "the model takes"),
        (slots(&["m"], right + 1), "at most"),
        (slots(&["a row: 7"], right), "wanted a name"),
    ] {
        match aggregate(&mut runner, &request("none", odd)) {
            Err(RunnerError::Request(message)) => assert!(message.contains(wanted), "{message}"),
            other => panic!("{other:?}"),
        }
    }
    aggregate(&mut runner, &request("none", slots(&["a", "b", "c", "d"], right))).unwrap();
}

#[test]
fn lying_slots_are_refused() {
    let tensors = TensorMap::from([("w".to_owned(), Tensor::from_f32(&[4], vec![0.0; 4]).unwrap())]);
    for (how, wanted) in [
        ("slots-without-memory", "came without its memory"),
        ("short-slots", "15 bytes came, the model takes 16"),
        ("unsealed-slots", "without the seals"),
        ("huge-slots", "at most"),
        ("five-slots", "seen 5 slots, wanted at most 4"),
        ("odd-slots", "wanted a name"),
    ] {
        let mut runner = Runner::start(options(how)).unwrap();
        let mut request = request("none", SharedSlots::default());
        request.model = SharedTensors::copy_of(&tensors).unwrap();
        match aggregate(&mut runner, &request) {
            Err(RunnerError::Died {
                how: Death::Misbehaved(problem),
                during: "aggregation",
                ..
            }) => assert!(problem.contains(wanted), "{how}: {problem}"),
            other => panic!("{how}: {other:?}"),
        }
        assert_eq!(runner.pid(), None);
    }
}
