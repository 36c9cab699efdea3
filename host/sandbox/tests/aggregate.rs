//! The aggregator `aggregate-fedavg` in the sandbox, and aggregators that misbehave.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that panics says where, and a skipped one says so"
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cloister_sandbox::{AggregateCall, Module, ModuleErrorKind, RoundInfo, Sandbox, UpdateKind, WorkerUpdate};
use cloister_tensor::{Tensor, TensorMap};
use common::{limits, loaded, settings, text, train, train_call};

/// More than one chunk of the SDK, and tensors that end within one.
const LARGE: usize = 150_001;

fn model(value: f32) -> TensorMap {
    let tensor = |count: usize, by: f32| {
        let values = (0..count).map(|at| value + by * (at % 1000) as f32).collect();
        Tensor::from_f32(&[count], values).unwrap()
    };
    TensorMap::from([
        ("a".to_owned(), tensor(3, 0.5)),
        ("b".to_owned(), tensor(LARGE, 0.25)),
        ("c".to_owned(), Tensor::from_f32(&[0], vec![]).unwrap()),
        ("d".to_owned(), tensor(1, 0.0)),
    ])
}

fn call(module: &Module) -> AggregateCall {
    AggregateCall {
        module: module.clone(),
        settings: BTreeMap::new(),
        model: model(0.0),
        statistics: BTreeSet::from(["d".to_owned()]),
        round: RoundInfo {
            index: 1,
            count: 2,
            seed: 3,
            step: 0,
        },
        update: UpdateKind::Model,
        slots: TensorMap::new(),
        limits: limits(),
    }
}

fn update(node: &str, rows: u64, value: f32) -> WorkerUpdate {
    WorkerUpdate {
        node: node.to_owned(),
        rows,
        tensors: model(value),
    }
}

fn feed(updates: Vec<WorkerUpdate>) -> impl FnMut() -> Result<Option<WorkerUpdate>, String> {
    let mut updates = updates.into_iter();
    move || Ok(updates.next())
}

fn hostile(
    sandbox: &Sandbox,
    module: &Module,
    attack: &str,
    updates: usize,
) -> Result<TensorMap, cloister_sandbox::ModuleError> {
    let mut call = call(module);
    call.settings = settings(&[("attack", text(attack))]);
    call.limits.call = Duration::from_millis(500);
    call.limits.guest_memory_bytes = 8 << 20;
    call.limits.tensor_memory_bytes = 8 << 20;
    let updates = (0..updates)
        .map(|at| update(&format!("worker-{at}"), 1, at as f32))
        .collect();
    sandbox
        .aggregate(call, &mut feed(updates))
        .map(|outcome| outcome.tensors)
}

#[test]
fn averages_by_rows() {
    let Some((sandbox, module)) = loaded("aggregate-fedavg") else {
        return;
    };
    let updates = vec![
        update("a", 100, 1.0),
        update("b", 300, 2.0),
        update("c", 0, 1000.0),
        update("d", 200, -1.0),
    ];
    let outcome = sandbox.aggregate(call(&module), &mut feed(updates)).unwrap();
    let wanted = model((100.0 * 1.0 + 300.0 * 2.0 - 200.0) / 600.0);
    assert_eq!(
        outcome.tensors.keys().collect::<Vec<_>>(),
        wanted.keys().collect::<Vec<_>>()
    );
    for (name, tensor) in &outcome.tensors {
        let (seen, wanted) = (tensor.to_f32_vec().unwrap(), wanted[name].to_f32_vec().unwrap());
        assert_eq!(seen.len(), wanted.len());
        for (seen, wanted) in seen.iter().zip(&wanted) {
            assert!(
                (seen - wanted).abs() <= 1e-6 * wanted.abs().max(2.0) * 9.0,
                "{name}: {seen} is not {wanted}"
            );
        }
    }
    assert!(
        outcome.log.iter().any(|line| line.contains("c trained on no row")),
        "{:?}",
        outcome.log
    );
}

#[test]
fn memory_stays_at_one_update_however_many_workers() {
    let Some((sandbox, module)) = loaded("aggregate-fedavg") else {
        return;
    };
    let mut call = call(&module);
    let bytes: u64 = call.model.values().map(|tensor| tensor.bytes().len() as u64).sum();
    // The round's model, the result, one update; the guest itself keeps two chunks.
    call.limits.tensor_memory_bytes = 3 * bytes + 1000;
    call.limits.guest_memory_bytes = 4 << 20;
    call.limits.call = Duration::from_secs(20);
    let updates = (0..20)
        .map(|at| update(&format!("worker-{at:02}"), 10, at as f32))
        .collect();
    assert!(sandbox.aggregate(call, &mut feed(updates)).is_ok());
}

#[test]
fn waiting_for_updates_is_not_the_modules_time() {
    let Some((sandbox, module)) = loaded("aggregate-fedavg") else {
        return;
    };
    let mut call = call(&module);
    call.limits.call = Duration::from_millis(400);
    let mut left = 3;
    let outcome = sandbox.aggregate(call, &mut || {
        std::thread::sleep(Duration::from_millis(300));
        left -= 1;
        Ok((left > 0).then(|| update("worker", 1, 1.0)))
    });
    assert!(outcome.is_ok(), "{outcome:?}");
}

#[test]
fn no_update_is_no_model() {
    let Some((sandbox, module)) = loaded("aggregate-fedavg") else {
        return;
    };
    let error = sandbox.aggregate(call(&module), &mut feed(vec![])).unwrap_err();
    assert_eq!(error.kind, ModuleErrorKind::Failed);
    assert!(error.message.contains("no update to average"), "{error}");
}

#[test]
fn updates_that_do_not_fit_end_the_call() {
    let Some((sandbox, module)) = loaded("aggregate-fedavg") else {
        return;
    };
    let with = |change: &dyn Fn(&mut TensorMap)| {
        let mut odd = update("odd", 1, 1.0);
        change(&mut odd.tensors);
        sandbox.aggregate(call(&module), &mut feed(vec![odd])).unwrap_err()
    };
    let error = with(&|tensors| drop(tensors.remove("a")));
    assert_eq!(error.kind, ModuleErrorKind::Updates);
    assert!(error.message.contains("`odd` lacks `a`"), "{error}");
    let error = with(&|tensors| drop(tensors.insert("z".to_owned(), Tensor::scalar_f32(1.0))));
    assert!(
        error.message.contains("holds `z`, which the model does not have"),
        "{error}"
    );
    let error = with(&|tensors| drop(tensors.insert("a".to_owned(), Tensor::scalar_f32(1.0))));
    assert_eq!(error.kind, ModuleErrorKind::WrongShape);
    let error = sandbox
        .aggregate(call(&module), &mut || Err("the link broke".to_owned()))
        .unwrap_err();
    assert_eq!(
        (error.kind, &error.message[..]),
        (ModuleErrorKind::Updates, "the link broke")
    );
}

#[test]
fn a_module_does_the_work_of_its_own_world() {
    let Some((sandbox, module)) = loaded("aggregate-fedavg") else {
        return;
    };
    assert_eq!(
        train(&sandbox, train_call(&module)).unwrap_err().kind,
        ModuleErrorKind::World
    );
}

#[test]
fn hostile_aggregators_are_told_and_the_sandbox_goes_on() {
    let Some((sandbox, module)) = loaded("hostile-aggregator") else {
        return;
    };
    for (attack, kind, message) in [
        ("loop", ModuleErrorKind::Deadline, "more than 0.500 s"),
        ("trap", ModuleErrorKind::Trap, "unreachable"),
        ("nothing", ModuleErrorKind::NoUpdate, "wrote nothing"),
        ("nan", ModuleErrorKind::NotFinite, "`a` is not finite"),
        ("read_past_end", ModuleErrorKind::WrongShape, "wanted at most 150005"),
        ("write_past_end", ModuleErrorKind::WrongShape, "wanted at most 150005"),
        (
            "far_offset",
            ModuleErrorKind::WrongShape,
            "seen elements 18446744073709551615",
        ),
        ("huge_range", ModuleErrorKind::WrongShape, "wanted at most 150005"),
        ("hoard_updates", ModuleErrorKind::Memory, "an update takes"),
        ("allocate", ModuleErrorKind::Memory, "wanted at most 8388608"),
        ("give_up", ModuleErrorKind::Failed, "not today"),
        (
            "slot_not_finite",
            ModuleErrorKind::NotFinite,
            "slot `m` is not finite, first at element 1",
        ),
        ("five_slots", ModuleErrorKind::Argument, "keeps at most 4"),
        ("slot_past_end", ModuleErrorKind::WrongShape, "wanted at most 150005"),
        (
            "slot_far_offset",
            ModuleErrorKind::WrongShape,
            "seen elements 18446744073709551615",
        ),
        ("slot_huge_range", ModuleErrorKind::WrongShape, "wanted at most 150005"),
        (
            "slot_odd_name",
            ModuleErrorKind::Argument,
            "slot `row 7: 1.5 `: wanted a name",
        ),
        ("slots_without_end", ModuleErrorKind::Deadline, "more than 0.500 s"),
    ] {
        let error = hostile(&sandbox, &module, attack, 20).expect_err(attack);
        assert_eq!(error.kind, kind, "{attack}: {error}");
        assert!(
            error.message.contains(message),
            "{attack}: wanted {message:?} in {error}"
        );
        assert_eq!(hostile(&sandbox, &module, "none", 2).unwrap(), model(0.0));
    }
    // Asking again after the last update is no offence.
    assert!(hostile(&sandbox, &module, "ask_again", 3).is_ok());
}

#[test]
fn slots_go_from_call_to_call_and_a_failed_one_leaves_none() {
    let Some((sandbox, module)) = loaded("hostile-aggregator") else {
        return;
    };
    let run = |attack: &str, slots: &TensorMap| {
        let mut call = call(&module);
        call.settings = settings(&[("attack", text(attack))]);
        call.slots = slots.clone();
        sandbox.aggregate(call, &mut feed(vec![update("a", 1, 1.0)]))
    };
    let mut slots = TensorMap::new();
    for calls in 1..4 {
        let outcome = run("count_calls", &slots).unwrap();
        assert_eq!(outcome.tensors["a"].first_f64(), Some(f64::from(calls)));
        slots = outcome.slots;
        assert_eq!(slots["calls"].shape().dims(), [150_005]);
    }
    // Another module's call, or one that keeps nothing, hands them on as they are.
    assert_eq!(run("none", &slots).unwrap().slots, slots);
    assert!(run("slot_not_finite", &slots).is_err());
    let odd = TensorMap::from([("calls".to_owned(), Tensor::scalar_f32(1.0))]);
    let error = run("none", &odd).unwrap_err();
    assert_eq!(error.kind, ModuleErrorKind::Host);
    assert!(error.message.contains("wanted F32 [150005]"), "{error}");
    // They are charged like everything that the host keeps.
    let mut call = call(&module);
    call.settings = settings(&[("attack", text("count_calls"))]);
    let bytes: u64 = call.model.values().map(|tensor| tensor.bytes().len() as u64).sum();
    call.slots = slots;
    call.limits.tensor_memory_bytes = 4 * bytes + 1000;
    let error = sandbox
        .aggregate(call, &mut feed(vec![update("a", 1, 1.0)]))
        .unwrap_err();
    assert_eq!(error.kind, ModuleErrorKind::Memory);
    assert!(error.message.contains("a slot that is written takes"), "{error}");
}

#[test]
fn the_mean_of_gradients_is_no_model() {
    let Some((sandbox, module)) = loaded("aggregate-fedavg") else {
        return;
    };
    let mut call = call(&module);
    call.update = UpdateKind::Gradient;
    let error = sandbox
        .aggregate(call, &mut feed(vec![update("a", 1, 1.0)]))
        .unwrap_err();
    assert!(error.message.contains("`aggregate-optimizer`"), "{error}");
}
