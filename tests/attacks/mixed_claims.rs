//! **Claims of two nodes mixed.** The attacker is a participant with a node of its own, and puts together what is true of
//! several: another node's name over its own key, another's credential beside its own claims, its own node's claims in layer 1
//! and another's in layer 2, the good measurement of one and the TD of another.

use cloister_attestation::State;
use cloister_attestation::identity::SigningKey;
use cloister_testkit::world::NodeChange;

use crate::arena::{Arena, Raw, evidence, refusal, refused_for, session_report_data};

async fn refused(arena: &Arena, change: impl FnOnce(&mut NodeChange), rule: &str) {
    let mixed = arena.world.node_with("worker-b", State::Member, change);
    let error = arena.dial_as(&mixed).await.unwrap_err();
    assert!(refusal(&error).names(rule), "{rule} not in {error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ones_own_credential_and_anothers_name() {
    let arena = Arena::open().await;
    refused(
        &arena,
        |change| change.claims.node = "worker-a".to_owned(),
        "credential.node",
    )
    .await;
    refused(
        &arena,
        |change| change.claims.participant = "alpha".to_owned(),
        "credential.participant",
    )
    .await;
    refused(
        &arena,
        |change| change.key = SigningKey::generate().unwrap(),
        "claims.signature",
    )
    .await;
    arena.honest_run().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anothers_credential_and_ones_own_key() {
    let arena = Arena::open().await;
    let other = arena.world.node("worker-a").identity.credential.to_text();
    refused(
        &arena,
        |change| change.credential = other.clone(),
        "credential.node_key",
    )
    .await;
    refused(&arena, |change| change.credential = other.clone(), "credential.node").await;
    arena.honest_run().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_nodes_certificate_and_anothers_session_evidence() {
    let arena = Arena::open().await;
    let (own, other) = (arena.world.node("worker-b"), arena.world.node("worker-a"));
    let identity = &own.side.identity;
    // The other's claims and credential behind the own certificate, over a quote that fits the connection.
    let mut raw = Raw::of(&arena.aggregator.address, identity).await;
    let report_data = session_report_data(&raw.bound(identity));
    let quote = own.side.quotes.quote(report_data).await.unwrap();
    let mixed = evidence(&other.side.identity, quote);
    refused_for(raw.show(&mixed).await, "session.claims");
    arena.honest_run().await;
}

/// The certificate is of a TD as the policy wants it; the session's quotes are of another one, which runs something else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_tds_certificate_and_anothers_session_quote() {
    let arena = Arena::open().await;
    let good = arena.world.node("worker-b");
    let identity = &good.side.identity;
    let other_td = arena
        .world
        .node_with("worker-b", State::Member, |change| change.values.rtmr[2] = [9; 48]);
    let mut raw = Raw::of(&arena.aggregator.address, identity).await;
    let report_data = session_report_data(&raw.bound(identity));
    let quote = other_td.side.quotes.quote(report_data).await.unwrap();
    refused_for(raw.show(&evidence(identity, quote)).await, "session.same_td.rtmr2");
    arena.honest_run().await;
}
