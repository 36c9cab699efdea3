//! **Renegotiated policy.** The parties agreed on a newer policy, and the attacker would have them talk under the old one, or
//! under one that it wrote: by saying so in its Hello, in its claims, or in one and not the other. There is nothing to
//! negotiate: both ends say which policy they work under, and another one ends the session.

use bytes::Bytes;
use cloister_attestation::State;
use cloister_session::connect;
use cloister_tensor::Digest;
use cloister_testkit::world::dial;
use cloister_wire::session::Hello;

use crate::arena::{Arena, Raw, evidence, hello, refusal, refused_for, session_report_data};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_under_another_policy_is_refused_by_whoever_hears_of_it_first() {
    let arena = Arena::open().await;
    let old = arena.world.node_with("worker-b", State::Member, |change| {
        change.claims.policy_digest = Digest::of(b"last year's")
    });
    let error = arena.dial_as(&old).await.unwrap_err();
    assert!(refusal(&error).names("policy.digest"), "{error}");
    assert!(arena.log().await.contains("policy.digest"));
    // And a worker does not follow an aggregator to another one.
    let aggregator = arena.world.node_with("aggregator", State::Member, |change| {
        change.claims.policy_digest = Digest::of(b"mine")
    });
    let listening = arena.world.serve(aggregator.local, None).await;
    let worker = arena.world.node("worker-a");
    let error = connect(&worker.local, &dial(&listening.address)).await.unwrap_err();
    assert!(refusal(&error).names("policy.digest"), "{error}");
    arena.honest_run().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hello_and_claims_under_different_policies_are_refused() {
    let arena = Arena::open().await;
    let old = arena.world.node_with("worker-b", State::Member, |change| {
        change.claims.policy_digest = Digest::of(b"last year's")
    });
    let identity = &old.side.identity;
    // The Hello says today's policy; the claims, which the quote is over, say last year's.
    let today = Hello {
        policy_digest: Bytes::copy_from_slice(arena.world.policy.digest().as_bytes()),
        ..hello(identity)
    };
    let mut raw = Raw::open(
        &arena.aggregator.address,
        &identity.cert_der,
        &identity.key_pkcs8,
        &today,
    )
    .await;
    let quote = old
        .side
        .quotes
        .quote(session_report_data(&raw.bound(identity)))
        .await
        .unwrap();
    refused_for(raw.show(&evidence(identity, quote)).await, "policy.digest");
    arena.honest_run().await;
}

/// "No policy" is what visitors say who have none; a node that says so is not taken for one that agrees.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_policy_is_refused() {
    let arena = Arena::open().await;
    let identity = arena.world.node("worker-b").side.identity;
    for digest in [Bytes::new(), Bytes::from_static(&[0; 32]), Bytes::from_static(&[7; 31])] {
        let own = Hello {
            policy_digest: digest,
            ..hello(&identity)
        };
        let mut raw = Raw::open(&arena.aggregator.address, &identity.cert_der, &identity.key_pkcs8, &own).await;
        let verdict = raw.verdict().await;
        assert!(
            !verdict.accepted && verdict.rules[0].rule == "policy.digest",
            "{verdict:?}"
        );
    }
    arena.honest_run().await;
}
