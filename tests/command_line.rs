//! How the command line answers: help everywhere, one meaning an exit code.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics says where"
)]

use cloister_tests::{Run, cloister};

/// The names below `Commands:` in a help text.
fn commands(help: &str) -> Vec<String> {
    help.lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| line.starts_with("  "))
        .filter(|line| !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

/// The help of every command, with the words that lead to it.
fn all_help() -> Vec<(Vec<String>, Run)> {
    let mut waiting = vec![Vec::<String>::new()];
    let mut seen = Vec::new();
    while let Some(path) = waiting.pop() {
        let mut arguments = path.clone();
        arguments.push("--help".to_owned());
        let run = cloister(&arguments).unwrap();
        for name in commands(&run.stdout) {
            let mut below = path.clone();
            below.push(name);
            waiting.push(below);
        }
        seen.push((path, run));
    }
    seen
}

#[test]
fn every_command_explains_itself() {
    let all = all_help();
    for (path, run) in &all {
        assert_eq!(run.code, 0, "{path:?}: {}", run.stderr);
        assert!(
            run.stdout.contains("Usage: cloister"),
            "{path:?} shows no usage: {}",
            run.stdout
        );
        assert!(
            run.stderr.is_empty(),
            "{path:?} --help writes to stderr: {}",
            run.stderr
        );
    }
    assert!(all.len() > 15, "only {} help texts were found", all.len());
}

#[test]
fn every_command_that_does_something_shows_an_example() {
    let all = all_help();
    let leaves = all.iter().filter(|(_, run)| commands(&run.stdout).is_empty());
    let bare: Vec<String> = leaves
        .filter(|(_, run)| !run.stdout.contains("\nExample"))
        .map(|(path, _)| path.join(" "))
        .collect();
    assert!(bare.is_empty(), "no example in the help of: {}", bare.join(", "));
}

#[test]
fn an_unknown_command_is_a_usage_error() {
    let run = cloister(["agregator"]).unwrap();
    assert_eq!(run.code, 2);
    assert!(
        run.stderr.contains("aggregator"),
        "the nearest known command is named: {}",
        run.stderr
    );
    assert!(run.stdout.is_empty());
}

#[test]
fn an_unreadable_node_file_ends_with_2_and_names_it() {
    for command in ["aggregator", "worker"] {
        let run = cloister([command, "--config", "/nonexistent/node.toml"]).unwrap();
        assert_eq!(run.code, 2, "{}", run.stderr);
        assert!(run.stderr.contains("/nonexistent/node.toml"), "{}", run.stderr);
    }
}

#[test]
fn a_broken_node_file_ends_with_2_and_says_where() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("node.toml");
    std::fs::write(&file, "name = \"worker-a\"\nagregator = \"127.0.0.1:1\"\n").unwrap();
    let run = cloister(["worker".as_ref(), "--config".as_ref(), file.as_os_str()]).unwrap();
    assert_eq!(run.code, 2, "{}", run.stderr);
    assert!(
        run.stderr.contains("agregator") && run.stderr.contains("aggregator"),
        "{}",
        run.stderr
    );
}

#[test]
fn a_file_that_cannot_be_read_ends_with_2_and_what_to_do() {
    let hex = "5a".repeat(64);
    let out = tempfile::tempdir().unwrap();
    let made = out.path().join("made");
    let (file, made) = ("/nonexistent/file", made.to_str().unwrap());
    let commands: &[&[&str]] = &[
        &["aggregator", "--config", file],
        &["worker", "--config", file],
        &["demo", "--example", file, "--guests", file, "--out", made],
        &["graph", "show", file],
        &[
            "graph",
            "train",
            file,
            "--loss",
            "softmax-cross-entropy",
            "--optimizer",
            "sgd",
            "--batch",
            "2",
            "-o",
            made,
        ],
        &["graph", "run", file, "--feed", "/nonexistent/file.npz"],
        &["policy", "check", file],
        &["policy", "sign", file, "--key", file, "--participant", "a"],
        &["module", "inspect", file],
        &[
            "module",
            "ls",
            "--to",
            "127.0.0.1:1",
            "--policy",
            file,
            "--participant",
            "a",
            "--participant-key",
            file,
        ],
        &["data", "show", "/nonexistent/file.csv"],
        &[
            "data",
            "commit",
            "/nonexistent/file.csv",
            "--name",
            "t",
            "--input",
            "x=a",
        ],
        &["identity", "show", file],
        &["quote", "show", file],
        &["quote", "verify", file, "--collateral", file],
        &["quote", "make", "--simulated", file, "--report-data", &hex, "-o", made],
        &["peer", "127.0.0.1:1", "--policy", file],
        &["vault", "ls", file, "--key-file", file],
    ];
    for command in commands {
        let run = cloister(*command).unwrap();
        assert_eq!(run.code, 2, "{command:?}: {}", run.stderr);
        assert!(run.stderr.contains("/nonexistent/file"), "{command:?}: {}", run.stderr);
        let told = run.stderr.contains("help:") || run.stderr.contains("cloister vault keygen");
        assert!(told, "{command:?} does not say what to do: {}", run.stderr);
        assert!(run.stdout.is_empty(), "{command:?}: {}", run.stdout);
    }
    assert!(
        !std::path::Path::new(made).exists(),
        "something was written all the same"
    );
}
