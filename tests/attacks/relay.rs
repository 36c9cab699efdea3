//! **Relay.** A worker dials what it takes for the aggregator, and reaches the attacker, who ends TLS, dials the aggregator
//! itself, and passes every frame on, unread and unchanged: nonces, evidence, verdicts. Each end sees the other's true
//! evidence. In key-in-certificate attestation both would believe, and the attacker would hold the keys of both connections
//! (CVE-2026-33697). Here each end's quote is over the exporter of *its* TLS connection and over both ends' TLS keys: the two
//! connections differ in both.

use cloister_session::connect;
use cloister_testkit::attacker;
use cloister_testkit::world::dial;

use crate::arena::{Arena, refusal};

/// The attacker is a participant: certificate, credential and TD of its node are genuine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_in_the_middle_can_pass_no_evidence_on() {
    let arena = Arena::open().await;
    let own = arena.world.node("worker-b").side.identity;
    relayed(&arena, own.cert_der.clone(), own.key_pkcs8.to_vec()).await;
}

/// The attacker is a stranger with a TD, and has put its own key into a certificate that claims to be the aggregator's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_in_the_middle_can_pass_no_evidence_on() {
    let arena = Arena::open().await;
    let claimed = |change: &mut cloister_testkit::world::NodeChange| change.credential.clear();
    let own = arena
        .world
        .node_with("aggregator", cloister_attestation::State::Member, claimed)
        .side
        .identity;
    relayed(&arena, own.cert_der.clone(), own.key_pkcs8.to_vec()).await;
}

async fn relayed(arena: &Arena, cert_der: Vec<u8>, key_pkcs8: Vec<u8>) {
    let (middle, task) = attacker::relay(arena.aggregator.address.clone(), cert_der, key_pkcs8).await;
    let worker = arena.world.node("worker-a");
    let error = connect(&worker.local, &dial(&middle)).await.unwrap_err();
    // The aggregator saw the worker's claims behind the attacker's certificate, and said so; the worker was told.
    let log = arena.log().await;
    assert!(log.contains("session."), "{log}");
    refusal(&error);
    task.abort();
    arena.honest_run().await;
}
