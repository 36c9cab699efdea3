//! The shape of a model: which tensors, in which order, how many bytes.

use cloister_tensor::{Digest, Dtype, Shape, Tensor, TensorMap};

use crate::model_digest;

/// Most tensors of a model.
pub const MAX_TENSORS: usize = 65_536;
/// Most bytes of a tensor's name.
pub const MAX_NAME_BYTES: usize = 512;
/// Where a tensor starts in a receive buffer: at a multiple of this, so that engines can use it in place.
pub const ALIGN_BYTES: u64 = 64;

/// One tensor's place in a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name in the model.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its dimensions.
    pub shape: Vec<usize>,
}

/// Why a manifest is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Nothing to send.
    #[error("the manifest names no tensor; a model has at least one")]
    Empty,
    /// More than [`MAX_TENSORS`].
    #[error("the manifest names {seen} tensors; at most {MAX_TENSORS} are taken")]
    TooMany {
        /// How many.
        seen: usize,
    },
    /// A name out of bounds.
    #[error("tensor {position} of the manifest has a name of {bytes} bytes; wanted 1 to {MAX_NAME_BYTES}")]
    Name {
        /// Which, from 0.
        position: usize,
        /// Length of the name.
        bytes: usize,
    },
    /// Not in strictly ascending order.
    #[error("tensor {name:?} stands out of order or twice in the manifest; names come in ascending bytewise order")]
    Order {
        /// The name at fault.
        name: String,
    },
    /// A type that the tensor crate does not know.
    #[error("tensor {name:?} has the unknown type {dtype:?}; known are safetensors' names such as F32")]
    Dtype {
        /// The tensor.
        name: String,
        /// What it said.
        dtype: String,
    },
    /// A shape out of bounds.
    #[error("tensor {name:?} has a shape that is not taken: {cause}")]
    Shape {
        /// The tensor.
        name: String,
        /// Why.
        cause: String,
    },
    /// The whole is larger than allowed.
    #[error("the manifest's tensors hold {seen} bytes; at most {limit} are taken (limits.update_mib in the policy)")]
    TooLarge {
        /// Bytes in all.
        seen: u64,
        /// The limit.
        limit: u64,
    },
    /// Differs from the model of the federation.
    #[error("the manifest differs from the model's: {difference}")]
    Differs {
        /// The first difference: seen and wanted.
        difference: String,
    },
    /// A buffer of the wrong length.
    #[error("the buffer holds {seen} bytes; the layout takes {wanted}")]
    Buffer {
        /// Its length.
        seen: u64,
        /// The layout's.
        wanted: u64,
    },
}

/// The tensors of a model in bytewise order of their names.
///
/// On the wire, tensors follow one another without gaps ([`Layout::wire_bytes`]); in a receive buffer each starts at a
/// multiple of [`ALIGN_BYTES`] ([`Layout::buffer_bytes`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    specs: Vec<TensorSpec>,
    sizes: Vec<u64>,
    wire_bytes: u64,
    buffer_bytes: u64,
}

impl Layout {
    /// Checks a manifest as it came from a peer: order, names, shapes, and `limit_bytes` over the whole.
    pub fn new(specs: Vec<TensorSpec>, limit_bytes: u64) -> Result<Self, LayoutError> {
        if specs.is_empty() {
            return Err(LayoutError::Empty);
        }
        if specs.len() > MAX_TENSORS {
            return Err(LayoutError::TooMany { seen: specs.len() });
        }
        let mut sizes = Vec::with_capacity(specs.len());
        let (mut wire_bytes, mut buffer_bytes) = (0u64, 0u64);
        for (position, spec) in specs.iter().enumerate() {
            if spec.name.is_empty() || spec.name.len() > MAX_NAME_BYTES {
                return Err(LayoutError::Name {
                    position,
                    bytes: spec.name.len(),
                });
            }
            if position > 0 && specs[position - 1].name.as_bytes() >= spec.name.as_bytes() {
                return Err(LayoutError::Order {
                    name: spec.name.clone(),
                });
            }
            let shape = Shape::new(&spec.shape).map_err(|error| LayoutError::Shape {
                name: spec.name.clone(),
                cause: error.to_string(),
            })?;
            let size = (shape.elements() as u64).saturating_mul(spec.dtype.size_bytes() as u64);
            wire_bytes = wire_bytes.saturating_add(size);
            buffer_bytes =
                buffer_bytes.saturating_add(size.saturating_add(ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES);
            if wire_bytes > limit_bytes {
                return Err(LayoutError::TooLarge {
                    seen: wire_bytes,
                    limit: limit_bytes,
                });
            }
            sizes.push(size);
        }
        Ok(Self {
            specs,
            sizes,
            wire_bytes,
            buffer_bytes,
        })
    }

    /// The layout of tensors at hand.
    pub fn of(tensors: &TensorMap) -> Result<Self, LayoutError> {
        let specs = tensors
            .iter()
            .map(|(name, tensor)| TensorSpec {
                name: name.clone(),
                dtype: tensor.dtype(),
                shape: tensor.shape().dims().to_vec(),
            })
            .collect();
        Self::new(specs, u64::MAX)
    }

    /// The tensors, in order.
    pub fn specs(&self) -> &[TensorSpec] {
        &self.specs
    }

    /// Size in bytes of the tensor at `position`.
    pub(crate) fn size(&self, position: usize) -> Option<u64> {
        self.sizes.get(position).copied()
    }

    /// Bytes that cross the wire.
    pub fn wire_bytes(&self) -> u64 {
        self.wire_bytes
    }

    /// Bytes of a receive buffer, paddings included.
    pub fn buffer_bytes(&self) -> u64 {
        self.buffer_bytes
    }

    /// Refuses a layout that is not this one; the error names the first difference.
    pub fn require(&self, seen: &Self) -> Result<(), LayoutError> {
        if seen.specs == self.specs {
            return Ok(());
        }
        let show = |spec: Option<&TensorSpec>| {
            spec.map_or("nothing".to_owned(), |spec| {
                format!("{} {} {:?}", spec.name, spec.dtype.name(), spec.shape)
            })
        };
        let position = (0..seen.specs.len().max(self.specs.len()))
            .find(|&position| seen.specs.get(position) != self.specs.get(position))
            .unwrap_or(0);
        let difference = format!(
            "tensor {position}: seen {}, wanted {}",
            show(seen.specs.get(position)),
            show(self.specs.get(position))
        );
        Err(LayoutError::Differs { difference })
    }

    /// The digest of a model: manifest and bytes. Takes about 0.7 s a GiB and core.
    pub fn model_digest(tensors: &TensorMap) -> Result<Digest, LayoutError> {
        Ok(model_digest::of(&Self::of(tensors)?, tensors))
    }

    /// Cuts a filled receive buffer into tensors, without a copy.
    pub fn tensors(&self, buffer: &bytes::Bytes) -> Result<TensorMap, LayoutError> {
        if buffer.len() as u64 != self.buffer_bytes {
            return Err(LayoutError::Buffer {
                seen: buffer.len() as u64,
                wanted: self.buffer_bytes,
            });
        }
        let mut tensors = TensorMap::new();
        let mut offset = 0usize;
        for (spec, &size) in self.specs.iter().zip(&self.sizes) {
            let shape_error = |cause: String| LayoutError::Shape {
                name: spec.name.clone(),
                cause,
            };
            let shape = Shape::new(&spec.shape).map_err(|error| shape_error(error.to_string()))?;
            let size = usize::try_from(size).map_err(|_| shape_error("too large for this machine".to_owned()))?;
            let bytes = buffer.slice(offset..offset + size);
            let tensor = Tensor::new(spec.dtype, shape, bytes).map_err(|error| shape_error(error.to_string()))?;
            tensors.insert(spec.name.clone(), tensor);
            offset += size.next_multiple_of(ALIGN_BYTES as usize);
        }
        Ok(tensors)
    }
}
