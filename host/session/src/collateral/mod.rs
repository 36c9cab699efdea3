//! Collateral out of a PCCS or Intel's PCS, or out of a file that somebody brings: verified, kept, and renewed before it ends.
//!
//! ```text
//! [collateral] url --Client-+-> Collateral --verify--> VerifiedCollateral --Watermarks::admit--> Verifier, cache
//!           bundle ---------+
//! ```
//! Handshakes never wait for it: a [`Store`] is filled before the node takes part, and a thread of its own renews it. What could
//! not be renewed for one family of platforms leaves the others' alone, and its own as it was.

mod client;
mod family;
mod held;
mod http;
mod store;

pub use client::{Client, Source};
pub use family::{Authority, NoFamily, PlatformFamily};
pub use held::{Held, Refresher};
pub(crate) use http::{Http, Question};
pub use store::{Store, StoreError, Supply};

/// Why there is no collateral.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The file of authorities for HTTPS can't be used.
    #[error("the authorities for HTTPS in {path} can't be used: {cause}")]
    Authorities {
        /// The file.
        path: String,
        /// Why.
        cause: String,
    },
    /// The service can't be reached, or broke off.
    #[error("{url}: {cause}")]
    Transport {
        /// What was asked for.
        url: String,
        /// What went wrong.
        cause: String,
    },
    /// Whoever answers there is not known to be the service.
    #[error(
        "{url}: the service's certificate is refused: {cause}; name the file of the authority that issued it (PEM) as `authorities`, and the \
         service by the name that is in its certificate"
    )]
    Certificate {
        /// What was asked for.
        url: String,
        /// Why.
        cause: String,
    },
    /// The service said no.
    #[error("{url} answered {status}, wanted 200{}", hint(*status))]
    Status {
        /// What was asked for.
        url: String,
        /// HTTP status.
        status: u16,
        /// When to ask again, in seconds, if it said.
        retry_after_s: Option<u64>,
    },
    /// What it answered is no collateral.
    #[error("{url}: {cause}")]
    Answer {
        /// What was asked for.
        url: String,
        /// What was wrong.
        cause: String,
    },
}

fn hint(status: u16) -> &'static str {
    match status {
        404 => ": it does not know that platform family (FMSPC)",
        429 => ": too many requests",
        _ => "",
    }
}

impl FetchError {
    /// Whether the same question may well be answered later, and how long to wait at least.
    pub fn retry_after_s(&self) -> Option<u64> {
        match self {
            Self::Transport { .. } => Some(1),
            Self::Status {
                status, retry_after_s, ..
            } => match status {
                429 | 503 => Some(retry_after_s.unwrap_or(5)),
                500..=599 => Some(1),
                _ => None,
            },
            Self::Authorities { .. } | Self::Certificate { .. } | Self::Answer { .. } => None,
        }
    }
}
