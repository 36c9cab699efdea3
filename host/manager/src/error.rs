//! What can be wrong with a store, and what to do about it. What a participant or node asked in vain is a [`crate::Refused`].

use crate::recovery::RecoveryError;

/// Why a store was not written, or not believed. Cloned for everybody whose work was in the commit that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The file can't be read or written.
    #[error("the manager's store cannot be {what}: {cause}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The cause.
        cause: String,
    },
    /// A record is not what was written there.
    #[error(
        "the manager's store holds {what} that is not what the manager wrote there ({why}): put back what belongs there, or a backup"
    )]
    Tampered {
        /// Which.
        what: String,
        /// What does not fit.
        why: String,
    },
    /// The records together are not those of the last commit.
    #[error(
        "records of different versions are mixed in the manager's store: some were put back or removed; restore a backup as a whole"
    )]
    Mixed,
    /// The system gave no randomness, or its cryptography refused.
    #[error("the system's cryptography refused; nothing was written")]
    Cryptography,
    /// An earlier commit failed: what is on disk is not known.
    #[error("an earlier commit failed, so what is on disk is not known; start the manager again")]
    Failed,
    /// Another manager leads, or too few of them can be reached: nothing is granted then.
    #[error("this manager does not lead ({0}); whether the work was done is not known, ask again")]
    NotLeading(String),
    /// The audit log takes no more.
    #[error("an entry of the audit log is too long ({0}); nothing was written")]
    Audit(String),
    /// More than one message between managers can carry.
    #[error("a commit of {0} bytes is too large; nothing was written")]
    TooLarge(usize),
}

impl StoreError {
    pub(crate) fn io<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |cause| Self::Io {
            what,
            cause: cause.to_string(),
        }
    }

    pub(crate) fn tampered(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Tampered {
            what: what.into(),
            why: why.into(),
        }
    }
}

/// Why a manager was not made or not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// There is a store already.
    #[error("a store is there already; a manager is made once, and later recovered (`cloister manager recover`)")]
    Exists,
    /// There is none.
    #[error("there is no store; name the manager's store, or make a new one")]
    Missing,
    /// Another process has it.
    #[error("another process has this store open; there is one manager at a time")]
    InUse,
    /// It is of another federation, node or anchor.
    #[error("the store is of {what} {seen}; {wanted} was wanted")]
    Other {
        /// What differs.
        what: &'static str,
        /// What stands in the store.
        seen: String,
        /// What was given.
        wanted: String,
    },
    /// The shares don't do.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    /// The store can't be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}
