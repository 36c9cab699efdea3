//! The aggregator `aggregate-optimizer` against the formulas of PyTorch's optimizers, in f64.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that panics says where, and a skipped one says so"
)]

mod common;
mod torch;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cloister_sandbox::{
    AggregateCall, AggregateOutcome, Module, ModuleError, RoundInfo, SettingValue, UpdateKind, WorkerUpdate,
};
use cloister_tensor::{Tensor, TensorMap};
use common::{limits, loaded, settings, text};
use torch::{Torch, Values};

/// Elements of the matrix: more than one chunk of the SDK.
const LARGE: usize = 70_001;
const ROUNDS: u32 = 8;

type Settings = Vec<(&'static str, SettingValue)>;

fn wave(length: usize, at: f64) -> Vec<f64> {
    (0..length)
        .map(|element| f64::from((element as f64 * 0.7 + at).sin() as f32))
        .collect()
}

/// A matrix, a vector, a frozen parameter (`still`) and a running statistic.
fn start() -> Values {
    Values::from([
        ("matrix", wave(LARGE, 1.0)),
        ("vector", wave(3, 2.0)),
        ("still", wave(2, 3.0)),
        ("running", wave(2, 4.0)),
    ])
}

/// What a worker sends in a round: gradients, of which those of the first elements change their sign.
fn gradients(worker: usize, round: u32) -> Values {
    let at = f64::from(round) * 1.3 + worker as f64;
    Values::from([
        ("matrix", wave(LARGE, at)),
        ("vector", wave(3, at + 0.5)),
        ("still", vec![0.0; 2]),
        ("running", wave(2, at + 1.5)),
    ])
}

fn tensors(values: &Values) -> TensorMap {
    let tensor = |(name, values): (&&str, &Vec<f64>)| {
        let dims = match *name {
            "matrix" => vec![1, values.len()],
            _ => vec![values.len()],
        };
        let narrow = values.iter().map(|&value| value as f32).collect();
        ((*name).to_owned(), Tensor::from_f32(&dims, narrow).unwrap())
    };
    values.iter().map(tensor).collect()
}

fn call(
    module: &Module,
    given: &Settings,
    update: UpdateKind,
    round: u32,
    kept: (TensorMap, TensorMap),
) -> AggregateCall {
    let mut limits = limits();
    limits.tensor_memory_bytes = 64 << 20;
    limits.call = Duration::from_secs(60);
    AggregateCall {
        module: module.clone(),
        settings: settings(given),
        model: kept.0,
        statistics: BTreeSet::from(["running".to_owned()]),
        round: RoundInfo {
            index: round,
            count: ROUNDS,
            seed: 1,
            step: u64::from(round - 1),
        },
        update,
        slots: kept.1,
        limits,
    }
}

/// One call over the updates of workers with so many rows each.
fn aggregate(
    (sandbox, module): &(cloister_sandbox::Sandbox, Module),
    call: impl FnOnce(&Module) -> AggregateCall,
    updates: &[(u64, Values)],
) -> Result<AggregateOutcome, ModuleError> {
    let mut updates = updates.iter().enumerate().map(|(at, (rows, values))| WorkerUpdate {
        node: format!("worker-{at}"),
        rows: *rows,
        tensors: tensors(values),
    });
    sandbox.aggregate(call(module), &mut || Ok(updates.next()))
}

/// The mean weighted by rows.
fn mean(updates: &[(u64, Values)]) -> Values {
    let total: u64 = updates.iter().map(|(rows, _)| rows).sum();
    let mut mean = Values::new();
    for (rows, values) in updates {
        for (name, values) in values {
            let sum = mean.entry(*name).or_insert_with(|| vec![0.0; values.len()]);
            for (sum, value) in sum.iter_mut().zip(values) {
                *sum += value * *rows as f64 / total as f64;
            }
        }
    }
    mean
}

fn close(seen: &TensorMap, wanted: &Values, within: f64, what: &str) {
    assert_eq!(seen.len(), wanted.len());
    for (name, wanted) in wanted {
        let seen = seen[*name].to_f64_vec();
        for (at, (seen, wanted)) in seen.iter().zip(wanted).enumerate() {
            assert!(
                (seen - wanted).abs() <= within * wanted.abs().max(1.0),
                "{what}: `{name}` at {at}: {seen} is not {wanted}"
            );
        }
    }
}

#[test]
fn every_optimizer_makes_the_steps_that_pytorch_makes() {
    let Some(guest) = loaded("aggregate-optimizer") else {
        return;
    };
    for (optimizer, weight_decay, decay_vectors, clip_norm) in [
        ("sgd", 0.0, true, 0.0),
        ("sgd", 0.1, false, 3.0),
        ("momentum", 0.0, true, 0.0),
        ("momentum", 0.1, true, 3.0),
        ("nesterov", 0.1, true, 0.0),
        ("adam", 0.0, true, 0.0),
        ("adam", 0.1, true, 3.0),
        ("adamw", 0.1, true, 0.0),
        ("adamw", 0.1, false, 3.0),
    ] {
        let what = format!("{optimizer}, decay {weight_decay}, norm {clip_norm}");
        let given = vec![
            ("optimizer", text(optimizer)),
            ("learning_rate", SettingValue::Number(0.05)),
            ("weight_decay", SettingValue::Number(weight_decay)),
            ("decay_vectors", SettingValue::Boolean(decay_vectors)),
            ("clip_norm", SettingValue::Number(clip_norm)),
        ];
        let mut torch = Torch {
            optimizer,
            rate: 0.05,
            weight_decay,
            decay_vectors,
            clip_norm,
            kept: BTreeMap::new(),
            step: 0,
        };
        let (mut wanted, mut kept) = (start(), (tensors(&start()), TensorMap::new()));
        for round in 1..6 {
            let updates = [(30, gradients(0, round)), (10, gradients(1, round))];
            let gradient = mean(&updates);
            torch.step(&mut wanted, gradient.clone());
            wanted.insert("running", gradient["running"].clone());
            let call = |module: &Module| call(module, &given, UpdateKind::Gradient, round, kept.clone());
            let outcome = aggregate(&guest, call, &updates).unwrap();
            close(&outcome.tensors, &wanted, 2e-5, &format!("{what}, round {round}"));
            assert_eq!(
                outcome.tensors["still"],
                tensors(&start())["still"],
                "{what}: frozen stays, bit by bit"
            );
            let norm = outcome.metrics.iter().find(|(name, _)| name == "gradient_norm");
            assert_eq!(norm.is_some(), clip_norm > 0.0);
            kept = (outcome.tensors, outcome.slots);
        }
        let slots: Vec<&str> = kept.1.keys().map(String::as_str).collect();
        let wanted = match optimizer {
            "sgd" => &[][..],
            "adam" | "adamw" => &["m", "v"],
            _ => &["momentum"],
        };
        assert_eq!(slots, wanted, "{what}");
    }
}

#[test]
fn models_are_averaged_or_give_the_optimizer_a_gradient_of_their_own() {
    let Some(guest) = loaded("aggregate-optimizer") else {
        return;
    };
    let given = |optimizer: &str, rate: f64| {
        vec![
            ("optimizer", text(optimizer)),
            ("learning_rate", SettingValue::Number(rate)),
        ]
    };
    // What the workers' models are: the round's, moved a little, as a training would; frozen stays.
    let moved = |from: &TensorMap, worker: usize, round: u32| -> Values {
        let by = gradients(worker, round);
        let value = |name: &'static str| {
            let from = from[name].to_f64_vec();
            let moved = from
                .iter()
                .zip(&by[name])
                .map(|(from, by)| f64::from((from - 0.1 * by) as f32));
            (name, moved.collect::<Vec<_>>())
        };
        ["matrix", "vector", "still", "running"].map(value).into()
    };
    // A step of size 1 is federated averaging.
    let kept = (tensors(&start()), TensorMap::new());
    let updates = [(30, moved(&kept.0, 0, 1)), (10, moved(&kept.0, 1, 1))];
    let averaging = given("sgd", 1.0);
    let call_of = |module: &Module| call(module, &averaging, UpdateKind::Model, 1, kept.clone());
    let outcome = aggregate(&guest, call_of, &updates).unwrap();
    close(&outcome.tensors, &mean(&updates), 1e-6, "federated averaging");
    // FedAvgM and FedAdam (Reddi et al.): the optimizer's gradient is `previous - mean`.
    for optimizer in ["momentum", "adam"] {
        let given = given(optimizer, 0.3);
        let mut torch = Torch {
            optimizer,
            rate: 0.3,
            weight_decay: 0.0,
            decay_vectors: true,
            clip_norm: 0.0,
            kept: BTreeMap::new(),
            step: 0,
        };
        let (mut wanted, mut kept) = (start(), (tensors(&start()), TensorMap::new()));
        for round in 1..4 {
            let updates = [(30, moved(&kept.0, 0, round)), (10, moved(&kept.0, 1, round))];
            let mean = mean(&updates);
            let mut gradient = mean.clone();
            for (name, values) in &mut gradient {
                let previous = kept.0[*name].to_f64_vec();
                for (value, previous) in values.iter_mut().zip(previous) {
                    *value = previous - *value;
                }
            }
            torch.step(&mut wanted, gradient);
            wanted.insert("running", mean["running"].clone());
            let call = |module: &Module| call(module, &given, UpdateKind::Model, round, kept.clone());
            let outcome = aggregate(&guest, call, &updates).unwrap();
            // Adam divides small differences by small roots: what f32 rounds off stands out more.
            close(&outcome.tensors, &wanted, 1e-3, &format!("{optimizer}, round {round}"));
            kept = (outcome.tensors, outcome.slots);
        }
    }
}

#[test]
fn the_same_updates_give_the_same_bytes_and_one_element_does_not_know_of_others() {
    let Some(guest) = loaded("aggregate-optimizer") else {
        return;
    };
    let given: Settings = vec![
        ("optimizer", text("adamw")),
        ("weight_decay", SettingValue::Number(0.01)),
    ];
    let run = |updates: &[(u64, Values)]| {
        let kept = (tensors(&start()), TensorMap::new());
        let outcome = aggregate(
            &guest,
            |module| call(module, &given, UpdateKind::Gradient, 1, kept),
            updates,
        );
        let outcome = outcome.unwrap();
        (outcome.tensors, outcome.slots)
    };
    let updates = [(30, gradients(0, 1)), (10, gradients(1, 1)), (7, gradients(2, 1))];
    assert_eq!(run(&updates), run(&updates));
    // Element 65,537 of the matrix stands in the SDK's second chunk; as the only element it gets the same bits.
    let at = 65_537;
    let (whole, _) = run(&updates);
    let one = |values: &Values| Values::from([("matrix", vec![values["matrix"][at]])]);
    let alone = updates.clone().map(|(rows, values)| (rows, one(&values)));
    let model = (tensors(&one(&start())), TensorMap::new());
    let outcome = aggregate(
        &guest,
        |module| call(module, &given, UpdateKind::Gradient, 1, model),
        &alone,
    )
    .unwrap();
    let bits = |tensors: &TensorMap, at: usize| tensors["matrix"].to_f32_vec().unwrap()[at].to_bits();
    assert_eq!(bits(&outcome.tensors, 0), bits(&whole, at));
}

#[test]
fn the_step_size_follows_its_schedule() {
    let Some(guest) = loaded("aggregate-optimizer") else {
        return;
    };
    let rates = |more: &[(&'static str, SettingValue)]| -> Vec<f64> {
        let mut given: Settings = vec![("learning_rate", SettingValue::Number(0.5))];
        given.extend(more.iter().cloned());
        let rate = |round| {
            let one = |values: Values| Values::from([("vector", values["vector"].clone())]);
            let kept = (tensors(&one(start())), TensorMap::new());
            let call = |module: &Module| call(module, &given, UpdateKind::Gradient, round, kept);
            let outcome = aggregate(&guest, call, &[(1, one(gradients(0, 1)))]).unwrap();
            let metric = outcome.metrics.iter().find(|(name, _)| name == "learning_rate");
            metric.unwrap().1
        };
        (1..=ROUNDS).map(rate).collect()
    };
    let near = |seen: Vec<f64>, wanted: [f64; ROUNDS as usize]| {
        for (seen, wanted) in seen.iter().zip(wanted) {
            assert!((seen - wanted).abs() < 1e-12, "{seen} is not {wanted}");
        }
    };
    near(rates(&[]), [0.5; 8]);
    let step = [
        ("schedule", text("step")),
        ("boundaries", text("2, 5")),
        ("decay", SettingValue::Number(0.1)),
    ];
    // As MultiStepLR(milestones=[2, 5]), whose epochs count from 0.
    near(rates(&step), [0.5, 0.5, 0.05, 0.05, 0.05, 0.005, 0.005, 0.005]);
    let cosine = |past: f64, whole: f64| 0.25 * (1.0 + (std::f64::consts::PI * past / whole).cos());
    let wanted: Vec<f64> = (0..8).map(|past| cosine(f64::from(past), 8.0)).collect();
    near(rates(&[("schedule", text("cosine"))]), wanted.try_into().unwrap());
    let warm = [("schedule", text("cosine")), ("warmup", SettingValue::Integer(4))];
    let wanted = [
        0.125,
        0.25,
        0.375,
        0.5,
        cosine(0.0, 4.0),
        cosine(1.0, 4.0),
        cosine(2.0, 4.0),
        cosine(3.0, 4.0),
    ];
    near(rates(&warm), wanted);
}

#[test]
fn settings_that_make_no_sense_are_told() {
    let Some(guest) = loaded("aggregate-optimizer") else {
        return;
    };
    for (name, value, wanted) in [
        (
            "momentum",
            SettingValue::Number(1.0),
            "`momentum`: seen 1, wanted at least 0 and below 1",
        ),
        ("beta2", SettingValue::Number(-0.1), "`beta2`: seen -0.1"),
        (
            "epsilon",
            SettingValue::Number(0.0),
            "`epsilon`: seen 0, wanted above 0",
        ),
        ("learning_rate", SettingValue::Number(-1.0), "`learning_rate`: seen -1"),
        ("weight_decay", SettingValue::Number(-1.0), "`weight_decay`: seen -1"),
        (
            "boundaries",
            text("200,soon"),
            "`boundaries`: seen \"soon\", wanted numbers of updates",
        ),
        ("optimizer", text("lion"), "wanted one of"),
    ] {
        let given = vec![(name, value)];
        let kept = (tensors(&start()), TensorMap::new());
        let call = |module: &Module| call(module, &given, UpdateKind::Gradient, 1, kept);
        let error = aggregate(&guest, call, &[(1, gradients(0, 1))]).unwrap_err();
        assert!(error.message.contains(wanted), "{name}: wanted {wanted:?} in {error}");
    }
}

#[test]
fn memory_stays_at_one_update_beside_the_slots() {
    let Some(guest) = loaded("aggregate-optimizer") else {
        return;
    };
    let given: Settings = vec![("optimizer", text("adam"))];
    let updates: Vec<_> = (0..9).map(|worker| (1, gradients(worker, 1))).collect();
    let mut kept = (tensors(&start()), TensorMap::new());
    for round in 1..3 {
        let call = |module: &Module| {
            let mut call = call(module, &given, UpdateKind::Gradient, round, kept.clone());
            let bytes: u64 = call.model.values().map(|tensor| tensor.bytes().len() as u64).sum();
            // The model, the result and one update; both moments as they were and as they become. The guest has a few chunks.
            call.limits.tensor_memory_bytes = 7 * bytes;
            call.limits.guest_memory_bytes = 8 << 20;
            call
        };
        let outcome = aggregate(&guest, call, &updates).unwrap();
        kept = (outcome.tensors, outcome.slots);
    }
}
