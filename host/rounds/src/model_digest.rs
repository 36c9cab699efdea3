//! The digest by which models and updates are named: over segments, so that all cores can compute it, and so that whoever
//! receives a model can compute it on the way.
//!
//! SHA-256("cloister/model/v1" | count | for each tensor lp(name) | lp(dtype) | rank | dimensions | for each segment
//! SHA-256(segment)). The segments are the bytes of all tensors one behind the other, cut every [`SEGMENT_BYTES`]; the last
//! one may be shorter. Numbers are u64 big-endian, lp is a u32 big-endian length and the bytes. The manifest fixes how many
//! segments there are.

use std::num::NonZero;
use std::thread;

use cloister_tensor::{Digest, Digester, TensorMap};

use crate::layout::Layout;
use crate::transcript::Transcript;

/// Length of a segment, in bytes.
const SEGMENT_BYTES: usize = 1024 * 1024;
/// Most threads that take part.
const MAX_THREADS: usize = 8;
/// Below this many segments a thread costs more than it saves.
const SEGMENTS_PER_THREAD: usize = 4;

/// The digest of a model that comes in pieces.
#[derive(Debug)]
pub(crate) struct ModelDigest {
    root: Digester,
    segment: Segment,
}

impl ModelDigest {
    /// Of tensors with this layout, whose bytes come next.
    pub(crate) fn new(layout: &Layout) -> Self {
        let mut transcript = Transcript::new("cloister/model/v1");
        transcript.count(layout.specs().len());
        for spec in layout.specs() {
            transcript
                .text(&spec.name)
                .text(spec.dtype.name())
                .count(spec.shape.len());
            for &dimension in &spec.shape {
                transcript.count(dimension);
            }
        }
        let mut root = Digester::new();
        root.update(&transcript.into_bytes());
        Self {
            root,
            segment: Segment::default(),
        }
    }

    /// Takes the next bytes.
    pub(crate) fn update(&mut self, piece: &[u8]) {
        let root = &mut self.root;
        self.segment.update(piece, |leaf| root.update(leaf.as_bytes()));
    }

    /// The digest of all that came.
    pub(crate) fn finish(self) -> Digest {
        let mut root = self.root;
        self.segment.finish(|leaf| root.update(leaf.as_bytes()));
        root.finish()
    }

    /// The digest of a model at hand, on as many threads as help.
    pub(crate) fn of(layout: &Layout, tensors: &TensorMap) -> Digest {
        let pieces: Vec<&[u8]> = tensors.values().map(|tensor| &**tensor.bytes()).collect();
        let bytes: usize = pieces.iter().map(|piece| piece.len()).sum();
        let segments = bytes.div_ceil(SEGMENT_BYTES);
        let threads = thread::available_parallelism()
            .map_or(1, NonZero::get)
            .min(MAX_THREADS)
            .min(segments / SEGMENTS_PER_THREAD)
            .max(1);
        let share = segments.div_ceil(threads) * SEGMENT_BYTES;
        let leaves_of = |at: usize| leaves(&pieces, at * share, share);
        let Self { mut root, .. } = Self::new(layout);
        thread::scope(|scope| {
            let others: Vec<_> = (1..threads)
                .map(|at| (at, scope.spawn(move || leaves_of(at))))
                .collect();
            let mut add = |leaves: Vec<Digest>| leaves.iter().for_each(|leaf| root.update(leaf.as_bytes()));
            add(leaves_of(0));
            for (at, other) in others {
                // Hashing does not panic; were a thread lost all the same, its share is done here.
                add(other.join().unwrap_or_else(|_| leaves_of(at)));
            }
        });
        root.finish()
    }
}

/// The digests of the segments in `length` bytes from `start` on; `start` is the beginning of a segment.
fn leaves(pieces: &[&[u8]], start: usize, length: usize) -> Vec<Digest> {
    let (mut skip, mut left) = (start, length);
    let mut segment = Segment::default();
    let mut leaves = Vec::new();
    for piece in pieces {
        let (skipped, piece) = piece.split_at(skip.min(piece.len()));
        skip -= skipped.len();
        let piece = &piece[..left.min(piece.len())];
        left -= piece.len();
        segment.update(piece, |leaf| leaves.push(leaf));
    }
    segment.finish(|leaf| leaves.push(leaf));
    leaves
}

/// The segment that is being filled.
#[derive(Debug, Default)]
struct Segment {
    digest: Digester,
    filled: usize,
}

impl Segment {
    fn update(&mut self, mut piece: &[u8], mut full: impl FnMut(Digest)) {
        while !piece.is_empty() {
            let (now, later) = piece.split_at(piece.len().min(SEGMENT_BYTES - self.filled));
            self.digest.update(now);
            self.filled += now.len();
            piece = later;
            if self.filled == SEGMENT_BYTES {
                full(std::mem::take(self).digest.finish());
            }
        }
    }

    fn finish(self, last: impl FnOnce(Digest)) {
        if self.filled > 0 {
            last(self.digest.finish());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cloister_tensor::Tensor;
    use proptest::prelude::*;

    fn model(sizes: &[usize]) -> TensorMap {
        sizes
            .iter()
            .enumerate()
            .filter_map(|(i, &n)| {
                let values = (0..n).map(|j| (i * 7 + j) as f32).collect();
                Some((format!("t{i:02}"), Tensor::from_f32(&[n], values).ok()?))
            })
            .collect()
    }

    /// As the formula says, step by step.
    fn by_the_formula(tensors: &TensorMap) -> Digest {
        let mut message = b"cloister/model/v1".to_vec();
        message.extend((tensors.len() as u64).to_be_bytes());
        for (name, tensor) in tensors {
            for text in [name.as_str(), tensor.dtype().name()] {
                message.extend((text.len() as u32).to_be_bytes());
                message.extend(text.as_bytes());
            }
            message.extend((tensor.shape().dims().len() as u64).to_be_bytes());
            for &dimension in tensor.shape().dims() {
                message.extend((dimension as u64).to_be_bytes());
            }
        }
        let bytes: Vec<u8> = tensors.values().flat_map(|tensor| tensor.bytes().to_vec()).collect();
        for segment in bytes.chunks(1 << 20) {
            message.extend(Digest::of(segment).as_bytes());
        }
        Digest::of(&message)
    }

    #[test]
    fn many_segments_and_tensors_of_every_size_give_what_the_formula_says() {
        for sizes in [
            &[0][..],
            &[1],
            &[262_144],
            &[262_143, 2],
            &[0, 262_144, 0, 1],
            &[3_000_000, 1, 0, 262_144, 2_500_001],
        ] {
            let tensors = model(sizes);
            let layout = Layout::of(&tensors).unwrap();
            assert_eq!(
                ModelDigest::of(&layout, &tensors),
                by_the_formula(&tensors),
                "{sizes:?}"
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn in_pieces_it_is_the_same(sizes in prop::collection::vec(0usize..600_000, 1..6), piece in 1usize..2_000_000) {
            let tensors = model(&sizes);
            let layout = Layout::of(&tensors).unwrap();
            let bytes: Vec<u8> = tensors.values().flat_map(|tensor| tensor.bytes().to_vec()).collect();
            let mut running = ModelDigest::new(&layout);
            bytes.chunks(piece).for_each(|piece| running.update(piece));
            prop_assert_eq!(running.finish(), ModelDigest::of(&layout, &tensors));
        }
    }
}
