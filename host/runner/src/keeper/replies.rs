//! What a runner answers, taken as what may come from hostile code.

use std::os::fd::OwnedFd;

use cloister_data::Skipped;

use super::Runner;
use crate::blob::SealedBlob;
use crate::error::RunnerError;
use crate::message::Failure;
use crate::tensors::{SharedTensors, SharedTensorsError, TensorLayout, WireLayout};

/// Metrics of a reply at most, and bytes of a metric's name.
const MAX_METRICS: usize = 4096;
const MAX_METRIC_NAME_BYTES: usize = 512;
/// Damaged rows of a dataset that are told in words.
const MAX_TOLD_ROWS: usize = 16;

impl Runner {
    /// Accepts tensors from the runner: sealed, within the limit, and the same as the model's.
    pub(super) fn take_tensors(
        &mut self,
        during: &'static str,
        memory: Option<OwnedFd>,
        wire: WireLayout,
        wanted: &TensorLayout,
    ) -> Result<SharedTensors, RunnerError> {
        let limit = self.limits().tensor_bytes.max(wanted.memory_bytes());
        let Some(memory) = memory else {
            return Err(self.misbehaved(during, "tensors without their memory"));
        };
        let tensors = SealedBlob::accept(memory, limit).map_err(SharedTensorsError::from);
        match tensors.and_then(|blob| SharedTensors::from_wire(blob, wire)) {
            Ok(tensors) if tensors.layout().same_tensors(wanted) => Ok(tensors),
            Ok(_) => Err(self.misbehaved(during, "other tensors than the model's")),
            Err(error) => Err(self.misbehaved(during, error.to_string())),
        }
    }

    pub(super) fn check_words(
        &mut self,
        during: &'static str,
        metrics: &[(String, f64)],
        log: &[String],
        log_bytes: usize,
    ) -> Result<(), RunnerError> {
        let long_name = metrics.iter().any(|(name, _)| name.len() > MAX_METRIC_NAME_BYTES);
        if metrics.len() > MAX_METRICS || long_name || log.iter().map(String::len).sum::<usize>() > log_bytes {
            return Err(self.misbehaved(during, "more metrics or log than the sandbox lets pass"));
        }
        Ok(())
    }
}

/// The runner may be the hostile one: its texts are cut here too.
fn cut(text: String) -> String {
    text.chars()
        .take(2048)
        .map(|symbol| if symbol.is_control() { ' ' } else { symbol })
        .collect()
}

/// What a runner says of the rows that it left out.
pub(super) fn skipped(rows: u64, first: Vec<String>) -> Skipped {
    Skipped {
        rows,
        first: first.into_iter().take(MAX_TOLD_ROWS).map(cut).collect(),
    }
}

/// The error that a runner reports.
pub(super) fn reported(failure: Failure) -> RunnerError {
    match failure {
        Failure::Module(mut error) => {
            error.module = cut(error.module);
            error.message = cut(error.message);
            error.log = error.log.into_iter().take(256).map(cut).collect();
            RunnerError::Module(error)
        }
        Failure::Graph { name, message } => RunnerError::Graph {
            name: cut(name),
            message: cut(message),
        },
        Failure::Dataset { name, message } => RunnerError::Dataset {
            name: cut(name),
            message: cut(message),
        },
        Failure::Request { message } => RunnerError::Request(cut(message)),
        Failure::SetUp { message } => RunnerError::SetUp(cut(message)),
    }
}
