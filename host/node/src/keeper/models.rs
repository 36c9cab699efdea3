//! A model between network and runner: received straight into shared memory.

use cloister_exchange::sink::{ModelBuffer, ModelSink, SinkError};
use cloister_runner::{SealedBlob, SharedBlob};

/// Receives models into sealed shared memory, so that the runner can have them without a copy.
#[derive(Clone, Copy, Debug)]
pub struct SharedSink {
    limit_bytes: u64,
}

impl SharedSink {
    /// A sink for models of at most that many bytes.
    pub fn new(limit_bytes: u64) -> Self {
        Self { limit_bytes }
    }
}

struct SharedBuffer {
    blob: SharedBlob,
    length: u64,
}

impl ModelSink for SharedSink {
    fn create(&self, length: u64) -> Result<Box<dyn ModelBuffer>, SinkError> {
        let blob = SharedBlob::create(length, self.limit_bytes).map_err(|error| refused(length, &error))?;
        Ok(Box::new(SharedBuffer { blob, length }))
    }
}

impl ModelBuffer for SharedBuffer {
    fn write(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        self.blob.append(bytes).map_err(|error| refused(self.length, &error))
    }

    fn finish(self: Box<Self>) -> Result<bytes::Bytes, SinkError> {
        let length = self.length;
        let sealed: SealedBlob = self.blob.seal().map_err(|error| refused(length, &error))?;
        Ok(sealed.bytes().clone())
    }
}

fn refused(bytes: u64, error: &dyn std::fmt::Display) -> SinkError {
    SinkError {
        bytes,
        cause: error.to_string(),
    }
}
