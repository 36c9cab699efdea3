//! The agreement of a federation: parsed at the edge into bounded types, signed, explained, and applied: verified evidence
//! goes in, a permit or the list of rules that failed comes out.
//!
//! Nothing in here touches a file, a clock or the network.
#![forbid(unsafe_code)]

pub mod dataset;
mod reader;

pub use dataset::{DatasetSpec, InputSpec, InputType};
pub use reader::{PolicyError, Problem, Scalar};
