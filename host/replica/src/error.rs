//! What can be wrong with replicas.

use cloister_manager::{OpenError, StoreError};

/// Why a replica can't do something.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// Only the leader can.
    #[error("this manager follows; {leader} leads")]
    NotLeading {
        /// Who leads, in words.
        leader: String,
    },
    /// Too few replicas answer.
    #[error("too few managers can be reached ({0}): nothing is granted until more of them can")]
    NoQuorum(String),
    /// There are not as many as it takes to begin.
    #[error("{have} of {wanted} managers take part; start the others, which join by themselves")]
    TooFew {
        /// How many take part.
        have: usize,
        /// How many it takes.
        wanted: usize,
    },
    /// A message of another replica can't be read, or is for another start of this one.
    #[error("a message between managers was refused: {0}")]
    Message(String),
    /// The state can't be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Its store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It has ended; its log says why.
    #[error("this replica has ended ({0}); start the manager again, it takes the state from the others")]
    Ended(String),
}
