//! Runs modules: WebAssembly components that can compute and nothing else.
//!
//! A module exports one of the worlds of `wit/`: `trainer`, `transform` or `aggregator`. The [`Sandbox`] loads it (imports against a closed
//! list, no WASI), calls it under [`CallLimits`], and checks what it gives.
//!
//! What a trainer may do with tensors is decided by labels. Every tensor that it holds says what it is (this parameter, rows
//! of that dataset, that output of that graph), every port of a graph of the policy says what it takes, and the host refuses
//! the one at the other. An update is accepted only if each of its tensors is what a graph of the policy computed for that
//! parameter. So a trainer that nobody has read still cannot write rows into the model, beyond what gradients tell.
//!
//! What breaks the rules ends the call with a [`ModuleError`]; the sandbox goes on with the next one.
//!
//! Not guaranteed: compiling takes time in proportion to the component's size and is not interrupted
//! ([`SandboxLimits::component_bytes`] bounds it); the time that a call takes is visible to the guest's own node.
#![forbid(unsafe_code)]

mod accept;
mod bindings;
mod budget;
mod call;
mod dataset;
mod error;
mod flat;
mod grant;
mod guest;
mod inspect;
mod label;
mod limits;
mod masks;
mod module;
mod nn;
mod rows;
mod sandbox;
pub mod settings;
mod slots;
mod ticker;
mod training;
mod transform;

pub use call::{
    AggregateCall, AggregateOutcome, RoundInfo, SharedGraph, TrainCall, TrainOutcome, UpdateKind, WorkerUpdate,
};
pub use error::{MAX_MESSAGE_BYTES, ModuleError, ModuleErrorKind, TrainError};
pub use grant::{Grants, ScalarRange, TensorAccess, UnknownTensorAccess};
pub use inspect::{InspectError, Inspection, PACKAGE, VERSIONS, World, inspect};
pub use limits::{CallLimits, SandboxLimits};
pub use module::Module;
pub use rows::{Drawn, PassOrder, PassSeed, RowBatches, Rows, RowsError};
pub use sandbox::{Sandbox, SetUpError};
pub use settings::{
    SecretText, SettingDeclaration, SettingError, SettingType, SettingValue, resolve as resolve_settings,
};
pub use slots::{MAX_SLOTS, check_slots};
pub use transform::{Made, Transform, TransformedRows};
