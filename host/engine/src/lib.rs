//! Runs a graph: a small trait, two backends behind it, and what further ones stand on.
//!
//! - [`openvino`]: Intel's runtime over its C API, loaded at run time from a given directory. Inputs are read where
//!   they lie, outputs are written into pooled, aligned buffers, and nothing is copied on the way.
//! - [`tract`]: pure Rust, for machines without the runtime. Slower, same results within rounding.
//!
//! Backends in crates of their own (`cloister-engine-onnxruntime`, `cloister-engine-libtorch`) are off by default. They have the
//! same check of inputs ([`Intake`]), the same way of ending a run ([`Watchdog`]), and run the same tests.
//!
//! An engine takes [`EngineGraph`]s alone, which only `cloister_graph` makes, out of its own bounded representation:
//! no file from outside reaches native code as it came. Before a run, every tensor's type and shape is compared with
//! the [`Port`] it goes to; a missing, extra, repeated or ill-shaped input is an error that names the port.
//!
//! Engines compute in f32 where the graph says f32, unless they are told to use bf16 ([`Precision`]). The processors that have
//! TDX also have bf16, and OpenVINO picks that by itself there: so precision is asked for, read back, and compiling fails if
//! the answer differs. An engine that has f32 alone refuses bf16 by its name.
//!
//! A NaN need not show in a step's loss: OpenVINO's ReLU makes 0 of it, so that an MLP's loss is finite on rows of which one cell is NaN, where
//! tract's is NaN; which operator swallows it on which engine is nothing to build on. The parameters that it leads to do show it, for
//! `p - rate * NaN` is NaN on both, and an update that has one is refused. Rows that are not finite come to no graph: readers of data and the
//! check of transforms refuse them.
//!
//! *Not guaranteed:* equal bytes between backends, instruction sets or thread counts. Between runs of one compiled
//! graph they are equal.

mod error;
mod intake;
pub mod openvino;
mod pool;
pub mod tract;
mod watchdog;

use std::fmt;
use std::num::NonZeroUsize;
use std::time::Duration;

use cloister_graph::{EngineGraph, Language, Port};
use cloister_tensor::Tensor;
use serde::{Deserialize, Serialize};

pub use error::{EngineError, bounded};
pub use intake::{Intake, described};
pub use watchdog::{Cancel, Watch, Watchdog};

/// The ONNX file of a graph, for a backend that runs no other language.
///
/// # Errors
/// [`EngineError::TorchScript`] for a step in TorchScript.
pub fn onnx<'g>(graph: &'g EngineGraph, backend: &str) -> Result<&'g [u8], EngineError> {
    match graph.language() {
        Language::Onnx => Ok(graph.bytes()),
        Language::TorchScript => Err(EngineError::TorchScript {
            backend: backend.to_owned(),
            digest: graph.digest(),
        }),
    }
}

/// How a graph is compiled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompileOptions {
    /// Threads that one run may use; `None` leaves it to the backend (OpenVINO: one a physical core). Pin it where
    /// bytes are compared: the number of threads changes the order of sums. tract uses one thread whatever this says.
    pub threads: Option<NonZeroUsize>,
    /// What to compute in.
    pub precision: Precision,
    /// Whether the engine keeps each of its threads on a processor core of its own. It pays where nothing else runs on the
    /// machine; elsewhere several nodes fight for its first cores. OpenVINO alone does it, others leave it to the system.
    pub pinning: bool,
}

/// What a backend computes in where a graph says f32. Inputs and outputs are as the graph declares them, either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Precision {
    /// In f32.
    #[default]
    F32,
    /// In bf16, inside of convolutions and products of matrices and between them: gradients are off by 3e-3 to 0.3 of their
    /// length, most where a model is badly conditioned. OpenVINO on a processor with bf16 alone can.
    Bf16,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

impl Precision {
    /// For a backend that has f32 alone: refuses anything else, by the backend's name.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] for bf16.
    pub fn f32_alone(self, backend: &str) -> Result<(), EngineError> {
        match self {
            Self::F32 => Ok(()),
            Self::Bf16 => Err(EngineError::Unsupported {
                backend: backend.to_owned(),
                precision: self,
            }),
        }
    }
}

/// An engine that can compile graphs.
pub trait Backend: Send + Sync {
    /// Name and version, as logs and measurements show it: `openvino 2026.4.1`.
    fn name(&self) -> &str;

    /// Whether this engine, on this machine, computes in what these options say: what [`compile`](Self::compile) would find of
    /// that, before there is a graph.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] if the engine never does, [`EngineError::Precision`] if it would compute in something else here.
    fn can(&self, options: &CompileOptions) -> Result<(), EngineError>;

    /// Compiles a graph for repeated runs.
    ///
    /// # Errors
    /// As [`can`](Self::can); [`EngineError::Compile`] with the backend's own words if it refuses the graph, [`EngineError::Ports`] if it sees other ports than the graph
    /// declares.
    fn compile(&self, graph: &EngineGraph, options: &CompileOptions) -> Result<Box<dyn Compiled>, EngineError>;
}

/// A graph compiled by a [`Backend`]: runs one batch at a time.
pub trait Compiled: Send {
    /// The inputs, in the graph's order.
    fn inputs(&self) -> &[Port];

    /// The outputs, in the graph's order.
    fn outputs(&self) -> &[Port];

    /// Runs the graph once on named tensors, given in any order, and returns its outputs in the graph's order.
    ///
    /// With a `deadline` (counted from the call) the run is cancelled when it passes; the engine stops at the next
    /// operator and can be used again. After any error the next run starts afresh.
    ///
    /// # Errors
    /// An input is missing, unknown, given twice, or of the wrong type or shape (nothing has run then);
    /// [`EngineError::Deadline`]; [`EngineError::Run`] with the backend's own words.
    fn run(
        &mut self,
        inputs: &[(&str, Tensor)],
        deadline: Option<Duration>,
    ) -> Result<Vec<(String, Tensor)>, EngineError>;
}
