//! What can be wrong with a tensor or a file of them.

use crate::{Dtype, Shape};

/// Why a tensor, or a file of tensors, was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// A shape beyond the bounds.
    #[error("shape {dims} is refused: wanted {wanted}")]
    Shape {
        /// The dimensions seen.
        dims: String,
        /// The bound.
        wanted: String,
    },
    /// The bytes are not as many as the type and the shape say.
    #[error("{dtype} {shape} takes {wanted} bytes, and there are {seen}")]
    Length {
        /// The element type.
        dtype: Dtype,
        /// The shape.
        shape: Shape,
        /// Bytes there.
        seen: usize,
        /// Bytes wanted.
        wanted: usize,
    },
    /// A tensor of another element type was wanted.
    #[error("the tensor holds {seen}, and {wanted} was wanted")]
    Type {
        /// The type seen.
        seen: Dtype,
        /// What was wanted, in words.
        wanted: &'static str,
    },
    /// A byte of a boolean tensor is neither 0 nor 1.
    #[error("element {at} of a BOOL tensor is {seen}: wanted 0 or 1")]
    Boolean {
        /// The element's index.
        at: usize,
        /// Its byte.
        seen: u8,
    },
    /// A file is not what its format asks for.
    #[error("{format}: {place}: {reason}")]
    Format {
        /// `safetensors` or `npz`.
        format: &'static str,
        /// The part of the file, often a tensor's name.
        place: String,
        /// What was seen and what was wanted.
        reason: String,
    },
    /// A file holds more than the limits of the caller allow.
    #[error("{format}: {what}: {seen}, and at most {limit} are allowed here")]
    Limit {
        /// `safetensors` or `npz`.
        format: &'static str,
        /// What is counted.
        what: &'static str,
        /// The count seen.
        seen: u64,
        /// The limit.
        limit: u64,
    },
    /// Writing failed.
    #[error("cannot write tensors")]
    Write(#[source] std::io::Error),
}
