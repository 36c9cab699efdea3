//! `cloister audit`: what the nodes of a federation wrote down, and what is done to it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests"
)]

use cloister_tests::federation::Federation;
use cloister_tests::{Run, cloister};
use serde_json::Value;

/// Runs `cloister audit COMMAND` on a node's log.
fn audit(federation: &Federation, node: &str, command: &str, more: &[&str]) -> Run {
    let own = federation.node(node);
    let path = |name: &str| own.join(name).display().to_string();
    let (log, credential) = (path("audit.jsonl"), path("node.credential"));
    let policy = federation.folder().join("policy.toml").display().to_string();
    let arguments = ["audit", command, &log, "--credential", &credential, "--policy", &policy];
    cloister(arguments.iter().chain(more)).unwrap()
}

fn entries(federation: &Federation, node: &str) -> Vec<Value> {
    let shown = audit(federation, node, "show", &["-o", "json"]);
    assert_eq!(shown.code, 0, "{}", shown.stderr);
    shown
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// What a person reads in an error: without the frame and the breaks of lines.
fn words(stderr: &str) -> String {
    stderr
        .replace('│', " ")
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn the_nodes_write_down_what_they_agreed_to_whom_they_attested_and_each_round() {
    let federation = Federation::of_rounds(2).unwrap();
    let hub = entries(&federation, "aggregator");
    let events: Vec<&str> = hub.iter().map(|entry| entry["event"].as_str().unwrap()).collect();
    assert_eq!(events[0], "agreement");
    assert_eq!(hub[0]["what"]["simulated"], true);
    for (wanted, count) in [("measured", 1), ("attested", 2), ("round", 2)] {
        assert!(
            events.iter().filter(|event| **event == wanted).count() >= count,
            "{wanted}: {events:?}"
        );
    }
    // The same rounds, by the same receipts, at every node that took part.
    let rounds = |entries: &[Value]| -> Vec<Value> {
        let rounds = entries.iter().filter(|entry| entry["event"] == "round");
        rounds.map(|entry| entry["what"]["receipt"].clone()).collect()
    };
    assert_eq!(rounds(&hub).len(), 2);
    assert_eq!(rounds(&entries(&federation, "worker-north")), rounds(&hub));
    let tail = audit(&federation, "aggregator", "tail", &["--lines", "1", "-o", "json"]);
    assert_eq!(tail.json().unwrap(), *hub.last().unwrap());

    // A checkpoint that is kept, and a log that goes on.
    let kept = federation.folder().join("kept").display().to_string();
    let saved = audit(&federation, "aggregator", "verify", &["--save", &kept, "-o", "json"]);
    assert_eq!(saved.code, 0, "{}", saved.stderr);
    assert_eq!(saved.json().unwrap()["lines"], hub.len());
    let path = federation.node("aggregator").join("audit.jsonl");
    let before = std::fs::read(&path).unwrap();
    let mut aggregator = federation.start_aggregator().unwrap();
    aggregator.terminate().unwrap();
    assert_eq!(aggregator.wait().unwrap(), Some(0));
    let extended = audit(&federation, "aggregator", "verify", &["--checkpoint", &kept]);
    assert_eq!(extended.code, 0, "{}", extended.stderr);
    assert!(
        extended.stdout.contains("extends the checkpoint"),
        "{}",
        extended.stdout
    );
    let after = std::fs::read(&path).unwrap();
    assert!(after.len() > before.len() && after.starts_with(&before));

    // An older copy is good in itself, but does not extend what was kept; a changed one is good for nothing.
    let lines: Vec<&[u8]> = before.split_inclusive(|byte| *byte == b'\n').collect();
    std::fs::write(&path, lines[..lines.len() - 1].concat()).unwrap();
    assert_eq!(audit(&federation, "aggregator", "verify", &[]).code, 0);
    let cut = audit(&federation, "aggregator", "verify", &["--checkpoint", &kept]);
    assert_eq!(cut.code, 1, "{}", cut.stdout);
    assert!(words(&cut.stderr).contains("its end was cut off"), "{}", cut.stderr);
    let changed = String::from_utf8(before)
        .unwrap()
        .replacen("\"simulated\":true", "\"simulated\":null", 1);
    std::fs::write(&path, changed).unwrap();
    for command in ["verify", "show", "tail"] {
        let refused = audit(&federation, "aggregator", command, &[]);
        assert_eq!(refused.code, 1, "{command}: {}", refused.stdout);
        assert!(
            words(&refused.stderr).contains("does not follow the one before it"),
            "{}",
            refused.stderr
        );
        assert!(command == "verify" || refused.stdout.is_empty(), "{}", refused.stdout);
    }
    // Neither does the node go on with it.
    let own = federation.node("aggregator").join("node.toml");
    let stopped = cloister(["aggregator".as_ref(), "--config".as_ref(), own.as_os_str()]).unwrap();
    assert_eq!(stopped.code, 1, "{}", stopped.stdout);
    assert!(words(&stopped.stderr).contains("does not follow"), "{}", stopped.stderr);
    // Another node's credential is not this log's.
    let own = federation.node("aggregator").join("node.credential");
    std::fs::copy(federation.node("worker-north").join("node.credential"), own).unwrap();
    assert_eq!(audit(&federation, "aggregator", "verify", &[]).code, 1);
}
