//! Where received models are written: buffers that the node gives, so that shared memory can be the buffer.

use bytes::Bytes;

/// A buffer could not be had or filled.
#[derive(Debug, thiserror::Error)]
#[error("no buffer of {bytes} bytes for a model: {cause}")]
pub struct SinkError {
    /// How long it should be.
    pub bytes: u64,
    /// Why not.
    pub cause: String,
}

/// Gives buffers.
pub trait ModelSink: Send + Sync {
    /// A buffer of exactly `length` bytes, to be written from front to back.
    fn create(&self, length: u64) -> Result<Box<dyn ModelBuffer>, SinkError>;
}

/// A buffer that is being filled.
pub trait ModelBuffer: Send {
    /// Appends.
    fn write(&mut self, bytes: &[u8]) -> Result<(), SinkError>;

    /// The whole, once it is full. Its start is aligned to 8 bytes at least (64 serves engines best).
    fn finish(self: Box<Self>) -> Result<Bytes, SinkError>;
}

/// Buffers on the heap.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeapSink;

struct HeapBuffer {
    bytes: Vec<u8>,
    length: usize,
}

impl ModelSink for HeapSink {
    fn create(&self, length: u64) -> Result<Box<dyn ModelBuffer>, SinkError> {
        let error = |cause: String| SinkError { bytes: length, cause };
        let length_here = usize::try_from(length).map_err(|error_here| error(error_here.to_string()))?;
        let mut bytes = Vec::new();
        bytes
            .try_reserve_exact(length_here)
            .map_err(|error_here| error(error_here.to_string()))?;
        Ok(Box::new(HeapBuffer {
            bytes,
            length: length_here,
        }))
    }
}

impl HeapBuffer {
    fn error(&self, cause: &str) -> SinkError {
        SinkError {
            bytes: self.length as u64,
            cause: cause.to_owned(),
        }
    }
}

impl ModelBuffer for HeapBuffer {
    fn write(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        if self.bytes.len() + bytes.len() > self.length {
            return Err(self.error("more was written than was asked for"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Bytes, SinkError> {
        if self.bytes.len() != self.length {
            return Err(self.error("less was written than was asked for"));
        }
        Ok(Bytes::from(self.bytes))
    }
}
