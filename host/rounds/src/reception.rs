//! Receiving a model or an update: pieces in, an aligned buffer and checked tensors out.

use cloister_tensor::{Digest, Dtype, TensorMap};

use crate::layout::{ALIGN_BYTES, Layout};
use crate::model_digest;
use crate::refusal::UpdateRefusal;

/// The zero bytes that fill a buffer up to the next tensor.
const PADDING: [u8; ALIGN_BYTES as usize] = [0; ALIGN_BYTES as usize];

/// What is still to come of one transfer.
///
/// The buffer itself belongs to the caller: [`Reception::accept`] says what to append to it.
#[derive(Debug)]
pub struct Reception {
    layout: Layout,
    announced: Digest,
    position: usize,
    left_in_tensor: u64,
    received: u64,
}

impl Reception {
    /// Expects tensors of this layout whose digest was announced.
    pub fn new(layout: Layout, announced: Digest) -> Self {
        let left_in_tensor = layout.size(0).unwrap_or(0);
        Self {
            layout,
            announced,
            position: 0,
            left_in_tensor,
            received: 0,
        }
    }

    /// What is expected.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Bytes of the wire that came so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Whether all bytes came.
    pub fn complete(&self) -> bool {
        self.received == self.layout.wire_bytes()
    }

    /// Takes the next piece and calls `append` with what belongs next into the buffer, paddings included.
    ///
    /// An empty piece and one beyond the announced length are refused before anything is appended.
    pub fn accept<E: From<UpdateRefusal>>(
        &mut self,
        mut piece: &[u8],
        mut append: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let length = piece.len() as u64;
        let wanted = self.layout.wire_bytes();
        if length == 0 || self.received.saturating_add(length) > wanted {
            return Err(UpdateRefusal::WrongLength {
                seen: self.received.saturating_add(length),
                wanted,
            }
            .into());
        }
        self.received += length;
        loop {
            self.close_tensors(&mut append)?;
            if piece.is_empty() {
                return Ok(());
            }
            let take = usize::try_from(self.left_in_tensor).map_or(piece.len(), |left| left.min(piece.len()));
            let (now, later) = piece.split_at(take);
            append(now)?;
            self.left_in_tensor -= now.len() as u64;
            piece = later;
        }
    }

    /// Steps over finished (and empty) tensors, writing their padding.
    fn close_tensors<E>(&mut self, append: &mut impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        while self.left_in_tensor == 0 {
            let Some(size) = self.layout.size(self.position) else {
                return Ok(());
            };
            let padding = (ALIGN_BYTES - size % ALIGN_BYTES) % ALIGN_BYTES;
            if padding > 0 {
                append(&PADDING[..padding as usize])?;
            }
            self.position += 1;
            self.left_in_tensor = self.layout.size(self.position).unwrap_or(0);
        }
        Ok(())
    }

    /// The whole, still to be checked, once all pieces came.
    pub fn finish(self) -> Result<Received, UpdateRefusal> {
        let wanted = self.layout.wire_bytes();
        if self.received != wanted {
            return Err(UpdateRefusal::WrongLength {
                seen: self.received,
                wanted,
            });
        }
        Ok(Received {
            layout: self.layout,
            announced: self.announced,
        })
    }
}

/// A transfer of which all bytes are there.
#[derive(Debug)]
pub struct Received {
    layout: Layout,
    announced: Digest,
}

impl Received {
    /// Cuts the filled buffer into tensors, without a copy, if their digest is the announced one and every value is finite.
    /// Reads the buffer twice: nothing for a thread on which others wait.
    pub fn check(self, buffer: &bytes::Bytes) -> Result<TensorMap, UpdateRefusal> {
        let tensors = self.layout.tensors(buffer)?;
        let seen = model_digest::of(&self.layout, &tensors);
        if seen != self.announced {
            return Err(UpdateRefusal::WrongDigest {
                seen,
                wanted: self.announced,
            });
        }
        require_finite(&tensors)?;
        Ok(tensors)
    }
}

/// Refuses a NaN or an infinity in any floating-point tensor; the refusal names the tensor and the element.
pub fn require_finite(tensors: &TensorMap) -> Result<(), UpdateRefusal> {
    for (name, tensor) in tensors {
        let bytes: &[u8] = tensor.bytes();
        let index = match tensor.dtype() {
            Dtype::F32 => first_with_exponent(bytes, |b: [u8; 4]| u32::from_le_bytes(b) & 0x7f80_0000 == 0x7f80_0000),
            Dtype::F64 => first_with_exponent(bytes, |b: [u8; 8]| {
                u64::from_le_bytes(b) & 0x7ff0_0000_0000_0000 == 0x7ff0_0000_0000_0000
            }),
            Dtype::F16 => first_with_exponent(bytes, |b: [u8; 2]| u16::from_le_bytes(b) & 0x7c00 == 0x7c00),
            Dtype::Bf16 => first_with_exponent(bytes, |b: [u8; 2]| u16::from_le_bytes(b) & 0x7f80 == 0x7f80),
            _ => None,
        };
        if let Some(index) = index {
            return Err(UpdateRefusal::NotFinite {
                tensor: name.clone(),
                index,
            });
        }
    }
    Ok(())
}

/// Index of the first element whose exponent is all ones. Blocks are tested without branches, so that the compiler can
/// vectorise the common case in which there is none.
fn first_with_exponent<const N: usize>(bytes: &[u8], special: impl Fn([u8; N]) -> bool) -> Option<usize> {
    const BLOCK: usize = 4096;
    let elements = bytes.as_chunks::<N>().0;
    for (block_index, block) in elements.chunks(BLOCK).enumerate() {
        // Gathered in a number as wide as a lane: a flag of one byte would be packed at each step.
        let found = block
            .iter()
            .fold(0, |found, &element| found | u32::from(special(element)));
        if found != 0 {
            let inside = block.iter().position(|&element| special(element)).unwrap_or(0);
            return Some(block_index * BLOCK + inside);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{LayoutError, TensorSpec};
    use proptest::prelude::*;

    fn model(sizes: &[usize], value: f32) -> TensorMap {
        sizes
            .iter()
            .enumerate()
            .filter_map(|(i, &n)| {
                Some((
                    format!("t{i:02}"),
                    cloister_tensor::Tensor::from_f32(&[n], vec![value; n]).ok()?,
                ))
            })
            .collect()
    }

    fn receive(tensors: &TensorMap, piece: usize, announced: Digest) -> Result<TensorMap, UpdateRefusal> {
        let wire: Vec<u8> = tensors.values().flat_map(|t| t.bytes().to_vec()).collect();
        let mut reception = Reception::new(Layout::of(tensors).unwrap(), announced);
        let mut buffer = Vec::new();
        for piece in wire.chunks(piece) {
            reception.accept(piece, |bytes| {
                buffer.extend_from_slice(bytes);
                Ok::<_, UpdateRefusal>(())
            })?;
        }
        reception.finish()?.check(&buffer.into())
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_give_the_model(sizes in prop::collection::vec(1usize..50, 1..12), piece in 1usize..300) {
            let tensors = model(&sizes, 1.5);
            let digest = Layout::model_digest(&tensors).unwrap();
            let back = receive(&tensors, piece, digest).unwrap();
            prop_assert_eq!(Layout::model_digest(&back).unwrap(), digest);
            for (name, tensor) in &tensors {
                prop_assert_eq!(back[name].bytes(), tensor.bytes());
            }
        }

        #[test]
        fn any_manifest_is_taken_or_refused(names in prop::collection::vec(".{0,8}", 0..6), dims in prop::collection::vec(any::<usize>(), 0..10)) {
            let specs = names.into_iter().map(|name| TensorSpec { name, dtype: Dtype::F32, shape: dims.clone() }).collect();
            if let Ok(layout) = Layout::new(specs, 1 << 20) {
                prop_assert!(layout.wire_bytes() <= 1 << 20);
                prop_assert!(layout.buffer_bytes() >= layout.wire_bytes());
            }
        }
    }

    #[test]
    fn too_long_too_short_and_changed_are_refused() {
        let tensors = model(&[4, 3], 1.0);
        let digest = Layout::model_digest(&tensors).unwrap();
        let mut reception = Reception::new(Layout::of(&tensors).unwrap(), digest);
        let ignore = |_: &[u8]| Ok::<_, UpdateRefusal>(());
        assert!(matches!(
            reception.accept(&[], ignore),
            Err(UpdateRefusal::WrongLength { .. })
        ));
        assert!(matches!(
            reception.accept(&[0; 29], ignore),
            Err(UpdateRefusal::WrongLength { seen: 29, wanted: 28 })
        ));
        reception.accept(&[0; 27], ignore).unwrap();
        assert!(!reception.complete());
        assert!(matches!(
            reception.finish(),
            Err(UpdateRefusal::WrongLength { seen: 27, wanted: 28 })
        ));
        assert!(matches!(
            receive(&tensors, 5, Digest::of(b"other")),
            Err(UpdateRefusal::WrongDigest { .. })
        ));
    }

    #[test]
    fn a_nan_is_found_where_it_is() {
        let mut values = vec![0.0f32; 10_000];
        values[9_001] = f32::NAN;
        let tensors = TensorMap::from([(
            "w".to_owned(),
            cloister_tensor::Tensor::from_f32(&[10_000], values).unwrap(),
        )]);
        assert_eq!(
            require_finite(&tensors),
            Err(UpdateRefusal::NotFinite {
                tensor: "w".to_owned(),
                index: 9_001
            })
        );
        assert_eq!(require_finite(&model(&[5000, 7], f32::MIN_POSITIVE)), Ok(()));
    }

    #[test]
    fn a_different_layout_names_the_first_difference() {
        let (ours, theirs) = (
            Layout::of(&model(&[4, 3], 0.0)).unwrap(),
            Layout::of(&model(&[4, 5], 0.0)).unwrap(),
        );
        let LayoutError::Differs { difference } = ours.require(&theirs).unwrap_err() else {
            unreachable!()
        };
        assert_eq!(difference, "tensor 1: seen t01 F32 [5], wanted t01 F32 [3]");
    }
}
