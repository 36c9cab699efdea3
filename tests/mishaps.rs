//! A slip of the hand costs nobody a secret, a model or data.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics says where"
)]

use std::fs::{File, OpenOptions};
use std::process::{Command, Stdio};

use cloister_tests::{Run, binary, cloister, words};
use tempfile::TempDir;

fn run(arguments: &[&str]) -> Run {
    cloister(arguments).unwrap()
}

/// A folder with the keys of a participant and of a node, and a model.
fn folder() -> (TempDir, impl Fn(&str) -> String) {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().display().to_string();
    let at = move |name: &str| format!("{base}/{name}");
    for (name, kind) in [("alpha", "--participant"), ("node", "--node")] {
        assert_eq!(run(&["identity", "new", "--out", &at(name), kind]).code, 0);
    }
    let model = run(&[
        "graph",
        "sample",
        "logistic",
        "--inputs",
        "4",
        "--classes",
        "3",
        "-o",
        &at("m.onnx"),
    ]);
    assert_eq!(model.code, 0, "{}", model.stderr);
    (folder, at)
}

fn endorse(at: &impl Fn(&str) -> String, node_key: &str, output: &str) -> Run {
    run(&[
        "identity",
        "endorse",
        "--participant-key",
        &at("alpha.key"),
        "--federation",
        "f",
        "--participant",
        "alpha",
        "--node",
        "n",
        "--role",
        "worker",
        "--node-key",
        node_key,
        "-o",
        &at(output),
    ])
}

#[test]
fn a_secret_key_in_the_place_of_a_public_one_is_not_printed() {
    let (_folder, at) = folder();
    let pem = std::fs::read_to_string(at("node.key")).unwrap();
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    std::fs::write(at("body"), &body).unwrap();
    let draft = run(&[
        "policy",
        "draft",
        "--name",
        "f",
        "--participant",
        &format!("alpha={}", at("node.key")),
        "--node",
        "h:aggregator:alpha",
        "--model",
        "m",
        "--module",
        &format!("t:trainer={}", at("m.onnx")),
        "--dataset",
        &at("none.toml"),
    ]);
    // Lines may be broken anywhere, the key's among them.
    for seen in [
        endorse(&at, &at("node.key"), "c"),
        endorse(&at, &at("body"), "c"),
        draft,
    ] {
        assert_eq!(seen.code, 2, "{}", seen.stderr);
        assert!(
            !format!("{}{}", seen.stdout, seen.stderr).contains(&body[20..40]),
            "a secret is shown"
        );
    }
    let seen = endorse(&at, &at("node.key"), "c").stderr;
    assert!(seen.contains("the secret key") && seen.contains(".pub"), "{seen}");
}

#[test]
fn a_nodes_key_is_not_its_participants() {
    let (_folder, at) = folder();
    let seen = endorse(&at, &at("alpha.pub"), "c");
    assert_eq!(seen.code, 2, "{}", seen.stderr);
    assert!(!std::path::Path::new(&at("c")).exists());
    assert_eq!(endorse(&at, &at("node.pub"), "c").code, 0);
    let shown = run(&["identity", "show", &at("c")]);
    assert!(shown.stdout.contains("holds until  20"), "a date: {}", shown.stdout);
}

#[test]
fn an_output_never_takes_the_place_of_an_input() {
    let (_folder, at) = folder();
    let before = std::fs::read(at("m.onnx")).unwrap();
    std::os::unix::fs::symlink(at("m.onnx"), at("link.onnx")).unwrap();
    let model = at("m.onnx");
    let train =
        |more: &[&str]| run(&[&["graph", "train", &model, "--optimizer", "sgd", "--batch", "4"], more].concat());
    for more in [
        ["-o", &model].as_slice(),
        &["-o", &at("link.onnx")],
        &["-o", &at("../").replace("../", "./m.onnx")],
        &["-o", &at("new.onnx"), "--evaluation", &model],
        &["-o", &at("new.onnx"), "--evaluation", &at("new.onnx")],
    ] {
        let seen = train(more);
        assert_eq!(seen.code, 2, "{more:?}: {}", seen.stderr);
    }
    assert!(!std::path::Path::new(&at("new.onnx")).exists());
    assert_eq!(std::fs::read(&model).unwrap(), before);
    let key = std::fs::read(at("alpha.key")).unwrap();
    assert_eq!(endorse(&at, &at("node.pub"), "alpha.key").code, 2);
    assert_eq!(std::fs::read(at("alpha.key")).unwrap(), key);

    // The same check wherever a command writes a file, before anything else is done.
    assert_eq!(run(&["quote", "authority", &at("sim")]).code, 0);
    let (root, collateral, pck) = (at("sim/root.der"), at("sim/collateral.json"), at("sim/keys/pck.pem"));
    for name in [
        "policy.toml",
        "audit.jsonl",
        "hub.credential",
        "td.quote",
        "initdata.toml",
    ] {
        std::fs::write(at(name), name).unwrap();
    }
    let (policy, quote, sim) = (at("policy.toml"), at("td.quote"), at("sim"));
    let (log, credential, key) = (at("audit.jsonl"), at("hub.credential"), at("alpha.key"));
    let digest = "00".repeat(32);
    let report_data = "00".repeat(64);
    let fetch = [
        "module",
        "fetch",
        &digest,
        "--to",
        "127.0.0.1:1",
        "--policy",
        &policy,
        "--trust-root",
        &sim,
    ];
    let fetch = [&fetch[..], &["--participant", "alpha", "--participant-key", &key]].concat();
    let verify = [
        "audit",
        "verify",
        &log,
        "--credential",
        &credential,
        "--policy",
        &policy,
        "--save",
    ];
    let make = [
        "quote",
        "make",
        "--simulated",
        &sim,
        "--report-data",
        &report_data,
        "-o",
    ];
    let collect = ["quote", "collateral", &quote, "--root", &root, "-o"];
    let reference = [
        "policy",
        "reference",
        "draft",
        &quote,
        "--collateral",
        &collateral,
        "--root",
        &root,
    ];
    let reference = [
        &reference[..],
        &["--policy", &policy, "--name", "n", "--not-after", "2027-01-31", "-o"],
    ]
    .concat();
    let folder = at("./").replace("/./", "");
    let image = [
        "policy",
        "from-image",
        &sim,
        "--repository",
        "r",
        "--aa",
        &at("initdata.toml"),
        "--out-dir",
        &folder,
    ];
    let fetch = [&fetch[..], &["-o"]].concat();
    for (command, outputs) in [
        (&fetch[..], &[&policy, &key, &root, &collateral][..]),
        (&verify, &[&log, &credential, &policy]),
        (&make, &[&root, &pck]),
        (&collect, &[&quote, &root]),
        (&reference, &[&quote, &collateral, &root, &policy]),
    ] {
        for output in outputs {
            refused(&[command, &[output.as_str()]].concat(), output);
        }
    }
    refused(&image, &at("initdata.toml"));
}

/// A command whose output is an input ends with 2, and the input is as it was.
fn refused(command: &[&str], input: &str) {
    let before = std::fs::read(input).unwrap();
    let seen = run(command);
    assert_eq!(seen.code, 2, "{command:?}: {}", seen.stderr);
    assert!(
        words(&seen.stderr).contains("would be written over"),
        "{command:?}: {}",
        seen.stderr
    );
    assert_eq!(std::fs::read(input).unwrap(), before, "{command:?}");
}

#[test]
fn constants_of_other_optimizers_and_out_of_range_are_refused_by_name() {
    let (_folder, at) = folder();
    for (optimizer, more, words) in [
        ("sgd", ["--momentum", "0.5"], "momentum or nesterov"),
        ("momentum", ["--beta1", "0.5"], "adam or adamw"),
        ("sgd", ["--weight-decay", "-1"], "weight"),
    ] {
        let seen = run(&[
            "graph",
            "train",
            &at("m.onnx"),
            "--optimizer",
            optimizer,
            "--batch",
            "4",
            "-o",
            &at("t.onnx"),
            more[0],
            more[1],
        ]);
        assert_eq!(seen.code, 2, "{}", seen.stderr);
        assert!(
            seen.stderr.contains(words) && !seen.stderr.contains("unexpected argument"),
            "{}",
            seen.stderr
        );
    }
}

#[test]
fn data_that_stdout_does_not_take_are_a_failure_and_a_closed_pipe_is_none() {
    let (_folder, at) = folder();
    let shown = at("m.onnx");
    for arguments in [
        &["completions", "bash"][..],
        &["graph", "show", "--operators"],
        &["graph", "show", &shown, "-o", "json"],
    ] {
        let full: File = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let seen = Command::new(binary())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(full)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&seen.stderr);
        assert_eq!(seen.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains("standard output"), "{said}");
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let seen = Command::new(binary())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(writer)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&seen.stderr);
        assert_eq!(seen.status.code(), Some(0), "{arguments:?}: {said}");
    }
}

#[test]
fn a_model_that_is_no_number_is_not_trained_from() {
    let (_folder, at) = folder();
    let mut model = std::fs::read(at("m.onnx")).unwrap();
    // The field of a tensor's raw bytes (9, a length of 48): the 4 x 3 weights.
    let weights = model.windows(2).position(|field| field == [0x4a, 48]).unwrap() + 2;
    model[weights + 8..weights + 12].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(at("nan.onnx"), model).unwrap();
    let train = run(&[
        "graph",
        "train",
        &at("nan.onnx"),
        "--optimizer",
        "sgd",
        "--batch",
        "4",
        "-o",
        &at("t.onnx"),
    ]);
    assert_eq!(train.code, 2, "{}", train.stderr);
    assert!(
        words(&train.stderr).contains("is not finite at element 2"),
        "{}",
        train.stderr
    );
    assert!(!std::path::Path::new(&at("t.onnx")).exists());
}
