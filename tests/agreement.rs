//! How three participants agree on a policy and on the one that follows it: `cloister policy sign`, `status`, `diff`, `history`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests"
)]

use std::path::Path;

use cloister_tensor::Digest;
use cloister_tests::{Run, cloister, guests, words};
use serde_json::Value;
use tempfile::TempDir;

const PARTICIPANTS: [&str; 3] = ["alpha", "beta", "gamma"];

/// Runs the binary on a line of arguments in which `DIR` stands for the folder.
fn run(folder: &Path, line: &str) -> Run {
    let folder = folder.display().to_string();
    cloister(line.split_whitespace().map(|word| word.replace("DIR", &folder))).unwrap()
}

fn json(folder: &Path, line: &str, code: i32) -> Value {
    let run = run(folder, line);
    assert_eq!(run.code, code, "{line}: {}{}", run.stdout, run.stderr);
    run.json().unwrap()
}

/// Three participants with keys, and a policy of theirs (`DIR/policies/1.toml`) that two of three have to sign.
fn federation() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    std::fs::create_dir(dir.join("policies")).unwrap();
    let done = |line: &str| {
        let run = run(dir, line);
        assert_eq!(run.code, 0, "{line}: {}", run.stderr);
    };
    done("quote authority DIR/authority");
    for name in PARTICIPANTS {
        done(&format!("identity new --out DIR/{name} --participant"));
    }
    done("graph sample mlp --inputs 4 --hidden 8 --classes 3 -o DIR/mlp.onnx");
    for (guest, module) in [
        ("train-sgd.wasm", "train.wasm"),
        ("aggregate-fedavg.wasm", "average.wasm"),
    ] {
        std::fs::copy(guests().join(guest), dir.join(module)).expect("`cargo xtask setup` builds the guests");
    }
    for node in ["worker-a", "worker-b"] {
        let commitment = Digest::of(node.as_bytes());
        let inputs = "{ x = { columns = \"p0..p3\", shape = [4], dtype = \"f32\" }, \
                      labels = { column = \"label\", dtype = \"i64\" } }";
        let text = format!(
            "name = \"train\"\nnode = \"{node}\"\ncommitment = \"{commitment}\"\nrows = 16\ninputs = {inputs}\n"
        );
        std::fs::write(dir.join(format!("{node}.toml")), text).unwrap();
    }
    done(
        "policy draft --name wards --root DIR/authority --participant alpha=DIR/alpha.pub --participant beta=DIR/beta.pub \
         --participant gamma=DIR/gamma.pub --threshold 2 --node hub:aggregator:gamma --node worker-a:worker:alpha \
         --node worker-b:worker:beta --model mlp --onnx DIR/mlp.onnx --optimizer momentum --batch 8 --graphs-out DIR/made \
         --module sgd:trainer=DIR/train.wasm --module average:aggregator=DIR/average.wasm --dataset DIR/worker-a.toml \
         --scalar sgd.learning_rate=0..0.1 --scalar sgd.step=1..1e9 --reads sgd.loss \
         --dataset DIR/worker-b.toml --min-workers 2 -o DIR/policies/1.toml",
    );
    folder
}

/// Writes the policy that follows `before`, with pieces of its text replaced.
fn successor(folder: &Path, (before, version): (&str, u64), name: &str, changes: &[(&str, &str)]) {
    let path = |name: &str| folder.join(format!("policies/{name}.toml"));
    let old = std::fs::read_to_string(path(before)).unwrap();
    let digest = Digest::of(old.as_bytes());
    let lines = old.lines().filter(|line| !line.starts_with("predecessor"));
    let mut text: String = lines.map(|line| format!("{line}\n")).collect();
    let head = format!("version = {}\npredecessor = \"{digest}\"", version + 1);
    for (from, to) in [(format!("version = {version}"), head.as_str())]
        .iter()
        .map(|(from, to)| (from.as_str(), *to))
        .chain(changes.iter().copied())
    {
        assert!(text.contains(from), "{from}");
        text = text.replacen(from, to, 1);
    }
    std::fs::write(path(name), text).unwrap();
}

fn sign(folder: &Path, policy: &str, participant: &str) {
    let line =
        format!("policy sign DIR/policies/{policy}.toml --key DIR/{participant}.key --participant {participant}");
    let signed = run(folder, &line);
    assert_eq!(signed.code, 0, "{}", signed.stderr);
}

#[test]
fn signatures_come_in_one_by_one_until_the_policy_takes_effect() {
    let folder = federation();
    let dir = folder.path();
    let standings = |told: &Value| -> Vec<String> {
        let votes = told["ballot"]["own"]["participants"].as_array().unwrap();
        votes
            .iter()
            .map(|vote| vote["standing"].as_str().unwrap().to_owned())
            .collect()
    };
    let status = "policy status DIR/policies/1.toml -o json";
    assert_eq!(standings(&json(dir, status, 4)), ["missing", "missing", "missing"]);
    sign(dir, "1", "gamma");
    assert_eq!(standings(&json(dir, status, 4)), ["missing", "missing", "signed"]);
    sign(dir, "1", "alpha");
    let told = json(dir, status, 0);
    assert_eq!(standings(&told), ["signed", "missing", "signed"]);
    assert_eq!(told["anchor"].as_str().unwrap().len(), 64);
    let text = run(dir, "policy status DIR/policies/1.toml");
    assert!(
        text.stdout.contains("beta") && text.stdout.contains("COMPLETE: it takes effect"),
        "{}",
        text.stdout
    );

    // One byte more, and nobody signed it.
    let path = dir.join("policies/1.toml");
    let changed = std::fs::read_to_string(&path).unwrap() + "\n";
    std::fs::write(&path, changed).unwrap();
    let told = json(dir, status, 4);
    assert_eq!(standings(&told), ["invalid", "missing", "invalid"]);
    assert_eq!(told["ballot"]["useless_signatures"].as_array().unwrap().len(), 2);
    let broken = run(dir, "policy status DIR/policies/1.toml --sigs DIR/train.wasm");
    assert_eq!(broken.code, 2, "{}", broken.stderr);
}

#[test]
fn a_successor_is_explained_and_follows_when_both_sides_signed() {
    let folder = federation();
    let dir = folder.path();
    let stronger = [
        ("tensor_access = \"handles\"", "tensor_access = \"read-write\""),
        ("recipients = []", "recipients = [\"gamma\"]"),
    ];
    successor(dir, ("1", 1), "2", &stronger);
    let told = json(dir, "policy diff DIR/policies/1.toml DIR/policies/2.toml -o json", 0);
    assert_eq!(told["can_follow"], true);
    let areas: Vec<_> = told["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["area"].as_str().unwrap())
        .collect();
    assert_eq!(areas, ["code", "release"]);
    assert!(told["changes"][0]["concern"].as_str().unwrap().contains("rows"));
    let text = run(dir, "policy diff DIR/policies/1.toml DIR/policies/2.toml").stdout;
    assert!(text.contains("WARNING") && text.contains("gamma"), "{text}");
    // The other way round it is no successor.
    let back = json(dir, "policy diff DIR/policies/2.toml DIR/policies/1.toml -o json", 0);
    assert_eq!(back["can_follow"], false);

    sign(dir, "1", "alpha");
    sign(dir, "1", "beta");
    let anchor = json(dir, "policy status DIR/policies/1.toml -o json", 0)["anchor"]
        .as_str()
        .unwrap()
        .to_owned();
    let history = format!("policy history DIR/policies --anchor {anchor} -o json");
    let told = json(dir, &history, 0);
    assert_eq!(told["chain"].as_array().unwrap().len(), 1);
    assert_eq!(told["pending"][0]["version"], 2);
    // The signer is told what it signs; --predecessor says it.
    let signed = run(
        dir,
        "policy sign DIR/policies/2.toml --key DIR/beta.key --participant beta --predecessor DIR/policies/1.toml",
    );
    assert_eq!(signed.code, 0, "{}", signed.stderr);
    assert!(
        words(&signed.stderr).contains("who did not get it before"),
        "{}",
        signed.stderr
    );
    sign(dir, "2", "gamma");
    assert_eq!(
        json(dir, "policy status DIR/policies/2.toml -o json", 0)["ballot"]["predecessor"]["signed"],
        2
    );
    let told = json(dir, &history, 0);
    assert_eq!(told["chain"].as_array().unwrap().len(), 2);
    // Alone, nobody can tell what its predecessor demands.
    std::fs::create_dir(dir.join("alone")).unwrap();
    for file in ["2.toml", "2.toml.sigs"] {
        std::fs::copy(dir.join("policies").join(file), dir.join("alone").join(file)).unwrap();
    }
    let told = json(dir, "policy status DIR/alone/2.toml -o json", 4);
    assert_eq!(told["ballot"]["predecessor_missing"], true);
    let other = "00".repeat(32);
    let told = json(dir, &format!("policy history DIR/policies --anchor {other} -o json"), 4);
    assert!(told["chain"].as_array().unwrap().is_empty());
}

#[test]
fn a_participant_who_signs_two_successors_splits_the_history_and_is_named() {
    let folder = federation();
    let dir = folder.path();
    successor(dir, ("1", 1), "left", &[("count = 10", "count = 20")]);
    successor(dir, ("1", 1), "right", &[("count = 10", "count = 30")]);
    for (policy, participants) in [
        ("1", ["alpha", "beta"]),
        ("left", ["alpha", "beta"]),
        ("right", ["beta", "gamma"]),
    ] {
        participants
            .iter()
            .for_each(|participant| sign(dir, policy, participant));
    }
    let told = json(dir, "policy history DIR/policies -o json", 4);
    assert_eq!(told["chain"].as_array().unwrap().len(), 1);
    assert_eq!(told["fork"]["policies"].as_array().unwrap().len(), 2);
    assert_eq!(told["double_signers"][0]["participant"], "beta");
    let text = run(dir, "policy history DIR/policies").stdout;
    assert!(text.contains("FORK") && text.contains("beta"), "{text}");
}

#[test]
fn an_immutable_policy_has_no_successor() {
    let folder = federation();
    let dir = folder.path();
    let path = dir.join("policies/1.toml");
    let last = std::fs::read_to_string(&path)
        .unwrap()
        .replacen("immutable = false", "immutable = true", 1);
    std::fs::write(&path, last).unwrap();
    successor(dir, ("1", 1), "2", &[("count = 10", "count = 20")]);
    for policy in ["1", "2"] {
        PARTICIPANTS
            .iter()
            .for_each(|participant| sign(dir, policy, participant));
    }
    let told = json(dir, "policy status DIR/policies/2.toml -o json", 4);
    assert_eq!(told["ballot"]["broken_rules"][0]["rule"], "agreement.immutable");
    let told = json(dir, "policy history DIR/policies -o json", 0);
    assert_eq!(told["chain"].as_array().unwrap().len(), 1);
    let refused = run(
        dir,
        "policy sign DIR/policies/2.toml --key DIR/beta.key --participant beta --predecessor DIR/policies/1.toml",
    );
    assert_eq!(refused.code, 4, "{}", refused.stderr);
    assert!(words(&refused.stderr).contains("immutable"), "{}", refused.stderr);
}
