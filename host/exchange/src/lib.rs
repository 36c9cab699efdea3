//! Rounds over attested sessions: who joins, which bytes move, what is kept.
//!
//! The logic of rounds is in `cloister-rounds`, pure; the attested connections are in `cloister-session`. Here the one
//! drives the other: [`aggregator::run`] and [`worker::run`] are the two ends of a federation, [`content`] is the store
//! into which participants submit what the policy names. What a round computes comes from outside, through the traits
//! of [`work`]; what is to be shown goes out through [`progress::Progress`].
//!
//! Tensors move in chunks of at most 1 MiB, out of refcounted buffers and into buffers that the node gives
//! ([`sink::ModelSink`]): the aggregator holds the model, the aggregate and at most two updates, however many workers
//! there are.
#![forbid(unsafe_code)]

pub mod aggregator;
mod chunks;
pub mod client;
pub mod content;
mod convert;
mod error;
pub mod progress;
mod roster;
pub mod service;
pub mod sink;
pub mod work;
pub mod worker;

pub use error::{ExchangeError, RoundFailure};
