//! Named tensors in one piece of sealed shared memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use cloister_tensor::{Dtype, MAX_NAME_BYTES, Shape, Tensor, TensorError, TensorMap};
use serde::{Deserialize, Serialize};

use crate::blob::{BlobError, SealedBlob, SharedBlob};

/// Each tensor starts on a multiple of this: a cache line, and what vector instructions like.
pub const ALIGNMENT_BYTES: u64 = 64;
/// Tensors of a layout at most.
pub const MAX_TENSORS: usize = 65_536;

/// Why tensors could not be shared, or shared tensors were refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SharedTensorsError {
    /// The memory.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// A tensor.
    #[error("shared tensor {name:?}")]
    Tensor {
        /// Its name, cut to the allowed length.
        name: String,
        /// What is wrong with it.
        #[source]
        source: TensorError,
    },
    /// The layout contradicts itself or the memory.
    #[error("layout of shared tensors: {0}")]
    Layout(String),
    /// More or fewer bytes came than the layout holds.
    #[error("the tensors take {wanted} bytes, {seen} came")]
    Length {
        /// Bytes that came.
        seen: u64,
        /// Bytes of all tensors.
        wanted: u64,
    },
}

/// Where a tensor lies.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Slot {
    name: String,
    dtype: Dtype,
    shape: Shape,
    offset: u64,
    len: u64,
}

/// Which tensors lie where in a piece of memory; sorted by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorLayout {
    slots: Vec<Slot>,
    len: u64,
}

impl TensorLayout {
    /// Lays tensors out one behind the other in the order of their names, each on a multiple of [`ALIGNMENT_BYTES`].
    pub fn new(tensors: &BTreeMap<String, (Dtype, Shape)>) -> Result<Self, SharedTensorsError> {
        let mut slots = Vec::with_capacity(tensors.len().min(MAX_TENSORS));
        let mut end = 0_u64;
        for (name, (dtype, shape)) in tensors {
            let offset = end.next_multiple_of(ALIGNMENT_BYTES);
            let slot = Slot::new(name.clone(), *dtype, shape.clone(), offset)?;
            // A shape has at most 2^40 elements and a layout 2^16 tensors: the sum stays below 2^60.
            end = offset + slot.len;
            slots.push(slot);
        }
        Self::checked(slots, end)
    }

    /// The layout of tensors at hand.
    pub fn of(tensors: &TensorMap) -> Result<Self, SharedTensorsError> {
        Self::new(
            &tensors
                .iter()
                .map(|(name, tensor)| (name.clone(), (tensor.dtype(), tensor.shape().clone())))
                .collect(),
        )
    }

    /// Bytes of the memory, gaps for alignment included.
    pub fn memory_bytes(&self) -> u64 {
        self.len
    }

    /// Bytes of the tensors alone.
    pub fn tensor_bytes(&self) -> u64 {
        self.slots.iter().map(|slot| slot.len).sum()
    }

    /// Name, dtype and shape of each tensor, in the order of the names.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (&str, Dtype, &Shape)> {
        self.slots
            .iter()
            .map(|slot| (slot.name.as_str(), slot.dtype, &slot.shape))
    }

    /// Whether both hold the same tensors: names, dtypes and shapes, wherever they lie.
    pub fn same_tensors(&self, other: &Self) -> bool {
        self.tensors().eq(other.tensors())
    }

    fn checked(slots: Vec<Slot>, len: u64) -> Result<Self, SharedTensorsError> {
        if slots.len() > MAX_TENSORS {
            return Err(SharedTensorsError::Layout(format!(
                "seen {} tensors, at most {MAX_TENSORS} are allowed",
                slots.len()
            )));
        }
        let mut before: Option<&Slot> = None;
        for slot in &slots {
            if before.is_some_and(|before| before.name >= slot.name) {
                return Err(SharedTensorsError::Layout(
                    "names must be sorted and each stand once".to_owned(),
                ));
            }
            // Tensors that overlap would let a small memory stand for a huge model.
            let free = before.map_or(0, |before| before.offset + before.len);
            let end = slot.offset.checked_add(slot.len);
            if slot.offset < free || end.is_none_or(|end| end > len) || !slot.offset.is_multiple_of(ALIGNMENT_BYTES) {
                let problem = format!(
                    "{:?}: {} bytes at {} do not fit, {free} to {len} are free",
                    slot.name, slot.len, slot.offset
                );
                return Err(SharedTensorsError::Layout(problem));
            }
            before = Some(slot);
        }
        Ok(Self { slots, len })
    }

    pub(crate) fn to_wire(&self) -> WireLayout {
        let slot = |slot: &Slot| WireSlot {
            name: slot.name.clone(),
            dtype: slot.dtype.name().to_owned(),
            dims: slot.shape.dims().iter().map(|dim| *dim as u64).collect(),
            offset: slot.offset,
        };
        WireLayout {
            slots: self.slots.iter().map(slot).collect(),
        }
    }

    /// Checks a layout that came with `len` bytes of memory.
    pub(crate) fn from_wire(wire: WireLayout, len: u64) -> Result<Self, SharedTensorsError> {
        let mut slots = Vec::with_capacity(wire.slots.len().min(MAX_TENSORS));
        for slot in wire.slots.into_iter().take(MAX_TENSORS + 1) {
            let dtype = Dtype::from_name(&slot.dtype)
                .ok_or_else(|| SharedTensorsError::Layout(format!("{:?}: unknown dtype", cut(&slot.name))))?;
            let dims: Vec<usize> = slot
                .dims
                .iter()
                .take(64)
                .map(|dim| usize::try_from(*dim).unwrap_or(usize::MAX))
                .collect();
            let shape = Shape::new(&dims).map_err(|source| SharedTensorsError::Tensor {
                name: cut(&slot.name),
                source,
            })?;
            slots.push(Slot::new(slot.name, dtype, shape, slot.offset)?);
        }
        Self::checked(slots, len)
    }
}

impl Slot {
    fn new(name: String, dtype: Dtype, shape: Shape, offset: u64) -> Result<Self, SharedTensorsError> {
        if name.len() > MAX_NAME_BYTES {
            return Err(SharedTensorsError::Layout(format!(
                "a name of {} bytes, at most {MAX_NAME_BYTES} are allowed",
                name.len()
            )));
        }
        let len = shape.elements() as u64 * dtype.size_bytes() as u64;
        Ok(Self {
            name,
            dtype,
            shape,
            offset,
            len,
        })
    }
}

fn cut(name: &str) -> String {
    name.chars().take(64).collect()
}

/// A layout in a message.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct WireLayout {
    slots: Vec<WireSlot>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct WireSlot {
    name: String,
    dtype: String,
    dims: Vec<u64>,
    offset: u64,
}

/// Named tensors in sealed shared memory; cloning shares them.
#[derive(Clone, Debug)]
pub struct SharedTensors {
    blob: SealedBlob,
    layout: Arc<TensorLayout>,
}

impl SharedTensors {
    /// Copies tensors into shared memory.
    pub fn copy_of(tensors: &TensorMap) -> Result<Self, SharedTensorsError> {
        let layout = TensorLayout::of(tensors)?;
        let mut blob = SharedBlob::create(layout.len, u64::MAX)?;
        for (slot, tensor) in layout.slots.iter().zip(tensors.values()) {
            blob.write_at(slot.offset, tensor.bytes())?;
        }
        Ok(Self {
            blob: blob.seal()?,
            layout: Arc::new(layout),
        })
    }

    pub(crate) fn from_wire(blob: SealedBlob, wire: WireLayout) -> Result<Self, SharedTensorsError> {
        let layout = TensorLayout::from_wire(wire, blob.bytes().len() as u64)?;
        Ok(Self {
            blob,
            layout: Arc::new(layout),
        })
    }

    /// Tensors that lie in `blob` already, shared where they are; `None` if one lies elsewhere, or not where a layout
    /// may place it (on a multiple of [`ALIGNMENT_BYTES`], in the order of the names).
    pub fn in_place(blob: &SealedBlob, tensors: &TensorMap) -> Option<Self> {
        let memory = blob.bytes();
        let start = memory.as_ptr() as usize;
        let mut slots = Vec::with_capacity(tensors.len().min(MAX_TENSORS));
        let mut end = 0_u64;
        for (name, tensor) in tensors {
            let bytes = tensor.bytes();
            // An empty slice has no place of its own.
            let offset = match bytes.len() {
                0 => end.next_multiple_of(ALIGNMENT_BYTES),
                _ => (bytes.as_ptr() as usize).checked_sub(start)? as u64,
            };
            let slot = Slot::new(name.clone(), tensor.dtype(), tensor.shape().clone(), offset).ok()?;
            end = offset.checked_add(slot.len)?;
            slots.push(slot);
        }
        let layout = TensorLayout::checked(slots, memory.len() as u64).ok()?;
        Some(Self {
            blob: blob.clone(),
            layout: Arc::new(layout),
        })
    }

    /// Which tensors there are.
    pub fn layout(&self) -> &Arc<TensorLayout> {
        &self.layout
    }

    /// The memory.
    pub fn blob(&self) -> &SealedBlob {
        &self.blob
    }

    /// The tensors, in place: they share the memory and keep it.
    pub fn to_map(&self) -> Result<TensorMap, SharedTensorsError> {
        let mut tensors = TensorMap::new();
        for slot in &self.layout.slots {
            let tensor = Tensor::new(slot.dtype, slot.shape.clone(), self.piece(slot));
            let tensor = tensor.map_err(|source| SharedTensorsError::Tensor {
                name: slot.name.clone(),
                source,
            })?;
            tensors.insert(slot.name.clone(), tensor);
        }
        Ok(tensors)
    }

    /// The bytes of each tensor in the order of the names, without the gaps between them.
    pub fn pieces(&self) -> impl Iterator<Item = bytes::Bytes> + '_ {
        self.layout.slots.iter().map(|slot| self.piece(slot))
    }

    fn piece(&self, slot: &Slot) -> bytes::Bytes {
        // A layout is checked against the memory, whose length is a usize.
        let start = usize::try_from(slot.offset).unwrap_or(usize::MAX);
        let len = usize::try_from(slot.len).unwrap_or(usize::MAX);
        self.blob.bytes().slice(start..start.saturating_add(len))
    }
}

/// Shared memory that tensors are received into: the bytes of all tensors in the order of their names, in pieces of any
/// size, as they come from the network.
#[derive(Debug)]
pub struct SharedTensorBuffer {
    blob: SharedBlob,
    layout: Arc<TensorLayout>,
    /// The slot that the next byte belongs to, and how many bytes of it are there.
    slot: usize,
    filled: u64,
    received: u64,
}

impl SharedTensorBuffer {
    /// Takes the memory for a layout, at most `limit` bytes.
    pub fn new(layout: Arc<TensorLayout>, limit: u64) -> Result<Self, SharedTensorsError> {
        let blob = SharedBlob::create(layout.len, limit)?;
        Ok(Self {
            blob,
            layout,
            slot: 0,
            filled: 0,
            received: 0,
        })
    }

    /// Bytes that are there so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Writes the next bytes; refuses more than the tensors take.
    pub fn append(&mut self, mut bytes: &[u8]) -> Result<(), SharedTensorsError> {
        let wanted = self.layout.tensor_bytes();
        if bytes.len() as u64 > wanted - self.received {
            return Err(SharedTensorsError::Length {
                seen: self.received.saturating_add(bytes.len() as u64),
                wanted,
            });
        }
        while let Some(slot) = self.layout.slots.get(self.slot) {
            let room = usize::try_from(slot.len - self.filled).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.blob.write_at(slot.offset + self.filled, now)?;
            self.filled += now.len() as u64;
            self.received += now.len() as u64;
            bytes = later;
            if self.filled < slot.len {
                break;
            }
            self.slot += 1;
            self.filled = 0;
        }
        Ok(())
    }

    /// Seals the memory; refuses it while bytes are missing.
    pub fn finish(self) -> Result<SharedTensors, SharedTensorsError> {
        let wanted = self.layout.tensor_bytes();
        if self.received != wanted {
            return Err(SharedTensorsError::Length {
                seen: self.received,
                wanted,
            });
        }
        Ok(SharedTensors {
            blob: self.blob.seal()?,
            layout: self.layout,
        })
    }
}

#[cfg(test)]
mod tests;
