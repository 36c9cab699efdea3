//! The demo and the examples, end to end: real nodes, real modules, real data, on this machine.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics says where"
)]

use std::path::Path;

use cloister_tensor::{ReadLimits, safetensors};
use cloister_tests::{Run, cloister, guests, root};

/// Runs the federation of an example's folder and returns its run with the JSON object that closes it.
fn federation(example: &str, out: &Path) -> (Run, serde_json::Value) {
    let run = demo(&root().join("examples").join(example), out);
    assert_eq!(run.code, 0, "stdout: {}\nstderr: {}", run.stdout, run.stderr);
    let json = run.json().unwrap_or_else(|error| panic!("{error}: {}", run.stdout));
    (run, json)
}

/// Runs the federation of a folder.
fn demo(folder: &Path, out: &Path) -> Run {
    demo_with(folder, out, &[])
}

/// Runs the federation of a folder as more arguments say.
fn demo_with(folder: &Path, out: &Path, more: &[&str]) -> Run {
    let [guests, folder, out] = [&guests(), folder, out].map(|path| path.display().to_string());
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

/// What every federation must show: attested peers with a measurement, SIMULATED in plain sight, files of the model.
fn check(run: &Run, json: &serde_json::Value, peers: usize) {
    assert!(run.stderr.contains("SIMULATED"), "{}", run.stderr);
    let list = json["peers"].as_array().expect("a list of peers");
    assert_eq!(list.len(), peers, "{json}");
    for peer in list {
        assert_eq!(peer["verdict"], "accepted", "{peer}");
        assert!(peer["name"].is_string() && peer["role"].is_string(), "{peer}");
        assert_eq!(
            peer["measurement"].as_str().map(str::len),
            Some(96),
            "a SHA-384 root: {peer}"
        );
    }
    let file = |name: &str| {
        let path = json["model"][name]
            .as_str()
            .unwrap_or_else(|| panic!("no {name} in {json}"));
        std::fs::read(path).unwrap_or_else(|error| panic!("{path}: {error}"))
    };
    let tensors = safetensors::read(file("safetensors").into(), &ReadLimits::default()).unwrap();
    assert!(!tensors.is_empty());
    for (name, tensor) in &tensors {
        let values = tensor.to_f32_vec().unwrap_or_default();
        assert!(values.iter().all(|value| value.is_finite()), "{name} is not finite");
    }
    assert!(file("onnx").len() > 100);
}

#[test]
fn the_demo_reaches_its_accuracy() {
    let out = tempfile::tempdir().unwrap();
    let (run, json) = federation("digits", out.path());
    check(&run, &json, 3);
    assert!(json["test_accuracy"].as_f64().unwrap() >= 0.96, "{json}");
    assert_eq!(json["rounds"], 20);
    assert!(json["final_loss"].as_f64().unwrap() < 0.5, "{json}");
    assert!(json["wall_s"].as_f64().unwrap() > 0.0, "{json}");
}

#[test]
fn three_hospitals_train_a_logistic_regression() {
    let out = tempfile::tempdir().unwrap();
    let (run, json) = federation("hospitals", out.path());
    check(&run, &json, 4);
    assert!(json["test_accuracy"].as_f64().unwrap() >= 0.92, "{json}");
}

/// What a run by steps must show: a line a step, an accuracy, and that its last round was judged and sealed.
fn check_steps(mode: &str, steps: u64) {
    let out = tempfile::tempdir().unwrap();
    let run = demo_with(&root().join("examples/digits"), out.path(), &["--mode", mode]);
    assert_eq!(run.code, 0, "stdout: {}\nstderr: {}", run.stdout, run.stderr);
    let json = run.json().unwrap_or_else(|error| panic!("{error}: {}", run.stdout));
    check(&run, &json, 3);
    assert_eq!(json["rounds"], steps, "{json}");
    assert!(json["test_accuracy"].as_f64().unwrap() >= 0.95, "{json}");
    for step in [0, steps - 1] {
        let line = run
            .stderr
            .lines()
            .find(|line| line.contains(&format!("step: {step}, loss: ")));
        assert!(
            line.is_some_and(|line| line.contains(", iter time: ")),
            "{}",
            run.stderr
        );
    }
    assert!(
        run.stderr.contains("after 50/"),
        "evaluated every 50 steps: {}",
        run.stderr
    );
}

#[test]
fn a_parameter_server_steps_by_the_gradients_of_all_workers() {
    check_steps("synchronous", 300);
}

#[test]
fn a_parameter_server_steps_by_each_gradient_as_it_comes() {
    check_steps("asynchronous", 600);
}

/// Digits as pictures of bytes, through a window of 8 x 8 with light and contrast; the held-out rows as they are, standardised alike.
#[test]
fn rows_go_through_transforms_where_they_are_trained_and_where_they_are_judged() {
    let (example, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let digits = root().join("examples/digits");
    std::fs::copy(digits.join("digits.csv"), example.path().join("digits.csv")).unwrap();
    let mut plan = std::fs::read_to_string(digits.join("federation.toml")).unwrap();
    for (from, to) in [
        (
            "shape = [64], dtype = \"f32\", scale = 0.0625",
            "shape = [1, 8, 8], dtype = \"u8\"",
        ),
        (
            "sample = \"mlp\"\ninputs = 64\nhidden = 128",
            "sample = \"cnn\"\ninputs = 64\nhidden = 8",
        ),
        ("count = 20", "count = 2"),
    ] {
        assert!(plan.contains(from), "{from}");
        plan = plan.replace(from, to);
    }
    for (name, dataset, augment) in [("augment", "train", true), ("centre", "held-out", false)] {
        plan += &format!(
            "[[transform]]\nname = \"{name}\"\nmodule = \"augment-cifar\"\ndataset = \"{dataset}\"\n\
             makes = {{ x = {{ shape = [1, 8, 8] }} }}\n\
             settings = {{ size = 8, augment = {augment}, flip = false, brightness = 2.0 }}\n"
        );
    }
    std::fs::write(example.path().join("federation.toml"), plan).unwrap();
    let run = demo(example.path(), out.path());
    assert_eq!(run.code, 0, "stdout: {}\nstderr: {}", run.stdout, run.stderr);
    let json = run.json().unwrap();
    check(&run, &json, 3);
    assert!(
        json["test_accuracy"].as_f64().unwrap() > 0.3,
        "far more than a tenth: {json}"
    );
    // Both were submitted and measured though they are one file, and a reader of the policy is told.
    let policy = out.path().join("run-1/policy.toml").display().to_string();
    let told = cloister(["policy", "check", &policy]).unwrap();
    for words in [
        "transform \"augment\"",
        "transform \"centre\" makes x (f32 of shape [1, 8, 8]) of it",
    ] {
        assert!(
            told.stdout.contains(words) || told.stderr.contains(words),
            "{words}: {}{}",
            told.stdout,
            told.stderr
        );
    }
}

#[test]
fn an_example_that_is_not_there_ends_with_2() {
    let out = tempfile::tempdir().unwrap();
    let missing = out.path().join("nothing");
    let run = cloister([
        "demo".as_ref(),
        "--example".as_ref(),
        missing.as_os_str(),
        "--guests".as_ref(),
        guests().as_os_str(),
        "--out".as_ref(),
        out.path().as_os_str(),
    ])
    .unwrap();
    assert_eq!(run.code, 2, "{}", run.stderr);
    assert!(run.stderr.contains("federation.toml"), "{}", run.stderr);
}

#[test]
fn a_transformer_learns_to_read_lines_of_pixels() {
    let out = tempfile::tempdir().unwrap();
    let (run, json) = federation("transformer", out.path());
    check(&run, &json, 3);
    assert!(json["test_accuracy"].as_f64().unwrap() >= 0.9, "{json}");
}
