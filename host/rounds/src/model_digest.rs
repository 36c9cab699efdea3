//! The digest by which models and updates are named: over segments, so that all cores can compute it, and each of them
//! several segments at a time.
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

/// Segments that a thread digests side by side. One SHA-256 waits for its own last step most of the time, also where the
/// processor has instructions for it; the steps of others fill the gaps (1.6 times as fast on a Sapphire Rapids core).
const LANES: usize = 4;
/// What a lane digests before the next lane has its turn: a block of SHA-256.
const BLOCK_BYTES: usize = 64;

/// The digest of a model with this layout, on as many threads as help.
pub(crate) fn of(layout: &Layout, tensors: &TensorMap) -> Digest {
    let pieces: Vec<&[u8]> = tensors.values().map(|tensor| &**tensor.bytes()).collect();
    let segments = segments(&pieces);
    let threads = thread::available_parallelism()
        .map_or(1, NonZero::get)
        .min(MAX_THREADS)
        .min(segments.len() / SEGMENTS_PER_THREAD)
        .max(1);
    let mut shares = segments.chunks(segments.len().div_ceil(threads).max(1));
    let mut root = head(layout);
    let mut add = |leaves: Vec<Digest>| leaves.iter().for_each(|leaf| root.update(leaf.as_bytes()));
    thread::scope(|scope| {
        let own = shares.next().unwrap_or_default();
        let others: Vec<_> = shares.map(|share| (share, scope.spawn(|| leaves(share)))).collect();
        add(leaves(own));
        for (share, other) in others {
            // Hashing does not panic; were a thread lost all the same, its share is done here.
            add(other.join().unwrap_or_else(|_| leaves(share)));
        }
    });
    root.finish()
}

/// What stands before the segments' digests.
fn head(layout: &Layout) -> Digester {
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
    root
}

/// A segment: pieces of tensors, none of them empty.
type Segment<'a> = Vec<&'a [u8]>;

fn segments<'a>(pieces: &[&'a [u8]]) -> Vec<Segment<'a>> {
    let mut segments = Vec::new();
    let (mut segment, mut room) = (Segment::new(), SEGMENT_BYTES);
    for mut piece in pieces.iter().copied() {
        while !piece.is_empty() {
            let (now, later) = piece.split_at(piece.len().min(room));
            segment.push(now);
            room -= now.len();
            piece = later;
            if room == 0 {
                segments.push(std::mem::take(&mut segment));
                room = SEGMENT_BYTES;
            }
        }
    }
    if !segment.is_empty() {
        segments.push(segment);
    }
    segments
}

/// The segments' digests, in their order.
fn leaves(segments: &[Segment<'_>]) -> Vec<Digest> {
    let mut leaves = Vec::with_capacity(segments.len());
    let (groups, rest) = segments.as_chunks::<LANES>();
    for group in groups {
        let mut lanes = group.each_ref().map(|segment| Lane::new(segment));
        side_by_side(&mut lanes);
        leaves.extend(lanes.map(Lane::finish));
    }
    leaves.extend(rest.iter().map(|segment| Lane::new(segment).finish()));
    leaves
}

/// A segment that is being digested.
struct Lane<'a> {
    digest: Digester,
    piece: &'a [u8],
    later: std::slice::Iter<'a, &'a [u8]>,
}

impl<'a> Lane<'a> {
    fn new(segment: &'a [&'a [u8]]) -> Self {
        let mut later = segment.iter();
        Self {
            digest: Digester::new(),
            piece: later.next().copied().unwrap_or_default(),
            later,
        }
    }

    /// Digests what is left.
    fn finish(mut self) -> Digest {
        self.digest.update(self.piece);
        self.later.for_each(|piece| self.digest.update(piece));
        self.digest.finish()
    }
}

/// Digests the lanes block by block in turn, until one of them ends.
fn side_by_side(lanes: &mut [Lane<'_>; LANES]) {
    loop {
        let blocks = lanes
            .iter()
            .map(|lane| lane.piece.len() / BLOCK_BYTES)
            .min()
            .unwrap_or(0);
        let shared = lanes.each_mut().map(|lane| {
            let (now, later) = lane.piece.split_at(blocks * BLOCK_BYTES);
            lane.piece = later;
            (&mut lane.digest, now.as_chunks::<BLOCK_BYTES>().0)
        });
        let [(a, a_blocks), (b, b_blocks), (c, c_blocks), (d, d_blocks)] = shared;
        for (((a_block, b_block), c_block), d_block) in a_blocks.iter().zip(b_blocks).zip(c_blocks).zip(d_blocks) {
            a.update(a_block);
            b.update(b_block);
            c.update(c_block);
            d.update(d_block);
        }
        // Whoever has less than a block left of its piece goes on to its next one, alone.
        for lane in lanes.iter_mut().filter(|lane| lane.piece.len() < BLOCK_BYTES) {
            lane.digest.update(std::mem::take(&mut lane.piece));
            match lane.later.next() {
                Some(piece) => lane.piece = piece,
                None => return,
            }
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
            assert_eq!(of(&layout, &tensors), by_the_formula(&tensors), "{sizes:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn tensors_of_any_sizes_give_what_the_formula_says(sizes in prop::collection::vec(0usize..900_000, 1..12)) {
            let tensors = model(&sizes);
            let layout = Layout::of(&tensors).unwrap();
            prop_assert_eq!(of(&layout, &tensors), by_the_formula(&tensors));
        }
    }
}
