//! **Key substitution.** The attacker has another node's certificate (anybody who ever talked to it has), and wants to use it
//! with a key that it holds.

use std::sync::Arc;

use cloister_attestation::RaTlsIdentity;
use cloister_attestation::ratls::PeerCertificate;
use cloister_session::{SelfSide, SessionError, connect};
use cloister_testkit::attacker;
use cloister_testkit::world::dial;

use crate::arena::{Arena, Raw, evidence, hello, refused_for};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stolen_certificate_needs_its_key() {
    let arena = Arena::open().await;
    let victim = arena.world.node("worker-a").side.identity;
    let thief = arena.world.node("worker-b").side.identity;
    // The certificate with another key: TLS itself says no, on whichever side looks first.
    let dialled = attacker::tls_dial(&arena.aggregator.address, &victim.cert_der, &thief.key_pkcs8).await;
    if let Ok(mut stream) = dialled {
        assert!(attacker::read_frame(&mut stream).await.is_none());
    }
    // The victim's claims shown behind the thief's own certificate.
    let SelfSide::Node(mut side) = arena.world.node("worker-a").local.own else {
        panic!()
    };
    side.identity = Arc::new(RaTlsIdentity {
        cert_der: thief.cert_der.clone(),
        key_pkcs8: thief.key_pkcs8.clone(),
        claims: victim.claims.clone(),
        spki_sha256: thief.spki_sha256,
        node: victim.node.clone(),
        credential: victim.credential.clone(),
        td: thief.td.clone(),
        event_log: victim.event_log.clone(),
    });
    let local = arena.world.local(SelfSide::Node(side));
    let error = connect(&local, &dial(&arena.aggregator.address)).await.unwrap_err();
    let SessionError::RefusedByPeer { refusal, .. } = &error else {
        panic!("{error}")
    };
    assert!(refusal.names("session.claims"), "{error}");
    arena.honest_run().await;
}

/// The victim's evidence extension, quote and all, in a certificate made anew over the attacker's key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stolen_evidence_in_a_certificate_of_ones_own_names_another_key() {
    let arena = Arena::open().await;
    let victim = arena.world.node("worker-a").side.identity;
    let stolen = PeerCertificate::parse(&victim.cert_der).unwrap();
    let (quote, claims) = stolen.shown().expect("a node's certificate");
    let (cert_der, key) = attacker::certificate(quote, claims);
    let mut raw = Raw::open(&arena.aggregator.address, &cert_der, &key, &hello(&victim)).await;
    refused_for(
        raw.show(&evidence(&victim, quote.to_vec())).await,
        "certificate.pubkey_hash",
    );
    arena.honest_run().await;
}
