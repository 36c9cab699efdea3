//! A model as the chunks that cross the wire.

use bytes::{Bytes, BytesMut};
use cloister_tensor::TensorMap;
use cloister_wire::MAX_CHUNK_BYTES;

/// Tensors below this size share chunks, at the price of a copy.
const SMALL_BYTES: usize = 64 * 1024;

/// The chunks of a model, in order: slices of its tensors, without a copy but for small ones.
pub(crate) struct Chunks {
    tensors: std::vec::IntoIter<Bytes>,
    current: Bytes,
    gathered: BytesMut,
}

impl Chunks {
    /// Takes references to all tensors; the model may change hands meanwhile.
    pub(crate) fn new(tensors: &TensorMap) -> Self {
        let tensors: Vec<Bytes> = tensors.values().map(|tensor| tensor.bytes().clone()).collect();
        Self {
            tensors: tensors.into_iter(),
            current: Bytes::new(),
            gathered: BytesMut::new(),
        }
    }
}

impl Iterator for Chunks {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        loop {
            if !self.current.is_empty() {
                if self.current.len() < SMALL_BYTES {
                    // The tail of a large tensor, or a small one.
                    if self.gathered.len() + self.current.len() > MAX_CHUNK_BYTES {
                        return Some(self.gathered.split().freeze());
                    }
                    self.gathered.extend_from_slice(&std::mem::take(&mut self.current));
                } else if self.gathered.is_empty() {
                    return Some(self.current.split_to(self.current.len().min(MAX_CHUNK_BYTES)));
                } else {
                    return Some(self.gathered.split().freeze());
                }
            }
            if self.current.is_empty() {
                match self.tensors.next() {
                    Some(tensor) => self.current = tensor,
                    None if self.gathered.is_empty() => return None,
                    None => return Some(self.gathered.split().freeze()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cloister_tensor::Tensor;

    #[test]
    fn all_bytes_in_order_and_no_chunk_too_large() {
        let sizes = [1usize, 3, 20_000, 600_000, 5, 262_144, 262_145, 7, 16_384, 1];
        let mut tensors = TensorMap::new();
        for (i, &size) in sizes.iter().enumerate() {
            let values = (0..size).map(|j| (i * 31 + j) as f32).collect();
            tensors.insert(format!("t{i:02}"), Tensor::from_f32(&[size], values).unwrap());
        }
        let whole: Vec<u8> = tensors.values().flat_map(|tensor| tensor.bytes().to_vec()).collect();
        let chunks: Vec<Bytes> = Chunks::new(&tensors).collect();
        assert!(
            chunks
                .iter()
                .all(|chunk| !chunk.is_empty() && chunk.len() <= MAX_CHUNK_BYTES)
        );
        assert_eq!(chunks.concat(), whole);
        assert!(chunks.len() < 16, "{}", chunks.len());
    }
}
