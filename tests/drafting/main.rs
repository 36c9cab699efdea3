//! `cloister policy draft` makes the graphs that the datasets' row counts need, and names what it wrote.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics says where"
)]

mod anchors;
mod derived;

use std::collections::BTreeMap;
use std::path::Path;

use cloister_tensor::{Digest, ReadLimits, safetensors};
use cloister_tests::{Run, cloister, guests, words};
use tempfile::TempDir;

/// A public key: that of the first test vector in RFC 8032, section 7.1.
const KEY: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

/// A folder with a model, two modules and three datasets: 599 rows on each worker, 120 on the aggregator.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let model = path("mlp.onnx");
    let made = cloister([
        "graph",
        "sample",
        "mlp",
        "--inputs",
        "4",
        "--hidden",
        "8",
        "--classes",
        "3",
        "-o",
        &model,
    ])
    .unwrap();
    assert_eq!(made.code, 0, "{}", made.stderr);
    let authority = cloister(["quote", "authority", &path("authority")]).unwrap();
    assert_eq!(authority.code, 0, "{}", authority.stderr);
    for (guest, module) in [
        ("train-sgd.wasm", "train.wasm"),
        ("aggregate-fedavg.wasm", "average.wasm"),
    ] {
        std::fs::copy(guests().join(guest), path(module)).expect("`cargo xtask setup` builds the guests");
    }
    for (node, rows) in [("worker-a", 599), ("worker-b", 599), ("hub", 120)] {
        dataset(folder.path(), node, &format!("rows = {rows}"));
    }
    folder
}

fn dataset(folder: &Path, node: &str, rows: &str) {
    let text = format!(
        "name = \"train\"\nnode = \"{node}\"\ncommitment = \"{}\"\n{rows}\n\
         inputs = {{ x = {{ columns = \"p0..p3\", shape = [4], dtype = \"f32\" }}, \
         labels = {{ column = \"label\", dtype = \"i64\" }} }}\n",
        Digest::of(node.as_bytes())
    );
    std::fs::write(folder.join(format!("{node}.toml")), text).unwrap();
}

/// Runs `policy draft` on what is in the folder, with `more` arguments in which `DIR` stands for it.
fn draft(folder: &Path, more: &[&str]) -> Run {
    draft_under(folder, Some("DIR/authority"), more)
}

/// As [`draft`], under a simulated root or Intel's.
fn draft_under(folder: &Path, root: Option<&str>, more: &[&str]) -> Run {
    let always = [
        "policy",
        "draft",
        "--name",
        "digits",
        "--participant",
        "alpha=KEY",
        "--node",
        "hub:aggregator:alpha",
        "--node",
        "worker-a:worker:alpha",
        "--node",
        "worker-b:worker:alpha",
        "--model",
        "mlp",
        "--module",
        "train-sgd:trainer=DIR/train.wasm",
        "--module",
        "average:aggregator=DIR/average.wasm",
        "--dataset",
        "DIR/worker-a.toml",
        "--dataset",
        "DIR/worker-b.toml",
        "--dataset",
        "DIR/hub.toml",
        "--min-workers",
        "2",
        "--scalar",
        "train-sgd.learning_rate=0..0.1",
        "--reads",
        "train-sgd.loss",
        "-o",
        "DIR/policy.toml",
    ];
    let folder = folder.display().to_string();
    let root = root.iter().flat_map(|root| ["--root", root]);
    let arguments = always.into_iter().chain(root).chain(more.iter().copied());
    cloister(arguments.map(|argument| argument.replace("KEY", KEY).replace("DIR", &folder))).unwrap()
}

const MADE: [&str; 10] = [
    "--scalar",
    "train-sgd.step=1..1e9",
    "--onnx",
    "DIR/mlp.onnx",
    "--optimizer",
    "momentum",
    "--batch",
    "32",
    "--graphs-out",
    "DIR/made",
];

/// The graphs of the drafted policy with their batches, once each and the weights are seen to be the files' digests.
fn checked_graphs(folder: &Path) -> BTreeMap<String, i64> {
    let text = std::fs::read_to_string(folder.join("policy.toml")).unwrap();
    let policy: toml::Table = toml::from_str(&text).unwrap();
    let digest = |file: &str| Digest::of(&std::fs::read(folder.join("made").join(file)).unwrap()).to_string();
    assert_eq!(
        policy["model"]["weights"].as_str(),
        Some(digest("weights.safetensors").as_str())
    );
    let mut seen = BTreeMap::new();
    for graph in policy["graph"].as_array().unwrap() {
        let name = graph["name"].as_str().unwrap();
        let file = format!("{}.onnx", name.replace('@', "-"));
        assert_eq!(graph["sha256"].as_str(), Some(digest(&file).as_str()), "{name}");
        seen.insert(name.to_owned(), graph["batch"].as_integer().unwrap());
    }
    let files = std::fs::read_dir(folder.join("made")).unwrap().count();
    assert_eq!(files, seen.len() + 1, "the graphs, the weights and nothing else");
    seen
}

fn batches(of: &[(&str, i64)]) -> BTreeMap<String, i64> {
    of.iter().map(|(name, batch)| ((*name).to_owned(), *batch)).collect()
}

#[test]
fn a_draft_makes_the_graphs_that_the_rows_need() {
    let folder = folder();
    let run = draft(folder.path(), &[&MADE[..], &["--evaluation-batch", "50"]].concat());
    assert_eq!(run.code, 0, "{}", run.stderr);
    let wanted = batches(&[("train", 32), ("train@23", 23), ("evaluate", 50), ("evaluate@20", 20)]);
    assert_eq!(checked_graphs(folder.path()), wanted);
    assert!(
        run.stderr.contains("train@23"),
        "what was written is told: {}",
        run.stderr
    );
    assert!(!run.stderr.contains("that no graph takes"), "{}", run.stderr);
    let weights = std::fs::read(folder.path().join("made/weights.safetensors")).unwrap();
    let weights = safetensors::read(weights.into(), &ReadLimits::default()).unwrap();
    assert_eq!(weights.len(), 4, "two layers, each with weights and biases");
    let policy = std::fs::read_to_string(folder.path().join("policy.toml")).unwrap();
    let policy: toml::Table = toml::from_str(&policy).unwrap();
    assert_eq!(policy["module"][0]["settings"]["batch"].as_integer(), Some(32));
}

#[test]
fn drop_last_leaves_the_training_remainder_out() {
    let folder = folder();
    let run = draft(
        folder.path(),
        &[&MADE[..], &["--setting", "train-sgd.drop_last=true"]].concat(),
    );
    assert_eq!(run.code, 0, "{}", run.stderr);
    let wanted = batches(&[("train", 32), ("evaluate", 32), ("evaluate@24", 24)]);
    assert_eq!(checked_graphs(folder.path()), wanted);
}

#[test]
fn given_graphs_and_weights_are_taken_as_they_are() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let made = cloister([
        "graph",
        "train",
        &at("mlp.onnx"),
        "--optimizer",
        "sgd",
        "--batch",
        "32",
        "-o",
        &at("step.onnx"),
    ]);
    assert_eq!(made.unwrap().code, 0);
    assert_eq!(draft(folder.path(), &MADE).code, 0);
    let given = |weights| {
        let graph = ["--graph", "train:32=DIR/step.onnx", "--scalar", "train-sgd.step=1..1e9"];
        draft(folder.path(), &[&graph[..], &["--weights", weights]].concat())
    };
    // Weights of the same names in other shapes, of other names, and a file that holds none.
    for (other, sample) in [
        (
            "wider",
            ["mlp", "--inputs", "4", "--hidden", "9", "--classes", "3"].as_slice(),
        ),
        ("other", &["logistic", "--inputs", "4", "--classes", "3"]),
    ] {
        let path = at(&format!("{other}.onnx"));
        let made = cloister([&["graph", "sample"], sample, &["-o", &path]].concat()).unwrap();
        assert_eq!(made.code, 0, "{}", made.stderr);
        let arguments = MADE.map(|word| match word {
            "DIR/mlp.onnx" => path.clone(),
            "DIR/made" => at(other),
            word => word.to_owned(),
        });
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        assert_eq!(draft(folder.path(), &arguments).code, 0);
    }
    for (weights, wanted) in [
        (
            "DIR/wider/weights.safetensors",
            ["[9, 4]", "graph train takes f32 [8, 4]"],
        ),
        ("DIR/other/weights.safetensors", ["the weights lack", "no graph takes"]),
        ("DIR/train.wasm", ["train.wasm", "safetensors"]),
    ] {
        let run = given(weights);
        assert_eq!(run.code, 2, "{}", run.stderr);
        let said = words(&run.stderr);
        assert!(wanted.iter().all(|word| said.contains(word)), "{wanted:?}: {said}");
    }
    let run = given("DIR/made/weights.safetensors");
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(run.stderr.contains("add train@23"), "{}", run.stderr);
    let policy = std::fs::read_to_string(folder.path().join("policy.toml")).unwrap();
    let model = Digest::of(&std::fs::read(folder.path().join("step.onnx")).unwrap());
    assert!(policy.contains(&model.to_string()), "{policy}");
}

#[test]
fn what_is_missing_or_contradicts_itself_ends_with_2() {
    let folder = folder();
    let cases: [(&[&str], &[&str], &str); 7] = [
        (&[], &[], "--onnx"),
        (&["--onnx", "DIR/mlp.onnx", "--batch", "32"], &[], "--optimizer"),
        (&MADE, &["--weights", "DIR/train.wasm"], "--weights"),
        (&MADE, &["--graph", "train@5:5=DIR/mlp.onnx"], "train@5"),
        (&MADE, &["--setting", "train-sgd.batch=64"], "train-sgd.batch=64"),
        (&MADE, &["--evaluation-batch", "0"], "--evaluation-batch"),
        (
            &[
                "--onnx",
                "DIR/mlp.onnx",
                "--optimizer",
                "sgd",
                "--batch",
                "32",
                "--graphs-out",
                "DIR/made",
            ],
            &["--momentum", "0.5"],
            "--momentum",
        ),
    ];
    for (first, more, word) in cases {
        let run = draft(folder.path(), &[first, more].concat());
        assert_eq!(run.code, 2, "{first:?} {more:?}: {}", run.stderr);
        assert!(run.stderr.contains(word), "{word} is wanted: {}", run.stderr);
    }
    // What the policy would say wrong is told by the argument that it comes from, not by a line of what nobody has.
    for (more, wanted) in [
        (["--quorum", "5"], "--quorum 5: `rounds.quorum` is 5"),
        (
            ["--node", "w:worker:beta"],
            "--node w:worker:beta: `node[3].participant`",
        ),
        (
            ["--node", "worker-a:worker:alpha"],
            "--node worker-a:worker:alpha: `node[3].name`",
        ),
        (["--recipient", "omega"], "--recipient omega: `release.recipients[0]`"),
        (["--threshold", "3"], "--threshold: `agreement.threshold` is 3"),
        (
            ["--scalar", "train-sgd.step=5..1"],
            "--scalar train-sgd.step=5..1: `module[0].scalars.step`",
        ),
        (
            ["--module", "third:aggregator=DIR/average.wasm"],
            "--module: `module` gives node",
        ),
        (
            ["--dataset", "DIR/worker-a.toml"],
            "worker-a.toml: `dataset[3]` is a second dataset",
        ),
        (
            ["--max-staleness", "3"],
            "--max-staleness has no meaning with --mode averaging",
        ),
        (
            ["--mode", "synchronous"],
            "workers send gradients (mode synchronous), and graph train gives none: make it with --optimizer none",
        ),
        (["--evaluate-every", "0"], "--evaluate-every 0: `rounds.evaluate_every`"),
    ] {
        let without_step = &MADE[2..];
        let first = if more[1].contains("step") { without_step } else { &MADE };
        let run = draft(folder.path(), &[first, &more].concat());
        assert_eq!(run.code, 2, "{more:?}: {}", run.stderr);
        let said = words(&run.stderr);
        assert!(said.contains(wanted), "{wanted} is wanted: {said}");
        assert!(!said.contains("the draft:"), "{said}");
    }
    std::fs::remove_dir_all(folder.path().join("made")).unwrap();
    dataset(folder.path(), "worker-b", "");
    let run = draft(folder.path(), &MADE);
    assert_eq!(run.code, 2, "{}", run.stderr);
    assert!(
        run.stderr.contains("worker-b") && run.stderr.contains("rows"),
        "{}",
        run.stderr
    );
    assert!(
        !folder.path().join("made").exists(),
        "nothing is written by what is refused"
    );
}

#[test]
fn parts_that_do_not_fit_are_refused_before_anybody_signs() {
    let folder = folder();
    let cases: [(&[&str], [&str; 2]); 5] = [
        (&MADE[2..], ["graph train takes step", "--scalar train-sgd.step=1..1e9"]),
        (
            &["--setting", "train-sgd.learnig_rate=0.1"],
            ["learnig_rate", "did you mean `learning_rate`"],
        ),
        (&["--setting", "train-sgd.epochs=many"], ["`epochs`", "wanted integer"]),
        (
            &["--setting", "train-sgd.learning_rate=0.5"],
            ["learning_rate = 0.5", "0 to 0.1"],
        ),
        (
            &["--scalar", "train-sgd.speed=0..1"],
            ["names speed", "learning_rate, step"],
        ),
    ];
    for (more, words) in cases {
        let first = if more.contains(&"--onnx") { &[][..] } else { &MADE[..] };
        let run = draft(folder.path(), &[first, more].concat());
        assert_eq!(run.code, 2, "{more:?}: {}", run.stderr);
        let said = run
            .stderr
            .split_whitespace()
            .filter(|word| *word != "│")
            .collect::<Vec<_>>()
            .join(" ");
        assert!(words.iter().all(|word| said.contains(word)), "{words:?}: {said}");
    }
    let at = folder.path().join("worker-b.toml");
    let text = std::fs::read_to_string(&at).unwrap();
    std::fs::write(&at, text.replace("p0..p3", "p0..p4").replace("[4]", "[5]")).unwrap();
    let run = draft(folder.path(), &MADE);
    assert_eq!(run.code, 2, "{}", run.stderr);
    assert!(
        run.stderr.contains("worker-b") && run.stderr.contains("[5]"),
        "{}",
        run.stderr
    );
    assert!(
        !folder.path().join("policy.toml").exists(),
        "nothing to sign is written"
    );
}

#[test]
fn the_end_of_a_range_is_a_setting_that_fits() {
    let folder = folder();
    let run = draft(
        folder.path(),
        &[&MADE[..], &["--setting", "train-sgd.learning_rate=0.1"]].concat(),
    );
    assert_eq!(run.code, 0, "{}", run.stderr);
}

#[test]
fn a_signed_policy_is_not_replaced_unless_told() {
    let folder = folder();
    assert_eq!(draft(folder.path(), &MADE).code, 0);
    let policy = folder.path().join("policy.toml");
    let before = std::fs::read(&policy).unwrap();
    std::fs::write(folder.path().join("policy.toml.sigs"), "").unwrap();
    let run = draft(folder.path(), &[&MADE[..], &["--rounds", "3"]].concat());
    assert_eq!(run.code, 2, "{}", run.stderr);
    assert!(run.stderr.contains("--force"), "{}", run.stderr);
    assert_eq!(std::fs::read(&policy).unwrap(), before);
    let run = draft(folder.path(), &[&MADE[..], &["--rounds", "3", "--force"]].concat());
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert_ne!(std::fs::read(&policy).unwrap(), before);
}
