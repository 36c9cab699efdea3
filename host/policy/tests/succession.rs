//! Policies that follow one another: who has to sign, what a successor changes, and histories that somebody bent.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use cloister_attestation::identity::SigningKey;
use cloister_policy::agreement::{Agreement, HostFile, Participant, Rtmr3, TcbStatus};
use cloister_policy::{
    Area, Ballot, Policy, Signature, SignatureError, Signatures, SignedPolicy, Standing, TensorAccess, Version,
    broken_rules, diff, draft, follow,
};
use cloister_tensor::Digest;
use proptest::prelude::*;

/// Three participants, of whom two sign, and their keys.
struct Federation {
    keys: Vec<(&'static str, SigningKey)>,
    founding: Agreement,
}

impl Federation {
    fn new() -> Self {
        let keys: Vec<_> = ["alpha", "beta", "gamma"]
            .into_iter()
            .map(|name| (name, SigningKey::generate().unwrap()))
            .collect();
        let mut founding = common::digits(&keys[0].1, &keys[1].1);
        founding.participants.push(Participant {
            name: "gamma".into(),
            public_key: keys[2].1.public(),
        });
        founding.consent.threshold = 2;
        Self { keys, founding }
    }

    fn key(&self, name: &str) -> &SigningKey {
        &self.keys.iter().find(|(known, _)| *known == name).unwrap().1
    }

    fn after(&self, before: &Policy, change: impl FnOnce(&mut Agreement)) -> Policy {
        let mut next = before.agreement().clone();
        next.version += 1;
        next.predecessor = Some(before.digest());
        change(&mut next);
        policy(&next)
    }

    fn signed(&self, policy: &Policy, by: &[&str]) -> Version {
        let mut signatures = Signatures::default();
        for name in by {
            signatures.add(Signature::sign(policy, name, self.key(name)).unwrap());
        }
        Version {
            policy: policy.clone(),
            signatures,
            file: format!("v{}-{}.toml", policy.version, policy.digest().short()),
        }
    }
}

fn policy(agreement: &Agreement) -> Policy {
    Policy::parse(draft(agreement).unwrap().as_bytes(), "p.toml").unwrap()
}

#[test]
fn a_policy_takes_effect_with_as_many_signatures_as_it_says() {
    let federation = Federation::new();
    let founding = policy(&federation.founding);
    let count = |by: &[&str]| Ballot::count(&founding, &federation.signed(&founding, by).signatures, None);
    assert!(!count(&["beta"]).complete());
    assert!(count(&["beta", "gamma"]).complete());
    let standings: Vec<_> = count(&["beta"]).own.votes.iter().map(|vote| vote.standing).collect();
    assert_eq!(standings, [Standing::Missing, Standing::Signed, Standing::Missing]);

    let mut real = federation.founding.clone();
    real.attestation.simulated = false;
    real.attestation.root_key_id = *cloister_attestation::TrustRoot::intel().unwrap().key_id();
    for list in [
        &mut real.attestation.mrtd,
        &mut real.attestation.rtmr0,
        &mut real.attestation.rtmr1,
        &mut real.attestation.rtmr2,
        &mut real.attestation.mrseam,
    ] {
        *list = vec![[1; 48]];
    }
    real.attestation.hosts = vec![HostFile {
        name: "cloister".into(),
        sha256: Digest::of(b"host"),
    }];
    let real = policy(&real);
    let run = |by: &[&str]| SignedPolicy::new(real.clone(), &federation.signed(&real, by).signatures);
    assert_eq!(run(&["alpha", "gamma"]).unwrap().signers(), ["alpha", "gamma"]);
    let refused = run(&["alpha"]).unwrap_err();
    assert!(
        matches!(&refused, SignatureError::Missing { signed: 1, wanted: 2, missing } if missing == &["beta", "gamma"]),
        "{refused}"
    );
}

#[test]
fn signatures_that_are_no_use_are_told_one_by_one() {
    let federation = Federation::new();
    let founding = policy(&federation.founding);
    let mut signatures = federation.signed(&founding, &["alpha"]).signatures;
    let mut other = federation.founding.clone();
    other.rounds.count += 1;
    // Over another policy, by another key, by nobody of the policy.
    signatures.add(Signature::sign(&policy(&other), "beta", federation.key("beta")).unwrap());
    let mut foreign = common::digits(federation.key("alpha"), federation.key("beta"));
    foreign.participants[0].name = "gamma".into();
    foreign
        .nodes
        .iter_mut()
        .for_each(|node| node.participant = "beta".into());
    foreign.release.recipients.clear();
    signatures.add(Signature::sign_as(&founding, &policy(&foreign), "gamma", federation.key("alpha")).unwrap());
    foreign.participants[0].name = "delta".into();
    signatures.add(Signature::sign_as(&founding, &policy(&foreign), "delta", federation.key("alpha")).unwrap());
    let ballot = Ballot::count(&founding, &signatures, None);
    let standings: Vec<_> = ballot.own.votes.iter().map(|vote| vote.standing.as_str()).collect();
    assert_eq!(standings, ["signed", "invalid", "other-key"]);
    let strays: Vec<_> = ballot.strays.iter().map(ToString::to_string).collect();
    assert_eq!(strays.len(), 3, "{strays:?}");
    assert!(
        strays[0].contains("other bytes") && strays[2].contains("delta"),
        "{strays:?}"
    );
    assert!(!ballot.complete());
}

#[test]
fn who_leaves_or_changes_its_key_is_asked_as_the_predecessor_demands() {
    let federation = Federation::new();
    let founding = policy(&federation.founding);
    // Gamma leaves and alpha changes its key: two of the old three have to agree, and both of the new two.
    let fresh = SigningKey::generate().unwrap();
    let next = federation.after(&founding, |next| {
        next.participants.truncate(2);
        next.participants[0].public_key = fresh.public();
    });
    let mut signatures = Signatures::default();
    signatures.add(Signature::sign(&next, "alpha", &fresh).unwrap());
    signatures.add(Signature::sign(&next, "beta", federation.key("beta")).unwrap());
    let ballot = Ballot::count(&next, &signatures, Some(&founding));
    assert!(
        ballot.own.complete() && !ballot.before.as_ref().unwrap().complete(),
        "{ballot:?}"
    );
    assert!(Signature::sign(&next, "gamma", federation.key("gamma")).is_err());
    signatures.add(Signature::sign_as(&next, &founding, "gamma", federation.key("gamma")).unwrap());
    let ballot = Ballot::count(&next, &signatures, Some(&founding));
    assert!(ballot.complete() && ballot.strays.is_empty(), "{ballot:?}");
    // A node, which has no predecessor at hand, runs it with that signature in the file, and counts its own participants.
    assert_eq!(
        SignedPolicy::new(next.clone(), &signatures).unwrap().signers(),
        ["alpha", "beta"]
    );
    // Without the predecessor nobody can say whether it took effect.
    let alone = Ballot::count(&next, &signatures, None);
    assert!(alone.unknown_predecessor && !alone.complete());
}

#[test]
fn what_cannot_follow_is_told_rule_by_rule() {
    let federation = Federation::new();
    let founding = policy(&federation.founding);
    let fits = federation.after(&founding, |_| ());
    assert!(broken_rules(&founding, &fits).is_empty());
    let bent = federation.after(&founding, |next| {
        next.name = "other".into();
        next.version = 4;
        next.predecessor = Some(Digest::of(b"another"));
    });
    let rules: Vec<_> = broken_rules(&founding, &bent)
        .into_iter()
        .map(|failed| failed.rule)
        .collect();
    assert_eq!(rules, ["name", "predecessor", "version"]);
    let mut last = federation.founding.clone();
    last.consent.immutable = true;
    let last = policy(&last);
    let refused = broken_rules(&last, &federation.after(&last, |_| ()));
    assert_eq!(refused[0].rule, "agreement.immutable");
    let all = ["alpha", "beta", "gamma"];
    let signed = federation.signed(&federation.after(&last, |_| ()), &all);
    assert!(!Ballot::count(&signed.policy, &signed.signatures, Some(&last)).complete());
}

#[test]
fn a_history_goes_from_the_founding_policy_to_the_newest() {
    let federation = Federation::new();
    let one = policy(&federation.founding);
    let two = federation.after(&one, |next| next.rounds.count = 40);
    let three = federation.after(&two, |next| next.rounds.count = 50);
    let lost = federation.after(&federation.after(&one, |next| next.rounds.count = 9), |_| ());
    let all = ["alpha", "beta"];
    let mut versions = vec![
        federation.signed(&three, &["gamma"]),
        // Copies of one policy, each signed by another participant: together they are enough.
        federation.signed(&two, &["alpha"]),
        federation.signed(&lost, &all),
        federation.signed(&one, &all),
        federation.signed(&two, &["beta"]),
    ];
    let history = follow(&mut versions, None);
    let named = |indices: &[usize]| -> Vec<Digest> { indices.iter().map(|at| versions[*at].policy.digest()).collect() };
    assert_eq!(named(&history.chain), [one.digest(), two.digest()]);
    assert_eq!(history.pending.len(), 1);
    assert_eq!(versions[history.pending[0].0].policy.digest(), three.digest());
    assert_eq!(named(&history.apart), [lost.digest()]);
    assert!(history.fork.is_none() && history.double_signers.is_empty());
    // The anchor is that of the founders: another federation of the same name does not begin this history.
    let anchor = one.anchor().unwrap();
    assert_eq!(follow(&mut versions.clone(), Some(anchor)).chain.len(), 2);
    assert!(
        follow(&mut versions.clone(), Some(Digest::of(b"others")))
            .chain
            .is_empty()
    );
    assert_ne!(
        Federation::new().founding.participants,
        federation.founding.participants
    );
    assert!(two.anchor().is_none());
}

#[test]
fn a_participant_who_signed_two_successors_is_named_and_the_history_ends_there() {
    let federation = Federation::new();
    let one = policy(&federation.founding);
    let left = federation.after(&one, |next| next.rounds.count = 40);
    let right = federation.after(&one, |next| next.rounds.count = 41);
    let mut versions = vec![
        federation.signed(&one, &["alpha", "beta", "gamma"]),
        federation.signed(&left, &["alpha", "beta"]),
        federation.signed(&right, &["beta", "gamma"]),
        federation.signed(&federation.after(&left, |_| ()), &["alpha", "beta"]),
    ];
    let history = follow(&mut versions, None);
    assert_eq!(history.chain, [0]);
    let fork = history.fork.unwrap();
    assert_eq!(
        (fork.after, fork.policies),
        (Some(one.digest()), vec![left.digest(), right.digest()])
    );
    let [double] = history.double_signers.as_slice() else {
        panic!("{:?}", history.double_signers);
    };
    assert_eq!(double.participant, "beta");
    assert_eq!(history.apart, [3]);
    // With one of the two incomplete the history goes on, and who signed both is named all the same.
    versions[2] = federation.signed(&right, &["beta"]);
    let history = follow(&mut versions, None);
    assert_eq!(history.chain, [0, 1, 3]);
    assert_eq!(history.overtaken, [2]);
    assert_eq!(history.double_signers[0].participant, "beta");
}

#[test]
fn a_diff_tells_what_changes_and_what_deserves_a_second_thought() {
    let federation = Federation::new();
    let founding = policy(&federation.founding);
    assert!(diff(&founding, &federation.after(&founding, |_| ())).is_empty());
    let next = federation.after(&founding, |next| {
        next.rounds.count = 30;
        next.modules[0].sha256 = Digest::of(b"other code");
        next.modules[0].tensor_access = TensorAccess::Read;
        next.datasets[1].commitment = Digest::of(b"other rows");
        next.release.recipients.push("gamma".into());
        next.nodes[2].participant = "gamma".into();
        next.attestation.tcb_statuses.push(TcbStatus {
            status: "OutOfDate".into(),
            until_unix_s: None,
        });
        next.attestation.attributes.mask[7] = 0;
        next.consent.threshold = 3;
    });
    let changes = diff(&founding, &next);
    let told: Vec<_> = changes
        .iter()
        .map(|change| (change.area.as_str(), change.concern.is_some()))
        .collect();
    assert_eq!(
        told,
        [
            ("agreement", false),
            ("nodes", true),
            ("code", true),
            ("code", true),
            ("data", false),
            ("rounds", false),
            ("attestation", true),
            ("attestation", true),
            ("release", true),
        ],
        "{changes:#?}"
    );
    // The way back lowers no guard, but for the threshold, the code that is again another one, and the node's owner.
    let back: Vec<_> = diff(&next, &founding)
        .into_iter()
        .filter(|change| change.concern.is_some())
        .collect();
    let areas: Vec<_> = back.iter().map(|change| change.area).collect();
    assert_eq!(areas, [Area::Agreement, Area::Nodes, Area::Code], "{back:#?}");
}

#[test]
fn a_rule_of_rtmr3_that_lets_in_more_deserves_a_second_thought() {
    let federation = Federation::new();
    let log = |others: &[&str]| Rtmr3::Log {
        others: others.iter().map(|text| (*text).to_owned()).collect(),
    };
    for (old, new, concerns) in [
        (Rtmr3::Zero, log(&[]), &[false][..]),
        (log(&[]), Rtmr3::Zero, &[true]),
        (log(&[]), Rtmr3::Any, &[true]),
        (Rtmr3::Any, log(&["a b c"]), &[false, true]),
        (log(&["a b c"]), log(&["a b d"]), &[true, false]),
        (Rtmr3::Any, Rtmr3::Zero, &[false]),
        (Rtmr3::Any, Rtmr3::Any, &[]),
    ] {
        let mut founding = federation.founding.clone();
        founding.attestation.rtmr3 = old.clone();
        let founding = policy(&founding);
        let next = federation.after(&founding, |next| next.attestation.rtmr3 = new.clone());
        let changes = diff(&founding, &next);
        let seen: Vec<_> = changes.iter().map(|change| change.concern.is_some()).collect();
        assert_eq!(seen, concerns, "{old:?} to {new:?}: {changes:#?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn whoever_signs_what_no_two_successors_are_complete_unless_somebody_signed_both(
        left in proptest::collection::vec(any::<bool>(), 3),
        right in proptest::collection::vec(any::<bool>(), 3),
        order in any::<bool>(),
    ) {
        let federation = Federation::new();
        let one = policy(&federation.founding);
        let names = |chosen: &[bool]| -> Vec<&'static str> {
            let chosen = federation.keys.iter().zip(chosen).filter(|(_, signs)| **signs);
            chosen.map(|((name, _), _)| *name).collect()
        };
        let successor = |count| federation.after(&one, |next| next.rounds.count = count);
        let mut versions = vec![
            federation.signed(&one, &["alpha", "beta"]),
            federation.signed(&successor(40), &names(&left)),
            federation.signed(&successor(41), &names(&right)),
        ];
        if order {
            versions.reverse();
        }
        let both = left.iter().zip(&right).filter(|(left, right)| **left && **right).count();
        let history = follow(&mut versions, None);
        prop_assert_eq!(history.double_signers.len(), both);
        prop_assert!(history.fork.is_none() || both > 0);
        prop_assert!(history.chain.len() <= 2);
    }
}
