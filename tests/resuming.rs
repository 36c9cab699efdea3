//! An aggregator that ends amid its rounds, or is started again behind their end: nothing is done twice, nothing overwritten.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics says where"
)]

use std::path::Path;

use cloister_tests::federation::Federation;
use cloister_tests::{Run, cloister};

fn run_aggregator(file: &Path) -> Run {
    cloister([
        "aggregator".as_ref(),
        "-o".as_ref(),
        "json".as_ref(),
        "--config".as_ref(),
        file.as_os_str(),
    ])
    .unwrap()
}

/// The bytes of each file of a vault.
fn sealed(vault: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = vec![("index".to_owned(), std::fs::read(vault.join("index")).unwrap())];
    for blob in std::fs::read_dir(vault.join("blobs")).unwrap() {
        let path = blob.unwrap().path();
        files.push((path.display().to_string(), std::fs::read(&path).unwrap()));
    }
    files.sort();
    files
}

#[test]
fn an_aggregator_that_crashes_amid_the_rounds_goes_on_behind_the_last_sealed_one() {
    let federation = Federation::of_rounds(12).unwrap();
    let mut aggregator = federation.start_aggregator().unwrap();
    assert!(
        !aggregator.before.iter().any(|event| event["event"] == "resumed"),
        "a new vault holds nothing to go on from"
    );
    let address = aggregator.address.clone();
    std::thread::scope(|scope| {
        let workers: Vec<_> = ["north", "south"]
            .map(|side| {
                let (federation, address) = (&federation, &address);
                scope.spawn(move || {
                    federation
                        .worker_at(
                            &format!("worker-{side}"),
                            &format!("steady-{side}"),
                            address,
                            |_, text| text,
                        )
                        .unwrap()
                })
            })
            .into();
        let told = aggregator.wait_for("round").unwrap()["round"].as_u64().unwrap();
        aggregator.crash_and_restart().unwrap();
        let resumed = aggregator
            .before
            .iter()
            .find(|event| event["event"] == "resumed")
            .unwrap_or_else(|| panic!("nothing was said of going on: {:?}", aggregator.before));
        // What was told was sealed before; more rounds may have been sealed until the crash.
        let next = resumed["round"].as_u64().unwrap();
        assert!((told + 1..=12).contains(&next), "goes on with {next} after {told}");
        assert_eq!(
            aggregator.wait_for("round").unwrap()["round"],
            next,
            "the round that was said comes next"
        );
        assert_eq!(aggregator.wait_for("finished").unwrap()["rounds"], 12);
        assert_eq!(aggregator.wait().unwrap(), Some(0));
        for worker in workers {
            let run = worker.join().unwrap();
            assert_eq!(run.code, 0, "{}{}", run.stdout, run.stderr);
        }
    });

    // Behind the end it says so, and leaves the vault alone.
    let vault = federation.node("aggregator").join("vault-1");
    let before = sealed(&vault);
    let run = run_aggregator(aggregator.file());
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(
        run.stderr.contains("has finished its 12 rounds") && run.stderr.contains("SIMULATED"),
        "{}",
        run.stderr
    );
    let told: serde_json::Value = serde_json::from_str(run.stdout.trim()).unwrap();
    assert_eq!(
        (&told["event"], &told["rounds"]),
        (&"finished".into(), &12.into()),
        "{told}"
    );
    assert!(before == sealed(&vault), "a finished vault was written to");
}

#[test]
fn an_aggregator_that_crashes_between_checkpoints_goes_on_from_the_last_one_and_its_workers_follow() {
    let sealed_often = |plan: String| {
        assert!(plan.contains("checkpoint_every = 100"), "{plan}");
        plan.replace("checkpoint_every = 100", "checkpoint_every = 25")
    };
    let federation = Federation::of_mode("asynchronous", 300, sealed_often).unwrap();
    let mut aggregator = federation.start_aggregator().unwrap();
    let address = aggregator.address.clone();
    std::thread::scope(|scope| {
        let workers: Vec<_> = ["north", "south"]
            .map(|side| {
                let (federation, address) = (&federation, &address);
                let (node, case) = (format!("worker-{side}"), format!("steady-{side}"));
                scope.spawn(move || federation.worker_at(&node, &case, address, |_, text| text).unwrap())
            })
            .into();
        let told = loop {
            let step = aggregator.wait_for("step").unwrap()["step"].as_u64().unwrap();
            if step >= 30 {
                break step + 1;
            }
        };
        aggregator.crash_and_restart().unwrap();
        let resumed = aggregator
            .before
            .iter()
            .find(|event| event["event"] == "resumed")
            .unwrap();
        // What was told is made again from the last checkpoint on; more may have been sealed until the crash.
        let next = resumed["round"].as_u64().unwrap();
        assert_eq!(next % 25, 1, "goes on with {next}");
        assert!(next > told - told % 25, "goes on with {next} after {told}");
        assert_eq!(aggregator.wait_for("step").unwrap()["step"], next - 1);
        assert_eq!(aggregator.wait_for("finished").unwrap()["rounds"], 300);
        assert_eq!(aggregator.wait().unwrap(), Some(0));
        for worker in workers {
            let run = worker.join().unwrap();
            assert_eq!(run.code, 0, "{}{}", run.stdout, run.stderr);
        }
    });
}

#[test]
fn a_vault_of_another_policy_is_not_overwritten() {
    let federation = Federation::of_demo().unwrap();
    let own = federation.node("aggregator");
    let policy = std::fs::read_to_string(federation.folder().join("policy.toml")).unwrap();
    std::fs::write(federation.folder().join("other.toml"), policy + "\n# another policy\n").unwrap();
    let text = std::fs::read_to_string(own.join("node.toml")).unwrap();
    let file = own.join("other.toml");
    std::fs::write(&file, text.replace("../../policy.toml", "../../other.toml")).unwrap();
    let before = sealed(&own.join("vault"));
    let run = run_aggregator(&file);
    assert_eq!(run.code, 4, "{}", run.stderr);
    assert!(
        run.stderr.contains("name another folder in [vault]") && run.stderr.contains("is round 1 of"),
        "{}",
        run.stderr
    );
    assert!(before == sealed(&own.join("vault")));
}

#[test]
fn a_vault_key_that_others_may_read_is_refused() {
    let federation = Federation::of_demo().unwrap();
    let own = federation.node("aggregator");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o640);
    std::fs::set_permissions(own.join("vault.key"), mode).unwrap();
    let run = run_aggregator(&own.join("node.toml"));
    assert_eq!(run.code, 2, "{}", run.stderr);
    assert!(
        run.stderr.contains("vault.key") && run.stderr.contains("640") && run.stderr.contains("chmod 600"),
        "{}",
        run.stderr
    );
}
