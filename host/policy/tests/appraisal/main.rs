//! Evidence against a policy: what fits gets a permit; whatever differs is told with what was seen and what was wanted.
#![allow(clippy::unwrap_used, reason = "helpers of tests stand outside of #[test] functions")]

#[path = "../common/mod.rs"]
mod common;

mod applicants;
mod house;

use std::sync::Arc;

use cloister_attestation::State;
use cloister_attestation::identity::Role;
use cloister_attestation::measurement::{Entry, EntryRole, Measurement};
use cloister_attestation::simulated::{TdOf15, TdValues};
use cloister_attestation::{EventLog, RuntimeEvent};
use cloister_policy::agreement::{Agreement, Rtmr3, TcbStatus};
use cloister_policy::{Appraiser, Expected, Policy};
use cloister_tensor::Digest;
use house::{House, NOW, Shown};

/// A rule, and the change that breaks it.
type Case<T> = (&'static str, fn(&mut T));

fn swap(shown: &mut Shown, role: EntryRole, name: &str, content: &[u8]) {
    let mut entries = shown.node.measurement.entries().to_vec();
    entries.retain(|entry| (entry.role, entry.name.as_str()) != (role, name));
    entries.push(Entry::new(role, name, Digest::of(content)));
    shown.node.measurement = Measurement::new(entries).unwrap();
}

fn drop_entry(shown: &mut Shown, role: EntryRole, name: &str) {
    let mut entries = shown.node.measurement.entries().to_vec();
    entries.retain(|entry| (entry.role, entry.name.as_str()) != (role, name));
    shown.node.measurement = Measurement::new(entries).unwrap();
}

#[test]
fn what_the_policy_wants_gets_a_permit() {
    let house = House::new();
    let policy = house.policy(|_| {});
    let appraiser = Appraiser::new(policy.clone());
    let evidence = house.attest(&appraiser, |_| {}).unwrap();
    let permit = policy.permit(&evidence, [9; 32], NOW).unwrap();
    assert_eq!(
        (permit.federation(), permit.participant(), permit.node()),
        ("digits", "alpha", "worker-a")
    );
    assert_eq!(
        (permit.role(), permit.state(), permit.connection()),
        (Role::Worker, State::Member, &[9; 32])
    );
    assert_eq!(
        (permit.policy_digest(), permit.expiry_unix_s()),
        (policy.digest(), NOW + 1000)
    );
    assert!(permit.expired(NOW + 1000) && !permit.expired(NOW + 999));
}

#[test]
fn a_bootstrap_node_shows_no_module_and_no_graph() {
    let house = House::new();
    let appraiser = Appraiser::new(house.policy(|_| {}));
    let bootstrap = |shown: &mut Shown| {
        let mut entries = appraiser
            .policy()
            .expected_entries("worker-a", State::Bootstrap)
            .unwrap();
        entries.push(Entry::new(EntryRole::Host, "cloister", Digest::of(b"binary")));
        shown.node.measurement = Measurement::new(entries).unwrap();
        shown.node.state = State::Bootstrap;
    };
    assert_eq!(house.attest(&appraiser, bootstrap).unwrap().state(), State::Bootstrap);
    let refusal = house
        .attest(&appraiser, |shown| shown.node.state = State::Bootstrap)
        .unwrap_err();
    assert!(refusal.names("measurement.module.train-sgd"), "{refusal}");
}

#[test]
fn another_measurement_is_told_entry_by_entry() {
    let house = House::new();
    for (role, name) in [
        (EntryRole::Module, "train-sgd"),
        (EntryRole::Graph, "train@23"),
        (EntryRole::Data, "train"),
        (EntryRole::Policy, "digits"),
        (EntryRole::Host, "cloister"),
    ] {
        let rule = format!("measurement.{role}.{name}");
        let refusal = house.refusal(|_| {}, |shown| swap(shown, role, name, b"something else"));
        let failed = &refusal.failed[0];
        assert_eq!(
            (refusal.failed.len(), failed.rule.as_str()),
            (1, rule.as_str()),
            "{refusal}"
        );
        assert_eq!(failed.seen, Digest::of(b"something else").to_string());
        assert_eq!(failed.wanted.len(), 64);
        let refusal = house.refusal(|_| {}, |shown| drop_entry(shown, role, name));
        assert_eq!(
            (refusal.failed[0].rule.as_str(), refusal.failed[0].seen.as_str()),
            (rule.as_str(), "nothing")
        );
    }
    for role in [
        EntryRole::Module,
        EntryRole::Graph,
        EntryRole::Data,
        EntryRole::Policy,
        EntryRole::Host,
    ] {
        let refusal = house.refusal(|_| {}, |shown| swap(shown, role, "one-more", b"x"));
        assert!(refusal.names(&format!("measurement.{role}.one-more")), "{refusal}");
    }
}

#[test]
fn another_td_is_refused_register_by_register() {
    let house = House::new();
    let cases: [Case<TdValues>; 11] = [
        ("attestation.mrtd", |td| td.mrtd[0] ^= 1),
        ("attestation.rtmr0", |td| td.rtmr[0][1] ^= 1),
        ("attestation.rtmr1", |td| td.rtmr[1][2] ^= 1),
        ("attestation.rtmr2", |td| td.rtmr[2][3] ^= 1),
        ("attestation.rtmr3", |td| td.rtmr[3][4] ^= 1),
        ("attestation.mrseam", |td| td.mrseam[47] ^= 1),
        ("attestation.mrconfigid", |td| td.mrconfigid[0] ^= 1),
        ("attestation.mrowner", |td| td.mrowner[0] ^= 1),
        ("attestation.mrownerconfig", |td| td.mrownerconfig[0] ^= 1),
        ("attestation.attributes", |td| td.attributes[3] |= 0x40),
        ("attestation.xfam", |td| td.xfam[1] |= 1),
    ];
    for (rule, change) in cases {
        let refusal = house.refusal(|_| {}, |shown| change(&mut shown.td));
        assert!(refusal.names(rule), "{rule}: {refusal}");
    }
    // Attestation itself refuses these before any policy is asked: debug, and no SEPT_VE_DISABLE.
    for attributes in [[1, 0, 0, 0x10, 0, 0, 0, 0], [0; 8]] {
        assert!(
            house
                .attest(&Appraiser::new(house.policy(|_| {})), |shown| shown.td.attributes =
                    attributes)
                .is_err()
        );
    }
}

#[test]
fn the_root_the_platform_and_its_age_are_the_policys() {
    let house = House::new();
    let cases: [Case<Agreement>; 5] = [
        ("attestation.root_key_id", |policy| {
            policy.attestation.root_key_id[0] ^= 1
        }),
        ("attestation.fmspc", |policy| policy.attestation.fmspc = vec![[9; 6]]),
        ("attestation.ppid", |policy| policy.attestation.ppid = vec![[9; 16]]),
        ("attestation.allow_smt", |policy| policy.attestation.allow_smt = false),
        ("attestation.tcb_statuses", |policy| {
            policy.attestation.tcb_statuses = vec![TcbStatus {
                status: "OutOfDate".into(),
                until_unix_s: None,
            }];
        }),
    ];
    for (rule, change) in cases {
        let refusal = house.refusal(change, |_| {});
        assert!(refusal.names(rule), "{rule}: {refusal}");
    }
    let ended = |policy: &mut Agreement| {
        let until_unix_s = Some((NOW / 86_400) * 86_400);
        policy.attestation.tcb_statuses = vec![TcbStatus {
            status: "UpToDate".into(),
            until_unix_s,
        }];
    };
    let refusal = house.refusal(ended, |_| {});
    assert!(
        refusal.names("attestation.tcb_statuses") && refusal.to_string().contains("which is over"),
        "{refusal}"
    );
    let evidence = house.attest(&Appraiser::new(house.policy(|_| {})), |_| {}).unwrap();
    let policy = house.policy(|_| {});
    let later = policy.permit(&evidence, [0; 32], NOW + 31 * 86_400).unwrap_err();
    assert!(later.names("attestation.collateral_max_age_s"), "{later}");
    let earlier = policy.permit(&evidence, [0; 32], NOW - 86_400).unwrap_err();
    assert!(earlier.names("attestation.max_clock_skew_s"), "{earlier}");
}

#[test]
fn a_td_that_should_be_started_anew_is_let_in_only_where_the_policy_names_that_status() {
    let house = House::new();
    let started_by_an_old_module = |shown: &mut Shown| {
        shown.td.tee_tcb_svn[0] = 4;
        shown.td.td15 = Some(TdOf15::default());
    };
    let listing = |statuses: &'static [&'static str]| {
        move |policy: &mut Agreement| {
            let status = |status: &&str| TcbStatus {
                status: (*status).to_owned(),
                until_unix_s: None,
            };
            policy.attestation.tcb_statuses = statuses.iter().map(status).collect();
        }
    };
    for statuses in [
        &["UpToDate"][..],
        &["UpToDate", "OutOfDate"],
        &["UpToDate", "TDRelaunchAdvisedConfigurationNeeded"],
    ] {
        let refusal = house.refusal(listing(statuses), started_by_an_old_module);
        assert!(
            refusal.names("attestation.tcb_statuses") && refusal.to_string().contains("TDRelaunchAdvised"),
            "{refusal}"
        );
    }
    let appraiser = Appraiser::new(house.policy(listing(&["UpToDate", "TDRelaunchAdvised"])));
    assert!(house.attest(&appraiser, started_by_an_old_module).is_ok());
}

#[test]
fn who_it_is_has_to_fit() {
    let house = House::new();
    let cases: [Case<Shown>; 6] = [
        ("federation", |shown| shown.node.federation = "other".into()),
        ("policy", |shown| {
            shown.node.policy_digest = Digest::of(b"another policy")
        }),
        ("node", |shown| shown.node.node = "worker-x".into()),
        ("node.participant", |shown| shown.node.node = "worker-b".into()),
        ("node.role", |shown| shown.node.role = Role::Aggregator),
        ("credential.signature", |shown| shown.endorsed_by_beta = true),
    ];
    for (rule, change) in cases {
        let refusal = house.refusal(|_| {}, change);
        let found = refusal
            .failed
            .iter()
            .any(|failed| failed.rule.starts_with(rule.split('.').next().unwrap()));
        assert!(found, "{rule}: {refusal}");
    }
}

#[test]
fn a_peer_may_be_expected() {
    let house = House::new();
    let expecting = |expected| Appraiser::new(house.policy(|_| {})).expecting(expected);
    let hub = Expected {
        node: Some("hub".into()),
        ..Expected::default()
    };
    assert!(house.attest(&expecting(hub), |_| {}).unwrap_err().names("peer.node"));
    let aggregator = Expected {
        role: Some(Role::Aggregator),
        ..Expected::default()
    };
    assert!(
        house
            .attest(&expecting(aggregator), |_| {})
            .unwrap_err()
            .names("peer.role")
    );
    let worker = Expected {
        role: Some(Role::Worker),
        node: Some("worker-a".into()),
        ..Expected::default()
    };
    assert!(house.attest(&expecting(worker), |_| {}).is_ok());
}

#[test]
fn visitors_are_let_in_where_they_are_expected() {
    use cloister_attestation::Appraise as _;
    let house = House::new();
    let closed = Appraiser::new(house.policy(|_| {}));
    assert!(!closed.appraise_visitor(None, NOW).is_empty());
    let open = closed.expecting(Expected {
        visitors: true,
        ..Expected::default()
    });
    assert!(open.appraise_visitor(None, NOW).is_empty());
    assert!(open.appraise_visitor(Some("beta"), NOW).is_empty());
    assert_eq!(open.appraise_visitor(Some("gamma"), NOW)[0].rule, "visitor.participant");
}

/// What worker-a extends: the policy, then what it runs.
fn events(policy: &Policy) -> Vec<RuntimeEvent> {
    let entries = policy.expected_entries("worker-a", State::Member).unwrap();
    entries.iter().filter_map(RuntimeEvent::before).collect()
}

fn log_rule(others: &[&str]) -> impl Fn(&mut Agreement) {
    let others: Vec<String> = others.iter().map(|text| (*text).to_owned()).collect();
    move |agreement| agreement.attestation.rtmr3 = Rtmr3::Log { others: others.clone() }
}

fn said(domain: &str, operation: &str, content: &str) -> RuntimeEvent {
    RuntimeEvent::new(domain, operation, content).unwrap()
}

#[test]
fn a_log_that_explains_rtmr3_is_taken_also_of_a_node_that_started_again() {
    let house = House::new();
    let policy = house.policy(log_rule(&["github.com/agent Pull image"]));
    let appraiser = Appraiser::new(policy.clone());
    let own = events(&policy);
    assert!(own.len() >= 3, "policy, module and graphs");
    let agent = said("github.com/agent", "Pull", "image");
    let again = [vec![agent.clone()], own.clone(), vec![agent], own.clone()].concat();
    for log in [own.clone(), again] {
        let evidence = house.attest(&appraiser, |shown| shown.events = log.clone()).unwrap();
        assert_eq!(evidence.event_log().unwrap().events().len(), log.len());
    }
    // As a bootstrap node it still shows what it ran before.
    house
        .attest(&appraiser, |shown| {
            let mut entries = policy.expected_entries("worker-a", State::Bootstrap).unwrap();
            entries.push(Entry::new(EntryRole::Host, "cloister", Digest::of(b"binary")));
            shown.node.measurement = Measurement::new(entries).unwrap();
            shown.node.state = State::Bootstrap;
            shown.events = own;
        })
        .unwrap();
}

#[test]
fn what_a_log_does_not_explain_is_refused_and_named() {
    let house = House::new();
    let policy = house.policy(log_rule(&[]));
    let appraiser = Appraiser::new(policy.clone());
    let own = events(&policy);
    let refused = |extended: &[RuntimeEvent], log: Option<Vec<u8>>, rule: &str, words: &str| {
        let refusal = house.attest(&appraiser, |shown| {
            shown.events = extended.to_vec();
            shown.log = log;
        });
        let refusal = refusal.unwrap_err();
        assert!(refusal.names(rule), "{rule}: {refusal}");
        assert!(refusal.to_string().contains(words), "{words}: {refusal}");
    };
    let (rule, events) = ("attestation.rtmr3", "attestation.rtmr3_events");
    refused(&own, Some(Vec::new()), rule, "without an event log");
    refused(&own, Some(vec![1, 2, 3]), "event_log", "ends inside a register");
    let mut other = own.clone();
    other.push(said("cloister", "module", "smuggled 00"));
    let number = other.len();
    refused(
        &other,
        None,
        events,
        &format!("event {number}, \"cloister module smuggled 00\""),
    );
    let log = |events: &[RuntimeEvent]| Some(events.iter().cloned().collect::<EventLog>().to_bytes());
    refused(&other, log(&own), rule, &format!("whose {} events give", number - 1));
    refused(&own, log(&other), rule, &format!("whose {number} events give"));
    let mut backwards = own.clone();
    backwards.reverse();
    refused(&own, log(&backwards), rule, "as the quote says");
    let module = own.iter().position(|event| event.operation() == "module").unwrap();
    let mut changed = own.clone();
    changed[module] = said("cloister", "module", &format!("train-sgd {}", Digest::of(b"other")));
    // Wanted is the same module under its own digest.
    refused(&changed, None, events, &format!("wanted \"{}\"", own[module]));
    let mut less = own.clone();
    less.remove(module);
    refused(&less, None, events, "no such event");
    refused(
        &[own, vec![said("agent", "Pull", "image")]].concat(),
        None,
        events,
        "\"agent Pull image\"",
    );
}

#[test]
fn a_log_is_asked_for_by_the_policy_alone() {
    let house = House::new();
    let zero = Appraiser::new(house.policy(|_| {}));
    let any = Appraiser::new(house.policy(|agreement| agreement.attestation.rtmr3 = Rtmr3::Any));
    let own = [said("a", "b", "c")];
    house.attest(&zero, |_| {}).unwrap();
    house.attest(&any, |shown| shown.events = own.to_vec()).unwrap();
    let refusal = house.attest(&zero, |shown| shown.events = own.to_vec()).unwrap_err();
    assert!(refusal.names("attestation.rtmr3"), "{refusal}");
}

#[test]
fn a_node_that_lives_longer_than_a_policy_shows_the_one_before() {
    let house = House::new();
    let (first, second) = (Digest::of(b"version 1"), Digest::of(b"version 2"));
    let policy = |digest: &Digest| said("cloister", "policy", &format!("digits {digest}"));
    let third = |others: &[&str]| {
        let rule = log_rule(others);
        house.policy(|agreement| {
            rule(agreement);
            (agreement.version, agreement.predecessor) = (3, Some(second));
        })
    };
    let attest = |third: &Arc<Policy>, before: &[RuntimeEvent]| {
        house.attest(&Appraiser::new(third.clone()), |shown| {
            shown.events = [before, &events(third)].concat();
        })
    };
    let strict = third(&[]);
    attest(&strict, &[policy(&second)]).unwrap();
    let refusal = attest(&strict, &[policy(&first), policy(&second)]).unwrap_err();
    assert!(refusal.names("attestation.rtmr3_events"), "{refusal}");
    let lenient = third(&[&policy(&first).to_string()]);
    attest(&lenient, &[policy(&first), policy(&second)]).unwrap();
    let other = attest(&lenient, &[policy(&Digest::of(b"nobody's"))]).unwrap_err();
    assert!(other.names("attestation.rtmr3_events"), "{other}");
}
