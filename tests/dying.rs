//! A runner that dies takes no node with it: the round says what died, the runner comes back, and the federation finishes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics says where"
)]

use cloister_tests::federation::{Aggregator, Federation, Worker};
use cloister_tests::processes::{children, lives, signal};
use cloister_tests::words;

/// Enough rounds that the federation is not over before its runners are killed.
const ROUNDS: u32 = 40;

/// The SHA-256 that the policy gives a module.
fn digest_of(federation: &Federation, module: &str) -> String {
    let policy = std::fs::read_to_string(federation.folder().join("policy.toml")).unwrap();
    let policy: toml::Table = policy.parse().unwrap();
    let modules = policy["module"].as_array().unwrap();
    let module = modules
        .iter()
        .find(|found| found["name"].as_str() == Some(module))
        .unwrap();
    module["sha256"].as_str().unwrap().to_owned()
}

/// Kills the runner of a node, and waits for another one in its place once a round is done.
fn kill_runner(node: u32, aggregator: &Aggregator) {
    let before = children(node).unwrap();
    assert_eq!(before.len(), 1, "a node has one runner");
    signal(before[0], "KILL").unwrap();
    aggregator.wait_for("round").unwrap();
    // The round that was on its way may have been done already.
    aggregator.wait_for("round").unwrap();
    assert!(lives(node), "the node died with its runner");
    let after = children(node).unwrap();
    assert!(after.len() == 1 && after != before, "{before:?}, then {after:?}");
}

#[test]
fn a_federation_whose_runners_are_killed_finishes_and_names_the_modules() {
    let federation = Federation::of_rounds(ROUNDS).unwrap();
    let mut aggregator = federation.start_aggregator().unwrap();
    let start = |node: &str| {
        let file = federation.worker_file(node, &format!("{node}-dying"), &aggregator.address, |_, text| text);
        Worker::start(&file.unwrap()).unwrap()
    };
    let (mut north, mut south) = (start("worker-north"), start("worker-south"));
    aggregator.wait_for("round").unwrap();
    kill_runner(north.pid(), &aggregator);
    kill_runner(aggregator.pid(), &aggregator);

    let end = aggregator.wait_for("finished").unwrap();
    assert_eq!(end["rounds"], ROUNDS, "{end}");
    assert_eq!(aggregator.wait().unwrap(), Some(0));
    let (code, said) = north.wait().unwrap();
    assert_eq!(code, Some(0), "{said}");
    let said = words(&said);
    let trainer = digest_of(&federation, "train-sgd");
    assert!(said.contains(&trainer) && said.contains("the runner died"), "{said}");
    let (code, said) = south.wait().unwrap();
    assert_eq!(code, Some(0), "{said}");
    let log = words(&aggregator.log().unwrap());
    let fold = format!(
        "(module aggregate-fedavg, {})",
        digest_of(&federation, "aggregate-fedavg")
    );
    assert!(
        log.contains("given up") && log.contains(&fold) && log.contains("the runner died"),
        "{log}"
    );
    assert!(
        log.contains(&format!("module {trainer}")),
        "the trainer, as the worker told: {log}"
    );
}
