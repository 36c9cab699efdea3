//! Against a manager that was put back: others remember its newest state, and a quorum of them must confirm it when it starts.
//!
//! All of it is pure. A node keeps a [`Witness`] in its TD's memory, since a disk could be put back with the manager's, and shows it each
//! [`Mark`] that it gets; a manager that starts collects [`Statement`]s and is confirmed or refused; a running one holds a vault's
//! commit back until [`Echoes`] say that its [`Audience`] has seen the state that it stands in, as ROTE does. What is written without
//! waiting for that is protected against a manager put back only once a quorum has seen it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use cloister_attestation::encoding::{from_hex, hex};
use cloister_attestation::identity::Role;
use cloister_policy::{Permit, Policy};
use cloister_tensor::Digest;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::refused::Refused;

/// A store's identity: 16 random bytes, made with it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreId([u8; 16]);

impl StoreId {
    /// An identity out of its bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for StoreId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for StoreId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = from_hex(&text).ok_or_else(|| serde::de::Error::custom("32 hexadecimal digits are wanted"))?;
        Ok(Self(bytes))
    }
}

/// A state of the manager, as it stands after a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    /// The manager's store.
    pub store: StoreId,
    /// How many commits there were.
    pub version: u64,
    /// Digest of the state: of the one before it, of all records, of the audit log.
    pub digest: Digest,
    /// How many lines the audit log has.
    pub lines: u64,
    /// Digest of the head of the last of them; zeros without a line.
    pub line: Digest,
}

/// What a node remembers of its federation's manager.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Witness {
    newest: Option<Mark>,
}

impl Witness {
    /// A node that has not met the manager yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The newest state that was seen.
    pub fn newest(&self) -> Option<&Mark> {
        self.newest.as_ref()
    }

    /// Takes the state that the manager shows, and remembers it if it is newer.
    ///
    /// # Errors
    /// [`Refused::ManagerOther`], [`Refused::ManagerOlder`] or [`Refused::ManagerForked`]: the manager was made anew or put back. Nothing is
    /// remembered then.
    pub fn observe(&mut self, mark: &Mark) -> Result<(), Refused> {
        let witness = || "this node".to_owned();
        if let Some(newest) = &self.newest {
            compare(witness(), newest, mark)?;
            if newest.version == mark.version {
                return Ok(());
            }
        }
        self.newest = Some(*mark);
        Ok(())
    }

    /// Takes a state that was told by a manager found to be no older when it was dialled. Answers on one connection overtake each other,
    /// so an earlier one of the same manager accuses nobody; it is passed over.
    ///
    /// # Errors
    /// [`Refused::ManagerOther`] and [`Refused::ManagerForked`].
    pub fn observe_answer(&mut self, mark: &Mark) -> Result<(), Refused> {
        let overtaken = |newest: &Mark| newest.store == mark.store && newest.version > mark.version;
        if self.newest.as_ref().is_some_and(overtaken) {
            return Ok(());
        }
        self.observe(mark)
    }
}

/// Whether a state may be the continuation of what a witness saw, by versions alone.
pub(crate) fn compare(witness: String, saw: &Mark, now: &Mark) -> Result<(), Refused> {
    if saw.store != now.store {
        return Err(Refused::ManagerOther {
            witness,
            saw: saw.store,
            shown: now.store,
        });
    }
    if saw.version > now.version {
        return Err(Refused::ManagerOlder {
            witness,
            saw: saw.version,
            shown: now.version,
        });
    }
    if saw.version == now.version && saw != now {
        return Err(Refused::ManagerForked {
            witness,
            version: saw.version,
        });
    }
    Ok(())
}

/// What a node says to a manager that starts: who it is, by its session's permit, and what it remembers.
#[derive(Clone, Debug)]
pub struct Statement {
    /// The node, attested under the policy that the manager's state has in force.
    pub permit: Permit,
    /// The newest state that it has seen. A node that has seen none confirms nothing.
    pub newest: Option<Mark>,
}

/// Whose word counts when a manager starts, and how many of them it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quorum {
    nodes: Vec<String>,
    wanted: usize,
}

impl Quorum {
    /// More than half of the nodes that are no managers, so that any two quorums have a node in common.
    pub fn of(policy: &Policy) -> Self {
        let nodes = policy.nodes.iter().filter(|node| node.role != Role::Manager);
        let nodes: Vec<_> = nodes.map(|node| node.name.clone()).collect();
        Self {
            wanted: nodes.len() / 2 + 1,
            nodes,
        }
    }

    /// The nodes that count.
    pub fn nodes(&self) -> &[String] {
        &self.nodes
    }

    /// How many of them it takes.
    pub fn wanted(&self) -> usize {
        self.wanted
    }

    fn counts(&self, node: &str) -> bool {
        self.nodes.iter().any(|known| known == node)
    }
}

/// Who has to have seen a state before what it says is told: the nodes that are there (they hold a lease), up to a quorum of the
/// policy's. A node that is not there can't see anything, and one that goes ends with its lease; so no commit waits for one for longer
/// than a lease lasts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audience {
    present: BTreeSet<String>,
    wanted: usize,
}

impl Audience {
    /// Of those who are there, the ones that count.
    pub fn of<'a>(quorum: &Quorum, there: impl Iterator<Item = &'a str>) -> Self {
        let present: BTreeSet<_> = there.filter(|node| quorum.counts(node)).map(str::to_owned).collect();
        Self {
            wanted: quorum.wanted.min(present.len()),
            present,
        }
    }

    /// Whether nobody is there.
    pub fn is_empty(&self) -> bool {
        self.present.is_empty()
    }
}

/// What is missing until a state may be told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unseen {
    /// How many nodes have seen it.
    pub seen: usize,
    /// How many have to.
    pub wanted: usize,
    /// Nodes that are there and have not.
    pub silent: Vec<String>,
}

/// Who has seen which state.
#[derive(Clone, Debug, Default)]
pub struct Echoes {
    seen: BTreeMap<String, u64>,
}

impl Echoes {
    /// A node said that it remembers the state of that version.
    pub fn heard(&mut self, node: &str, version: u64) {
        let seen = self.seen.entry(node.to_owned()).or_default();
        *seen = version.max(*seen);
    }

    /// Whether enough of the audience have seen the state of that version, or a later one.
    ///
    /// # Errors
    /// [`Unseen`].
    pub fn seen_by(&self, audience: &Audience, version: u64) -> Result<(), Unseen> {
        let saw = |node: &&String| self.seen.get(*node).is_some_and(|seen| *seen >= version);
        let (saw, silent): (Vec<_>, Vec<_>) = audience.present.iter().partition(saw);
        if saw.len() >= audience.wanted {
            return Ok(());
        }
        Err(Unseen {
            seen: saw.len(),
            wanted: audience.wanted,
            silent: silent.into_iter().cloned().collect(),
        })
    }
}

/// Whether enough nodes confirm that a state is the newest. `extends` says whether the state is a continuation of an older one.
pub(crate) fn confirm(
    quorum: &Quorum,
    policy: &Policy,
    statements: &[Statement],
    now: &Mark,
    now_unix_s: u64,
    extends: &mut dyn FnMut(&str, &Mark) -> Result<(), Refused>,
) -> Result<usize, Refused> {
    let mut confirmed: Vec<&str> = Vec::new();
    for Statement { permit, newest } in statements {
        if permit.expired(now_unix_s) || permit.policy_digest() != policy.digest() {
            continue;
        }
        let (node, Some(newest)) = (permit.node(), newest) else {
            continue;
        };
        compare(node.to_owned(), newest, now)?;
        extends(node, newest)?;
        if quorum.counts(node) && !confirmed.contains(&node) {
            confirmed.push(node);
        }
    }
    if confirmed.len() < quorum.wanted {
        return Err(Refused::NoQuorum {
            confirmed: confirmed.len(),
            wanted: quorum.wanted,
            silent: quorum
                .nodes
                .iter()
                .filter(|node| !confirmed.contains(&node.as_str()))
                .cloned()
                .collect(),
        });
    }
    Ok(confirmed.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(version: u64, content: &[u8]) -> Mark {
        Mark {
            store: StoreId([1; 16]),
            version,
            digest: Digest::of(content),
            lines: version,
            line: Digest::of(content),
        }
    }

    #[test]
    fn a_manager_put_back_forked_or_made_anew_is_refused_by_who_remembers() {
        let mut witness = Witness::new();
        witness.observe(&mark(5, b"a")).unwrap();
        witness.observe(&mark(5, b"a")).unwrap();
        witness.observe(&mark(7, b"b")).unwrap();
        let kept = witness.clone();
        assert_eq!(witness.observe(&mark(6, b"x")).unwrap_err().code(), "manager-older");
        assert_eq!(witness.observe(&mark(7, b"x")).unwrap_err().code(), "manager-forked");
        let other = Mark {
            store: StoreId([2; 16]),
            ..mark(9, b"c")
        };
        assert_eq!(witness.observe(&other).unwrap_err().code(), "manager-other");
        assert_eq!(
            witness.observe_answer(&mark(7, b"x")).unwrap_err().code(),
            "manager-forked"
        );
        assert_eq!(witness.observe_answer(&other).unwrap_err().code(), "manager-other");
        // An answer that was overtaken on its way is no older manager.
        witness.observe_answer(&mark(6, b"x")).unwrap();
        assert_eq!(witness, kept);
        let text = serde_json::to_string(&witness).unwrap();
        assert_eq!(serde_json::from_str::<Witness>(&text).unwrap(), witness);
    }

    #[test]
    fn a_state_is_told_of_once_those_who_are_there_have_seen_it_up_to_a_quorum() {
        let quorum = Quorum {
            nodes: ["a", "b", "c", "d", "e"].map(str::to_owned).to_vec(),
            wanted: 3,
        };
        let there = |nodes: &[&'static str]| Audience::of(&quorum, nodes.iter().copied());
        let all = there(&["a", "b", "c", "d", "stranger"]);
        let mut echoes = Echoes::default();
        for (node, version) in [("a", 9), ("stranger", 9), ("b", 4), ("b", 3), ("c", 8)] {
            echoes.heard(node, version);
        }
        assert_eq!(echoes.seen_by(&all, 4), Ok(()));
        let unseen = echoes.seen_by(&all, 8).unwrap_err();
        assert_eq!((unseen.seen, unseen.wanted), (2, 3));
        assert_eq!(unseen.silent, ["b", "d"]);
        // Whoever is not there is not waited for; whoever is, is.
        assert_eq!(echoes.seen_by(&there(&["a", "c"]), 8), Ok(()));
        assert_eq!(echoes.seen_by(&there(&["a", "d"]), 8).unwrap_err().silent, ["d"]);
        assert_eq!(echoes.seen_by(&Audience::default(), 10), Ok(()));
    }
}
