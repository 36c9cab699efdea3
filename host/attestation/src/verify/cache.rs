//! Verdicts about quotes that come again: a node's certificate holds the same quote in each of its sessions.
//!
//! What is remembered is that these very bytes verified under this verifier (root and collateral). What a quote is bound to
//! is compared each time, and the policy is asked each time: neither is ever remembered.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::{Collateral, VerifiedQuote, Verifier};
use crate::refusal::Refusal;

/// Most verdicts remembered.
const MAX_VERDICTS: usize = 1024;
/// How long a verdict is remembered, in seconds, unless its collateral expires before.
const MAX_AGE_S: u64 = 600;

/// Verdicts of one node, bounded in number and age, and forgotten as a whole when the verifier (its collateral) or what the
/// policy decides by ([`Appraise::basis`](crate::Appraise::basis)) is another one. Refusals are not remembered: nobody could bound them.
#[derive(Debug, Default)]
pub struct VerdictCache {
    verdicts: Mutex<Verdicts>,
}

#[derive(Debug, Default)]
struct Verdicts {
    verifier: Weak<Verifier>,
    collateral: Weak<Collateral>,
    basis: [u8; 32],
    by_quote: HashMap<[u8; 32], Remembered>,
    /// Oldest first.
    order: VecDeque<[u8; 32]>,
}

#[derive(Debug)]
struct Remembered {
    quote: VerifiedQuote,
    since_unix_s: u64,
}

impl Remembered {
    fn holds(&self, now_unix_s: u64) -> bool {
        let until = self.since_unix_s.saturating_add(MAX_AGE_S);
        let expires = self.quote.tcb().collateral_expires_unix_s;
        // A clock that went back makes no verdict younger.
        (self.since_unix_s..until.min(expires)).contains(&now_unix_s)
    }
}

impl VerdictCache {
    /// As [`Verifier::verify`], but for signatures, certificates and TCB of a quote that verified already.
    ///
    /// # Errors
    /// [`Refusal`] with every rule that failed.
    pub fn verify(
        &self,
        verifier: &Arc<Verifier>,
        basis: &[u8; 32],
        quote: &[u8],
        report_data: &[u8; 64],
        now_unix_s: u64,
    ) -> Result<VerifiedQuote, Refusal> {
        let key: [u8; 32] = Sha256::digest(quote).into();
        let collateral = verifier.collateral();
        if let Some(known) = self.known(verifier, &collateral, basis, &key, now_unix_s) {
            // With other report data the verifier says what is wrong.
            if bool::from(known.td().report_data.ct_eq(report_data)) {
                return Ok(known);
            }
        }
        let verified = verifier.verify(quote, report_data, now_unix_s)?;
        self.remember(&collateral, key, &verified, now_unix_s);
        Ok(verified)
    }

    /// How many verdicts are remembered.
    pub fn len(&self) -> usize {
        self.lock().by_quote.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Verdicts> {
        // A map is whole at any time that somebody could panic with the lock held.
        self.verdicts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(
        &self,
        verifier: &Arc<Verifier>,
        collateral: &Arc<Collateral>,
        basis: &[u8; 32],
        key: &[u8; 32],
        now_unix_s: u64,
    ) -> Option<VerifiedQuote> {
        let mut verdicts = self.lock();
        let same = std::ptr::eq(verdicts.verifier.as_ptr(), Arc::as_ptr(verifier))
            && std::ptr::eq(verdicts.collateral.as_ptr(), Arc::as_ptr(collateral))
            && verdicts.basis == *basis;
        if !same {
            *verdicts = Verdicts {
                verifier: Arc::downgrade(verifier),
                collateral: Arc::downgrade(collateral),
                basis: *basis,
                ..Verdicts::default()
            };
        }
        let remembered = verdicts.by_quote.get(key)?;
        remembered.holds(now_unix_s).then(|| remembered.quote.clone())
    }

    fn remember(&self, collateral: &Arc<Collateral>, key: [u8; 32], quote: &VerifiedQuote, now_unix_s: u64) {
        let mut verdicts = self.lock();
        // Renewed while this quote was verified: what older collateral said is not remembered.
        if !std::ptr::eq(verdicts.collateral.as_ptr(), Arc::as_ptr(collateral)) {
            return;
        }
        let remembered = Remembered {
            quote: quote.clone(),
            since_unix_s: now_unix_s,
        };
        if verdicts.by_quote.insert(key, remembered).is_none() {
            verdicts.order.push_back(key);
        }
        while verdicts.order.len() > MAX_VERDICTS {
            if let Some(oldest) = verdicts.order.pop_front() {
                verdicts.by_quote.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::QuoteProvider as _;
    use crate::simulated::{SimulatedAuthority, SimulatedTd, TdValues, create_authority};
    use crate::verify::Collateral;

    const NOW: u64 = 1_795_132_800;

    struct World {
        td: SimulatedTd,
        verifier: Arc<Verifier>,
        cache: VerdictCache,
    }

    impl World {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("authority");
            create_authority(&path, NOW).unwrap();
            let authority = SimulatedAuthority::load(&path).unwrap();
            let collateral = Collateral::from_file(&path).unwrap();
            Self {
                td: SimulatedTd::new(&authority, TdValues::default()).unwrap(),
                verifier: Arc::new(Verifier::new(authority.root().clone(), collateral)),
                cache: VerdictCache::default(),
            }
        }

        fn known(&self, quote: &[u8], now: u64) -> bool {
            let key = Sha256::digest(quote).into();
            self.cache
                .known(&self.verifier, &self.verifier.collateral(), &[0; 32], &key, now)
                .is_some()
        }
    }

    #[test]
    fn the_same_bytes_are_known_and_their_binding_is_compared_each_time() {
        let world = World::new();
        let quote = world.td.quote(&[1; 64]).unwrap();
        let verify = |quote: &[u8], data| world.cache.verify(&world.verifier, &[0; 32], quote, data, NOW);
        let first = verify(&quote, &[1; 64]).unwrap();
        assert!(world.known(&quote, NOW));
        assert_eq!(verify(&quote, &[1; 64]).unwrap(), first);
        assert!(verify(&quote, &[2; 64]).unwrap_err().names("quote.report_data"));
        let mut flipped = quote.clone();
        flipped[700] ^= 1;
        assert!(verify(&flipped, &[1; 64]).is_err());
        assert_eq!(world.cache.len(), 1, "refusals are not remembered");
    }

    #[test]
    fn verdicts_age_and_clocks_that_go_back_help_nobody() {
        let world = World::new();
        let quote = world.td.quote(&[1; 64]).unwrap();
        world
            .cache
            .verify(&world.verifier, &[0; 32], &quote, &[1; 64], NOW)
            .unwrap();
        assert!(world.known(&quote, NOW + MAX_AGE_S - 1));
        assert!(!world.known(&quote, NOW + MAX_AGE_S));
        assert!(!world.known(&quote, NOW - 1));
        // When the collateral has expired, nothing but a new verification decides, and that refuses.
        let later = NOW + 31 * 86_400;
        assert!(
            world
                .cache
                .verify(&world.verifier, &[0; 32], &quote, &[1; 64], later)
                .is_err()
        );
    }

    #[test]
    fn another_policy_or_verifier_forgets_all() {
        let world = World::new();
        let quote = world.td.quote(&[1; 64]).unwrap();
        let verify = |verifier, policy: &[u8; 32]| world.cache.verify(verifier, policy, &quote, &[1; 64], NOW);
        verify(&world.verifier, &[0; 32]).unwrap();
        let other = world.td.quote(&[2; 64]).unwrap();
        world
            .cache
            .verify(&world.verifier, &[0; 32], &other, &[2; 64], NOW)
            .unwrap();
        assert_eq!(world.cache.len(), 2);
        verify(&world.verifier, &[1; 32]).unwrap();
        assert_eq!(world.cache.len(), 1, "another policy");
        let newer = Arc::new((*world.verifier).clone());
        let key = Sha256::digest(&quote).into();
        assert!(
            world
                .cache
                .known(&newer, &newer.collateral(), &[1; 32], &key, NOW)
                .is_none(),
            "newer collateral"
        );
    }

    #[test]
    fn the_oldest_verdict_makes_room() {
        let world = World::new();
        let quote = world.td.quote(&[1; 64]).unwrap();
        let verified = world
            .cache
            .verify(&world.verifier, &[0; 32], &quote, &[1; 64], NOW)
            .unwrap();
        for index in 0..MAX_VERDICTS as u64 + 9 {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&index.to_be_bytes());
            world.cache.remember(&world.verifier.collateral(), key, &verified, NOW);
        }
        assert_eq!(world.cache.len(), MAX_VERDICTS);
        assert!(!world.known(&quote, NOW));
    }
}
