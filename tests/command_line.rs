//! How the command line answers: help everywhere, one meaning an exit code.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics says where"
)]

use cloister_tests::cloister;

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

#[test]
fn every_command_explains_itself() {
    let mut waiting = vec![Vec::<String>::new()];
    let mut seen = 0;
    while let Some(path) = waiting.pop() {
        let mut arguments = path.clone();
        arguments.push("--help".to_owned());
        let run = cloister(&arguments).unwrap();
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
        for name in commands(&run.stdout) {
            let mut below = path.clone();
            below.push(name);
            waiting.push(below);
        }
        seen += 1;
    }
    assert!(seen > 15, "only {seen} help texts were found");
}

#[test]
fn a_leaf_command_shows_an_example() {
    for command in ["demo", "aggregator", "worker"] {
        let run = cloister([command, "--help"]).unwrap();
        assert!(
            run.stdout.contains("Example"),
            "`{command} --help` shows no example: {}",
            run.stdout
        );
    }
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
