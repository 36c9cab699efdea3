//! What ends an exchange other than its last round.

use cloister_attestation::Refusal;
use cloister_rounds::worker::AggregatorFault;
use cloister_session::SessionError;

use crate::sink::SinkError;
use crate::work::{ModuleFailure, WorkError};

/// Why an exchange ended.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// No attested connection.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// Another member of the roster was refused.
    #[error("refused {node}, a member of the roster: {refusal}")]
    RosterRefused {
        /// Whom.
        node: String,
        /// Rule by rule.
        refusal: Refusal,
    },
    /// The peer does what no honest peer does.
    #[error(transparent)]
    Aggregator(#[from] AggregatorFault),
    /// The aggregator took this worker off for good.
    #[error("the aggregator dropped this node ({code}): {reason}{}", own_failure(.failure.as_ref()))]
    Dropped {
        /// A word.
        code: String,
        /// In words.
        reason: String,
        /// What went wrong on this node last, if anything did: the aggregator knows no more of it than code and digest.
        failure: Option<RoundFailure>,
    },
    /// Somebody started this node twice.
    #[error(
        "another instance of {node} takes part since {since}, and lives: a node runs once, so this one ends. If that is the one \
         to end, stop it, then start this one again"
    )]
    OtherInstance {
        /// Which node.
        node: String,
        /// When the other one joined.
        since: String,
    },
    /// A call was refused or broke.
    #[error("{what}: {message}")]
    Call {
        /// What was asked for.
        what: String,
        /// gRPC's word for the failure.
        code: tonic::Code,
        /// What the peer or the connection says.
        message: String,
    },
    /// A message that can't be right.
    #[error("the peer sent {what} that is not valid: {cause}")]
    Message {
        /// Which.
        what: &'static str,
        /// Why.
        cause: String,
    },
    /// What came differs from its digest.
    #[error("{what} came with the digest {seen}, wanted {wanted}")]
    Digest {
        /// Which.
        what: String,
        /// Of what came.
        seen: String,
        /// As named.
        wanted: String,
    },
    /// The node's own part failed.
    #[error(transparent)]
    Work(#[from] WorkError),
    /// No buffer for a model.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// The store's folder fails.
    #[error("the content store: {what} {path}: {source}")]
    Store {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The aggregation kept failing.
    #[error("round {round}: the aggregation failed {failures} times, last: {cause}")]
    Aggregation {
        /// Which round.
        round: u64,
        /// How often.
        failures: u32,
        /// The last cause.
        cause: String,
    },
    /// Too few workers are left that may still join.
    #[error(
        "round {round} cannot be run: {barred} misbehaved {strikes} times each and may not join again, and {needed} workers are needed. \
         Look at their logs; the aggregator, started again, goes on with this round"
    )]
    TooFew {
        /// Which round.
        round: u64,
        /// Who may not join again.
        barred: String,
        /// How often each of them misbehaved.
        strikes: u32,
        /// How many are needed.
        needed: usize,
    },
    /// Nobody was reachable for too long.
    #[error("gave up after {seconds} s without a session: {last}")]
    GaveUp {
        /// How long.
        seconds: u64,
        /// The last failure.
        last: String,
    },
    /// The node was told to stop.
    #[error("stopped before the last round")]
    Cancelled,
}

/// A module's failure on this node.
#[derive(Clone, Debug)]
pub struct RoundFailure {
    /// In which round.
    pub round: u64,
    /// What failed, and why.
    pub failure: ModuleFailure,
}

fn own_failure(failure: Option<&RoundFailure>) -> String {
    failure.map_or(String::new(), |RoundFailure { round, failure }| {
        format!(". What failed on this node, in round {round}: {failure}")
    })
}

impl ExchangeError {
    /// The refusal, if attestation refused on either side (exit code 3).
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Session(error) => error.refusal(),
            Self::RosterRefused { refusal, .. } => Some(refusal),
            _ => None,
        }
    }

    /// Whether the policy denies what was asked (exit code 4).
    pub fn denied(&self) -> bool {
        matches!(
            self,
            Self::Call {
                code: tonic::Code::PermissionDenied,
                ..
            }
        )
    }

    pub(crate) fn call(what: impl Into<String>, status: &tonic::Status) -> Self {
        let message = status
            .message()
            .chars()
            .filter(|character| !character.is_control() || *character == '\n');
        Self::Call {
            what: what.into(),
            code: status.code(),
            message: message.take(2_000).collect(),
        }
    }
}
