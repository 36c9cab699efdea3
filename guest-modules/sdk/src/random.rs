//! What looks random, out of a seed: the same on every machine.
//!
//! The generator is SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014) with the seed as
//! its first state, as the host shuffles rows. It keeps no secrets.

/// SplitMix64.
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    /// Starts from a seed.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A whole number from 0 to `bound - 1`, all equally likely (Lemire's multiplication with rejection); 0 for a bound of 0 or 1.
    pub fn below(&mut self, bound: u32) -> u32 {
        let bound = u64::from(bound);
        if bound < 2 {
            return 0;
        }
        let threshold = (1 << 32) % bound;
        loop {
            let product = (self.next_u64() >> 32) * bound;
            if product & 0xffff_ffff >= threshold {
                return (product >> 32) as u32;
            }
        }
    }

    /// A number from 0 up to, but not, 1: a multiple of 2^-24.
    pub fn unit(&mut self) -> f32 {
        const STEP: f32 = 1.0 / (1 << 24) as f32;
        (self.next_u64() >> 40) as f32 * STEP
    }

    /// A number from `low` to `high`.
    pub fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.unit()
    }

    /// True as often as `share` (0 to 1) says.
    pub fn chance(&mut self, share: f32) -> bool {
        self.unit() < share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_splitmix64() {
        // Reference values of the authors' C code for the state 1234567.
        let mut random = Random::new(1_234_567);
        let seen: Vec<u64> = (0..3).map(|_| random.next_u64()).collect();
        let wanted = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
        ];
        assert_eq!(seen, wanted);
    }

    #[test]
    fn numbers_stay_in_their_ranges_and_reach_all_of_them() {
        let mut random = Random::new(7);
        let mut seen = [0; 9];
        for _ in 0..9000 {
            seen[random.below(9) as usize] += 1;
            let (unit, between) = (random.unit(), random.between(-63.0, 63.0));
            assert!((0.0..1.0).contains(&unit) && (-63.0..=63.0).contains(&between));
        }
        assert!(seen.iter().all(|&count| (800..1200).contains(&count)), "{seen:?}");
        assert_eq!((random.below(0), random.below(1)), (0, 0));
        let heads = (0..1000).filter(|_| random.chance(0.5)).count();
        assert!((400..600).contains(&heads), "{heads}");
        assert!(!random.chance(0.0) && random.chance(1.0));
    }
}
