//! The audit log of a node: what it agreed to, whom it let in and whom it refused, which rounds it ran.
//!
//! A log is a text file, a JSON object a line. Each line has the digest of the one before it, and the node's signature; so who has
//! the node's public key and the last line knows that every line before it is what the node wrote, in that order. What a chain
//! can't show is that its end was cut off: against that, others keep a [`Checkpoint`], and a log that does not extend it is no
//! continuation of what they saw.
//!
//! The bytes stand in `FORMAT.md` beside this crate. Times are given to it, and paths; it reads no clock.
#![forbid(unsafe_code)]

mod chain;
mod checkpoint;
mod error;
mod line;
mod log;
mod read;

pub use chain::Chain;
pub use checkpoint::Checkpoint;
pub use error::AuditError;
pub use line::{Entry, MAX_LINE_BYTES, Subject};
pub use log::{Log, MAX_LOG_BYTES};
pub use read::{Contents, Reader};
