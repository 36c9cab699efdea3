//! What can go wrong with an engine.

use std::path::PathBuf;
use std::time::Duration;

use cloister_tensor::Digest;

use crate::Precision;

/// Bytes of a backend's own words that an error keeps.
const MAX_CAUSE_BYTES: usize = 4096;

/// Why an engine could not be loaded, or a graph not be compiled or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A native library is not there or can't be loaded.
    #[error("cannot load the engine's library {path}: {cause}")]
    Library {
        /// The file.
        path: PathBuf,
        /// Why, and what to do.
        cause: String,
    },
    /// The library is of another version than this program was tested with.
    #[error("the engine's library is version {seen}, and {wanted} is wanted: set up that version")]
    Version {
        /// The version that the library reports.
        seen: String,
        /// The version wanted.
        wanted: &'static str,
    },
    /// The backend refuses the graph.
    #[error("{backend} cannot compile graph {digest}: {cause}")]
    Compile {
        /// The backend.
        backend: String,
        /// The graph's digest.
        digest: Digest,
        /// The backend's own words.
        cause: String,
    },
    /// The graph is written in a language that the backend does not run.
    #[error(
        "{backend} does not run graph {digest}, which is a step in TorchScript: only libtorch does, in a node built with it"
    )]
    TorchScript {
        /// The backend.
        backend: String,
        /// The graph's digest.
        digest: Digest,
    },
    /// The backend never computes in what was asked for.
    #[error(
        "{backend} does not compute in {precision}, which is asked for: choose OpenVINO on a processor that has it, or agree on f32"
    )]
    Unsupported {
        /// The backend.
        backend: String,
        /// What was asked for.
        precision: Precision,
    },
    /// The backend would compute with other settings than it was told to.
    #[error(
        "{property} reads back as {seen:?} and {wanted:?} was set: results could differ from what was agreed on. A processor without bf16 computes in f32 alone"
    )]
    Precision {
        /// The backend's name for the setting.
        property: &'static str,
        /// What it reads back as.
        seen: String,
        /// What was set.
        wanted: String,
    },
    /// The backend sees other ports than the graph declares.
    #[error("{backend} sees {seen} where graph {digest} declares {wanted}")]
    Ports {
        /// The backend.
        backend: String,
        /// The graph's digest.
        digest: Digest,
        /// What the backend sees.
        seen: String,
        /// What the graph declares.
        wanted: String,
    },
    /// An input was not given.
    #[error("input `{port}` is missing: wanted {wanted}")]
    MissingInput {
        /// The port.
        port: String,
        /// Its type and shape.
        wanted: String,
    },
    /// An input that the graph doesn't have.
    #[error("the graph has no input `{name}`: it has {known}")]
    UnknownInput {
        /// The name given.
        name: String,
        /// The names there are.
        known: String,
    },
    /// An input was given more than once.
    #[error("input `{port}` is given twice")]
    RepeatedInput {
        /// The port.
        port: String,
    },
    /// An input of the wrong type or shape.
    #[error("input `{port}` is {seen}: wanted {wanted}")]
    Shape {
        /// The port.
        port: String,
        /// Type and shape seen.
        seen: String,
        /// Type and shape wanted.
        wanted: String,
    },
    /// The run was cancelled at its deadline.
    #[error("the run was cancelled after {} ms, its deadline", after.as_millis())]
    Deadline {
        /// The deadline.
        after: Duration,
    },
    /// The backend failed during a run.
    #[error("{backend} failed: {during}: {cause}")]
    Run {
        /// The backend.
        backend: String,
        /// The step that failed.
        during: &'static str,
        /// The backend's own words.
        cause: String,
    },
}

/// Bounds a backend's own words, for an error to keep.
pub fn bounded(mut cause: String) -> String {
    if cause.len() > MAX_CAUSE_BYTES {
        cause.truncate(cause.floor_char_boundary(MAX_CAUSE_BYTES));
        cause.push_str(" ...");
    }
    cause
}
