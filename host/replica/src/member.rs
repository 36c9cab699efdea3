//! Who takes part.

use std::fmt;

use openraft::Entry;
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::sync::Arc;

openraft::declare_raft_types!(
    /// What openraft is to replicate.
    pub(crate) Types:
        D = Payload,
        R = Taken,
        NodeId = u64,
        Node = Member,
        Entry = Entry<Types>,
        SnapshotData = tokio::fs::File,
);

pub(crate) type Raft = openraft::Raft<Types>;

/// One start of a replica: random, in memory alone, so that no disk can bring back who it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId(pub u64);

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A replica's node and where it listens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// The manager's node in the policy.
    pub name: String,
    /// Where the others dial it.
    pub address: String,
}

/// The bytes of a batch.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Payload(pub(crate) Arc<[u8]>);

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.0.len())
    }
}

impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Payload;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Payload, E> {
                Ok(Payload(bytes.into()))
            }

            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Payload, E> {
                Ok(Payload(bytes.into()))
            }
        }
        deserializer.deserialize_byte_buf(Bytes)
    }
}

/// Whether a batch followed the state, or was passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Taken(pub(crate) bool);

/// What a replica knows of all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Which start of this replica it is.
    pub id: ReplicaId,
    /// Who leads, as far as this replica knows.
    pub leader: Option<Member>,
    /// Those that take part.
    pub replicas: Vec<Shown>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Which start of it.
    pub id: ReplicaId,
    /// Its node and address.
    pub member: Member,
    /// Whether it counts already; one that has just come is sent the state first.
    pub votes: bool,
    /// How many entries of the log it lacks; only the leader knows.
    pub lag: Option<u64>,
}
