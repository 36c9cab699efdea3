//! A federation with a loss that knows no classes: what it tells is a loss, and nowhere an accuracy.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that panics says where")]

use std::fmt::Write as _;
use std::path::Path;

use cloister_tests::{Run, cloister, guests, words};

const PLAN: &str = r#"
title = "A plane through points"
federation = "plane"
participants = ["north", "south", "coordinator"]

[data]
file = "plane.csv"
seed = 3
inputs.x = { columns = "x0..x2", shape = [3], dtype = "f32" }
inputs.labels = { columns = ["y"], shape = [1], dtype = "f32" }

[model]
name = "plane"
sample = "logistic"
inputs = 3
classes = 1
seed = 1

[training]
trainer = "train-ps"
aggregator = "aggregate-optimizer"
optimizer = "none"
loss = "mean-squared-error"
batch = 20
evaluation_batch = 30
settings = {}
aggregator_settings = { optimizer = "momentum", learning_rate = 0.1 }

[rounds]
mode = "synchronous"
count = 40
checkpoint_every = 20
evaluate_every = 20
quorum = 2
deadline_s = 60
min_workers_per_aggregate = 2

[modes.averaging.training]
trainer = "train-sgd"
aggregator = "aggregate-fedavg"
optimizer = "adamw"
beta1 = 0.8
epsilon = 1e-6
weight_decay = 0.001
no_decay = ["*"]
settings = { epochs = 2, learning_rate = 0.1 }
aggregator_settings = {}

[modes.averaging.rounds]
count = 8
checkpoint_every = 1
evaluate_every = 1

[[node]]
name = "aggregator"
role = "aggregator"
participant = "coordinator"
dataset = "held-out"
share = 1

[[node]]
name = "worker-north"
role = "worker"
participant = "north"
dataset = "train"
share = 1

[[node]]
name = "worker-south"
role = "worker"
participant = "south"
dataset = "train"
share = 1

[release]
recipients = ["coordinator"]
"#;

/// An example of 180 points of `y = 2 x0 - x1 + x2 / 2 + 1`.
fn example(folder: &Path, plan: &str) {
    let mut rows = "x0,x1,x2,y\n".to_owned();
    for at in 0..180 {
        let [a, b, c] = [7, 11, 13].map(|step| f64::from(at * step % 41) / 20.0 - 1.0);
        writeln!(rows, "{a},{b},{c},{}", 2.0 * a - b + 0.5 * c + 1.0).unwrap();
    }
    std::fs::write(folder.join("plane.csv"), rows).unwrap();
    std::fs::write(folder.join("federation.toml"), plan).unwrap();
}

fn train(plan: &str, out: &Path, more: &[&str]) -> Run {
    let folder = tempfile::tempdir().unwrap();
    example(folder.path(), plan);
    let [guests, folder, out] = [&guests(), folder.path(), out].map(|path| path.display().to_string());
    let usual = [
        "demo",
        "--example",
        &folder,
        "--guests",
        &guests,
        "--out",
        &out,
        "-o",
        "json",
    ];
    cloister(usual.iter().chain(more)).unwrap()
}

#[test]
fn a_regression_tells_its_loss_and_no_accuracy() {
    for (mode, line) in [
        ("averaging", "round 8/8  loss 0."),
        ("synchronous", "after 40/40 steps  loss 0."),
    ] {
        let out = tempfile::tempdir().unwrap();
        let run = train(PLAN, out.path(), &["--mode", mode]);
        assert_eq!(run.code, 0, "stdout: {}\nstderr: {}", run.stdout, run.stderr);
        let json = run.json().unwrap();
        assert!(json["final_loss"].as_f64().unwrap() < 0.05, "{json}");
        assert!(json.get("test_accuracy").is_none(), "{json}");
        assert!(run.stderr.contains(line), "{}", run.stderr);
        assert!(!run.stderr.contains("accuracy"), "{}", run.stderr);
        // What is signed, and what a node wrote.
        let run = out.path().join("run-1");
        let told = metrics(&run);
        assert!(told.iter().any(|name| name == "loss"), "{told:?}");
        assert!(!told.iter().any(|name| name == "accuracy"), "{told:?}");
        for entry in std::fs::read_dir(run.join("logs")).unwrap() {
            let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
            assert!(!text.contains("accuracy"), "{text}");
        }
    }
}

/// The names of what the receipt says that lies in the aggregator's vault.
fn metrics(run: &Path) -> Vec<String> {
    let at = |name: &str| run.join(name).display().to_string();
    let (own, receipt) = (|name: &str| at(&format!("nodes/aggregator/{name}")), at("receipt.bin"));
    let (vault, key, credential, policy) = (
        own("vault"),
        own("vault.key"),
        own("node.credential"),
        at("policy.toml"),
    );
    for arguments in [
        &[
            "vault",
            "get",
            &vault,
            "receipt.bin",
            "--key-file",
            &key,
            "-o",
            &receipt,
        ][..],
        &[
            "audit",
            "receipt",
            &receipt,
            "--credential",
            &credential,
            "--policy",
            &policy,
        ],
    ] {
        let run = cloister(arguments).unwrap();
        assert_eq!(run.code, 0, "{}", run.stderr);
        let named = run.stdout.lines().filter_map(|line| line.strip_prefix("metric "));
        let names: Vec<String> = named
            .filter_map(|line| Some(line.split_once(" = ")?.0.trim().to_owned()))
            .collect();
        if !names.is_empty() {
            return names;
        }
    }
    Vec::new()
}

#[test]
fn a_plan_with_unknown_words_or_foreign_constants_is_refused() {
    for (from, to, said) in [
        ("epsilon = 1e-6", "epsilom = 1e-6", "epsilom"),
        (
            "beta1 = 0.8",
            "momentum = 0.8",
            "--momentum goes with --optimizer momentum or nesterov",
        ),
        ("mean-squared-error", "mean-error", "mean-error"),
    ] {
        let out = tempfile::tempdir().unwrap();
        let run = train(&PLAN.replace(from, to), out.path(), &[]);
        assert_eq!(run.code, 2, "{}", run.stderr);
        assert!(words(&run.stderr).contains(said), "{said} is wanted: {}", run.stderr);
    }
}
