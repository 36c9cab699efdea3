//! Quote in, verdict out.
//!
//! What a node runs is a [`measurement`]; who it is, an [`identity`]. Both stand in the [`claims`] that a TD quote's
//! report data commits to. [`session`]'s handshake shows them to a peer bound to one TLS connection, and what comes out
//! is a [`VerifiedEvidence`]: nothing but this crate can make one.
//!
//! No clock, no network, no tokio: times come in as seconds since 1970, quotes through a [`QuoteProvider`].

pub mod claims;
pub mod encoding;
pub mod event_log;
mod evidence;
mod files;
pub mod identity;
pub mod measurement;
mod provider;
pub mod providers;
pub mod quote;
pub mod ratls;
mod refusal;
pub mod session;
pub mod simulated;
pub mod time;
mod verify;

pub use claims::{Claims, NodeClaims, State};
pub use event_log::{EventLog, RuntimeEvent};
pub use evidence::{
    Appraise, DetachedEvidence, PeerEvidence, VerifiedEvidence, VerifiedTd, VerifiedVisitor, verify_applicant,
    verify_detached,
};
pub use provider::{ProviderError, QuoteProvider};
pub use quote::{Quote, TdReport};
pub use ratls::{NodeIdentity, RaTlsIdentity};
pub use refusal::{FailedRule, Refusal};
pub use verify::{
    ClaimedPlatform, Collateral, CollateralDates, CollateralError, CollateralParts, Examination, MAX_WATERMARK_BYTES,
    Platform, RootError, Tcb, TrustRoot, VerdictCache, VerifiedCollateral, VerifiedQuote, Verifier, Watermarks,
    claimed_platform,
};
