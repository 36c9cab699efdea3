//! Keeper and runner: a node's two processes, and what passes between them.
//!
//! The keeper has keys, evidence, vault and network; the runner has wasmtime, the engines and the data parsers, and nothing
//! else. Both are the same binary. [`Runner`] is the keeper's handle: it starts the process, hands it modules, graphs,
//! datasets and tensors, and takes results back. [`runner_main`] is the process itself.
//!
//! ```text
//!   keeper                                   runner (child process)
//!   Runner::start  ── socket pair on stdin ─▶ runner_main: hardens itself, loads the engine, and from
//!   load_module    ── sealed memory ───────▶   then on opens no file and no socket
//!   load_graph     ── sealed memory ───────▶ compiles
//!   open_dataset   ── an open file ────────▶ parses, commits
//!   train          ── model, sealed ───────▶ sandbox: a trainer
//!                  ◀─ update, sealed ──────
//!   aggregate      ── updates, one by one ─▶ sandbox: an aggregator
//!                  ◀─ model and slots ─────
//!   evaluate       ── model, sealed ───────▶ the host's own loop over the evaluation graph
//! ```
//!
//! Messages are small and bounded; bytes in bulk travel as sealed memory ([`SealedBlob`]), which neither side can change
//! once it is handed over. A runner that crashes, is killed or hangs is a [`RunnerError::Died`], after which
//! [`Runner::restart`] starts a new process and loads everything again: the node lives on. What comes back from the runner is
//! checked like anything from outside.
//!
//! Before the runner reads the first byte of a module, a graph or a dataset, it takes from itself what it does not need:
//! Landlock and a filter of system calls in all threads leave it memory, threads, time and its socket; limits bound its
//! memory and its time. Native code that something hostile took over can still compute within those, and answer wrongly.
#![forbid(unsafe_code)]

mod blob;
mod channel;
mod child;
mod cpus;
mod error;
mod keeper;
mod message;
mod options;
mod process;
mod requests;
mod slots;
mod spec;
mod tensors;

pub use blob::{BlobError, SealedBlob, SharedBlob, WeakBlob};
pub use child::{runner_main, runner_main_then};
pub use cpus::{Cpus, CpusError};
pub use error::{Death, RunnerError};
pub use keeper::Runner;
pub use options::{BackendChoice, Confinement, RunnerLimits, RunnerOptions};
pub use process::RunnerKiller;
pub use requests::{
    AggregateReply, AggregateRequest, DatasetInfo, EvaluateReply, EvaluateRequest, GraphInfo, ModuleInfo, TrainReply,
    TrainRequest, WorkerUpdate,
};
pub use slots::SharedSlots;
pub use tensors::{ALIGNMENT_BYTES, MAX_TENSORS, SharedTensorBuffer, SharedTensors, SharedTensorsError, TensorLayout};
