//! Why a module's call was ended or its result refused.

use std::fmt;

use cloister_tensor::Digest;
use serde::{Deserialize, Serialize};

/// Bytes that a [`ModuleError`]'s message is cut to.
pub const MAX_MESSAGE_BYTES: usize = 1024;

/// What went wrong, in one word: the part of a module's error that peers get to see, beside the module's digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ModuleErrorKind {
    /// The file is no component, is too large, or does not compile.
    Invalid,
    /// The component imports something that no world offers, or exports none of the worlds.
    World,
    /// A setting is unknown, ill-typed, missing or out of bounds.
    Setting,
    /// The guest trapped: unreachable code, a memory access out of bounds, a broken promise to the component model.
    Trap,
    /// The guest's call stack ran out.
    Stack,
    /// The guest's memory, the tensors that the host keeps for it, or its handles passed their limit.
    Memory,
    /// The call, or one graph in it, took too long.
    Deadline,
    /// The guest did what the policy does not grant.
    Denied,
    /// The guest asked for a graph that the policy does not name for it.
    UnknownGraph,
    /// The guest asked for a dataset that the policy does not name for it.
    UnknownDataset,
    /// A tensor has another shape or type than its port, its name or its data say; or a range reaches past the end.
    WrongShape,
    /// A parameter, a metric or a measure is NaN or infinite.
    NotFinite,
    /// The update lacks a tensor of the model.
    MissingTensor,
    /// The update holds a tensor twice.
    DuplicateTensor,
    /// The update holds a tensor that the model does not have.
    UnknownTensor,
    /// The module gave nothing: no tensor, no row used, nothing written.
    NoUpdate,
    /// The guest wrote more log than it may.
    Log,
    /// The guest passed an argument that makes no sense: a batch of no rows, a metric's name out of its alphabet.
    Argument,
    /// The engine could not run a graph.
    Engine,
    /// A dataset is not what the guest expects; the guest says so.
    Dataset,
    /// The updates of a round could not be brought.
    Updates,
    /// The guest gave up by itself and said why.
    Failed,
    /// The host itself could not go on.
    Host,
}

impl ModuleErrorKind {
    /// The kind as it stands in receipts and messages between nodes.
    pub fn code(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::World => "world",
            Self::Setting => "setting",
            Self::Trap => "trap",
            Self::Stack => "stack",
            Self::Memory => "memory",
            Self::Deadline => "deadline",
            Self::Denied => "denied",
            Self::UnknownGraph => "unknown-graph",
            Self::UnknownDataset => "unknown-dataset",
            Self::WrongShape => "wrong-shape",
            Self::NotFinite => "not-finite",
            Self::MissingTensor => "missing-tensor",
            Self::DuplicateTensor => "duplicate-tensor",
            Self::UnknownTensor => "unknown-tensor",
            Self::NoUpdate => "no-update",
            Self::Log => "log",
            Self::Argument => "argument",
            Self::Engine => "engine",
            Self::Dataset => "dataset",
            Self::Updates => "updates",
            Self::Failed => "failed",
            Self::Host => "host",
        }
    }
}

impl fmt::Display for ModuleErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// A module's error: data for the round's receipt and for the log of the node that ran the module.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("module {module} ({}): {kind}: {message}", digest.short())]
pub struct ModuleError {
    /// The module's name in the policy.
    pub module: String,
    /// SHA-256 of the module's file.
    pub digest: Digest,
    /// What went wrong.
    pub kind: ModuleErrorKind,
    /// What was seen and what was wanted, at most [`MAX_MESSAGE_BYTES`]. It may hold text that the guest chose, so it stays
    /// on the node that ran the module.
    pub message: String,
    /// The last lines that the guest logged before.
    #[serde(default)]
    pub log: Vec<String>,
}

impl ModuleError {
    /// An error with its message cut to size.
    pub fn new(module: &str, digest: Digest, kind: ModuleErrorKind, message: impl fmt::Display) -> Self {
        let message = bounded(&message.to_string(), MAX_MESSAGE_BYTES);
        Self {
            module: module.to_owned(),
            digest,
            kind,
            message,
            log: Vec::new(),
        }
    }
}

/// Why a trainer's call gave no update.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The trainer's doing, or that of the transform that its rows go through.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// Rows could not be had, which is no module's doing.
    #[error("dataset {name}: {message}")]
    Dataset {
        /// The dataset's name in the policy.
        name: String,
        /// Which row, what was seen and what was wanted; at most [`MAX_MESSAGE_BYTES`].
        message: String,
    },
}

/// A refusal on its way through wasmtime: becomes a [`ModuleError`] where the call ends.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{kind}: {message}")]
pub(crate) struct Refusal {
    pub(crate) kind: ModuleErrorKind,
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn new(kind: ModuleErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }
}

/// `text` on one line, without control characters, cut to `limit` bytes at a character's boundary.
pub(crate) fn bounded(text: &str, limit: usize) -> String {
    let mut line = String::with_capacity(text.len().min(limit));
    for symbol in text.chars() {
        let symbol = if symbol.is_control() { ' ' } else { symbol };
        if line.len() + symbol.len_utf8() > limit {
            break;
        }
        line.push(symbol);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_cut_and_stay_on_one_line() {
        assert_eq!(bounded("a\nb\u{1b}[31mc", 64), "a b [31mc");
        assert_eq!(bounded("ääää", 5), "ää");
        let error = ModuleError::new("m", Digest::of(b""), ModuleErrorKind::Failed, "x".repeat(5000));
        assert_eq!(error.message.len(), MAX_MESSAGE_BYTES);
    }
}
