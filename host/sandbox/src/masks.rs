//! Masks of dropouts, which the host draws. No module makes, sees or chooses them, and the same round has the same ones on any machine.

use cloister_graph::{DropRatio, Port};
use cloister_tensor::{Digest, Tensor};

use crate::error::{ModuleErrorKind, Refusal};
use crate::training::port_shape;

/// What the masks of one run of a graph are drawn from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MaskSeed<'a> {
    /// The seed of the node's round.
    pub(crate) round: u64,
    /// The graph's name.
    pub(crate) graph: &'a str,
    /// Runs of graphs with masks that the call began before.
    pub(crate) run: u64,
}

impl MaskSeed<'_> {
    /// The seed of a dropout's mask: the first 8 bytes, big endian, of SHA-256("cloister/mask-seed/v1" | u64be round's seed | u32be length
    /// of the graph's name | name | u64be run | u32be dropout).
    fn of_dropout(&self, dropout: u32) -> u64 {
        let name = self.graph.as_bytes();
        let mut text = b"cloister/mask-seed/v1".to_vec();
        text.extend(self.round.to_be_bytes());
        text.extend(u32::try_from(name.len()).unwrap_or(u32::MAX).to_be_bytes());
        text.extend(name);
        text.extend(self.run.to_be_bytes());
        text.extend(dropout.to_be_bytes());
        let digest = Digest::of(&text);
        let first = digest.as_bytes().iter().take(8);
        first.fold(0, |seed, byte| seed << 8 | u64::from(*byte))
    }

    /// The mask for a port.
    pub(crate) fn draw(&self, port: &Port, dropout: u32, ratio: DropRatio) -> Result<Tensor, Refusal> {
        let elements = port_shape(port)?.elements();
        let values = kept(self.of_dropout(dropout), ratio, elements);
        Tensor::from_f32(&port.shape, values)
            .map_err(|error| Refusal::new(ModuleErrorKind::Engine, format!("port `{}`: {error}", port.name)))
    }
}

/// 1 for each element that stays, else 0: two elements a number of SplitMix64, first by its upper 32 bits, then by its lower; an element
/// stays where they are at least the ratio's share of 2^32.
fn kept(seed: u64, ratio: DropRatio, elements: usize) -> Vec<f32> {
    // Exact: an f32 times a power of two, rounded down.
    let least = (f64::from(ratio.get()) * (1_u64 << 32) as f64) as u64;
    let mut state = seed;
    let mut values = Vec::with_capacity(elements + 1);
    while values.len() < elements {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        for half in [mixed >> 32, mixed & u64::from(u32::MAX)] {
            values.push(if half >= least { 1.0 } else { 0.0 });
        }
    }
    values.truncate(elements);
    values
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that panics says where")]
mod tests {
    use super::*;

    const SEED: u64 = 0xec7f_f6fb_dfd7_abc6;
    const MASK: [u8; 12] = [0, 0, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1];

    fn seed(round: u64, graph: &str, run: u64) -> MaskSeed<'_> {
        MaskSeed { round, graph, run }
    }

    #[test]
    fn masks_are_the_documented_bytes() {
        // Computed apart, with Python's hashlib.
        assert_eq!(seed(7, "train", 0).of_dropout(0), SEED);
        let half = DropRatio::new(0.5).unwrap();
        assert_eq!(kept(SEED, half, 12), MASK.map(f32::from));
        assert_eq!(
            kept(SEED, half, 5),
            MASK[..5].iter().map(|&one| f32::from(one)).collect::<Vec<_>>()
        );
    }

    #[test]
    fn everything_that_names_a_mask_changes_it() {
        let all = [
            seed(7, "train", 0).of_dropout(0),
            seed(8, "train", 0).of_dropout(0),
            seed(7, "train@6", 0).of_dropout(0),
            seed(7, "train", 1).of_dropout(0),
            seed(7, "train", 0).of_dropout(1),
        ];
        let apart: std::collections::BTreeSet<u64> = all.into_iter().collect();
        assert_eq!(apart.len(), all.len());
    }

    #[test]
    fn as_many_go_as_the_ratio_says() {
        for share in [0.1_f32, 0.5, 0.9] {
            let kept = kept(3, DropRatio::new(share).unwrap(), 100_000);
            let gone = kept.iter().filter(|&&one| one == 0.0).count() as f32 / 1e5;
            assert!((gone - share).abs() < 0.01, "{gone} of {share}");
        }
    }
}
