//! A node that joins while a session of the same node is open: somebody started it twice, or it started again and its old
//! session does not know yet that it is dead.
//!
//! The first session that lives stays. The second one waits until the first ends, or [`PROBE`] is over: if anything of the
//! first came in meanwhile (its HTTP/2 answers probes whatever the worker computes), the second is refused for good; else the
//! first is given up for it. So neither of two instances throws the other out, and a node that comes back gets in.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use cloister_session::channel::KEEP_ALIVE;
use cloister_wire::federation as wire;
use prost::Message as _;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::member::Link;

/// How long a second session waits for a sign of life of the first: the time between two probes, and as long again for the answer.
pub(super) const PROBE: Duration = Duration::from_secs(2 * KEEP_ALIVE.as_secs());

/// A node that asks to take part.
pub(super) struct Joining {
    pub(super) node: String,
    pub(super) nonce: [u8; 32],
    pub(super) link: Link,
    pub(super) answer: oneshot::Sender<Result<(), JoinRefused>>,
}

/// Why a node may not join.
#[derive(Debug)]
pub(super) enum JoinRefused {
    /// The rounds' rules, in words.
    Rules(String),
    /// Another instance of it takes part, and lives.
    OtherInstance { node: String, since_unix_s: u64 },
    /// It is being found out whether another instance lives; a third one asks later.
    Probing,
}

impl JoinRefused {
    pub(super) fn into_status(self) -> Status {
        match self {
            Self::Rules(why) => Status::failed_precondition(why),
            Self::OtherInstance { node, since_unix_s } => {
                let details = wire::OtherInstance { since_unix_s }.encode_to_vec();
                let message = format!("another instance of {node} takes part, and lives");
                Status::with_details(Code::AlreadyExists, message, details.into())
            }
            Self::Probing => {
                Status::unavailable("two other sessions of this node are open; it is being found out which lives")
            }
        }
    }
}

/// One that waits for the first to show that it lives, or not.
struct Second {
    joining: Joining,
    until: Instant,
    /// How much had been heard of the first when this one came.
    heard: u64,
}

/// The sessions that wait: one a node at most.
#[derive(Default)]
pub(super) struct Seconds {
    by_node: BTreeMap<String, Second>,
}

impl Seconds {
    /// A second session of `first`'s node waits; a third is told to come again.
    pub(super) fn wait(&mut self, joining: Joining, first: &Link) {
        let node = joining.node.clone();
        if self.by_node.contains_key(&node) {
            return refuse(joining, JoinRefused::Probing);
        }
        tracing::warn!(
            "{node} joins from {} while a session of it is open from {}: looking whether that one lives",
            joining.link.peer.address(),
            first.peer.address()
        );
        let second = Second {
            joining,
            until: Instant::now() + PROBE,
            heard: first.peer.heard(),
        };
        self.by_node.insert(node, second);
    }

    /// When the next of them is decided at the latest.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.by_node.values().map(|second| second.until).min()
    }

    /// Who gets in now: its first session has ended, or was silent. Those whose first session lives are refused.
    pub(super) fn decided(&mut self, links: &HashMap<String, Link>) -> Vec<Joining> {
        let now = Instant::now();
        let decided = self
            .by_node
            .extract_if(.., |node, second| !links.contains_key(node) || now >= second.until);
        let mut admitted = Vec::new();
        for (node, Second { joining, heard, .. }) in decided {
            match links.get(&node) {
                Some(first) if first.peer.heard() > heard => {
                    tracing::warn!("refused a second instance of {node}: the first lives, and stays");
                    let since_unix_s = first.since_unix_s;
                    refuse(joining, JoinRefused::OtherInstance { node, since_unix_s });
                }
                // One that hung up meanwhile is in nobody's place.
                _ if joining.answer.is_closed() => {}
                _ => admitted.push(joining),
            }
        }
        admitted
    }

    /// The rounds are over: nobody waits for a place in them.
    pub(super) fn refuse_all(&mut self, why: impl Fn(&str) -> String) {
        for (node, second) in std::mem::take(&mut self.by_node) {
            refuse(second.joining, JoinRefused::Rules(why(&node)));
        }
    }
}

fn refuse(joining: Joining, why: JoinRefused) {
    // One that hung up meanwhile needs no answer.
    let _ = joining.answer.send(Err(why));
}
