//! TDs that have loaded nothing yet: they speak to a manager alone, with a credential or to be given theirs.

use cloister_attestation::State;
use cloister_attestation::identity::Role;
use cloister_attestation::measurement::{Entry, EntryRole, Measurement};
use cloister_policy::{Appraiser, Expected, Policy};
use cloister_tensor::Digest;

use crate::house::{House, NOW, Shown};

/// What a node shows that has the policy and its own binary, and nothing else.
fn bare(policy: &Policy, shown: &mut Shown) {
    let mut entries = policy.expected_entries("worker-a", State::Applicant).unwrap();
    entries.push(Entry::new(EntryRole::Host, "cloister", Digest::of(b"binary")));
    shown.node.measurement = Measurement::new(entries).unwrap();
    shown.node.state = State::Applicant;
}

#[test]
fn a_node_that_has_loaded_nothing_speaks_to_a_manager_alone() {
    let house = House::new();
    let policy = house.policy(|_| {});
    let closed = Appraiser::new(policy.clone());
    let refusal = house.attest(&closed, |shown| bare(&policy, shown)).unwrap_err();
    assert!(refusal.names("peer.state"), "{refusal}");
    let manager = closed.expecting(Expected {
        applicants: true,
        ..Expected::default()
    });
    let evidence = house.attest(&manager, |shown| bare(&policy, shown)).unwrap();
    assert_eq!(evidence.state(), State::Applicant);
    // Nobody passes for one who has loaded something.
    let refusal = house
        .attest(&manager, |shown| shown.node.state = State::Applicant)
        .unwrap_err();
    assert!(refusal.names("measurement.data.train"), "{refusal}");
}

#[test]
fn a_td_without_a_credential_is_admitted_by_all_the_rules_but_that_one() {
    let house = House::new();
    let policy = house.policy(|_| {});
    let applicant = house.apply(&policy, |shown| bare(&policy, shown)).unwrap();
    let admission = policy.admit(&applicant, [9; 32], NOW).unwrap();
    assert_eq!((admission.node(), admission.participant()), ("worker-a", "alpha"));
    assert_eq!((admission.role(), admission.connection()), (Role::Worker, &[9; 32]));
    assert!(admission.expiry_unix_s() > NOW && admission.policy_digest() == policy.digest());

    let refused = |change: &dyn Fn(&mut Shown), rule: &str| {
        let applicant = house.apply(&policy, |shown| {
            bare(&policy, shown);
            change(shown);
        });
        let refusal = policy.admit(&applicant.unwrap(), [9; 32], NOW).unwrap_err();
        assert!(refusal.names(rule), "{rule}: {refusal}");
    };
    refused(&|shown| shown.td.mrtd = [7; 48], "attestation.mrtd");
    refused(&|shown| shown.node.node = "worker-z".into(), "node");
    refused(&|shown| shown.node.participant = "beta".into(), "node.participant");
    refused(&|shown| shown.node.role = Role::Aggregator, "node.role");
    refused(&|shown| shown.node.state = State::Bootstrap, "state");
    refused(
        &|shown| {
            let entry = Entry::new(EntryRole::Host, "cloister", Digest::of(b"another binary"));
            let policy = shown
                .node
                .measurement
                .entries()
                .iter()
                .find(|entry| entry.role == EntryRole::Policy);
            shown.node.measurement = Measurement::new(vec![entry, policy.unwrap().clone()]).unwrap();
        },
        "measurement.host.cloister",
    );
    let elsewhere = house.policy(|agreement| agreement.rounds.count += 1);
    let refusal = elsewhere.admit(&applicant, [9; 32], NOW).unwrap_err();
    assert!(refusal.names("policy"), "{refusal}");
}
