//! A node gets exactly the keys that the policy in force grants it; each refusal has its own case.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use cloister_manager::*;
use cloister_policy::{Permit, TensorAccess};
use cloister_testkit::wards::{NOW, WardsPolicy};
use support::{
    House, MODULE, Stocked, digest, do_turn, module_key, next_connection, request, value, vault_key, wanted,
};

#[test]
fn each_node_gets_what_the_policy_grants_it_and_nothing_else() {
    let mut stocked = Stocked::new();
    let module = wanted(MODULE.0, MODULE.1);
    let data = wanted("beta/rows", Some("sealed rows"));
    let vault = wanted("alpha/vault", None);
    let released = stocked.ask("beta-worker", 1, &[module.clone(), data.clone()]).unwrap();
    let values: Vec<_> = released.iter().map(|one| one.value.expose()).collect();
    assert_eq!(values, [&b"module key"[..], b"data key"]);
    assert_eq!(released[0].plaintext, Some(digest("train-sgd")));
    assert_eq!(
        stocked.ask("hub", 2, std::slice::from_ref(&vault)).unwrap()[0]
            .value
            .expose(),
        b"vault key"
    );
    for (node, id) in [
        ("hub", &module),
        ("safe", &module),
        ("alpha-worker", &data),
        ("hub", &data),
        ("alpha-worker", &vault),
        ("beta-worker", &vault),
    ] {
        assert_eq!(
            stocked.refusal(node, std::slice::from_ref(id)),
            "not-granted",
            "{node} {}",
            id.id
        );
    }
    // All that is asked for is granted, or nothing.
    let mixed = stocked.ask("beta-worker", 5, &[module, vault]);
    assert_eq!(mixed.unwrap_err().code(), "not-granted");
}

#[test]
fn a_release_is_sealed_to_the_asking_td_its_connection_and_its_request() {
    let mut stocked = Stocked::new();
    let permit = stocked.house.permit("alpha-worker", 1);
    let request = request(&stocked.td, 7, &[wanted(MODULE.0, MODULE.1)]);
    let sealed = do_turn(&mut stocked.manager, |turn| turn.release(&permit, &request)).unwrap();
    let other = SealingKey::generate().unwrap();
    assert!(open_release(&other, &[1; 32], "alpha-worker", &sealed).is_err());
    assert!(open_release(&stocked.td, &[2; 32], "alpha-worker", &sealed).is_err());
    assert!(open_release(&stocked.td, &[1; 32], "beta-worker", &sealed).is_err());
    let moved = SealedRelease {
        sequence: 8,
        ..sealed.clone()
    };
    assert!(open_release(&stocked.td, &[1; 32], "alpha-worker", &moved).is_err());
    assert_eq!(
        open_release(&stocked.td, &[1; 32], "alpha-worker", &sealed)
            .unwrap()
            .len(),
        1
    );
}

#[test]
fn a_request_that_comes_again_is_refused_whatever_became_of_the_first() {
    let mut stocked = Stocked::new();
    let permit = stocked.house.permit("alpha-worker", 1);
    let mut ask = |sequence, id: &str, file| {
        let request = request(&stocked.td, sequence, &[wanted(id, file)]);
        do_turn(&mut stocked.manager, |turn| turn.release(&permit, &request))
            .map(|_| ())
            .map_err(|refused| refused.code())
    };
    assert_eq!(ask(5, MODULE.0, MODULE.1), Ok(()));
    assert_eq!(ask(5, MODULE.0, MODULE.1), Err("replayed"));
    assert_eq!(ask(4, MODULE.0, MODULE.1), Err("replayed"));
    assert_eq!(ask(6, "alpha/vault", None), Err("not-granted"));
    assert_eq!(ask(6, MODULE.0, MODULE.1), Err("replayed"));
    assert_eq!(ask(7, MODULE.0, MODULE.1), Ok(()));
}

/// A connection of its own for each number.
fn connection(number: u64) -> [u8; 32] {
    let mut connection = [0xc0; 32];
    connection[..8].copy_from_slice(&number.to_be_bytes());
    connection
}

#[test]
fn thousands_of_connections_of_one_node_stop_neither_others_nor_itself_and_none_is_answered_twice() {
    let mut stocked = Stocked::new();
    let policy = stocked.house.policy.clone();
    let shown = stocked.house.wards.evidence(&policy, "alpha-worker");
    let mut ask = |permits: &[Permit], now| -> Vec<Result<(), &'static str>> {
        let request = request(&stocked.td, 1, &[wanted(MODULE.0, MODULE.1)]);
        let answers = stocked.manager.turn(now, |turn| {
            let answers = permits.iter().map(|permit| turn.release(permit, &request).map(drop));
            answers.map(|answer| answer.map_err(|refused| refused.code())).collect()
        });
        answers.unwrap().0
    };
    // An honest node connects anew each second for more than an hour.
    let permits: Vec<_> = (0..5_000).map(|at| shown.permit(connection(at), NOW + at)).collect();
    for (permits, now) in permits.chunks(50).zip((NOW..).step_by(50)) {
        assert_eq!(ask(permits, now), vec![Ok(()); permits.len()]);
    }
    let now = NOW + 4_999;
    let replayed = ask(&permits, now);
    let refused = |answer: &_| matches!(answer, Err("replayed" | "permit-ended"));
    assert!(replayed.iter().all(refused));
    assert_eq!(replayed.last(), Some(&Err("replayed")));
    // Ones that end together leave no order to forget them in: a node that floods so waits for the next second itself.
    let flood: Vec<_> = (10_000..10_200)
        .map(|at| shown.permit(connection(at), now + 1))
        .collect();
    let flood = ask(&flood, now + 1);
    assert_eq!(
        flood.iter().filter(|answer| answer.is_ok()).count(),
        MAX_CONNECTIONS_OF_NODE
    );
    assert_eq!(flood.last(), Some(&Err("full")));
    assert_eq!(ask(&[shown.permit(connection(20_000), now + 2)], now + 2), [Ok(())]);
    let other = stocked
        .house
        .wards
        .evidence(&policy, "beta-worker")
        .permit(connection(1), now);
    assert_eq!(ask(&[other], now), [Ok(())]);
}

#[test]
fn another_sealed_file_an_older_epoch_and_other_content_are_told_apart() {
    let mut stocked = Stocked::new();
    let ask = |stocked: &mut Stocked, file| stocked.ask("alpha-worker", next_connection(), &[wanted(MODULE.0, file)]);
    assert_eq!(
        ask(&mut stocked, Some("another file")).unwrap_err().code(),
        "other-ciphertext"
    );
    assert_eq!(ask(&mut stocked, None).unwrap_err().code(), "other-ciphertext");
    // Rotation: the next epoch has another key and another file.
    let alpha = stocked.house.visit("alpha");
    let rotated = do_turn(&mut stocked.manager, |turn| {
        turn.put(&alpha, module_key("new key", "new file"))
    })
    .unwrap();
    assert_eq!(rotated.epoch, 2);
    let old = ask(&mut stocked, MODULE.1).unwrap_err();
    assert!(
        matches!(
            old,
            Refused::OldEpoch {
                seen: 1,
                current: 2,
                ..
            }
        ),
        "{old}"
    );
    assert_eq!(
        ask(&mut stocked, Some("new file")).unwrap()[0].value.expose(),
        b"new key"
    );
    // A key for something that the policy does not name.
    let wrong = NewSecret {
        plaintext: Some(digest("another module")),
        ..module_key("key", "newer file")
    };
    do_turn(&mut stocked.manager, |turn| turn.put(&alpha, wrong)).unwrap();
    assert_eq!(
        ask(&mut stocked, Some("newer file")).unwrap_err().code(),
        "other-content"
    );
}

#[test]
fn a_vaults_key_comes_in_every_epoch_since_older_files_need_the_older_ones() {
    let mut stocked = Stocked::new();
    let alpha = stocked.house.visit("alpha");
    do_turn(&mut stocked.manager, |turn| {
        turn.put(&alpha, vault_key("hub", "second key"))
    })
    .unwrap();
    let released = stocked.ask("hub", 1, &[wanted("alpha/vault", None)]).unwrap();
    let epochs: Vec<_> = released.iter().map(|one| (one.epoch, one.value.expose())).collect();
    assert_eq!(epochs, [(1, &b"vault key"[..]), (2, b"second key")]);
}

#[test]
fn no_epoch_of_a_vaults_key_makes_room_and_of_other_keys_the_oldest_does() {
    let mut stocked = Stocked::new();
    let alpha = stocked.house.visit("alpha");
    do_turn(&mut stocked.manager, |turn| {
        for epoch in 2..=MAX_VAULT_EPOCHS {
            let key = vault_key("hub", &format!("key {epoch}"));
            assert_eq!(turn.put(&alpha, key).unwrap().epoch as usize, epoch);
        }
        let refused = turn.put(&alpha, vault_key("hub", "one more")).unwrap_err();
        assert_eq!(refused.code(), "no-more-epochs");
        for epoch in 2..=MAX_EPOCHS + 1 {
            let key = module_key("key", &format!("file {epoch}"));
            assert_eq!(turn.put(&alpha, key).unwrap().epoch as usize, epoch);
        }
    });
    let vault = stocked.ask("hub", 1, &[wanted("alpha/vault", None)]).unwrap();
    assert_eq!((vault.len(), vault[0].epoch), (MAX_VAULT_EPOCHS, 1));
    let mut ask = |file| {
        let asked = stocked.ask("alpha-worker", next_connection(), &[wanted(MODULE.0, Some(file))]);
        asked.map(|released| released.len()).map_err(|refused| refused.code())
    };
    assert_eq!(ask("file 17"), Ok(1));
    assert_eq!(ask("file 2"), Err("old-epoch"));
    assert_eq!(ask("sealed module"), Err("other-ciphertext"));
}

#[test]
fn a_sealed_module_that_reads_or_writes_needs_every_data_owners_consent() {
    let mut stocked = Stocked::with(&WardsPolicy {
        access: "read-write",
        ..WardsPolicy::default()
    });
    let ask = |stocked: &mut Stocked| stocked.ask("alpha-worker", next_connection(), &[wanted(MODULE.0, MODULE.1)]);
    let consent = |stocked: &mut Stocked, name: &str, module: &str, access| {
        let visit = stocked.house.visit(name);
        do_turn(&mut stocked.manager, |turn| {
            turn.consent(&visit, digest(module), access)
        })
        .unwrap();
    };
    let missing = |refused: Refused| match refused {
        Refused::NoConsent { missing, .. } => missing,
        other => panic!("{other}"),
    };
    // Its own author knows it; the others do not.
    assert_eq!(missing(ask(&mut stocked).unwrap_err()), ["beta", "gamma"]);
    consent(&mut stocked, "beta", "train-sgd", Some(TensorAccess::ReadWrite));
    consent(&mut stocked, "gamma", "train-sgd", Some(TensorAccess::Read));
    assert_eq!(
        missing(ask(&mut stocked).unwrap_err()),
        ["gamma"],
        "less than the grant"
    );
    consent(&mut stocked, "gamma", "another module", Some(TensorAccess::ReadWrite));
    assert_eq!(missing(ask(&mut stocked).unwrap_err()), ["gamma"], "to another module");
    consent(&mut stocked, "gamma", "train-sgd", Some(TensorAccess::ReadWrite));
    assert!(ask(&mut stocked).is_ok());
    consent(&mut stocked, "beta", "train-sgd", None);
    assert_eq!(missing(ask(&mut stocked).unwrap_err()), ["beta"]);
}

#[test]
fn a_node_under_the_old_policy_is_told_which_one_is_in_force() {
    let mut stocked = Stocked::new();
    let next = WardsPolicy {
        version: 2,
        predecessor: Some(stocked.house.policy.digest()),
        ..WardsPolicy::default()
    };
    let policy = stocked.house.agree(&mut stocked.manager, &next);
    let refused = stocked
        .ask("alpha-worker", 1, &[wanted(MODULE.0, MODULE.1)])
        .unwrap_err();
    let (seen, active) = (stocked.house.policy.digest(), policy.digest());
    assert_eq!(refused, Refused::OldPolicy { seen, active });
}

#[test]
fn a_permit_that_ended_gets_nothing() {
    let mut stocked = Stocked::new();
    let permit = stocked.house.permit("alpha-worker", 1);
    let request = request(&stocked.td, 1, &[wanted(MODULE.0, MODULE.1)]);
    let (refused, _) = stocked
        .manager
        .turn(NOW + 3_601, |turn| turn.release(&permit, &request))
        .unwrap();
    assert_eq!(refused.unwrap_err().code(), "permit-ended");
}

#[test]
fn without_a_policy_in_force_nobody_gets_or_puts_anything() {
    let house = House::new();
    let mut manager = house.made();
    let (permit, alpha) = (house.permit("alpha-worker", 1), house.visit("alpha"));
    let td = SealingKey::generate().unwrap();
    do_turn(&mut manager, |turn| {
        let refused = turn
            .release(&permit, &request(&td, 1, &[wanted(MODULE.0, None)]))
            .unwrap_err();
        assert_eq!(refused.code(), "no-policy");
        assert_eq!(turn.put(&alpha, module_key("k", "f")).unwrap_err().code(), "no-policy");
        assert_eq!(turn.lease(&permit, &[1; 16]).unwrap_err().code(), "no-policy");
    });
}

#[test]
fn a_value_goes_to_the_owners_nodes_and_where_a_modules_settings_name_it() {
    let founding = WardsPolicy {
        setting: "secret://gamma/token".into(),
        ..WardsPolicy::default()
    };
    let mut stocked = Stocked::with(&founding);
    let gamma = stocked.house.visit("gamma");
    let token = |name: &str| NewSecret {
        name: name.into(),
        kind: SecretKind::Value,
        value: value("s3cret"),
        ciphertext: None,
        plaintext: None,
    };
    do_turn(&mut stocked.manager, |turn| {
        turn.put(&gamma, token("token")).unwrap();
        turn.put(&gamma, token("other")).unwrap();
    });
    let mut ask = |node: &str, id: &str| stocked.ask(node, next_connection(), &[wanted(id, None)]).is_ok();
    assert!(ask("alpha-worker", "gamma/token") && ask("gamma-worker", "gamma/token"));
    assert!(ask("gamma-worker", "gamma/other"));
    assert!(!ask("alpha-worker", "gamma/other") && !ask("hub", "gamma/token"));
}

#[test]
fn releases_and_refusals_are_in_the_audit_log_and_a_flood_of_refusals_does_not_fill_it() {
    let mut stocked = Stocked::new();
    let before = stocked.manager.mark().lines;
    stocked.ask("alpha-worker", 1, &[wanted(MODULE.0, MODULE.1)]).unwrap();
    let permit = stocked.house.permit("beta-worker", 2);
    do_turn(&mut stocked.manager, |turn| {
        for sequence in 1..=500 {
            let request = request(&stocked.td, sequence, &[wanted(&format!("alpha/none{sequence}"), None)]);
            assert!(turn.release(&permit, &request).is_err());
        }
    });
    let events = House::events(&stocked.manager, before);
    assert_eq!(events[0].0, "attested");
    assert_eq!(events[1].0, "released");
    assert_eq!(events[1].1["secrets"][0]["secret"], "alpha/trainer");
    assert_eq!(events[2].0, "attested");
    assert_eq!(
        (events[3].0.as_str(), events[3].1["code"].as_str()),
        ("refused", Some("no-secret"))
    );
    assert_eq!(events.len(), 3 + 60);
    // Another asker's refusals are still written, and the first one's are counted.
    assert_eq!(
        stocked.refusal("gamma-worker", &[wanted("alpha/vault", None)]),
        "not-granted"
    );
    let again = request(&stocked.td, 501, &[wanted("alpha/vault", None)]);
    stocked
        .manager
        .turn(NOW + 60, |turn| turn.release(&permit, &again))
        .unwrap()
        .0
        .unwrap_err();
    let events = House::events(&stocked.manager, before + 63);
    assert_eq!(
        (events[1].1["by"].as_str(), events[2].1["left_out_before"].as_u64()),
        (Some("gamma-worker"), Some(440))
    );
}

#[test]
fn requests_have_bounds() {
    let mut stocked = Stocked::new();
    assert_eq!(stocked.refusal("alpha-worker", &[]), "nothing-wanted");
    let many = vec![wanted(MODULE.0, MODULE.1); MAX_WANTED + 1];
    assert_eq!(stocked.ask("alpha-worker", 9, &many).unwrap_err().code(), "too-much");
    do_turn(&mut stocked.manager, |turn| {
        let long = serde_json::json!("x".repeat(MAX_NOTE_BYTES));
        assert_eq!(turn.note("round", long).unwrap_err().code(), "too-much");
        assert_eq!(
            turn.note("Round 1", serde_json::json!(1)).unwrap_err().code(),
            "bad-name"
        );
        turn.note("round", serde_json::json!({ "round": 1 })).unwrap();
    });
}

#[test]
fn a_td_without_a_credential_gets_its_own_and_nothing_else() {
    let mut stocked = Stocked::new();
    let beta = stocked.house.visit("beta");
    let credential = NewSecret {
        name: "node".into(),
        kind: SecretKind::Credential {
            node: "beta-worker".into(),
        },
        value: value("key and credential"),
        ciphertext: None,
        plaintext: None,
    };
    do_turn(&mut stocked.manager, |turn| turn.put(&beta, credential).unwrap());
    let ask = |stocked: &mut Stocked, node: &str, connection: u8| {
        let admission = stocked.house.admission(node, connection);
        let request = request(&stocked.td, 1, &[wanted("beta/rows", Some("sealed rows"))]);
        do_turn(&mut stocked.manager, |turn| {
            turn.release_credential(&admission, &request)
        })
    };
    let sealed = ask(&mut stocked, "beta-worker", 1).unwrap();
    let released = open_release(&stocked.td, &[1; 32], "beta-worker", &sealed).unwrap();
    assert_eq!(released.len(), 1, "whatever is asked for");
    assert_eq!(released[0].value.expose(), b"key and credential");
    assert!(open_release(&stocked.td, &[2; 32], "beta-worker", &sealed).is_err());
    assert_eq!(ask(&mut stocked, "beta-worker", 1).unwrap_err().code(), "replayed");
    assert_eq!(
        ask(&mut stocked, "alpha-worker", 3).unwrap_err().code(),
        "no-credential"
    );
}

#[test]
fn a_node_is_told_what_it_may_ask_for() {
    let stocked = Stocked::new();
    let told = |node: &str| -> Vec<String> {
        let permit = stocked.house.permit(node, 1);
        let granted = stocked.manager.grants(&permit, NOW).unwrap();
        granted.into_iter().map(|info| info.id.to_string()).collect()
    };
    assert_eq!(told("beta-worker"), ["alpha/trainer", "beta/rows"]);
    assert_eq!(told("hub"), ["alpha/vault"]);
    assert_eq!(
        stocked.manager.sealed_modules(),
        [("train-sgd".to_owned(), digest("sealed module"))]
    );
}
