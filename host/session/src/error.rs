//! Why there is no connection.

use cloister_attestation::claims::NodeClaims;
use cloister_attestation::ratls::CertificateNames;
use cloister_attestation::{FailedRule, Refusal};

use crate::quotes::QuoteError;

/// The way through the proxy failed.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// Text that is no address.
    #[error("{text:?} is no address of a proxy; wanted http://HOST:PORT")]
    Address {
        /// As given.
        text: String,
    },
    /// It can't be reached.
    #[error("the proxy {proxy} can't be reached: {source}")]
    Io {
        /// Its address.
        proxy: String,
        /// Why.
        source: std::io::Error,
    },
    /// It refuses.
    #[error("the proxy {proxy} does not connect us: {answer:?}; wanted HTTP status 2xx to CONNECT")]
    Answer {
        /// Its address.
        proxy: String,
        /// Its status line, without control characters, cut.
        answer: String,
    },
}

/// A connection that did not come to be. Whose fault it is stands in the variant.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Nobody answers.
    #[error("{address} can't be reached: {source}")]
    Unreachable {
        /// Who.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// The proxy failed.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// No TLS came about: the peer speaks something else, or not this TLS.
    #[error("no TLS with {address}: {cause}; wanted TLS 1.3, ALPN cloister/1 and a certificate from both ends")]
    Tls {
        /// Who.
        address: String,
        /// What the TLS library says.
        cause: String,
    },
    /// Somebody ends TLS in between.
    #[error(
        "a TLS proxy stands between this node and {address}: what answers there shows a certificate of {}, issued by {}, without \
         evidence of a TD; have it pass this connection's TLS through unopened, or go out by `proxy` (CONNECT)",
        names.subject, names.issuer
    )]
    Intercepted {
        /// Who was dialled.
        address: String,
        /// Whose certificate it is.
        names: CertificateNames,
        /// The same as a rule that failed.
        refusal: Refusal,
    },
    /// The peer has no time for this side now. Trying again later helps.
    #[error("{address} takes no session now: {reason}")]
    PeerBusy {
        /// Who.
        address: String,
        /// What it says.
        reason: FailedRule,
    },
    /// It knows no policies of that federation.
    #[error(
        "{address} has no policy in force of the federation with the anchor {anchor}; until the founders have signed the first one \
         there is none (`cloister manager status`)"
    )]
    NoPolicies {
        /// Who.
        address: String,
        /// The anchor that was asked for.
        anchor: cloister_tensor::Digest,
    },
    /// The stream broke or the frames on it are none.
    #[error("the session with {address} broke before it was attested: {cause}")]
    Broken {
        /// Who.
        address: String,
        /// How.
        cause: String,
    },
    /// It dialled and said nothing.
    #[error("{address} sent nothing within {seconds} s; wanted the first bytes of a TLS handshake")]
    Silent {
        /// Who.
        address: String,
        /// The limit.
        seconds: u64,
    },
    /// The ten seconds are over.
    #[error("{address} did not finish the attested handshake within {seconds} s")]
    TooSlow {
        /// Who.
        address: String,
        /// The limit.
        seconds: u64,
    },
    /// This side refuses the peer.
    #[error("refused {address}{who}: {refusal}")]
    RefusedPeer {
        /// Who.
        address: String,
        /// What it was verified to be, ` (role node of participant)`; empty if its evidence already failed.
        who: String,
        /// What its certificate claims, verified or not.
        claimed: Option<Box<NodeClaims>>,
        /// Rule by rule.
        refusal: Refusal,
    },
    /// The peer refuses this side, and says why.
    #[error("{address} refused this node: {refusal}")]
    RefusedByPeer {
        /// Who.
        address: String,
        /// Rule by rule, as the peer told.
        refusal: Refusal,
    },
    /// No quote for this side's evidence.
    #[error("no quote for the session with {address}: {source}")]
    Quote {
        /// Who.
        address: String,
        /// Why.
        source: QuoteError,
    },
    /// This side's own certificate or key is not usable.
    #[error("this side's own TLS identity can't be used: {cause}")]
    Own {
        /// Why.
        cause: String,
    },
    /// The address can't be listened on.
    #[error("can't listen on {address}: {source}")]
    Listen {
        /// Which.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// HTTP/2 did not start on the attested connection.
    #[error("no HTTP/2 on the attested connection: {cause}")]
    Http {
        /// Why.
        cause: String,
    },
}

impl SessionError {
    /// Whether attestation refused, on either side (exit code 3), as opposed to a network that failed.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::RefusedPeer { refusal, .. }
            | Self::RefusedByPeer { refusal, .. }
            | Self::Intercepted { refusal, .. } => Some(refusal),
            _ => None,
        }
    }

    /// Whether trying again later may help: networks, and ends that are busy. Verdicts stay.
    pub fn passing(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Proxy(_)
            | Self::Tls { .. }
            | Self::Broken { .. }
            | Self::Silent { .. }
            | Self::TooSlow { .. }
            | Self::PeerBusy { .. }
            | Self::NoPolicies { .. }
            | Self::Http { .. } => true,
            Self::Quote { source, .. } => matches!(source, QuoteError::Busy { .. }),
            Self::Intercepted { .. }
            | Self::RefusedPeer { .. }
            | Self::RefusedByPeer { .. }
            | Self::Own { .. }
            | Self::Listen { .. } => false,
        }
    }
}
