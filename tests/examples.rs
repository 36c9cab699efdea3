//! The demo and the examples, end to end: real nodes, real modules, real data, on this machine.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics says where"
)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cloister_tensor::{ReadLimits, safetensors};
use cloister_tests::{Run, binary, cloister, guests, root, words};

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

/// Rows and trainer of the demo as they lie sealed on machines of an operator who has no key.
#[test]
fn digits_are_trained_on_by_a_module_and_rows_that_are_sealed() {
    let out = tempfile::tempdir().unwrap();
    let (run, told) = federation("digits-sealed", out.path());
    assert!(run.stderr.contains("SIMULATED"), "{}", run.stderr);
    assert!(told["trained"]["test_accuracy"].as_f64().unwrap() >= 0.94, "{told}");
    let keys = told["released"]["keys"].as_array().unwrap();
    let gets = |name: &str| {
        let granted = keys.iter().filter(|released| released["node"] == name);
        granted.map(ToString::to_string).collect::<String>()
    };
    for (node, own, other) in [
        ("worker-north", "north/worker-north.data", "worker-south.data"),
        ("worker-south", "south/worker-south.data", "worker-north.data"),
        ("aggregator", "coordinator/aggregator.data", "module-key"),
    ] {
        let released = gets(node);
        assert!(
            released.contains(own) && !released.contains(other),
            "{node}: {released}"
        );
        assert_eq!(released.contains("module-key"), node != "aggregator", "{released}");
    }
    assert_eq!(told["refused"].as_array().unwrap().len(), 5, "{told}");
    assert_eq!(told["exported"]["to"], "coordinator", "{told}");
    // The files that the operator has: no row stands in them, and the module is none that a sandbox would load.
    let run = out.path().join("run-1");
    for node in ["worker-north", "worker-south", "aggregator"] {
        let own = run.join("nodes").join(node);
        assert!(!own.join("data.csv").exists() && own.join("data.csv.sealed").exists());
        let sealed = std::fs::read(own.join("data.csv.sealed")).unwrap();
        assert!(!sealed.windows(5).any(|window| window == b"p0,p1"), "{node}");
    }
    let module = std::fs::read(run.join("train-sgd.wasm.sealed")).unwrap();
    assert!(!module.windows(19).any(|window| window == b"cloister:federation"));
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

/// A small example/cifar10: its plan with a small network, and a few hundred pictures in the official binary files.
struct SmallCifar {
    kept: tempfile::TempDir,
}

impl SmallCifar {
    /// `changes` besides what makes it small.
    fn new(changes: &[(&str, &str)]) -> Self {
        let kept = tempfile::tempdir().unwrap();
        let (example, data) = (kept.path().join("example"), kept.path().join("data"));
        std::fs::create_dir(&example).unwrap();
        std::fs::create_dir(&data).unwrap();
        let mut plan = std::fs::read_to_string(root().join("examples/cifar10/federation.toml")).unwrap();
        let small = [
            ("depth = 56", "depth = 8"),
            ("hidden = 16", "hidden = 4"),
            ("batch = 128", "batch = 20"),
            ("evaluation_batch = 100", "evaluation_batch = 25"),
            ("\"0..25000\"", "\"0..100\""),
            ("\"25000..50000\"", "\"100..200\""),
        ];
        for (from, to) in small.iter().chain(changes) {
            assert!(plan.contains(from), "{from}");
            plan = plan.replace(from, to);
        }
        std::fs::write(example.join("federation.toml"), plan).unwrap();
        for batch in 1..=5 {
            std::fs::write(data.join(format!("data_batch_{batch}.bin")), pictures(40 * batch, 40)).unwrap();
        }
        std::fs::write(data.join("test_batch.bin"), pictures(7, 60)).unwrap();
        Self { kept }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.kept.path().join(name)
    }

    fn run(&self, more: &[&str]) -> Run {
        let data = self.path("data").display().to_string();
        let more: Vec<&str> = ["--data", &data].into_iter().chain(more.iter().copied()).collect();
        demo_with(&self.path("example"), &self.path("out"), &more)
    }
}

/// Records of CIFAR-10's binary files: a picture of each class in turn, a bar at a place of its own, each a little else.
fn pictures(seed: usize, count: usize) -> Vec<u8> {
    let mut file = Vec::with_capacity(count * 3073);
    for picture in 0..count {
        let class = (seed + picture) % 10;
        file.push(class as u8);
        for element in 0..3072 {
            let row = element % 1024 / 32;
            let noise = (element * 31 + (seed + picture) * 17) % 23;
            file.push(if row / 3 == class { 200 } else { 60 } + noise as u8);
        }
    }
    file
}

#[test]
fn pictures_in_files_that_a_person_has_are_trained_on_in_halves() {
    let small = SmallCifar::new(&[]);
    let run = small.run(&["--updates", "6"]);
    assert_eq!(run.code, 0, "stdout: {}\nstderr: {}", run.stdout, run.stderr);
    let json = run.json().unwrap();
    check(&run, &json, 3);
    assert_eq!(json["rounds"], 6);
    assert!(json["final_loss"].as_f64().unwrap().is_finite(), "{json}");
    let policy = std::fs::read_to_string(small.path("out/run-1/policy.toml")).unwrap();
    for half in ["slice = \"0..100\"", "slice = \"100..200\""] {
        assert!(policy.contains(half), "{half}: {policy}");
    }
    // One word, and each works on its own: the same plan in another mode.
    let run = small.run(&["--updates", "1", "--mode", "averaging"]);
    assert_eq!(run.code, 0, "stdout: {}\nstderr: {}", run.stdout, run.stderr);
    assert!(run.json().unwrap()["test_accuracy"].is_number());
    let run = small.run(&["--mode", "hasty"]);
    assert_eq!(run.code, 2, "{}", run.stderr);
    assert!(
        words(&run.stderr).contains("no mode \"hasty\"; it has"),
        "{}",
        run.stderr
    );
}

/// Starts a run of `count` updates and asks it to end once it told of the seventh. What it said; `None` if it came to its end before.
fn stopped_amid(small: &SmallCifar, count: &str) -> Option<String> {
    let [example, out, data] = ["example", "out", "data"].map(|name| small.path(name));
    let mut run = Command::new(binary())
        .args(["demo".as_ref(), "--guests".as_ref(), guests().as_os_str()])
        .args([
            "--example".as_ref(),
            example.as_os_str(),
            "--out".as_ref(),
            out.as_os_str(),
        ])
        .args([
            "--data".as_ref(),
            data.as_os_str(),
            "--updates".as_ref(),
            count.as_ref(),
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(run.stderr.take().unwrap()).lines().map(Result::unwrap);
    let mut said = Vec::new();
    assert!(
        lines.any(|line| {
            said.push(line);
            said.last().is_some_and(|line| line.contains("step: 6,"))
        }),
        "{said:?}"
    );
    let status = Command::new("kill").args(["-INT", &run.id().to_string()]).status();
    assert!(status.unwrap().success());
    said.extend(lines);
    (run.wait().unwrap().code() == Some(1)).then(|| words(&said.join("\n")))
}

#[test]
fn a_run_that_was_stopped_is_gone_on_with_from_its_checkpoint() {
    // Where a machine comes to the end before it is asked, more updates are wanted.
    for count in ["60", "600", "6000"] {
        let small = SmallCifar::new(&[("checkpoint_every = 400", "checkpoint_every = 3")]);
        let Some(told) = stopped_amid(&small, count) else {
            continue;
        };
        let behind = told.split_once("the same command goes on behind round ");
        let (_, behind) = behind.unwrap_or_else(|| panic!("{told}"));
        let behind: u64 = behind.split(',').next().unwrap().parse().unwrap();
        assert!(behind >= 6 && behind.is_multiple_of(3), "{told}");
        // Another number of updates is another agreement, and begins anew.
        let other = small.run(&["--updates", "2"]);
        assert!(
            words(&other.stderr).contains("it was of another plan"),
            "{}",
            other.stderr
        );
        assert!(other.json().unwrap()["resumed_behind"].is_null());
        std::fs::remove_dir_all(small.path("out/run-2")).unwrap();

        let run = small.run(&["--updates", count]);
        assert_eq!(run.code, 0, "stdout: {}\nstderr: {}", run.stdout, run.stderr);
        let json = run.json().unwrap();
        check(&run, &json, 3);
        assert_eq!(
            (json["resumed_behind"].as_u64(), json["rounds"].to_string()),
            (Some(behind), count.to_owned())
        );
        // It is done now.
        let run = small.run(&["--updates", "2", "--mode", "synchronous"]);
        assert!(run.json().unwrap()["resumed_behind"].is_null(), "{}", run.stderr);
        return;
    }
    panic!("6,000 updates were done before a signal came");
}

#[test]
fn an_example_whose_data_are_not_there_says_what_to_fetch() {
    let (out, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let run = demo_with(
        &root().join("examples/cifar10"),
        out.path(),
        &["--data", &data.path().display().to_string()],
    );
    assert_eq!(run.code, 2, "{}", run.stderr);
    let told = words(&run.stderr);
    for wanted in ["looked in", "cifar-10-binary.tar.gz", "--data DIR"] {
        assert!(told.contains(wanted), "{wanted}: {told}");
    }
    assert!(!out.path().join("run-1").exists(), "nothing was made");
}

/// The reference workload itself, for a few updates, where the pictures are at hand.
#[test]
fn the_reference_workload_takes_its_first_steps() {
    let data = root().join("../shared/data/cifar10");
    if !data.join("train.parquet").is_file() {
        eprintln!("skipped: no CIFAR-10 in {}", data.display());
        return;
    }
    let out = tempfile::tempdir().unwrap();
    let run = demo_with(&root().join("examples/cifar10"), out.path(), &["--updates", "4"]);
    assert_eq!(run.code, 0, "stdout: {}\nstderr: {}", run.stdout, run.stderr);
    let json = run.json().unwrap();
    check(&run, &json, 3);
    assert_eq!(json["rounds"], 4);
    assert!(
        run.stderr.contains("25000 rows") && run.stderr.contains("10000 rows"),
        "{}",
        run.stderr
    );
    assert!(run.stderr.contains("step: 3, loss: "), "{}", run.stderr);
}
