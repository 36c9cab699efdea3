//! Submissions, lists and fetches: who may, and what is taken.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that panics says where")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cloister_attestation::State;
use cloister_attestation::identity::SigningKey;
use cloister_exchange::ExchangeError;
use cloister_exchange::client::Client;
use cloister_exchange::content::{ContentKind, Submission, Wanted};
use cloister_exchange::progress::{Progress, Silent};
use cloister_exchange::worker::{Backoff, fetch_all};
use cloister_session::connect;
use cloister_tensor::Digest;
use cloister_testkit::world::{World, WorldOptions, contents, dial};
use tokio_util::sync::CancellationToken;

async fn client(world: &World, participant: Option<&str>, address: &str) -> Client {
    Client::new(connect(&world.visitor(participant), &dial(address)).await.unwrap())
        .await
        .unwrap()
}

async fn submit(
    world: &World,
    client: &mut Client,
    participant: &str,
    key: &SigningKey,
    kind: ContentKind,
    name: &str,
    content: Bytes,
) -> Result<bool, ExchangeError> {
    let policy_digest = world.policy.digest();
    let submission = Submission {
        federation: &world.policy.name,
        policy_digest: &policy_digest,
        kind,
        name,
        participant,
    };
    client.submit(&submission, key, content).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_participants_submit_reaches_the_nodes() {
    let world = World::new(WorldOptions::default());
    let aggregator = world
        .serve(world.node_with("aggregator", State::Bootstrap, |_| {}).local, None)
        .await;
    // The node asks before anybody submitted, and waits.
    let worker = world.node_with("worker-a", State::Bootstrap, |_| {});
    let wanted: Vec<Wanted> = contents()
        .into_iter()
        .map(|(kind, name, content)| Wanted {
            kind,
            name: name.to_owned(),
            digest: Digest::of(&content),
        })
        .collect();
    let address = aggregator.address.clone();
    let waiting = tokio::spawn(async move {
        let progress: Arc<dyn Progress> = Arc::new(Silent);
        let backoff = Backoff {
            first: Duration::from_millis(20),
            ..Backoff::default()
        };
        let cancel = CancellationToken::new();
        fetch_all(
            &worker.local,
            &dial(&address),
            &wanted,
            16 << 20,
            backoff,
            &progress,
            &cancel,
        )
        .await
    });
    let mut beta = client(&world, Some("beta"), &aggregator.address).await;
    for (kind, name, content) in contents() {
        let key = world.participant_key("beta");
        assert!(
            submit(&world, &mut beta, "beta", key, kind, name, content.clone())
                .await
                .unwrap()
        );
        assert!(
            !submit(&world, &mut beta, "beta", key, kind, name, content)
                .await
                .unwrap()
        );
    }
    let listed = beta.list().await.unwrap();
    assert_eq!(listed.len(), 5);
    assert!(listed.iter().all(|entry| entry.present && entry.participant == "beta"));
    let fetched = waiting.await.unwrap().unwrap();
    for (_, _, content) in contents() {
        assert_eq!(fetched[&Digest::of(&content)], content);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_policy_does_not_name_is_refused() {
    let world = World::new(WorldOptions::default());
    let aggregator = world.serve(world.node("aggregator").local, None).await;
    let mut alpha = client(&world, Some("alpha"), &aggregator.address).await;
    let key = world.participant_key("alpha");
    let other = Bytes::from_static(b"\0asm another trainer");
    let error = submit(
        &world,
        &mut alpha,
        "alpha",
        key,
        ContentKind::Module,
        "train-sgd",
        other,
    )
    .await
    .unwrap_err();
    assert!(
        error.denied() && error.to_string().contains("the policy does not name"),
        "{error}"
    );
    let (kind, name, content) = contents().swap_remove(0);
    // In another's name, and with another's key.
    let error = submit(&world, &mut alpha, "beta", key, kind, name, content.clone())
        .await
        .unwrap_err();
    assert!(
        error.denied() && error.to_string().contains("wanted one participant"),
        "{error}"
    );
    let wrong = world.participant_key("gamma");
    let error = submit(&world, &mut alpha, "alpha", wrong, kind, name, content)
        .await
        .unwrap_err();
    assert!(
        error.denied() && error.to_string().contains("signature does not verify"),
        "{error}"
    );
    let error = alpha.fetch(&Digest::of(b"nothing"), 100).await.unwrap_err();
    assert!(error.to_string().contains("is not in the store"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_may_only_look() {
    let world = World::new(WorldOptions::default());
    let aggregator = world.serve(world.node("aggregator").local, None).await;
    let mut stranger = client(&world, None, &aggregator.address).await;
    assert!(stranger.list().await.unwrap_err().denied());
    assert!(stranger.fetch(&Digest::of(b"x"), 100).await.unwrap_err().denied());
    let cloister_attestation::PeerEvidence::Td(evidence) = stranger.peer().evidence() else {
        panic!()
    };
    assert_eq!(evidence.node(), "aggregator");
}
