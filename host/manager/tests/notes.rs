//! What the audit log says of nodes: who was attested, what was refused, which rounds were sealed, what left.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use cloister_manager::*;
use cloister_testkit::wards::{NOW, WardsPolicy};
use serde_json::Value;
use support::{House, commit, digest, do_turn};

fn counter() -> CounterId {
    CounterId {
        node: "hub".into(),
        vault: [7; 16],
    }
}

fn events(manager: &Manager, from: u64, event: &str) -> Vec<Value> {
    let all = House::events(manager, from).into_iter();
    all.filter(|(name, _)| name == event).map(|(_, what)| what).collect()
}

#[test]
fn each_session_of_a_node_is_written_down_once_with_what_it_showed() {
    let house = House::new();
    let mut manager = house.manager(&WardsPolicy::default());
    let before = manager.mark().lines;
    let (first, second) = (house.permit("hub", 1), house.permit("hub", 2));
    do_turn(&mut manager, |turn| {
        for permit in [&first, &first, &second, &first] {
            turn.lease(permit, &[1; 16]).unwrap();
        }
    });
    let seen = events(&manager, before, "attested");
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[0]["node"], "hub");
    assert_eq!(seen[0]["measurement"], first.measurement_root().to_string());
    assert_eq!(seen[0]["tcb"], first.tcb_status());
    // However many connections it makes, it does not fill the log.
    let policy = house.policy.clone();
    let shown = house.wards.evidence(&policy, "hub");
    do_turn(&mut manager, |turn| {
        for number in 0..500_u64 {
            let mut connection = [9; 32];
            connection[..8].copy_from_slice(&number.to_be_bytes());
            turn.lease(&shown.permit(connection, NOW), &[1; 16]).unwrap();
        }
    });
    assert_eq!(events(&manager, before, "attested").len(), 60);
}

#[test]
fn what_is_refused_again_and_again_is_written_once_and_counted_when_it_is_granted() {
    let house = House::new();
    let mut manager = house.manager(&WardsPolicy::default());
    let hub = house.permit("hub", 1);
    let before = manager.mark().lines;
    for second in 0..34 {
        let at = NOW + second;
        let renewed = manager.turn(at, |turn| turn.lease(&hub, &[1; 16])).unwrap().0;
        renewed.unwrap();
        let held = manager.turn(at, |turn| turn.lease(&hub, &[2; 16])).unwrap().0;
        assert_eq!(held.unwrap_err().code(), "lease-held");
    }
    let free = manager.turn(NOW + 3_000, |turn| turn.lease(&hub, &[2; 16])).unwrap().0;
    free.unwrap();
    let refused = events(&manager, before, "refused");
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0]["code"], "lease-held");
    let again = events(&manager, before, "refused-again");
    assert_eq!(
        again,
        [serde_json::json!({ "what": "lease", "by": "hub", "times": 33 })]
    );
}

#[test]
fn a_refusal_that_changes_or_goes_on_for_long_is_written_again() {
    let mut stocked = support::Stocked::new();
    let permit = stocked.house.permit("beta-worker", 1);
    let before = stocked.manager.mark().lines;
    let mut sequence = 0;
    let mut ask = |now: u64, id: &str| {
        sequence += 1;
        let request = support::request(&stocked.td, sequence, &[support::wanted(id, None)]);
        let answer = stocked.manager.turn(now, |turn| turn.release(&permit, &request));
        assert!(answer.unwrap().0.is_err());
    };
    for second in 0..100 {
        ask(NOW + second, "alpha/vault");
    }
    ask(NOW + 100, "alpha/other");
    ask(NOW + 101, "alpha/vault");
    let refused = events(&stocked.manager, before, "refused");
    let left_out: Vec<_> = refused.iter().map(|one| one["left_out_before"].as_u64()).collect();
    assert_eq!(left_out, [None, Some(99), None]);
}

#[test]
fn a_round_is_written_down_with_the_commit_that_seals_it_by_an_aggregator_alone() {
    let house = House::new();
    let mut manager = house.manager(&WardsPolicy::default());
    let (hub, worker) = (house.permit("hub", 1), house.permit("alpha-worker", 2));
    let token = do_turn(&mut manager, |turn| turn.lease(&hub, &[1; 16])).unwrap().token;
    let before = manager.mark().lines;
    let round = RoundNote {
        round: 3,
        model: digest("model"),
        receipt: digest("receipt"),
    };
    let step = Step {
        counter: counter(),
        token,
        expected: None,
        next: commit(1, "one"),
    };
    do_turn(&mut manager, |turn| {
        turn.commit_round(&hub, &step, Some(&round)).unwrap();
        // The answer was lost.
        turn.commit_round(&hub, &step, Some(&round)).unwrap();
        let older = Step {
            expected: None,
            next: commit(2, "two"),
            ..step.clone()
        };
        assert_eq!(
            turn.commit_round(&hub, &older, Some(&round)).unwrap_err().code(),
            "stale"
        );
        let theirs = CounterId {
            node: "alpha-worker".into(),
            vault: [7; 16],
        };
        let theirs = Step {
            counter: theirs,
            ..step.clone()
        };
        assert_eq!(
            turn.commit_round(&worker, &theirs, Some(&round)).unwrap_err().code(),
            "not-its-to-note"
        );
    });
    let rounds = events(&manager, before, "round");
    assert_eq!(rounds.len(), 1);
    assert_eq!(
        (rounds[0]["round"].as_u64(), rounds[0]["vault_version"].as_u64()),
        (Some(3), Some(1))
    );
    assert_eq!(rounds[0]["model"], digest("model").to_string());
}

#[test]
fn an_export_is_written_down_before_it_leaves_and_notes_are_bounded() {
    let house = House::new();
    let mut manager = house.manager(&WardsPolicy::default());
    let (hub, worker) = (house.permit("hub", 1), house.permit("alpha-worker", 2));
    let before = manager.mark().lines;
    let export = |to: &str| ExportNote {
        to: to.into(),
        round: 10,
        model: digest("model"),
    };
    do_turn(&mut manager, |turn| {
        turn.export(&hub, &export("participant/alpha")).unwrap();
        assert_eq!(
            turn.export(&worker, &export("participant/alpha")).unwrap_err().code(),
            "not-its-to-note"
        );
        for to in ["alpha", "file/alpha", "node/Alpha x"] {
            assert_eq!(turn.export(&hub, &export(to)).unwrap_err().code(), "bad-name");
        }
        let more = (1..MAX_NOTES_A_MINUTE).all(|_| turn.export(&hub, &export("node/safe")).is_ok());
        assert!(more);
        assert_eq!(
            turn.export(&hub, &export("node/safe")).unwrap_err().code(),
            "too-many-notes"
        );
    });
    let exports = events(&manager, before, "export");
    assert_eq!(exports.len() as u32, MAX_NOTES_A_MINUTE);
    assert_eq!(
        (exports[0]["to"].as_str(), exports[0]["round"].as_u64()),
        (Some("participant/alpha"), Some(10))
    );
    let later = manager.turn(NOW + 60, |turn| turn.export(&hub, &export("node/safe")));
    assert!(later.unwrap().0.is_ok());
}
