//! Masks of dropouts: the host draws them, and no trainer has a say.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that panics says where, and a skipped one says so"
)]

mod common;
#[path = "../../graph/tests/common/onnx_file.rs"]
#[allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "shared by tests that each use a part of it"
)]
mod onnx_file;

use std::collections::BTreeMap;
use std::sync::Arc;

use cloister_graph::{Limits, Model, Optimizer, TrainOptions};
use cloister_sandbox::{Module, ModuleErrorKind, Rows, SettingValue, TensorAccess, TrainCall};
use common::{BATCH, CLASSES, Fake, INPUTS, compiled, loaded, settings, text, train, train_call};

/// A network of two layers with a dropout between them, in training form.
fn model() -> Model {
    let (batch, inputs, classes) = (BATCH as i64, INPUTS as i64, CLASSES as i64);
    let file = onnx_file::Model::of(17, &[batch, inputs])
        .parameter("w", &[inputs, inputs])
        .parameter("v", &[inputs, classes])
        .floats("ratio", &[], &[0.5])
        .truths("trains", &[], &[1])
        .node("MatMul", &["x", "w"], &["seen"], &[])
        .node("Dropout", &["seen", "ratio", "trains"], &["kept"], &[])
        .node("MatMul", &["kept", "v"], &["logits"], &[])
        .written("logits");
    Model::parse(&file, &Limits::default()).unwrap()
}

/// A call of whole batches on graphs with or without the dropout.
fn call(module: &Module, dropout: bool) -> TrainCall {
    let model = model();
    let mut options = TrainOptions::new(Optimizer::Momentum { momentum: 0.9 }, BATCH);
    options.dropout = dropout;
    let graphs = cloister_graph::train(&model, &options).unwrap();
    let mut call = train_call(module);
    call.graphs = BTreeMap::from([("train".to_owned(), compiled(&graphs.training))]);
    call.model = model.initial_weights();
    let rows: Arc<dyn Rows> = Arc::new(Fake(2 * BATCH as u64));
    call.datasets = BTreeMap::from([("train".to_owned(), rows)]);
    call
}

#[test]
fn a_trainer_that_knows_of_no_dropout_trains_with_it_the_same_way_each_time() {
    let Some((sandbox, module)) = loaded("train-sgd") else {
        return;
    };
    let update = |dropout: bool, seed: u64| {
        let mut call = call(&module, dropout);
        // With `steps` the order of the rows comes from the module's own seed, which stays.
        call.settings = settings(&[("seed", SettingValue::Integer(1)), ("steps", SettingValue::Integer(3))]);
        call.round.seed = seed;
        train(&sandbox, call).unwrap().tensors
    };
    let seen = update(true, 7);
    assert_eq!(seen, update(true, 7));
    assert_ne!(seen, update(true, 8), "another round, other masks");
    assert_ne!(seen, update(false, 7));
}

#[test]
fn masks_count_towards_the_memory_of_a_call() {
    let Some((sandbox, module)) = loaded("train-sgd") else {
        return;
    };
    let least = |dropout: bool| {
        (1..200_u64).find(|kib| {
            let mut call = call(&module, dropout);
            call.limits.tensor_memory_bytes = kib << 8;
            train(&sandbox, call).is_ok()
        })
    };
    assert!(least(true).unwrap() > least(false).unwrap());
}

#[test]
fn no_trainer_feeds_a_mask() {
    let Some((sandbox, module)) = loaded("hostile-trainer") else {
        return;
    };
    for (attack, access, seen) in [
        (
            "rows_as_mask",
            TensorAccess::default(),
            "seen rows of dataset `train`, input `x`",
        ),
        (
            "made_mask",
            TensorAccess {
                read: true,
                write: true,
            },
            "seen a tensor that the module made",
        ),
    ] {
        let mut call = call(&module, true);
        call.settings = settings(&[("attack", text(attack))]);
        call.grants.tensor_access = access;
        let error = train(&sandbox, call).unwrap_err();
        assert_eq!(error.kind, ModuleErrorKind::Denied, "{attack}: {error}");
        let said = error.to_string();
        let wanted = format!("graph `train`, port `mask/0`: {seen}, wanted nothing: the host draws it");
        assert!(said.contains(&wanted), "{said}");
    }
}
