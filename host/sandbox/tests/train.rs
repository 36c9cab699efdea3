//! The trainer `train-sgd` in the sandbox.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that panics says where, and a skipped one says so"
)]

mod common;

use std::collections::BTreeMap;

use cloister_graph::{Optimizer, TrainOptions};
use cloister_sandbox::{ModuleErrorKind, SettingValue};
use cloister_tensor::TensorMap;
use common::{BATCH, REST, ROWS, compiled, loaded, settings, text, train, train_call};

#[test]
fn trains_with_handles_only() {
    let Some((sandbox, module)) = loaded("train-sgd") else {
        return;
    };
    let mut call = train_call(&module);
    call.settings = settings(&[
        ("epochs", SettingValue::Integer(5)),
        ("learning_rate", SettingValue::Number(0.1)),
    ]);
    let start = call.model.clone();
    let outcome = train(&sandbox, call).unwrap();
    assert_eq!(outcome.rows, ROWS);
    assert_eq!(
        outcome.tensors.keys().collect::<Vec<_>>(),
        start.keys().collect::<Vec<_>>()
    );
    assert!(
        outcome.tensors.iter().all(|(name, tensor)| *tensor != start[name]),
        "every parameter moved"
    );
    let first = loss_after(1);
    let [(name, last)] = &outcome.metrics[..] else {
        panic!("one metric, seen {:?}", outcome.metrics)
    };
    assert_eq!(name, "loss");
    assert!(*last < first, "the loss falls over epochs: {first} to {last}");
}

fn loss_after(epochs: i64) -> f64 {
    let (sandbox, module) = loaded("train-sgd").unwrap();
    let mut call = train_call(&module);
    call.settings = settings(&[("epochs", SettingValue::Integer(epochs))]);
    train(&sandbox, call).unwrap().metrics[0].1
}

#[test]
fn the_same_round_gives_the_same_bytes() {
    let Some((sandbox, module)) = loaded("train-sgd") else {
        return;
    };
    let one = train(&sandbox, train_call(&module)).unwrap();
    let two = train(&sandbox, train_call(&module)).unwrap();
    assert_eq!(one.tensors, two.tensors);
    let mut other = train_call(&module);
    other.round.seed += 1;
    assert_ne!(one.tensors, train(&sandbox, other).unwrap().tensors);
}

#[test]
fn remainders_take_their_graph_or_are_dropped() {
    let Some((sandbox, module)) = loaded("train-sgd") else {
        return;
    };
    let mut call = train_call(&module);
    call.settings = settings(&[("drop_last", SettingValue::Boolean(true))]);
    assert_eq!(train(&sandbox, call).unwrap().rows, 64);
    let mut call = train_call(&module);
    call.graphs.remove("train@6");
    let error = train(&sandbox, call).unwrap_err();
    assert_eq!(error.kind, ModuleErrorKind::UnknownGraph);
    assert!(
        error
            .message
            .contains("no graph `train@6`; the policy gives this module: train"),
        "{error}"
    );
}

#[test]
fn schedules_change_the_step() {
    let Some((sandbox, module)) = loaded("train-sgd") else {
        return;
    };
    let trained = |schedule: &str, index| {
        let mut call = train_call(&module);
        call.settings = settings(&[("schedule", text(schedule)), ("step_rounds", SettingValue::Integer(2))]);
        call.round.index = index;
        train(&sandbox, call).unwrap().tensors
    };
    assert_eq!(trained("constant", 1), trained("constant", 5));
    assert_eq!(trained("step", 1), trained("step", 2));
    assert_ne!(trained("step", 2), trained("step", 3));
    assert_ne!(trained("cosine", 1), trained("cosine", 5));
}

#[test]
fn settings_are_checked_before_the_first_round() {
    let Some((sandbox, module)) = loaded("train-sgd") else {
        return;
    };
    let resolved = module.resolve_settings(&BTreeMap::new()).unwrap();
    assert_eq!(resolved["batch"], SettingValue::Integer(32));
    for (name, value, wanted) in [
        ("epoch", SettingValue::Integer(1), "did you mean `epochs`?"),
        (
            "schedule",
            text("linear"),
            "wanted one of \"constant\", \"step\", \"cosine\"",
        ),
        ("epochs", SettingValue::Number(0.5), "wanted integer"),
    ] {
        let error = module
            .resolve_settings(&settings(&[(name, value.clone())]))
            .unwrap_err();
        assert_eq!(error.kind, ModuleErrorKind::Setting);
        assert!(error.message.contains(wanted), "{error}");
        let mut call = train_call(&module);
        call.settings = settings(&[(name, value)]);
        assert_eq!(train(&sandbox, call).unwrap_err().kind, ModuleErrorKind::Setting);
    }
    // What only the module can see: a negative number of epochs.
    let mut call = train_call(&module);
    call.settings = settings(&[("epochs", SettingValue::Integer(-1))]);
    assert_eq!(train(&sandbox, call).unwrap_err().kind, ModuleErrorKind::Setting);
}

#[test]
fn without_a_range_or_a_read_the_policy_says_what_is_missing() {
    let Some((sandbox, module)) = loaded("train-sgd") else {
        return;
    };
    let mut call = train_call(&module);
    call.grants.scalars.remove("learning_rate");
    let error = train(&sandbox, call).unwrap_err();
    assert_eq!(error.kind, ModuleErrorKind::Denied);
    assert!(
        error
            .message
            .contains("add `learning_rate = { min = .., max = .. }` to its `scalars`"),
        "{error}"
    );
    let mut call = train_call(&module);
    call.grants.reads.clear();
    let error = train(&sandbox, call).unwrap_err();
    assert_eq!(error.kind, ModuleErrorKind::Denied);
    assert!(error.message.contains("list `loss` in its `reads`"), "{error}");
    let mut call = train_call(&module);
    call.grants.reads.clear();
    call.settings = settings(&[("report_loss", SettingValue::Boolean(false))]);
    assert!(train(&sandbox, call).unwrap().metrics.is_empty());
}

#[test]
fn a_dataset_of_no_rows_gives_no_update() {
    let Some((sandbox, module)) = loaded("train-sgd") else {
        return;
    };
    let mut call = train_call(&module);
    call.datasets
        .insert("train".to_owned(), std::sync::Arc::new(common::Fake(0)));
    assert_eq!(train(&sandbox, call).unwrap_err().kind, ModuleErrorKind::NoUpdate);
}

#[test]
fn steps_go_on_in_the_rows_from_round_to_round() {
    let Some((sandbox, module)) = loaded("train-sgd") else {
        return;
    };
    // Without momentum: nothing is kept from step to step but the model.
    let sgd = |batch| {
        let options = TrainOptions::new(Optimizer::Sgd, batch);
        compiled(&cloister_graph::train(&common::model(), &options).unwrap().training)
    };
    let run = |steps: i64, step: u64, model: &TensorMap| {
        let mut call = train_call(&module);
        call.graphs = BTreeMap::from([("train".to_owned(), sgd(BATCH)), (format!("train@{REST}"), sgd(REST))]);
        call.settings = settings(&[("steps", SettingValue::Integer(steps))]);
        call.model = model.clone();
        call.round.step = step;
        // Whatever the rounds' seeds are.
        call.round.seed = step + 100;
        train(&sandbox, call).unwrap()
    };
    let start = common::model().initial_weights();
    // Three batches are a pass: four steps reach into the second.
    let whole = run(4, 0, &start);
    let half = run(2, 0, &start);
    assert_eq!(half.rows, 2 * BATCH as u64);
    assert_eq!(run(2, 1, &half.tensors).tensors, whole.tensors);
    assert_eq!(whole.metrics.len(), 1);
    assert_eq!(run(1, 2, &start).rows, REST as u64);
    assert_ne!(
        run(1, 0, &start).tensors,
        run(1, 3, &start).tensors,
        "each pass has an order of its own"
    );
}
