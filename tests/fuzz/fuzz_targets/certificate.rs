//! A peer's TLS certificate: X.509, the evidence extension in it, and layer 1.
#![no_main]

use cloister_attestation::identity::Role;
use cloister_attestation::ratls::{PeerCertificate, VisitorIdentity};
use cloister_fuzz::{NOW, WORLD, plant};
use libfuzzer_sys::fuzz_target;

fn seeds() -> Vec<Vec<u8>> {
    let visitor = VisitorIdentity::new(None, NOW).unwrap();
    vec![
        WORLD.node("worker-a", Role::Worker).1.cert_der.clone(),
        visitor.cert_der.clone(),
    ]
}

fuzz_target!(init: plant("certificate", seeds()), |data: &[u8]| {
    let Ok(certificate) = PeerCertificate::parse(data) else { return };
    let verified = certificate.verify(&WORLD.verifier, NOW);
    assert!(verified.is_err() || certificate.has_evidence());
});
