//! What a node does in its role: the keeper's part of rounds, with the runner doing the computing.

pub mod aggregator;
pub mod checkpoint;
pub mod ending;
pub mod manager;
pub mod watch;
pub mod worker;
