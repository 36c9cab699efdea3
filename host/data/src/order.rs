//! The order of rows that a seed gives.
//!
//! The generator is SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014) with
//! the seed as its first state. The order is a Fisher-Yates shuffle of 0, 1, ..., n - 1 from the end: for i from n - 1
//! down to 1, the entries i and `below(i + 1)` change places. `below(k)` is Lemire's multiplication with rejection, so
//! that each order is equally likely. None of it depends on the machine or on a library: a seed means the same order
//! everywhere and for good. The generator shuffles; it keeps no secrets.

/// SplitMix64.
#[derive(Clone, Debug)]
pub struct SplitMix64 {
    state: u64,
}

impl SplitMix64 {
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

    /// A number from 0 to `bound - 1`, all equally likely; 0 for a bound of 0 or 1.
    ///
    /// Takes the high half of the 128-bit product `next_u64() * bound`, and draws again while the low half is below
    /// 2^64 mod bound (Lemire: "Fast random integer generation in an interval", 2019).
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound < 2 {
            return 0;
        }
        let threshold = bound.wrapping_neg() % bound;
        loop {
            let product = u128::from(self.next_u64()) * u128::from(bound);
            #[allow(clippy::cast_possible_truncation, reason = "the low half")]
            if product as u64 >= threshold {
                return (product >> 64) as u64;
            }
        }
    }
}

/// The rows 0 to `rows - 1` in the order that the seed gives.
pub fn shuffled(rows: u32, seed: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..rows).collect();
    let mut random = SplitMix64::new(seed);
    for last in (1..order.len()).rev() {
        #[allow(clippy::cast_possible_truncation, reason = "below a usize")]
        let other = random.below(last as u64 + 1) as usize;
        order.swap(last, other);
    }
    order
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_generator_is_splitmix64() {
        // Reference values of the authors' C code for the state 1234567.
        let mut random = SplitMix64::new(1_234_567);
        let seen: Vec<u64> = (0..3).map(|_| random.next_u64()).collect();
        assert_eq!(
            seen,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423
            ]
        );
    }

    #[test]
    fn an_order_stays_what_it_is() {
        assert_eq!(shuffled(0, 1), [0_u32; 0]);
        assert_eq!(shuffled(1, 1), [0]);
        assert_eq!(shuffled(8, 42), shuffled(8, 42));
        assert_ne!(shuffled(8, 42), shuffled(8, 43));
    }

    proptest! {
        #[test]
        fn an_order_holds_every_row_once(rows in 0_u32..2000, seed: u64) {
            let mut order = shuffled(rows, seed);
            order.sort_unstable();
            prop_assert_eq!(order, (0..rows).collect::<Vec<_>>());
        }

        #[test]
        fn below_stays_below(seed: u64, bound in 1_u64..) {
            prop_assert!(SplitMix64::new(seed).below(bound) < bound);
        }
    }
}
