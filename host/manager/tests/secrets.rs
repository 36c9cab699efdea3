//! Participants put, list and remove secrets for what is theirs; no value shows anywhere.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use cloister_manager::*;
use support::{MODULE, Stocked, data_key, do_turn, module_key, value, vault_key, wanted};

#[test]
fn participants_put_keys_for_what_is_theirs_alone() {
    let mut stocked = Stocked::new();
    let house = &stocked.house;
    let (alpha, beta, nobody) = (
        house.visit("alpha"),
        house.visit("beta"),
        house.wards.visit(&house.policy, None),
    );
    let manager = &mut stocked.manager;
    let mut put = |who, secret| {
        do_turn(manager, |turn| turn.put(who, secret))
            .map(|_| ())
            .map_err(|refused| refused.code())
    };
    assert_eq!(put(&nobody, module_key("k", "f")), Err("no-participant"));
    assert_eq!(put(&alpha, data_key("beta")), Err("not-yours"));
    assert_eq!(put(&beta, vault_key("hub", "k")), Err("not-yours"));
    let credential = |node: &str| NewSecret {
        name: "credential".into(),
        kind: SecretKind::Credential { node: node.into() },
        ..vault_key("hub", "k")
    };
    assert_eq!(put(&beta, credential("alpha-worker")), Err("not-yours"));
    assert_eq!(put(&beta, credential("beta-worker")), Ok(()));
    let module = |name: &str| NewSecret {
        kind: SecretKind::Module { module: name.into() },
        ..module_key("k", "f")
    };
    assert_eq!(put(&beta, module("unknown")), Err("not-yours"));
    assert_eq!(put(&beta, module("fedavg")), Err("sealed-aggregator"));
    assert_eq!(
        put(
            &beta,
            NewSecret {
                ciphertext: None,
                ..module_key("k", "f")
            }
        ),
        Err("digest-missing")
    );
    assert_eq!(
        put(
            &beta,
            NewSecret {
                plaintext: None,
                ..module_key("k", "f")
            }
        ),
        Err("digest-missing")
    );
    assert_eq!(
        put(
            &beta,
            NewSecret {
                name: "../up".into(),
                ..module_key("k", "f")
            }
        ),
        Err("bad-name")
    );
    assert_eq!(put(&beta, module_key("", "f")), Err("bad-size"));
    assert_eq!(
        put(&beta, module_key(&"k".repeat(MAX_VALUE_BYTES + 1), "f")),
        Err("bad-size")
    );
    let changed = NewSecret {
        kind: SecretKind::Value,
        ..module_key("k", "f")
    };
    assert_eq!(put(&alpha, changed), Err("other-kind"));
}

#[test]
fn a_participant_sees_and_removes_its_own_secrets_and_no_value_shows() {
    let mut stocked = Stocked::new();
    let (alpha, beta) = (stocked.house.visit("alpha"), stocked.house.visit("beta"));
    let listed = |manager: &Manager, who| {
        let infos = manager.secrets(who).unwrap().into_iter();
        infos.map(|info| info.id.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(listed(&stocked.manager, &alpha), ["alpha/trainer", "alpha/vault"]);
    assert_eq!(listed(&stocked.manager, &beta), ["beta/rows"]);
    do_turn(&mut stocked.manager, |turn| {
        assert_eq!(turn.remove(&beta, "trainer").unwrap_err().code(), "no-secret");
        turn.remove(&alpha, "trainer").unwrap();
    });
    assert_eq!(
        stocked.refusal("alpha-worker", &[wanted(MODULE.0, MODULE.1)]),
        "no-secret"
    );
    let shown = format!("{:?}", (module_key("module key", "f"), value("module key")));
    assert!(!shown.contains("module key"), "{shown}");
    let log = stocked.manager.lines(0, 4096).unwrap().join("\n");
    assert!(!log.contains("module key") && !log.contains("bW9kdWxlIGtleQ"), "{log}");
}
