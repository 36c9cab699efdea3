//! Claims: CBOR in CBOR.
#![no_main]

use cloister_attestation::Claims;
use cloister_attestation::identity::Role;
use cloister_fuzz::{WORLD, plant};
use libfuzzer_sys::fuzz_target;

fn seeds() -> Vec<Vec<u8>> {
    let node = |name, role| WORLD.node(name, role).1.claims.to_vec();
    vec![node("worker-a", Role::Worker), node("aggregator", Role::Aggregator)]
}

fuzz_target!(init: plant("claims", seeds()), |data: &[u8]| {
    let Ok(claims) = Claims::parse(data) else { return };
    assert!(claims.node.measurement.entries().len() <= 256);
    let _ = (claims.signed_by_node(), claims.digest());
});
