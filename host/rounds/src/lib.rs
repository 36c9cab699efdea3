//! Round and aggregation logic: who takes part, whose update comes when, what a round's record says.
//!
//! Everything here is pure: no network, no clock, no threads but for the hashing of a large model. Time comes in as monotonic milliseconds, what happened as
//! [`aggregator::Event`]s, and what to do about it goes out as [`aggregator::Action`]s. The crate `exchange` drives these
//! machines over attested sessions.
//!
//! - [`aggregator::Aggregator`]: joins, roster epochs, rounds, upload slots, the fold order, deadlines, quorum.
//! - [`worker::Worker`]: the order in which a member may hear and say things, and the chain of digests it holds the
//!   aggregator to.
//! - [`layout::Layout`] and [`reception::Reception`]: what a model on the wire looks like, and its check byte by byte.
//! - [`roster`] and [`receipt`]: what members agree on, what the aggregator signs.
#![forbid(unsafe_code)]

pub mod aggregator;
pub mod layout;
mod model_digest;
pub mod receipt;
pub mod reception;
pub mod refusal;
pub mod roster;
mod transcript;
pub mod worker;

pub use aggregator::{Action, Aggregator, Event, Pace, RoundsConfig};
pub use layout::{Layout, LayoutError, TensorSpec};
pub use receipt::{NoReceipt, Receipt};
pub use reception::Reception;
pub use refusal::{DropReason, RuleSeen, UpdateRefusal};
pub use roster::RosterEntry;
pub use worker::Worker;
