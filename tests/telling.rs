//! What nodes and commands tell of a verdict: events of those that were refused, and that a root is simulated.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics says where"
)]

use cloister_tests::federation::Federation;
use cloister_tests::{cloister, words};

#[test]
fn refused_peers_are_told_as_events_with_the_rules_that_failed() {
    let federation = Federation::of_demo().unwrap();
    let aggregator = federation.start_aggregator().unwrap();
    let run = federation
        .worker_like("worker-north", "another-td", &aggregator, |_, text| {
            text + &format!("mrtd = \"{}\"\n", "11".repeat(48))
        })
        .unwrap();
    assert_eq!(run.code, 3, "{}", run.stderr);
    let event = loop {
        let event = aggregator.wait_for("peer").unwrap();
        if event["verdict"] == "refused" {
            break event;
        }
    };
    assert_eq!(
        (&event["name"], &event["role"]),
        (&"worker-north".into(), &"worker".into()),
        "{event}"
    );
    assert_eq!(event["simulated"], true, "{event}");
    assert_eq!(event["measurement"].as_str().map(str::len), Some(96), "{event}");
    let reasons = event["reasons"].as_array().unwrap();
    let mrtd = reasons
        .iter()
        .find(|reason| reason["rule"] == "attestation.mrtd")
        .unwrap();
    assert_eq!(mrtd["seen"], "11".repeat(48), "{event}");
    assert!(!mrtd["wanted"].as_str().unwrap().is_empty(), "{event}");

    // The other way round: a worker whose policy wants another aggregator tells whom it refused before it ends.
    let file = federation.worker_file("worker-north", "wants-another", &aggregator.address, |own, text| {
        let policy = std::fs::read_to_string(federation.folder().join("policy.toml")).unwrap();
        std::fs::write(own.join("policy.toml"), policy + "\n# another policy\n").unwrap();
        text.replace("../../policy.toml", "policy.toml")
    });
    let run = cloister([
        "worker".as_ref(),
        "-o".as_ref(),
        "json".as_ref(),
        "--config".as_ref(),
        file.unwrap().as_os_str(),
    ])
    .unwrap();
    assert_eq!(run.code, 3, "{}", run.stderr);
    let told = run
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let told: Vec<_> = told.filter(|event| event["event"] == "peer").collect();
    let refused: Vec<_> = told.iter().filter(|event| event["verdict"] == "refused").collect();
    assert!(refused.len() == 1 && told.len() == 1, "{told:?}");
    assert_eq!(refused[0]["name"], "aggregator", "{told:?}");
    assert_eq!(refused[0]["reasons"][0]["rule"], "policy.digest", "{told:?}");
}

#[test]
fn commands_that_ask_an_aggregator_say_that_its_root_is_simulated() {
    let federation = Federation::of_demo().unwrap();
    let aggregator = federation.start_aggregator().unwrap();
    let key = federation.folder().join("participants/coordinator.key");
    let (policy, root) = (
        federation.folder().join("policy.toml"),
        federation.folder().join("authority"),
    );
    let module = |asked: &[&str]| {
        let mut arguments: Vec<std::ffi::OsString> = ["module"].iter().chain(asked).map(Into::into).collect();
        arguments.extend([
            "--to".into(),
            aggregator.address.clone().into(),
            "--policy".into(),
            policy.clone().into(),
        ]);
        arguments.extend([
            "--trust-root".into(),
            root.clone().into(),
            "--participant".into(),
            "coordinator".into(),
        ]);
        arguments.extend(["--participant-key".into(), key.clone().into()]);
        let run = cloister(arguments).unwrap();
        assert_eq!(run.code, 0, "{asked:?}: {}", run.stderr);
        let said = words(&run.stderr);
        assert_eq!(
            said.matches("SIMULATED: a simulated root vouches for aggregator (aggregator)")
                .count(),
            1,
            "{said}"
        );
        run
    };
    let listed: serde_json::Value = serde_json::from_str(&module(&["ls", "-o", "json"]).stdout).unwrap();
    let listed = listed.as_array().unwrap();
    let trainer = listed.iter().find(|entry| entry["name"] == "train-sgd").unwrap();
    let fetched = federation.folder().join("fetched.wasm");
    let (digest, fetched) = (trainer["digest"].as_str().unwrap(), fetched.to_str().unwrap());
    module(&["fetch", digest, "-o", fetched]);
    let submitted = module(&["submit", fetched, "-o", "json"]).json().unwrap();
    assert_eq!(
        (&submitted["simulated"], &submitted["new"]),
        (&true.into(), &false.into()),
        "{submitted}"
    );
}
