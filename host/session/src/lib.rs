//! Attested connections: TLS 1.3, then evidence both ways, then HTTP/2.
//!
//! There is no way to a connection but through the attestation: [`connect`] and [`Listener`] give an
//! [`AttestedConnection`] only after the peer's evidence was verified and the policy made a permit (or a visit) out of it.
//! Over that connection gRPC runs unchanged: [`channel`] for the end that dialled, [`Listener::incoming`] for
//! `serve_with_incoming` of the end that listened.
//!
//! What the transport fixes: TLS 1.3 only, key exchange X25519MLKEM768 first and X25519 behind it, ALPN `cloister/1`,
//! certificates from both ends, no resumption and no tickets (a resumed handshake would skip the verifier), ten seconds
//! from the first byte to the last verdict, and bounds on how many handshakes and connections there are at a time, and how
//! often one peer may have a session. A connection is attested anew before its permit ends, and ends with it.
#![forbid(unsafe_code)]

pub mod channel;
pub mod collateral;
mod connection;
mod crowd;
mod dial;
mod error;
mod handshake;
pub mod kbs;
mod lease;
mod listen;
mod local;
mod policies;
mod proxy;
mod quotes;
mod rate;
pub mod tls;

pub use connection::{AttestedConnection, Peer};
pub use dial::{DialOptions, connect};
pub use error::{ProxyError, SessionError};
pub use listen::{ListenLimits, Listener, OnRefused};
pub use local::{Clock, Local, NodeSide, SelfSide, SessionMemory};
pub use policies::{MAX_POLICIES_BYTES, MAX_POLICY_FILE_BYTES, PolicyBook, PolicyFile, fetch_policies};
pub use proxy::Proxy;
pub use quotes::{QuoteError, QuoteService, SessionQuote};
pub use rate::Rate;

/// How long a connection may take from the first byte to the last verdict, in seconds.
pub const HANDSHAKE_S: u64 = 10;

/// How long TLS and the dialler's Hello may take, in seconds: neither needs a quote.
pub const HELLO_S: u64 = 4;

/// How long one that dialled a listener may say nothing, in seconds. It speaks first in TLS, so an honest one does at once.
pub const FIRST_BYTES_S: u64 = 2;
