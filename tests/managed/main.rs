//! A federation with a manager, through the binary: nodes that start with its address and the anchor alone, and everything that the
//! manager, or such a node, has to refuse.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics says where"
)]

mod house;
mod policies;
mod restart;
mod vault;

use house::{House, Node, PARTICIPANTS};

#[test]
fn nodes_start_with_the_managers_address_alone_and_what_lies_on_their_disks_is_sealed() {
    let house = House::new();
    let told = &house.told;
    let steps = told["agreed"]["signatures"].as_array().unwrap();
    assert_eq!(steps.len(), 4, "{told}");
    assert_eq!(steps[0]["missing"].as_array().unwrap().len(), 3, "{told}");
    assert_eq!(steps[3]["standing"], "in-force", "{told}");
    let credentials = told["released"]["credentials"].as_array().unwrap().iter();
    let named: std::collections::BTreeSet<_> = credentials.map(|one| one["node"].as_str().unwrap()).collect();
    assert_eq!(named.len(), 5, "{told}");
    for released in told["released"]["keys"].as_array().unwrap() {
        let own = format!("{}/", released["participant"].as_str().unwrap());
        for secret in released["secrets"].as_array().unwrap() {
            let id = secret["secret"].as_str().unwrap();
            assert!(id.starts_with(&own) || id == "institute/module-key", "{released}");
        }
        let module = released.to_string().contains("module-key");
        assert_eq!(
            module,
            released["role"] == "worker",
            "only workers get the trainer: {released}"
        );
    }
    let refused: Vec<_> = told["refused"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["exit"].as_i64())
        .collect();
    assert_eq!(refused, [Some(3), Some(4), Some(4), Some(1), Some(4)], "{told}");
    assert!(told["trained"]["test_accuracy"].as_f64().unwrap() >= 0.9, "{told}");
    assert_eq!(told["exported"]["to"], "institute");

    // No row, no key and no salt lies on a node's disk in the clear, nor in the manager's store.
    let key = std::fs::read_to_string(house.folder.join("participants/hospital-north.data.key")).unwrap();
    let mut files = 0;
    let mut folders = vec![house.folder.join("nodes"), house.folder.join("logs")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let bytes = std::fs::read(&path).unwrap();
            for secret in ["mean_radius,mean_texture", key.trim(), "BEGIN PRIVATE KEY"] {
                let manager = path.parent().unwrap().ends_with("manager");
                let there = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
                assert!(
                    !there || manager && secret.starts_with("BEGIN"),
                    "{} holds {secret}",
                    path.display()
                );
            }
            files += 1;
        }
    }
    assert!(files > 20, "{files} files were looked at");

    // The log says who was attested, what was sealed and what left; who asks again and again does not fill it.
    let log = std::fs::read_to_string(house.folder.join("manager.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |event: &str| -> Vec<_> {
        let found = lines.iter().filter(|line| line["event"] == event);
        found.map(|line| line["what"].clone()).collect()
    };
    let attested: std::collections::BTreeSet<_> = of("attested")
        .iter()
        .map(|what| what["node"].as_str().unwrap().to_owned())
        .collect();
    assert!(
        attested.contains("aggregator") && attested.contains("hospital-north"),
        "{attested:?}"
    );
    assert!(
        of("attested")
            .iter()
            .all(|what| what["measurement"].as_str().map(str::len) == Some(96) && what["tcb"].is_string())
    );
    let rounds: Vec<_> = of("round").iter().map(|what| what["round"].as_u64()).collect();
    assert_eq!(rounds, [Some(1), Some(2), Some(3)]);
    let exports = of("export");
    assert_eq!(exports[0]["to"], "participant/institute");
    assert_eq!(exports[0]["model"], of("round")[2]["model"]);
    assert!(of("refused").len() < 10, "{:?}", of("refused"));

    // The log of the manager is whole, by its node's key.
    let verify =
        "audit verify OUT/manager.jsonl --credential OUT/nodes/manager/node.credential --policy OUT/policy.toml";
    let run = house.run(verify);
    assert_eq!(run.code, 0, "{}{}", run.stdout, run.stderr);
}

#[test]
fn a_manager_that_is_started_again_waits_for_its_participants_and_refuses_what_is_not_right() {
    let house = House::new();
    let manager = Node::start("manager", &house.folder.join("nodes/manager/node.toml"));
    let address = manager.wait_for("listening")["address"].as_str().unwrap().to_owned();
    let at = format!("--to {address} --policy OUT/policy.toml --trust-root OUT/authority");
    let anyone = |participant: &str, key: &str| {
        format!("{at} --participant {participant} --participant-key OUT/participants/{key}.key")
    };
    let as_one = |participant: &str| anyone(participant, participant);

    // Locked: it says for what it waits, and answers nothing else.
    let status = house.run(&format!("manager status {at} -o json"));
    assert_eq!(status.code, 4, "{}", status.stderr);
    let status = status.json().unwrap();
    assert_eq!(
        (&status["phase"], &status["shares"]["wanted"]),
        (&"locked".into(), &4.into())
    );
    house.refused(&format!("manager secrets ls {}", as_one("north")), 1, "recovery shares");
    // Only a participant, by its own key, and each its own share.
    house.refused(
        &format!("manager recover {}", anyone("north", "east")),
        3,
        "visitor.signature",
    );
    let mark = house.run(&format!("manager status {at} --keep OUT/none.mark"));
    assert!(
        mark.code == 4 && !house.folder.join("none.mark").exists(),
        "a locked manager has no mark to keep"
    );

    // All four agree to start it without its nodes; the mark is what each kept.
    for (index, name) in PARTICIPANTS.iter().enumerate() {
        let line = format!(
            "manager recover {} --kept OUT/kept.mark --without-nodes -o json",
            as_one(name)
        );
        let run = house.run(&line);
        assert_eq!(run.code, 0, "{}", run.stderr);
        let phase = run.json().unwrap()["phase"].clone();
        assert_eq!(phase, if index < 3 { "locked" } else { "running" }, "after {name}");
    }
    manager.wait_for("in_force");
    house.refused(
        &format!("manager recover {}", as_one("north")),
        4,
        "waits for no shares",
    );

    // Participants: what is not theirs, and what does not fit.
    let secrets = |name: &str, what: &str| format!("manager secrets put one {what} {}", as_one(name));
    let rows = "--from OUT/participants/hospital-north.data.key --data hospital-north/train --sealed OUT/nodes/hospital-north/data.csv.sealed";
    house.refused(&secrets("south", rows), 4, "may not give a key for");
    house.refused(
        &secrets("south", "--from OUT/participants/vault.key --vault aggregator"),
        4,
        "aggregator",
    );
    let other = "--from OUT/participants/hospital-east.data.key --data hospital-north/train --sealed OUT/nodes/hospital-north/data.csv.sealed";
    house.refused(&secrets("north", other), 2, "does not open with this key");
    house.refused(
        &format!("manager secrets rm nothing {}", as_one("north")),
        4,
        "no secret",
    );
    let listed = house.run(&format!("manager secrets ls {} -o json", as_one("north")));
    assert!(
        listed.stdout.contains("north/hospital-north.data") && !listed.stdout.contains("south/"),
        "{}",
        listed.stdout
    );

    // Nodes: another federation, a name that the policy has not, a role that is another's, a secret that nobody put there.
    let anchor = house.told["agreed"]["anchor"].as_str().unwrap().to_owned();
    let worker = |edit: &dyn Fn(String) -> String| {
        let file = house.node_file("hospital-north", &address, edit);
        format!("worker --config {}", file.display())
    };
    house.refused(
        &worker(&|text| text.replace("\"hospital-north\"", "\"hospital-west\"")),
        4,
        "names no node",
    );
    house.refused(
        &worker(&|text| text.replace("\"hospital-north\"", "\"aggregator\"")),
        4,
        "the role aggregator",
    );
    house.refused(
        &worker(&|text| text.replace("hospital-north.salt", "pepper")),
        4,
        "names the secret",
    );
    house.refused(&worker(&|text| text.replace(&anchor, "anchor")), 2, "`manager.anchor`");

    // One live instance of a node: the second one waits for the first one's end, and is let in then.
    let file = house.node_file("aggregator", &address, |text| text.replace("\"vault\"", "\"another\""));
    house.refused(&format!("aggregator --config {}", file.display()), 1, "was seen before");
}
