//! What every engine must do alike, with ONNX Runtime among them: the tests of `cloister-engine`, compiled once more.
#![allow(
    clippy::expect_used,
    clippy::duplicate_mod,
    clippy::module_inception,
    reason = "each file of tests brings what it shares with the others"
)]

#[path = "../../engine/tests/conformance.rs"]
mod conformance;
#[path = "../../engine/tests/gradients.rs"]
mod gradients;
#[path = "../../engine/tests/operators.rs"]
mod operators;
#[path = "../../engine/tests/precision.rs"]
mod precision;
#[path = "../../engine/tests/properties.rs"]
mod properties;
