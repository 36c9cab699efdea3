//! What a node does in its role: the keeper's part of rounds, with the runner doing the computing.

pub mod aggregator;
mod checkpoint;
pub mod watch;
pub mod worker;
