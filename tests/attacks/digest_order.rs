//! **Digest order swapped.** What a quote is over is a hash of fields in an order. An attacker whose fields are the right ones
//! in another order (its own key as the peer's, the listener's side as its own) would turn evidence of one direction into that
//! of the other; one that puts layer 1's digest into the other half of the report data would slip past a verifier that
//! compares a part. The order is fixed, each field has its length before it, and all 64 bytes are compared.

use cloister_tensor::Digest;
use cloister_testkit::attacker;

use crate::arena::{Arena, Raw, evidence, hello, refused_for, session_report_data};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fields_of_the_binding_in_another_order_are_refused() {
    let arena = Arena::open().await;
    let node = arena.world.node("worker-b");
    let identity = &node.side.identity;
    let address = &arena.aggregator.address;
    let swaps: [(&str, usize, usize); 4] = [
        ("own and peer's TLS key", 2, 3),
        ("exporter and nonce", 1, 4),
        ("nonce and claims", 4, 5),
        ("claims and measurement root", 5, 6),
    ];
    for (what, one, other) in swaps {
        let mut raw = Raw::of(address, identity).await;
        let mut bound = raw.bound(identity);
        bound.swap(one, other);
        let quote = node.side.quotes.quote(session_report_data(&bound)).await.unwrap();
        eprintln!("{what}");
        refused_for(raw.show(&evidence(identity, quote)).await, "session.binding");
    }
    // The listener's side in place of the dialler's.
    let mut raw = Raw::of(address, identity).await;
    let mut bound = raw.bound(identity);
    bound[0] = b"server".to_vec();
    let quote = node.side.quotes.quote(session_report_data(&bound)).await.unwrap();
    refused_for(raw.show(&evidence(identity, quote)).await, "session.binding");
    // In the order of the document the same fields are believed: the listener answers with evidence of its own.
    let mut raw = Raw::of(address, identity).await;
    let quote = node
        .side
        .quotes
        .quote(session_report_data(&raw.bound(identity)))
        .await
        .unwrap();
    let answer = raw
        .show(&evidence(identity, quote))
        .await
        .expect("the documented order");
    assert!(!answer.quote.is_empty());
    assert!(raw.verdict().await.accepted);
    arena.honest_run().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_halves_of_layer_1s_report_data_do_not_change_places() {
    let arena = Arena::open().await;
    let node = arena.world.node("worker-b");
    let identity = &node.side.identity;
    let digest = *Digest::of(&identity.claims).as_bytes();
    let mut swapped = [0; 64];
    swapped[32..].copy_from_slice(&digest);
    let mut doubled = [0; 64];
    doubled[..32].copy_from_slice(&digest);
    doubled[63] = 1;
    for report_data in [swapped, doubled] {
        let quote = node.side.quotes.quote(report_data).await.unwrap();
        // Over the node's own key, so that nothing but the report data is wrong.
        let cert_der = attacker::certificate_with(&identity.key_pkcs8, &quote, &identity.claims);
        let mut raw = Raw::open(
            &arena.aggregator.address,
            &cert_der,
            &identity.key_pkcs8,
            &hello(identity),
        )
        .await;
        let session = node
            .side
            .quotes
            .quote(session_report_data(&raw.bound(identity)))
            .await
            .unwrap();
        refused_for(raw.show(&evidence(identity, session)).await, "quote.report_data");
    }
    arena.honest_run().await;
}
