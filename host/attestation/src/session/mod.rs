//! Layer 2: evidence bound to one TLS 1.3 connection, before any byte of HTTP/2. No I/O and no clock in here.
//!
//! Frames of [`cloister_wire::frame`]: `Hello` by both ends; `Evidence` by the dialler; the listener verifies it, then
//! sends its own `Evidence` and its `Verdict`; the dialler verifies and sends its `Verdict`; HTTP/2 follows. Whoever
//! refuses sends a `Verdict` with every rule that failed instead of what was due, and closes.
//!
//! The quote's report data ([`Binding`](binding)) names the end, the connection's exporter, both TLS keys, the peer's
//! nonce, the claims of layer 1 and the measurement root: so evidence of another connection, of the other direction, of
//! another time or of another node does not fit. Where sessions come in bursts, one quote serves many ([`batch`]). Layer 1 and layer 2 must be of the same TD on the same platform.

mod batch;
mod binding;
mod handshake;
mod peer;

#[cfg(test)]
mod tests;

pub use batch::{BatchPath, MAX_BATCH, PathError, batch};
pub use binding::{EXPORTER_LABEL, Side, applicant_report_data, roster_report_data};
pub use handshake::{Action, Handshake, HandshakeError, HandshakeInput, SelfInfo};

/// Version of the session protocol in `Hello`.
pub const VERSION: u32 = 1;
/// Longest time that a handshake may take, in seconds, TLS included: the caller keeps it.
pub const HANDSHAKE_DEADLINE_S: u64 = 10;
