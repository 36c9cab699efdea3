//! The measurement of a node: made out of what was loaded, then compared with what the policy wants; never the other way round.

use std::collections::BTreeMap;

use cloister_attestation::State;
use cloister_attestation::measurement::{Entry, EntryRole, Measurement};
use cloister_policy::Policy;
use cloister_tensor::Digest;

use crate::ui::{Exit, fail, failed};

/// What went into the node's runner, each with the digest of the very bytes (of a dataset: the commitment to its rows). Only the
/// keeper's loading adds to it.
#[derive(Debug, Default)]
pub struct Loaded {
    entries: Vec<Entry>,
}

impl Loaded {
    /// Loaded now, with this digest.
    pub(super) fn add(&mut self, role: EntryRole, name: &str, digest: Digest) {
        self.entries.push(Entry::new(role, name, digest));
    }
}

/// What the policy is measured as.
pub(super) fn policy_entry(policy: &Policy) -> Entry {
    Entry::new(EntryRole::Policy, policy.name.as_str(), policy.digest())
}

/// The measurement of a node whose host consists of `host`, which agreed to the policy and loaded `loaded`.
///
/// # Errors
/// What was loaded is not what the policy wants of the node in that state. Peers would refuse it; here it is told first.
pub fn measure(
    policy: &Policy,
    node: &str,
    state: State,
    host: &[Entry],
    loaded: &Loaded,
) -> Result<Measurement, miette::Report> {
    let wanted = policy
        .expected_entries(node, state)
        .ok_or_else(|| failed(Exit::Denied, format!("the policy names no node {node}"), None))?;
    let mut own = vec![policy_entry(policy)];
    own.extend(loaded.entries.iter().cloned());
    let differing = differences(&own, &wanted);
    if !differing.is_empty() {
        return Err(failed(
            Exit::Denied,
            format!(
                "what {node} runs is not what the policy wants of it: {}",
                differing.join("; ")
            ),
            Some("put the content back that the policy names, or agree on a new policy".into()),
        ));
    }
    own.extend(host.iter().cloned());
    Measurement::new(own).map_err(|error| fail(Exit::Failed, error))
}

/// In words, what is loaded and not wanted, wanted and not loaded, or loaded with another digest.
fn differences(own: &[Entry], wanted: &[Entry]) -> Vec<String> {
    let by_name = |entries: &[Entry]| -> BTreeMap<(&'static str, String), Digest> {
        let of = |entry: &Entry| ((entry.role.as_str(), entry.name.clone()), entry.digest);
        entries.iter().map(of).collect()
    };
    let (own, wanted) = (by_name(own), by_name(wanted));
    let mut words = Vec::new();
    for ((role, name), digest) in &own {
        match wanted.get(&(*role, name.clone())) {
            Some(other) if other == digest => {}
            Some(other) => words.push(format!("{role} {name} seen {digest}, wanted {other}")),
            None => words.push(format!("{role} {name} seen {digest}, wanted none")),
        }
    }
    let missing = wanted.iter().filter(|(key, _)| !own.contains_key(*key));
    words.extend(missing.map(|((role, name), digest)| format!("{role} {name} not loaded, wanted {digest}")));
    words
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use cloister_testkit::world::{World, WorldOptions};

    use super::*;

    fn as_the_policy_wants(world: &World) -> Loaded {
        let entries = world.policy.expected_entries("worker-a", State::Member).unwrap();
        let loaded = entries.into_iter().filter(|entry| entry.role != EntryRole::Policy);
        Loaded {
            entries: loaded.collect(),
        }
    }

    fn refused(world: &World, loaded: &Loaded) -> String {
        let result = measure(&world.policy, "worker-a", State::Member, &[], loaded);
        result.unwrap_err().to_string()
    }

    #[test]
    fn what_was_loaded_is_what_is_measured() {
        let world = World::new(WorldOptions::default());
        let host = [Entry::new(EntryRole::Host, "cloister", Digest::of(b"host"))];
        let loaded = as_the_policy_wants(&world);
        let measured = measure(&world.policy, "worker-a", State::Member, &host, &loaded).unwrap();
        for entry in loaded.entries.iter().chain(&host) {
            assert!(measured.entries().contains(entry), "{entry} is not measured");
        }
    }

    #[test]
    fn other_bytes_than_the_policys_never_pass_for_them() {
        let world = World::new(WorldOptions::default());
        let mut other = as_the_policy_wants(&world);
        let module = other
            .entries
            .iter_mut()
            .find(|entry| entry.role == EntryRole::Module)
            .unwrap();
        let wanted = std::mem::replace(&mut module.digest, Digest::of(b"other bytes"));
        let words = refused(&world, &other);
        assert!(
            words.contains(&wanted.to_string()) && words.contains(&Digest::of(b"other bytes").to_string()),
            "{words}"
        );
    }

    #[test]
    fn nothing_may_be_loaded_besides_and_nothing_may_be_missing() {
        let world = World::new(WorldOptions::default());
        let mut more = as_the_policy_wants(&world);
        more.add(EntryRole::Module, "smuggled", Digest::of(b"smuggled"));
        assert!(refused(&world, &more).contains("module smuggled"));

        let mut less = as_the_policy_wants(&world);
        less.entries.retain(|entry| entry.role != EntryRole::Data);
        assert!(refused(&world, &less).contains("data train not loaded"));
    }
}
