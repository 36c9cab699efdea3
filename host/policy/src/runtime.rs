//! RTMR3 against the policy: zero, anything, or what a log explains completely. Replaying a log to the register shows that
//! nothing is left out; each event in it then has to be one that the policy gives a reason for.

use std::collections::BTreeSet;

use cloister_attestation::encoding::hex;
use cloister_attestation::measurement::{Entry, EntryRole, Measurement};
use cloister_attestation::{EventLog, FailedRule, RuntimeEvent, State, TdReport};

use crate::agreement::Rtmr3;
use crate::policy::Policy;

const REGISTER: usize = 3;
const RULE: &str = "attestation.rtmr3";
const EVENTS: &str = "attestation.rtmr3_events";
/// Most events that a refusal names.
const MAX_TOLD: usize = 16;

/// Every rule about RTMR3 that a TD fails which showed this log. `node` is the node that showed it, and what it claims to run;
/// for a quote that nobody sent, whatever any node runs is explained.
pub(crate) fn check(
    policy: &Policy,
    td: &TdReport,
    log: Option<&EventLog>,
    node: Option<(&str, &Measurement)>,
) -> Vec<FailedRule> {
    let register = &td.rtmr[REGISTER];
    let others = match &policy.attestation.rtmr3 {
        Rtmr3::Any => return Vec::new(),
        Rtmr3::Zero if register == &[0; 48] => return Vec::new(),
        Rtmr3::Zero => return vec![FailedRule::new(RULE, hex(register), hex(&[0; 48]))],
        Rtmr3::Log { others } => others,
    };
    let Some(log) = log else {
        let wanted = "an event log that explains it: the platform has to extend RTMR3 by what runs, and to keep a log";
        return vec![FailedRule::new(
            RULE,
            format!("{} without an event log", hex(register)),
            wanted,
        )];
    };
    let log = log.of_register(REGISTER);
    let replayed = log.replay(REGISTER);
    if &replayed != register {
        let count = log.events().len();
        return vec![FailedRule::new(
            RULE,
            format!("an event log whose {count} events give {}", hex(&replayed)),
            format!("events that give {}, as the quote says", hex(register)),
        )];
    }
    let expected = expected(policy, node.map(|(name, _)| name));
    let mut failed = unexplained(&log, &expected, others);
    if let Some((_, measurement)) = node {
        failed.extend(missing(&log, measurement));
    }
    failed
}

/// What the policy has a node extend, or all its nodes. A node that lives longer than a policy (a manager) was under the one before,
/// which this one names; earlier ones it may name among the other events. As a bootstrap node, one that starts again in its TD still shows what it
/// ran as a member.
fn expected(policy: &Policy, node: Option<&str>) -> BTreeSet<String> {
    let before = policy.predecessor;
    let before = before.map(|digest| Entry::new(EntryRole::Policy, policy.name.as_str(), digest));
    let nodes = policy.nodes.iter().map(|node| node.name.as_str());
    nodes
        .filter(|name| node.is_none_or(|node| node == *name))
        .filter_map(|name| policy.expected_entries(name, State::Member))
        .flatten()
        .chain(before)
        .filter_map(|entry| RuntimeEvent::before(&entry))
        .map(|event| event.to_string())
        .collect()
}

fn unexplained(log: &EventLog, expected: &BTreeSet<String>, others: &[String]) -> Vec<FailedRule> {
    let unknown = log.events().iter().zip(1..).filter_map(|(event, number)| {
        let Some(text) = event.text() else {
            let seen = format!(
                "event {number}, the digest {}, of which the log says nothing",
                hex(event.digest())
            );
            return Some(FailedRule::new(
                EVENTS,
                seen,
                "an event whose text is what was extended",
            ));
        };
        if expected.contains(text) || others.iter().any(|other| other == text) {
            return None;
        }
        // The same thing under the digest that the policy has for it.
        let name = |text: &str| text.rsplit_once(' ').map(|(name, _)| name.to_owned());
        let wanted = match expected.iter().find(|wanted| name(wanted) == name(text)) {
            Some(wanted) => format!("{wanted:?}"),
            None => "none of the kind: the policy has the node run no such thing".to_owned(),
        };
        Some(FailedRule::new(EVENTS, format!("event {number}, {text:?}"), wanted))
    });
    unknown.take(MAX_TOLD).collect()
}

/// What is claimed to run and was not extended before.
fn missing(log: &EventLog, measurement: &Measurement) -> Vec<FailedRule> {
    let there: BTreeSet<&str> = log.events().iter().filter_map(|event| event.text()).collect();
    let claimed = measurement.entries().iter().filter_map(RuntimeEvent::before);
    claimed
        .map(|event| event.to_string())
        .filter(|text| !there.contains(text.as_str()))
        .take(MAX_TOLD)
        .map(|text| FailedRule::new(EVENTS, "no such event", format!("{text:?}, which the claims name")))
        .collect()
}
