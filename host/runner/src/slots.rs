//! What an aggregator keeps from call to call, in sealed shared memory.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;

use cloister_sandbox::check_slots;
use cloister_tensor::{Dtype, Shape, Tensor, TensorMap};

use crate::blob::{SealedBlob, SharedBlob};
use crate::tensors::SharedTensorsError;

/// The slots of an aggregation module: vectors of f32 by name, each as long as the model, each in a memory of its own. Cloning
/// shares them. Empty before the first call.
#[derive(Clone, Debug, Default)]
pub struct SharedSlots {
    vectors: BTreeMap<String, SealedBlob>,
}

impl SharedSlots {
    /// Copies slots into shared memory: tensors of f32 and one dimension, as [`to_map`](Self::to_map) gives them. Whether they fit
    /// a model shows in the call that gets them.
    ///
    /// # Errors
    /// There is no memory.
    pub fn copy_of(slots: &TensorMap) -> Result<Self, SharedTensorsError> {
        let copied = slots.iter().map(|(name, tensor)| {
            let blob = SharedBlob::copy_of(tensor.bytes())?;
            Ok((name.clone(), blob))
        });
        Ok(Self {
            vectors: copied.collect::<Result<_, SharedTensorsError>>()?,
        })
    }

    /// The slots, in place: they share the memory and keep it.
    ///
    /// # Errors
    /// A memory does not hold a vector of f32.
    pub fn to_map(&self) -> Result<TensorMap, SharedTensorsError> {
        let tensors = self.vectors.iter().map(|(name, blob)| {
            let bytes = blob.bytes();
            let tensor = Shape::new(&[bytes.len() / size_of::<f32>()])
                .and_then(|shape| Tensor::new(Dtype::F32, shape, bytes.clone()))
                .map_err(|source| SharedTensorsError::Tensor {
                    name: name.clone(),
                    source,
                })?;
            Ok((name.clone(), tensor))
        });
        tensors.collect()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.vectors.is_empty()
    }

    /// Their names, as they go into a message; the memories go beside it in the same order.
    pub(crate) fn names(&self) -> BTreeSet<String> {
        self.vectors.keys().cloned().collect()
    }

    pub(crate) fn blobs(&self) -> impl Iterator<Item = &SealedBlob> {
        self.vectors.values()
    }

    /// Takes what came beside a message: one memory for each name, each of `bytes`.
    pub(crate) fn accept(
        names: BTreeSet<String>,
        memories: impl IntoIterator<Item = OwnedFd>,
        bytes: u64,
    ) -> Result<Self, SharedTensorsError> {
        let layout = SharedTensorsError::Layout;
        let length = usize::try_from(bytes).unwrap_or(usize::MAX) / size_of::<f32>();
        let dims = [length];
        let named: Vec<_> = names
            .iter()
            .map(|name| (name.as_str(), Dtype::F32, &dims[..]))
            .collect();
        check_slots(named.into_iter(), length).map_err(layout)?;
        let mut memories = memories.into_iter();
        let mut vectors = BTreeMap::new();
        for name in names {
            let memory = memories
                .next()
                .ok_or_else(|| layout(format!("slot {name:?} came without its memory")))?;
            let blob = SealedBlob::accept(memory, bytes)?;
            if blob.bytes().len() as u64 != bytes {
                return Err(layout(format!(
                    "slot {name:?}: {} bytes came, the model takes {bytes}",
                    blob.bytes().len()
                )));
            }
            vectors.insert(name, blob);
        }
        Ok(Self { vectors })
    }
}
