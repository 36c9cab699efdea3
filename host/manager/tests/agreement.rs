//! Policies are signed one by one, take effect when complete, follow each other as they demand, and are never forgotten.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use cloister_attestation::identity::SigningKey;
use cloister_manager::{PolicyStanding, Refused};
use cloister_policy::{Signature, Standing};
use cloister_testkit::wards::{Wards, WardsPolicy};
use support::{House, do_turn};

fn second(house: &House, change: impl FnOnce(&mut WardsPolicy)) -> WardsPolicy {
    let mut policy = WardsPolicy {
        version: 2,
        predecessor: Some(house.policy.digest()),
        ..WardsPolicy::default()
    };
    change(&mut policy);
    policy
}

#[test]
fn signatures_come_one_by_one_and_the_last_one_puts_the_policy_in_force() {
    let house = House::new();
    let mut manager = house.made();
    let text = house.wards.text(&WardsPolicy::default());
    let sign = |name: &str| house.wards.signature(&house.policy, name);
    let missing = |standing: &PolicyStanding| match standing {
        PolicyStanding::Proposed(ballot) => {
            let votes = ballot
                .own
                .votes
                .iter()
                .filter(|vote| vote.standing == Standing::Missing);
            votes.map(|vote| vote.participant.clone()).collect()
        }
        _ => Vec::new(),
    };
    let status = do_turn(&mut manager, |turn| turn.propose(text.as_bytes(), sign("beta"))).unwrap();
    assert_eq!(missing(&status.standing), ["alpha", "gamma"]);
    assert!(manager.policy().is_none());
    // Bringing the same one again changes nothing.
    let status = do_turn(&mut manager, |turn| turn.sign(status.digest, sign("beta"))).unwrap();
    assert_eq!(missing(&status.standing), ["alpha", "gamma"]);
    do_turn(&mut manager, |turn| turn.sign(status.digest, sign("alpha"))).unwrap();
    assert_eq!(missing(&manager.status(&status.digest).unwrap().standing), ["gamma"]);
    let status = do_turn(&mut manager, |turn| turn.sign(status.digest, sign("gamma"))).unwrap();
    assert!(matches!(status.standing, PolicyStanding::InForce));
    assert_eq!(manager.policy().unwrap().digest(), house.policy.digest());
    // Nor does it then, whoever is said to have signed what.
    let lines = manager.mark().lines;
    let stranger = Signature {
        signature: [7; 64],
        ..sign("alpha")
    };
    for signature in [sign("gamma"), stranger] {
        do_turn(&mut manager, |turn| turn.sign(status.digest, signature)).unwrap();
    }
    assert_eq!(manager.mark().lines, lines);
    let agreements = House::events(&manager, 0)
        .into_iter()
        .filter(|(event, _)| event == "agreement");
    assert_eq!(agreements.count(), 1);
}

#[test]
fn a_policy_of_other_founders_or_of_nobody_is_not_taken() {
    let house = House::new();
    let mut manager = house.made();
    let others = Wards::new();
    let theirs = others.policy(&WardsPolicy::default());
    let text = others.text(&WardsPolicy::default());
    let signature = others.signature(&theirs, "alpha");
    let refused = do_turn(&mut manager, |turn| turn.propose(text.as_bytes(), signature)).unwrap_err();
    assert_eq!(refused.code(), "other-founders");
    let text = house.wards.text(&WardsPolicy::default());
    let stranger = Signature {
        signature: [7; 64],
        ..house.wards.signature(&house.policy, "alpha")
    };
    let refused = do_turn(&mut manager, |turn| turn.propose(text.as_bytes(), stranger)).unwrap_err();
    assert_eq!(refused.code(), "bad-signature");
    let signature = house.wards.signature(&house.policy, "alpha");
    let refused = do_turn(&mut manager, |turn| turn.propose(b"rubbish", signature.clone())).unwrap_err();
    assert_eq!(refused.code(), "no-policy-file");
    let refused = do_turn(&mut manager, |turn| turn.sign(house.policy.digest(), signature)).unwrap_err();
    assert_eq!(refused.code(), "unknown-policy");
    assert_eq!(manager.proposals().count(), 0);
}

#[test]
fn a_successor_takes_effect_as_its_predecessor_demands_and_the_old_one_is_not_forgotten() {
    let house = House::new();
    let mut manager = house.manager(&WardsPolicy::default());
    let next = second(&house, |_| ());
    // Its own threshold is two, but the policy before it demands three.
    let next = WardsPolicy { threshold: 2, ..next };
    let (text, policy) = (house.wards.text(&next), house.wards.policy(&next));
    for name in ["alpha", "beta"] {
        let signature = house.wards.signature(&policy, name);
        let status = do_turn(&mut manager, |turn| turn.propose(text.as_bytes(), signature)).unwrap();
        assert!(matches!(status.standing, PolicyStanding::Proposed(_)), "{name}");
    }
    assert_eq!(manager.policy().unwrap().version, 1);
    let signature = house.wards.signature(&policy, "gamma");
    do_turn(&mut manager, |turn| turn.sign(policy.digest(), signature)).unwrap();
    assert_eq!(manager.policy().unwrap().version, 2);
    let first = manager.status(&house.policy.digest()).unwrap();
    assert!(matches!(first.standing, PolicyStanding::Superseded));
    drop(manager);
    let manager = house.again();
    assert_eq!(
        manager
            .history()
            .iter()
            .map(|file| file.policy.version)
            .collect::<Vec<_>>(),
        [1, 2]
    );
    let kept = manager.policy_file(&policy.digest()).unwrap();
    assert_eq!(&*kept.bytes, text.as_bytes());
}

#[test]
fn what_cannot_follow_is_refused_by_name() {
    let house = House::new();
    let mut manager = house.manager(&WardsPolicy::default());
    let wrong = [
        second(&house, |policy| policy.version = 3),
        second(&house, |policy| policy.predecessor = Some(support::digest("another"))),
        WardsPolicy {
            comment: "another founding".into(),
            ..WardsPolicy::default()
        },
    ];
    for wrong in wrong {
        let (text, policy) = (house.wards.text(&wrong), house.wards.policy(&wrong));
        let signature = house.wards.signature(&policy, "alpha");
        let refused = do_turn(&mut manager, |turn| turn.propose(text.as_bytes(), signature)).unwrap_err();
        assert_eq!(refused.code(), "cannot-follow", "{refused}");
    }
}

#[test]
fn an_immutable_policy_has_no_successor() {
    let founding = WardsPolicy {
        immutable: true,
        ..WardsPolicy::default()
    };
    let house = House::with(&founding);
    let mut manager = house.manager(&founding);
    let next = second(&house, |_| ());
    let (text, policy) = (house.wards.text(&next), house.wards.policy(&next));
    let signature = house.wards.signature(&policy, "alpha");
    let refused = do_turn(&mut manager, |turn| turn.propose(text.as_bytes(), signature)).unwrap_err();
    assert!(refused.to_string().contains("immutable"), "{refused}");
}

#[test]
fn who_signs_two_successors_is_named_recorded_and_refused() {
    let house = House::new();
    let mut manager = house.manager(&WardsPolicy::default());
    let [one, two] = ["one", "two"].map(|comment| second(&house, |policy| policy.comment = comment.into()));
    let policies = [&one, &two].map(|next| (house.wards.text(next), house.wards.policy(next)));
    let sign = |which: usize, name: &str| house.wards.signature(&policies[which].1, name);
    do_turn(&mut manager, |turn| {
        turn.propose(policies[0].0.as_bytes(), sign(0, "beta"))
    })
    .unwrap();
    do_turn(&mut manager, |turn| {
        turn.propose(policies[1].0.as_bytes(), sign(1, "alpha"))
    })
    .unwrap();
    let refused = do_turn(&mut manager, |turn| turn.sign(policies[1].1.digest(), sign(1, "beta"))).unwrap_err();
    let Refused::Equivocation {
        participant,
        signed,
        refused,
        ..
    } = &refused
    else {
        panic!("{refused}")
    };
    assert_eq!(
        (participant.as_str(), *signed, *refused),
        ("beta", policies[0].1.digest(), policies[1].1.digest())
    );
    let lines = manager.mark().lines;
    for _ in 0..100 {
        let again = do_turn(&mut manager, |turn| turn.sign(policies[1].1.digest(), sign(1, "beta")));
        assert_eq!(again.unwrap_err().code(), "equivocation");
    }
    assert!(manager.mark().lines <= lines + 60, "repeating it fills no log");
    drop(manager);
    let manager = house.again();
    let found = manager.equivocations();
    assert_eq!((found.len(), found[0].participant.as_str()), (1, "beta"));
    assert_eq!(found[0].after, Some(house.policy.digest()));
    assert!(
        House::events(&manager, 0)
            .iter()
            .any(|(event, what)| event == "equivocation" && what["participant"] == "beta")
    );
}

#[test]
fn a_signature_taken_back_frees_its_maker_and_cannot_be_brought_again() {
    let house = House::new();
    let mut manager = house.manager(&WardsPolicy::default());
    let [one, two] = ["typing error", "mended"].map(|comment| second(&house, |policy| policy.comment = comment.into()));
    let policies = [&one, &two].map(|next| (house.wards.text(next), house.wards.policy(next)));
    let sign = |which: usize, name: &str| house.wards.signature(&policies[which].1, name);
    let beta = house.visit("beta");
    do_turn(&mut manager, |turn| {
        turn.propose(policies[0].0.as_bytes(), sign(0, "beta"))
    })
    .unwrap();
    do_turn(&mut manager, |turn| turn.take_back(&beta, policies[0].1.digest())).unwrap();
    // Nobody stands behind it any more.
    assert_eq!(manager.proposals().count(), 0);
    do_turn(&mut manager, |turn| {
        turn.propose(policies[1].0.as_bytes(), sign(1, "beta"))
    })
    .unwrap();
    let replayed = do_turn(&mut manager, |turn| {
        turn.propose(policies[0].0.as_bytes(), sign(0, "beta"))
    });
    assert_eq!(replayed.unwrap_err().code(), "taken-back");
    assert!(manager.equivocations().is_empty());
    for name in ["alpha", "gamma"] {
        do_turn(&mut manager, |turn| turn.sign(policies[1].1.digest(), sign(1, name))).unwrap();
    }
    let refused = do_turn(&mut manager, |turn| turn.take_back(&beta, policies[1].1.digest())).unwrap_err();
    assert_eq!(refused.code(), "in-force");
}

#[test]
fn a_signature_by_another_key_counts_for_nothing() {
    let house = House::new();
    let mut manager = house.made();
    let text = house.wards.text(&WardsPolicy::default());
    let signature = house.wards.signature(&house.policy, "alpha");
    let other = SigningKey::generate().unwrap().public();
    let signature = Signature {
        public_key: other,
        ..signature
    };
    let refused = do_turn(&mut manager, |turn| turn.propose(text.as_bytes(), signature)).unwrap_err();
    assert_eq!(refused.code(), "bad-signature");
}
