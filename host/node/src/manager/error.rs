//! What can go wrong between a manager and those who dial it.

use cloister_attestation::Refusal;
use cloister_session::SessionError;

/// Why a call to the manager came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// No attested connection.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The manager refused.
    #[error("the manager refused {what}: {message}")]
    Refused {
        /// What was asked for.
        what: &'static str,
        /// The refusal's word, for programs.
        code: String,
        /// What it says: seen, wanted, what to do.
        message: String,
    },
    /// It can't now: it waits for shares or witnesses, or has too much to do.
    #[error("the manager can't answer {what} yet: {message}")]
    Later {
        /// What was asked for.
        what: &'static str,
        /// Why.
        message: String,
    },
    /// The call broke.
    #[error("{what}: {message}")]
    Call {
        /// What was asked for.
        what: &'static str,
        /// What the connection says.
        message: String,
    },
    /// An answer that can't be right.
    #[error("the manager sent {what} that is not valid: {cause}")]
    Message {
        /// Which.
        what: &'static str,
        /// Why.
        cause: String,
    },
    /// The manager's state is not the one that was seen.
    #[error("{0}")]
    NotTheNewest(String),
    /// The link to the manager has ended for good.
    #[error("the manager's link has ended: {0}")]
    Ended(String),
}

impl ManagerError {
    /// The refusal, if attestation refused on either side (exit code 3).
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Session(error) => error.refusal(),
            _ => None,
        }
    }

    /// Whether asking again later may help.
    pub fn passing(&self) -> bool {
        match self {
            Self::Session(error) => error.passing(),
            Self::Later { .. } | Self::Call { .. } => true,
            Self::Refused { .. } | Self::Message { .. } | Self::NotTheNewest(_) | Self::Ended(_) => false,
        }
    }

    /// Whether the manager is not the one that was seen, or an older state of it: by what this node remembers, or by what the manager says to
    /// that.
    pub fn put_back(&self) -> bool {
        matches!(self, Self::NotTheNewest(_))
            || ["manager-older", "manager-other", "manager-forked"]
                .iter()
                .any(|word| self.is(word))
    }

    /// Whether the manager refused with that word.
    pub fn is(&self, wanted: &str) -> bool {
        matches!(self, Self::Refused { code, .. } if code == wanted)
    }

    pub(super) fn call(what: &'static str, status: &tonic::Status) -> Self {
        let tame = |text: &str, most: usize| -> String {
            let kept = text.chars().filter(|one| !one.is_control() || *one == '\n');
            kept.take(most).collect()
        };
        let message = tame(status.message(), 2_000);
        match status.code() {
            tonic::Code::PermissionDenied | tonic::Code::InvalidArgument | tonic::Code::Unauthenticated => {
                let code = status
                    .metadata()
                    .get(super::REFUSED)
                    .and_then(|word| word.to_str().ok());
                Self::Refused {
                    what,
                    code: tame(code.unwrap_or_default(), 64),
                    message,
                }
            }
            tonic::Code::Unavailable if status.metadata().contains_key(super::REFUSED) => Self::Later { what, message },
            _ => Self::Call { what, message },
        }
    }
}
