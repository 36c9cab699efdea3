//! Tensors as they travel through a node: an element type, a shape and refcounted bytes, and the two files that hold
//! them (safetensors and NPZ). Also the content digest by which everything in a federation is named.
//!
//! A [`Tensor`] that exists is well formed: its length fits its type and shape, its shape is bounded, and every byte
//! of a boolean is 0 or 1. Everything that takes tensors from outside goes through [`Tensor::new`], so native code
//! behind it never sees a length that lies.
//!
//! ```
//! use cloister_tensor::{Tensor, TensorMap, safetensors};
//!
//! let mut tensors = TensorMap::new();
//! tensors.insert("w".into(), Tensor::from_f32(&[2, 2], vec![1.0, 2.0, 3.0, 4.0])?);
//! let file = safetensors::write(&tensors, &Default::default())?;
//! let read = safetensors::read(file.into(), &Default::default())?;
//! assert_eq!(read, tensors);
//! # Ok::<(), cloister_tensor::TensorError>(())
//! ```

#[cfg(target_endian = "big")]
compile_error!("tensors are kept in little-endian byte order, as their files are");

mod digest;
mod dtype;
mod error;
mod limits;
pub mod npy;
pub mod npz;
pub mod safetensors;
mod shape;
mod tensor;

pub use digest::{Digest, Digester, ParseDigestError};
pub use dtype::Dtype;
pub use error::TensorError;
pub use limits::{MAX_NAME_BYTES, ReadLimits};
pub use shape::{MAX_ELEMENTS, MAX_RANK, Shape};
pub use tensor::Tensor;

/// Named tensors, in the bytewise order of their names (at most [`MAX_NAME_BYTES`] bytes each in a file).
pub type TensorMap = std::collections::BTreeMap<String, Tensor>;
