//! Errors of a module.

pub use crate::bindings::trainer::cloister::federation::types::{Failure, FailureKind};

/// What most functions here give.
pub type Result<T> = core::result::Result<T, Failure>;

impl Failure {
    /// A failure of no special kind.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::Other,
            message: message.into(),
        }
    }

    /// A setting that makes no sense.
    pub fn setting(message: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::Setting,
            message: message.into(),
        }
    }

    /// Rows that are not what the module expects.
    pub fn dataset(message: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::Dataset,
            message: message.into(),
        }
    }

    /// A graph that is not there, or did not run.
    pub fn graph(message: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::Graph,
            message: message.into(),
        }
    }

    /// A model that is not what the module expects.
    pub fn model(message: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::Model,
            message: message.into(),
        }
    }
}

/// From here on a panic's message goes to the log of the node before the call traps. The export macros do this by themselves.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|panic| crate::log::error(&panic.to_string())));
}
