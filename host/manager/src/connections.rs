//! The last request of each connection, so that none is answered twice. In memory alone: a connection is a TLS session of this process,
//! and ends with it.

use std::collections::{BTreeMap, VecDeque};

use cloister_tensor::Digest;

use crate::refused::Refused;
use crate::release::Asker;

/// Most connections of one node whose requests are remembered; one more makes the node forget the one that ends first.
pub const MAX_CONNECTIONS_OF_NODE: usize = 64;

/// What was asked over the connections of the policy in force: of each node apart, so that none takes another's room.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    /// Leave by another policy is refused before anything is counted, so what was counted under one is of no use under the next.
    policy: Option<Digest>,
    nodes: BTreeMap<String, OfNode>,
}

#[derive(Debug, Default)]
struct OfNode {
    /// The newest connections over which anything was done.
    known: VecDeque<[u8; 32]>,
    asked: Vec<Asked>,
    /// The latest end of a connection that was forgotten. One that is not known and ends no later may be that one.
    forgotten_unix_s: u64,
}

#[derive(Debug)]
struct Asked {
    connection: [u8; 32],
    last: u64,
    ends_unix_s: u64,
}

impl Connections {
    /// Whether this is the first that comes over the asker's connection.
    pub(crate) fn meet(&mut self, asker: &Asker<'_>) -> bool {
        self.of(asker).meet(asker.leave.connection)
    }

    fn of(&mut self, asker: &Asker<'_>) -> &mut OfNode {
        let policy = asker.leave.policy_digest;
        if self.policy != Some(policy) {
            self.policy = Some(policy);
            self.nodes.clear();
        }
        // The policy names the node, and so bounds how many there are.
        self.nodes.entry(asker.node().to_owned()).or_default()
    }

    /// Counts a request, or refuses one that came before.
    pub(crate) fn count(&mut self, asker: &Asker<'_>, sequence: u64) -> Result<(), Refused> {
        let leave = &asker.leave;
        let node = self.of(asker);
        if let Some(asked) = node
            .asked
            .iter_mut()
            .find(|asked| asked.connection == *leave.connection)
        {
            let last = asked.last;
            if sequence <= last {
                return Err(Refused::Replayed { seen: sequence, last });
            }
            asked.last = sequence;
            return Ok(());
        }
        node.make_room(asker)?;
        node.asked.push(Asked {
            connection: *leave.connection,
            last: sequence,
            ends_unix_s: leave.expiry_unix_s,
        });
        Ok(())
    }
}

impl OfNode {
    /// Whether the connection is a new one, as far as that is remembered.
    fn meet(&mut self, connection: &[u8; 32]) -> bool {
        if self.known.contains(connection) {
            return false;
        }
        if self.known.len() >= MAX_CONNECTIONS_OF_NODE {
            self.known.pop_front();
        }
        self.known.push_back(*connection);
        true
    }

    /// Forgets the connection that ends first. Leave has one end for as long as its connection is there: whoever connects anew ends
    /// later than what is forgotten for it, and what was forgotten ends no later, by which it is refused.
    fn make_room(&mut self, asker: &Asker<'_>) -> Result<(), Refused> {
        let ends_unix_s = asker.leave.expiry_unix_s;
        if ends_unix_s <= self.forgotten_unix_s {
            let node = asker.node().to_owned();
            return Err(Refused::PermitEnded { node });
        }
        if self.asked.len() < MAX_CONNECTIONS_OF_NODE {
            return Ok(());
        }
        // Those of a clock that jumped are refused for their end, as long as it does not jump there again.
        self.asked.retain(|asked| asked.ends_unix_s <= asker.latest_unix_s);
        if self.asked.len() < MAX_CONNECTIONS_OF_NODE {
            return Ok(());
        }
        let first = self.asked.iter().map(|asked| asked.ends_unix_s).min();
        let Some(first) = first.filter(|first| *first < ends_unix_s) else {
            let (what, limit) = ("connections of this node that asked for keys", MAX_CONNECTIONS_OF_NODE);
            return Err(Refused::Full { what, limit });
        };
        self.asked.retain(|asked| asked.ends_unix_s > first);
        self.forgotten_unix_s = first;
        Ok(())
    }
}
