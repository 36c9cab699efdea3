//! A quote: taken apart, and verified under the root and collateral that its first byte selects.
#![no_main]

use std::sync::LazyLock;

use cloister_attestation::{Collateral, Quote, QuoteProvider as _, TrustRoot, Verifier};
use cloister_fuzz::{NOW, WORLD, plant, real_quotes};
use libfuzzer_sys::fuzz_target;

/// Verifiers with the time at which each works; the simulated one is the first.
static VERIFIERS: LazyLock<Vec<(Verifier, u64)>> = LazyLock::new(|| {
    let simulated = ((*WORLD.verifier).clone(), NOW);
    let real = real_quotes().into_iter().map(|real| {
        let collateral = Collateral::parse(&real.collateral).unwrap();
        (Verifier::new(TrustRoot::intel().unwrap(), collateral), real.now_unix_s)
    });
    std::iter::once(simulated).chain(real).collect()
});

fn seeds() -> Vec<Vec<u8>> {
    let simulated = WORLD.td().quote(&[7; 64]).unwrap();
    let quotes = std::iter::once(simulated).chain(real_quotes().into_iter().map(|real| real.quote));
    let selected = |(index, quote): (usize, Vec<u8>)| [&[index as u8][..], &quote].concat();
    quotes.enumerate().map(selected).collect()
}

fuzz_target!(init: plant("quote", seeds()), |data: &[u8]| {
    let Some((select, quote)) = data.split_first() else { return };
    let Ok(parsed) = Quote::parse(quote) else { return };
    assert!(quote.starts_with(parsed.bytes) && parsed.pck_chain.len() < quote.len());
    let (verifier, now) = &VERIFIERS[usize::from(*select) % VERIFIERS.len()];
    if let Ok(verified) = verifier.inspect(quote, *now) {
        assert!(!verified.td().debug());
        assert_eq!(verified.root_key_id(), verifier.root().key_id());
    }
});
