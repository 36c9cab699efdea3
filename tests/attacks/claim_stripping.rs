//! **Claim stripping.** Claims are a map, and other verifiers ignore what they don't know: an attacker with a TD leaves out
//! what it can't fulfil, and has its quote made over the rest, so that the quote's signature holds. Every claim is needed,
//! once.

use ciborium::Value;
use cloister_attestation::State;
use cloister_attestation::measurement::{EntryRole, Measurement};
use cloister_tensor::Digest;
use cloister_testkit::attacker;

use crate::arena::{Arena, Raw, evidence, hello, refusal, refused_for};

fn changed(claims: &[u8], change: impl FnOnce(&mut Vec<(Value, Value)>)) -> Vec<u8> {
    let Value::Map(mut map) = ciborium::from_reader(claims).unwrap() else {
        panic!("claims are a map")
    };
    change(&mut map);
    let mut out = Vec::new();
    ciborium::into_writer(&Value::Map(map), &mut out).unwrap();
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_claim_may_be_missing_or_there_twice() {
    let arena = Arena::open().await;
    let attacker_node = arena.world.node("worker-b");
    let identity = &attacker_node.side.identity;
    let Value::Map(map) = ciborium::from_reader(&identity.claims[..]).unwrap() else {
        panic!()
    };
    assert_eq!(map.len(), 3, "a new claim wants a look at this test");
    for index in 0..map.len() {
        for twice in [false, true] {
            let claims = changed(&identity.claims, |map| {
                let claim = map.remove(index);
                if twice {
                    map.extend([claim.clone(), claim]);
                }
            });
            // The attacker's TD vouches for exactly these claims.
            let report_data = cloister_attestation::ratls::layer1_report_data(&Digest::of(&claims));
            let quote = attacker_node.side.quotes.quote(report_data).await.unwrap();
            let (cert_der, key) = attacker::certificate(&quote, &claims);
            let mut raw = Raw::open(&arena.aggregator.address, &cert_der, &key, &hello(identity)).await;
            refused_for(raw.show(&evidence(identity, quote)).await, "claims");
        }
    }
    arena.honest_run().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_the_credential_nor_a_measured_module_may_be_left_out() {
    let arena = Arena::open().await;
    let stranger = arena
        .world
        .node_with("worker-b", State::Member, |change| change.credential.clear());
    let error = arena.dial_as(&stranger).await.unwrap_err();
    assert!(refusal(&error).names("credential"), "{error}");
    let silent = arena.world.node_with("worker-b", State::Member, |change| {
        let entries = change.claims.measurement.entries().iter();
        let rest = entries
            .filter(|entry| entry.role != EntryRole::Module)
            .cloned()
            .collect();
        change.claims.measurement = Measurement::new(rest).unwrap();
    });
    let error = arena.dial_as(&silent).await.unwrap_err();
    assert!(refusal(&error).names("measurement.module.train-sgd"), "{error}");
    arena.honest_run().await;
}
