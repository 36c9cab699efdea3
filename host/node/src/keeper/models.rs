//! Models between network and runner: received straight into shared memory, and handed on where they lie.

use std::sync::{Arc, Mutex, PoisonError};

use cloister_exchange::sink::{ModelBuffer, ModelSink, SinkError};
use cloister_runner::{SealedBlob, SharedBlob, SharedTensors, SharedTensorsError, WeakBlob};
use cloister_tensor::TensorMap;

/// Remembers which sealed memory models lie in, so that the runner can have them without a copy. Clones share what they
/// remember; the memory itself is kept by nobody but the models in it.
#[derive(Clone, Debug, Default)]
pub struct SharedModels {
    known: Arc<Mutex<Vec<WeakBlob>>>,
}

impl SharedModels {
    /// A sink for models of at most that many bytes, which are known here as soon as they are received.
    pub fn sink(&self, limit_bytes: u64) -> SharedSink {
        SharedSink {
            models: self.clone(),
            limit_bytes,
        }
    }

    /// Remembers the memory of tensors that came from the runner.
    pub fn know(&self, blob: &SealedBlob) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|other| !other.is_gone());
        known.push(blob.downgrade());
    }

    /// Tensors for the runner: in place if they lie in memory that is known, else a copy.
    ///
    /// # Errors
    /// There is no memory for a copy.
    pub fn share(&self, tensors: &TensorMap) -> Result<SharedTensors, SharedTensorsError> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut blobs = known.iter().filter_map(WeakBlob::upgrade);
        let in_place = blobs.find_map(|blob| SharedTensors::in_place(&blob, tensors));
        in_place.map_or_else(|| SharedTensors::copy_of(tensors), Ok)
    }
}

/// Receives models into sealed shared memory.
#[derive(Clone, Debug)]
pub struct SharedSink {
    models: SharedModels,
    limit_bytes: u64,
}

struct SharedBuffer {
    models: SharedModels,
    blob: SharedBlob,
    length: u64,
}

impl ModelSink for SharedSink {
    fn create(&self, length: u64) -> Result<Box<dyn ModelBuffer>, SinkError> {
        let blob = SharedBlob::create(length, self.limit_bytes).map_err(|error| refused(length, &error))?;
        Ok(Box::new(SharedBuffer {
            models: self.models.clone(),
            blob,
            length,
        }))
    }
}

impl ModelBuffer for SharedBuffer {
    fn write(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        self.blob.append(bytes).map_err(|error| refused(self.length, &error))
    }

    fn finish(self: Box<Self>) -> Result<bytes::Bytes, SinkError> {
        let Self { models, blob, length } = *self;
        let sealed = blob.seal().map_err(|error| refused(length, &error))?;
        models.know(&sealed);
        Ok(sealed.bytes().clone())
    }
}

fn refused(bytes: u64, error: &dyn std::fmt::Display) -> SinkError {
    SinkError {
        bytes,
        cause: error.to_string(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use cloister_tensor::{Dtype, Shape, Tensor};

    use super::*;

    #[test]
    fn what_was_received_is_shared_without_a_copy_and_kept_by_nobody() {
        let models = SharedModels::default();
        let mut buffer = models.sink(1 << 20).create(128).unwrap();
        buffer.write(&[0; 128]).unwrap();
        let bytes = buffer.finish().unwrap();
        let tensor = |at: usize| Tensor::new(Dtype::F32, Shape::new(&[4]).unwrap(), bytes.slice(at..at + 16)).unwrap();
        let tensors = TensorMap::from([("a".to_owned(), tensor(0)), ("b".to_owned(), tensor(64))]);
        let shared = models.share(&tensors).unwrap();
        assert_eq!(shared.blob().bytes().as_ptr(), bytes.as_ptr());
        drop((shared, bytes));
        drop(tensors);
        assert!(models.known.lock().unwrap()[0].is_gone());
        let elsewhere = TensorMap::from([("a".to_owned(), Tensor::scalar_f32(1.0))]);
        assert_eq!(models.share(&elsewhere).unwrap().to_map().unwrap(), elsewhere);
    }
}
