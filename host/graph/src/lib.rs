//! ONNX in, training and evaluation ONNX out.
//!
//! A forward model ([`Model`]) is read within [`Limits`] into the crate's own representation, differentiated in reverse mode, and
//! written as two graphs of standard operators ([`train`]): one step of training, optimizer included, and an evaluation.
//! So whatever runs ONNX inference can train. An engine takes an [`EngineGraph`] and nothing else; it can be had from this
//! crate alone, so no byte of a stranger's file reaches native code.
//!
//! # Interface of a training graph
//! Stable; names are exactly these, `N` is the batch size, `P` a parameter's name.
//!
//! | input | type | meaning |
//! | --- | --- | --- |
//! | the model's own (`x`, ...) | the model's | a batch of data |
//! | `mask/K` | f32 | training only: 1 for each element that the dropout K (from 0) keeps, else 0 ([`TrainOptions::dropout`]); in a federation the host draws it |
//! | `labels` | i64 [N] | class of each row; f32 of another shape for other losses ([`Loss`]) |
//! | `P` | f32 | each parameter, frozen ones too |
//! | a statistic's name | f32 | batch norm's running mean or variance |
//! | `learning_rate` | f32 [1] | with an optimizer |
//! | `step` | i64 [1] | with an optimizer; counts from 1 |
//! | `state/SLOT/P` | f32 | optimizer state: `momentum`; `m` and `v`; zeros before step 1 |
//! | `anchor/P` | f32 | with a proximal term: the parameter as the round began |
//!
//! | output | type | meaning |
//! | --- | --- | --- |
//! | `loss` | f32 [1] | mean over the rows |
//! | `grad/P` | f32 | without an optimizer, or when asked for |
//! | `next/P` | f32 | with an optimizer: the parameter after the step |
//! | `next/state/SLOT/P` | f32 | the state after the step |
//! | `next/STATISTIC` | f32 | the running statistic after the step |
//!
//! The evaluation graph has the inputs up to the statistics, and the outputs `loss`, `correct` (i64 [1], for losses with classes) and the
//! model's own.
//! Metadata `cloister.*` hold the loss, the optimizer with its constants, and the kind of each port ([`PortKind`]).
//! A parameter that is a scalar in the model passes through ports with the shape `[1]`. A float initializer of several elements that reaches
//! an output only where no gradient passes (through `Round`, a comparison, an exponent) is refused, unless it is frozen: then it is a
//! constant of the graphs, and no port.
//!
//! # Steps in TorchScript
//! For the optional engine around libtorch there is a second language: a *step*, a text of ports and of one straight line of
//! statements out of a list of operators. It is read within the same [`Limits`] and written anew as well. `torch` says more.
//!
//! # Order of work
//! `onnx` (bytes to `document`) → `roles` (which initializers are parameters) → `bind` (batch size and shapes) and `lower`
//! (operators made of others written out) →
//! `differentiate` with the rules in `ops` → `loss`, `optimizer` → `train` → `onnx` (canonical bytes).
#![forbid(unsafe_code)]

mod bind;
mod builder;
mod differentiate;
mod document;
mod engine_graph;
mod error;
mod export;
mod fold;
mod ir;
mod limits;
mod loss;
mod lower;
mod model;
mod onnx;
mod ops;
mod optimizer;
mod options;
mod port;
mod roles;
pub mod samples;
mod torch;
mod train;
pub mod tuning;

pub use engine_graph::{EngineGraph, Language};
pub use error::{GraphError, Place};
pub use export::export_forward;
pub use ir::Operator;
pub use limits::Limits;
pub use loss::Loss;
pub use model::{Model, ModelInput};
pub use ops::{ConvLayer, WeightGradient};
pub use optimizer::Optimizer;
pub use options::TrainOptions;
pub use port::{DropRatio, Port, PortKind};
pub use train::{TrainedGraphs, train};

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::needless_range_loop,
    reason = "a test that panics says where; indices read as in the formulas"
)]
// indices read better in oracles
mod tests;
