//! Collateral: JSON from a service or a file, and a good quote verified with it.
#![no_main]

use std::sync::LazyLock;

use cloister_attestation::{Collateral, QuoteProvider as _, TrustRoot, Verifier};
use cloister_fuzz::{NOW, WORLD, plant, real_quotes};
use libfuzzer_sys::fuzz_target;

static SIMULATED: LazyLock<Vec<u8>> = LazyLock::new(|| WORLD.td().quote(&[7; 64]).unwrap());

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<_> = std::iter::once(WORLD.collateral())
        .chain(real_quotes().into_iter().map(|real| real.collateral))
        .collect();
    seeds.dedup();
    seeds
}

fuzz_target!(init: plant("collateral", seeds()), |data: &[u8]| {
    let Ok(collateral) = Collateral::parse(data) else { return };
    let _ = (collateral.issued_unix_s(), collateral.families().count());
    let simulated = Verifier::new(WORLD.authority().root().clone(), collateral.clone());
    let _ = simulated.inspect(&SIMULATED, NOW);
    let intel = Verifier::new(TrustRoot::intel().unwrap(), collateral);
    assert!(intel.inspect(&SIMULATED, NOW).is_err(), "a simulated quote under Intel's root");
});
