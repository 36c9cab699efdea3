//! `cloister audit`: what the nodes of a federation wrote down, and what is done to it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests"
)]

use cloister_tensor::Digest;
use cloister_tests::federation::{Aggregator, Federation};
use cloister_tests::{Run, cloister, words};
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

#[test]
fn a_receipt_tells_what_went_into_the_model_and_any_change_of_it_shows() {
    let federation = Federation::of_rounds(2).unwrap();
    let own = federation.node("aggregator");
    let text = |path: std::path::PathBuf| path.display().to_string();
    let opened = text(federation.folder().join("opened"));
    let (vault, key) = (text(own.join("vault")), text(own.join("vault.key")));
    let seen = text(own.join("vault.last-seen"));
    let export = [
        "vault",
        "export",
        &vault,
        "--to",
        &opened,
        "--key-file",
        &key,
        "--last-seen",
        &seen,
    ];
    assert_eq!(cloister(export).unwrap().code, 0);
    let receipt = format!("{opened}/receipt.bin");
    let policy = text(federation.folder().join("policy.toml"));
    let audited = |file: &str, node: &str, policy: &str, more: &[&str]| {
        let credential = text(federation.node(node).join("node.credential"));
        let arguments = [
            "audit",
            "receipt",
            file,
            "--credential",
            &credential,
            "--policy",
            policy,
        ];
        cloister(arguments.iter().chain(more)).unwrap()
    };
    let model = format!("{opened}/model.safetensors");
    let run = audited(&receipt, "aggregator", &policy, &["--model", &model, "-o", "json"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let told = run.json().unwrap();
    assert_eq!(
        (&told["round"], &told["simulated"]),
        (&2.into(), &true.into()),
        "{told}"
    );
    assert_eq!(told["model_compared"], true, "{told}");
    // What the node's own log says of that round.
    let hub = entries(&federation, "aggregator");
    let logged = &hub.iter().rfind(|entry| entry["event"] == "round").unwrap()["what"];
    for field in ["receipt", "roster", "model_before", "model_after", "updates", "dropped"] {
        assert_eq!(told[field], logged[field], "{field}");
    }
    let run = audited(&receipt, "aggregator", &policy, &[]);
    assert!(
        run.stdout.contains("SIMULATED") && run.stdout.contains("round 2 of digits"),
        "{}",
        run.stdout
    );

    let bytes = std::fs::read(&receipt).unwrap();
    let changed = text(federation.folder().join("changed.bin"));
    let refused = |bytes: &[u8], code: i32| {
        std::fs::write(&changed, bytes).unwrap();
        let run = audited(&changed, "aggregator", &policy, &[]);
        assert_eq!(run.code, code, "{} bytes: {}{}", bytes.len(), run.stdout, run.stderr);
        assert!(
            run.stdout.is_empty() && run.stderr.contains("changed.bin"),
            "{}",
            run.stderr
        );
    };
    for cut in [0, 1, 63, 64, 65, bytes.len() / 2, bytes.len() - 1] {
        refused(&bytes[..cut], 2);
    }
    refused(&[&bytes[..], b"more"].concat(), 2);
    refused(&vec![0; (1 << 20) + 1], 2);
    // Within the digest of the policy, and within the signature.
    for at in [40, bytes.len() - 1] {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1;
        refused(&flipped, 1);
    }
    // Another node's word, another policy, another model.
    let run = audited(&receipt, "worker-north", &policy, &[]);
    assert_eq!(run.code, 1, "{}", run.stdout);
    assert!(
        words(&run.stderr).contains("is not signed by worker-north"),
        "{}",
        run.stderr
    );
    let other = text(federation.folder().join("other.toml"));
    std::fs::write(&other, std::fs::read_to_string(&policy).unwrap() + "\n# another one\n").unwrap();
    let run = audited(&receipt, "aggregator", &other, &[]);
    assert_eq!(run.code, 4, "{}", run.stdout);
    let weights = text(federation.folder().join("submissions/weights.safetensors"));
    let run = audited(&receipt, "aggregator", &policy, &["--model", &weights]);
    assert_eq!(run.code, 1, "{}{}", run.stdout, run.stderr);
    assert!(words(&run.stderr).contains("round 2 ended with"), "{}", run.stderr);
}

#[test]
fn a_node_runs_the_newest_policy_in_force_and_none_that_it_has_left_behind() {
    let federation = Federation::of_demo().unwrap();
    let dir = federation.folder();
    let policies = dir.join("policies");
    std::fs::create_dir(&policies).unwrap();
    let (first, second) = (policies.join("1.toml"), policies.join("2.toml"));
    std::fs::copy(dir.join("policy.toml"), &first).unwrap();
    std::fs::copy(dir.join("policy.toml.sigs"), policies.join("1.toml.sigs")).unwrap();
    let status = cloister([
        "policy".as_ref(),
        "status".as_ref(),
        first.as_os_str(),
        "-o".as_ref(),
        "json".as_ref(),
    ]);
    let anchor = status.unwrap().json().unwrap()["anchor"].as_str().unwrap().to_owned();
    let file = federation.node("aggregator").join("lineage.toml");
    let write = |policy: &str, anchor: &str| {
        let text = std::fs::read_to_string(federation.node("aggregator").join("node.toml")).unwrap();
        let text = text
            .replace("../../policy.toml", &format!("../../policies/{policy}.toml"))
            .replace("path = \"vault\"", &format!("path = \"vault-{policy}\""))
            .replace("vault.last-seen", &format!("vault-{policy}.last-seen"));
        let agreement = match anchor {
            "" => String::new(),
            anchor => format!("\n[agreement]\nanchor = \"{anchor}\"\npolicies = \"../../policies\"\n"),
        };
        std::fs::write(&file, text + &agreement).unwrap();
    };
    let runs = || {
        let mut aggregator = Aggregator::start(file.clone()).unwrap();
        aggregator.terminate().unwrap();
        assert_eq!(aggregator.wait().unwrap(), Some(0));
    };
    let refused = |wanted: &str| {
        let run = cloister(["aggregator".as_ref(), "--config".as_ref(), file.as_os_str()]).unwrap();
        assert_eq!(run.code, 4, "{}", run.stderr);
        assert!(words(&run.stderr).contains(wanted), "{}", run.stderr);
    };
    write("1", &anchor);
    runs();
    write("1", &"00".repeat(32));
    refused("founds the federation");
    // A second version: the first one stays in force until enough of its participants have signed the second.
    let text = std::fs::read_to_string(&first).unwrap();
    let before = Digest::of(text.as_bytes());
    let head = format!("version = 2\npredecessor = \"{before}\"");
    std::fs::write(&second, text.replacen("version = 1", &head, 1)).unwrap();
    write("2", &anchor);
    refused("but version 1");
    for entry in std::fs::read_dir(dir.join("participants")).unwrap() {
        let key = entry.unwrap().path();
        if key.extension().is_none_or(|extension| extension != "key") {
            continue;
        }
        let name = key.file_stem().unwrap().to_str().unwrap();
        let sign = [
            "policy",
            "sign",
            second.to_str().unwrap(),
            "--key",
            key.to_str().unwrap(),
            "--participant",
            name,
        ];
        let signed = cloister(sign).unwrap();
        assert_eq!(signed.code, 0, "{}", signed.stderr);
    }
    write("1", &anchor);
    refused("but version 2");
    write("2", &anchor);
    runs();
    // Whoever takes the policies away, and the section with them, does not take away what the node wrote down.
    write("1", "");
    refused("it has run version 2");
}
