//! What can be wrong with a log, and what to do about it.

use std::io;

use cloister_tensor::Digest;

/// Why a log was not written to, or not believed.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The system refused.
    #[error("the audit log cannot be {what}: {cause}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The system's error.
        #[source]
        cause: io::Error,
    },
    /// Another process writes to it.
    #[error("another process writes to this audit log; wait for it to end, or name another file")]
    InUse,
    /// The log has reached its largest size.
    #[error("the audit log has reached {limit} bytes; move it away (keep it), and a new one begins")]
    Full {
        /// The largest size.
        limit: u64,
    },
    /// An entry is larger than a line may be.
    #[error("an entry of {seen} bytes; a line has at most {limit}")]
    TooLong {
        /// Its size.
        seen: usize,
        /// The largest size.
        limit: usize,
    },
    /// A line is not one of an audit log.
    #[error("line {line} is no line of an audit log: {why}")]
    Malformed {
        /// Which, from 1.
        line: u64,
        /// What is wrong.
        why: String,
    },
    /// A line does not follow the one before it.
    #[error(
        "line {line} does not follow the one before it ({what}): a line was changed, removed, added or moved there, or it is another node's log"
    )]
    Broken {
        /// Which, from 1.
        line: u64,
        /// What does not fit.
        what: &'static str,
    },
    /// The last line is not signed by the node.
    #[error("line {line}, the last one, is not signed by this node's key: others wrote it, or the node has a new key")]
    Unsigned {
        /// Which, from 1.
        line: u64,
    },
    /// A checkpoint file does not parse.
    #[error("this is no checkpoint: {why}; `cloister audit verify --save` writes one")]
    NoCheckpoint {
        /// What is wrong.
        why: String,
    },
    /// A checkpoint is of another node, or not signed by it.
    #[error("the checkpoint is not one of this node: {why}")]
    StrangeCheckpoint {
        /// What does not fit.
        why: &'static str,
    },
    /// The log has fewer lines than the checkpoint saw.
    #[error(
        "the log has {lines} lines, but the checkpoint saw {wanted}: its end was cut off, or an older copy was put back"
    )]
    CutOff {
        /// How many lines there are.
        lines: u64,
        /// How many the checkpoint saw.
        wanted: u64,
    },
    /// The log has another line where the checkpoint saw one.
    #[error("line {line} is {seen}, but the checkpoint saw {wanted}: the node signed two histories")]
    Forked {
        /// Which, from 1.
        line: u64,
        /// The line's digest in the log.
        seen: Digest,
        /// The line's digest in the checkpoint.
        wanted: Digest,
    },
}

impl AuditError {
    pub(crate) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |cause| Self::Io { what, cause }
    }
}
