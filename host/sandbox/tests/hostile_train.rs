//! Trainers that misbehave: each is told what it did, and the sandbox goes on.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that panics says where, and a skipped one says so"
)]

mod common;

use std::time::{Duration, Instant};

use cloister_sandbox::{
    Module, ModuleError, ModuleErrorKind, Sandbox, SettingValue, TensorAccess, TrainCall, TrainOutcome,
};
use common::{loaded, settings, text, train, train_call};

fn run(
    sandbox: &Sandbox,
    module: &Module,
    attack: &str,
    change: impl FnOnce(&mut TrainCall),
) -> Result<TrainOutcome, ModuleError> {
    let mut call = train_call(module);
    call.settings = settings(&[("attack", text(attack))]);
    change(&mut call);
    train(sandbox, call)
}

/// The kind of error and a part of its message.
fn attack(name: &str, kind: ModuleErrorKind, message: &str) {
    attack_with(name, |_| {}, kind, message);
}

fn attack_with(name: &str, change: impl FnOnce(&mut TrainCall), kind: ModuleErrorKind, message: &str) {
    let Some((sandbox, module)) = loaded("hostile-trainer") else {
        return;
    };
    let error = run(&sandbox, &module, name, change).expect_err(name);
    assert_eq!(error.kind, kind, "{error}");
    assert!(error.message.contains(message), "wanted {message:?} in {error}");
    assert!(error.message.len() <= cloister_sandbox::MAX_MESSAGE_BYTES);
    assert_eq!(error.digest, module.digest());
    // The sandbox works on.
    let outcome = run(&sandbox, &module, "none", |_| {}).unwrap();
    assert_eq!(outcome.rows, 32);
}

fn access(read: bool, write: bool) -> impl FnOnce(&mut TrainCall) {
    move |call| call.grants.tensor_access = TensorAccess { read, write }
}

#[test]
fn loops_forever() {
    let start = Instant::now();
    attack_with(
        "loop",
        |call| call.limits.call = Duration::from_millis(300),
        ModuleErrorKind::Deadline,
        "more than 0.300 s",
    );
    assert!(start.elapsed() < Duration::from_secs(30));
}

#[test]
fn allocates_without_end() {
    attack("allocate", ModuleErrorKind::Memory, "wanted at most 33554432");
}

#[test]
fn traps() {
    attack("trap", ModuleErrorKind::Trap, "unreachable");
}

#[test]
fn panics_and_its_words_are_in_the_log() {
    attack("panic", ModuleErrorKind::Trap, "unreachable");
    let Some((sandbox, module)) = loaded("hostile-trainer") else {
        return;
    };
    let error = run(&sandbox, &module, "panic", |_| {}).unwrap_err();
    assert!(
        error.log.iter().any(|line| line.contains("out of ideas")),
        "{:?}",
        error.log
    );
}

#[test]
fn recurses() {
    attack("recurse", ModuleErrorKind::Stack, "call stack is full");
}

#[test]
fn lies_about_lengths() {
    attack(
        "lie_about_length",
        ModuleErrorKind::WrongShape,
        "takes 4 bytes, seen 400",
    );
    attack("overflow_dimensions", ModuleErrorKind::WrongShape, "");
}

#[test]
fn asks_for_what_the_policy_does_not_name() {
    attack(
        "unknown_graph",
        ModuleErrorKind::UnknownGraph,
        "no graph `backdoor`; the policy gives this module: train, train@6",
    );
    attack(
        "unknown_dataset",
        ModuleErrorKind::UnknownDataset,
        "no dataset `everything`",
    );
    attack("empty_batch", ModuleErrorKind::Argument, "a batch of 0 rows");
    attack("bring_graph", ModuleErrorKind::Denied, "use `load-by-name`");
}

/// A batch of as many rows as the first layer has units has the shape of its weights: by shape alone it would pass.
fn batch_in_the_shape_of_a_parameter(call: &mut TrainCall) {
    call.graphs.insert(
        "train".to_owned(),
        common::compiled(&common::graphs_for(common::HIDDEN).training),
    );
    call.settings
        .insert("batch".to_owned(), SettingValue::Integer(common::HIDDEN as i64));
}

#[test]
fn smuggles_rows_into_a_parameter() {
    let smuggled = "port `fc1.weight`: seen rows of dataset `train`, input `x`, wanted parameter `fc1.weight`";
    attack_with(
        "rows_to_parameter",
        batch_in_the_shape_of_a_parameter,
        ModuleErrorKind::Denied,
        smuggled,
    );
    let returned = "the update gives rows of dataset `train`, input `x` as parameter `fc1.weight`";
    attack_with(
        "rows_as_update",
        batch_in_the_shape_of_a_parameter,
        ModuleErrorKind::Denied,
        returned,
    );
    // No grant opens that way.
    for (name, message) in [("rows_to_parameter", smuggled), ("rows_as_update", returned)] {
        let granted = |call: &mut TrainCall| {
            batch_in_the_shape_of_a_parameter(call);
            call.grants.tensor_access = TensorAccess {
                read: true,
                write: true,
            };
        };
        attack_with(name, granted, ModuleErrorKind::Denied, message);
    }
}

#[test]
fn gives_other_tensors_than_were_computed() {
    attack("swap_parameters", ModuleErrorKind::WrongShape, "seen F32");
    attack_with(
        "wrong_shape",
        access(false, true),
        ModuleErrorKind::WrongShape,
        "seen F32 [3], wanted F32",
    );
    attack(
        "missing",
        ModuleErrorKind::MissingTensor,
        "the update lacks `fc1.bias`: 3 of 4",
    );
    attack("duplicate", ModuleErrorKind::DuplicateTensor, "twice");
    attack(
        "unknown_tensor",
        ModuleErrorKind::UnknownTensor,
        "`backdoor`, which the model does not have",
    );
    attack("nothing", ModuleErrorKind::NoUpdate, "no tensor");
    attack("unchanged", ModuleErrorKind::NoUpdate, "as it was");
}

#[test]
fn gives_what_is_not_finite() {
    attack("nan_metric", ModuleErrorKind::NotFinite, "metric `loss`: seen NaN");
    attack_with(
        "nan_parameters",
        access(false, true),
        ModuleErrorKind::NotFinite,
        "`fc1.bias` is not finite",
    );
    let wide = |call: &mut TrainCall| {
        if let Some(range) = call.grants.scalars.get_mut("learning_rate") {
            range.max = f64::MAX;
        }
    };
    attack_with("diverge", wide, ModuleErrorKind::NotFinite, "diverged");
}

#[test]
fn feeds_the_wrong_thing() {
    attack(
        "scalar_to_data",
        ModuleErrorKind::Denied,
        "seen a scalar that the module made, wanted rows of a dataset, input `x`",
    );
    attack(
        "wrong_batch",
        ModuleErrorKind::WrongShape,
        "seen F32 [33, 4], wanted F32 [32, 4]",
    );
    attack("rate_out_of_range", ModuleErrorKind::Denied, "seen 7, wanted 0 to 1");
    attack(
        "odd_metric",
        ModuleErrorKind::Argument,
        "wanted a name of 1 to 64 characters",
    );
}

#[test]
fn reads_and_makes_tensors_without_a_grant() {
    attack(
        "make_tensor",
        ModuleErrorKind::Denied,
        "without `tensor_access = \"write\"`",
    );
    attack("read_parameter", ModuleErrorKind::Denied, "reads parameter `fc1.bias`");
    attack("read_rows", ModuleErrorKind::Denied, "reads rows of dataset `train`");
}

#[test]
fn reads_and_makes_tensors_with_a_grant() {
    let Some((sandbox, module)) = loaded("hostile-trainer") else {
        return;
    };
    assert!(run(&sandbox, &module, "make_tensor", access(false, true)).is_ok());
    assert!(run(&sandbox, &module, "made_update", access(false, true)).is_ok());
    assert!(run(&sandbox, &module, "read_parameter", access(true, false)).is_ok());
    assert!(run(&sandbox, &module, "read_rows", access(true, false)).is_ok());
    let kind = run(&sandbox, &module, "read_parameter", access(false, true))
        .unwrap_err()
        .kind;
    assert_eq!(kind, ModuleErrorKind::Denied);
    let kind = run(&sandbox, &module, "make_tensor", access(true, false))
        .unwrap_err()
        .kind;
    assert_eq!(kind, ModuleErrorKind::Denied);
}

#[test]
fn logs_without_end() {
    attack("log_without_end", ModuleErrorKind::Log, "more than 4096 bytes");
}

#[test]
fn hoards() {
    attack("hoard_handles", ModuleErrorKind::Memory, "more than 10000 handles");
    attack_with(
        "hoard_batches",
        |call| {
            call.limits.handles = 1_000_000;
            call.limits.call = Duration::from_secs(20);
            call.limits.tensor_memory_bytes = 200_000;
        },
        ModuleErrorKind::Memory,
        "raise `tensor_memory_mib`",
    );
}

#[test]
fn cannot_count_its_rows_up() {
    let Some((sandbox, module)) = loaded("hostile-trainer") else {
        return;
    };
    let outcome = run(&sandbox, &module, "inflate_rows", |call| {
        call.limits.call = Duration::from_secs(20)
    })
    .unwrap();
    assert_eq!(outcome.rows, common::ROWS);
}

#[test]
fn gives_up_at_length() {
    attack("give_up", ModuleErrorKind::Failed, "no xxx");
}

#[test]
fn the_model_itself_counts() {
    attack_with(
        "none",
        |call| call.limits.tensor_memory_bytes = 16,
        ModuleErrorKind::Memory,
        "the model takes",
    );
}
