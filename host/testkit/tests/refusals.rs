//! Who does not get a session: each refusal says what was seen and what was wanted, on both ends.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use cloister_attestation::identity::SigningKey;
use cloister_attestation::measurement::{EntryRole, Measurement};
use cloister_attestation::{RaTlsIdentity, State};
use cloister_session::{SelfSide, SessionError, connect};
use cloister_tensor::Digest;
use cloister_testkit::attacker;
use cloister_testkit::world::{NodeChange, RunningAggregator, World, WorldOptions, dial};
use cloister_wire::session::{Evidence, Hello, Verdict};

async fn listening(world: &World) -> RunningAggregator {
    world.serve(world.node("aggregator").local, None).await
}

async fn log(aggregator: &RunningAggregator) -> String {
    for _ in 0..200 {
        let lines = aggregator.refused.lock().unwrap().join("\n");
        if !lines.is_empty() {
            return lines;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("nobody was refused");
}

/// A worker that was changed before it made its evidence is told why it is refused.
async fn refused(world: &World, change: impl FnOnce(&mut NodeChange), rule: &str) -> String {
    let aggregator = listening(world).await;
    let worker = world.node_with("worker-a", State::Member, change);
    let error = connect(&worker.local, &dial(&aggregator.address)).await.unwrap_err();
    // Another policy shows in the first message already, so there the worker itself is the first to refuse.
    let refusal = error.refusal().unwrap_or_else(|| panic!("{error}"));
    assert!(refusal.names(rule), "{rule} not in {refusal}");
    let log = log(&aggregator).await;
    assert!(
        log.contains(rule) && log.contains("seen") && log.contains("wanted"),
        "{log}"
    );
    error.to_string()
}

fn with_entry(change: &mut NodeChange, role: EntryRole, name: &str) {
    let mut entries = change.claims.measurement.entries().to_vec();
    let entry = entries
        .iter_mut()
        .find(|entry| entry.role == role && entry.name == name)
        .unwrap();
    entry.digest = Digest::of(b"something else");
    change.claims.measurement = Measurement::new(entries).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_with_another_module_graph_or_data() {
    let world = World::new(WorldOptions::default());
    for (role, name) in [
        (EntryRole::Module, "train-sgd"),
        (EntryRole::Graph, "train"),
        (EntryRole::Data, "train"),
    ] {
        let rule = format!("measurement.{role}.{name}");
        let text = refused(&world, |change| with_entry(change, role, name), &rule).await;
        assert!(text.contains(&Digest::of(b"something else").to_string()), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_under_another_policy() {
    let world = World::new(WorldOptions::default());
    refused(
        &world,
        |change| change.claims.policy_digest = Digest::of(b"another policy"),
        "policy.digest",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_mrtd_and_a_debug_td() {
    let mrtd = cloister_attestation::encoding::hex(&cloister_attestation::simulated::TdValues::default().mrtd);
    let world = World::new(WorldOptions {
        attestation: format!("mrtd = [\"{mrtd}\"]"),
        ..WorldOptions::default()
    });
    let text = refused(&world, |change| change.values.mrtd = [5; 48], "attestation.mrtd").await;
    assert!(text.contains(&mrtd), "{text}");
    let aggregator = listening(&world).await;
    let debug = world.node_with("worker-a", State::Member, |change| change.values.attributes[0] |= 1);
    let error = connect(&debug.local, &dial(&aggregator.address)).await.unwrap_err();
    assert!(error.to_string().contains("debug"), "{error}");
    assert!(log(&aggregator).await.contains("debug"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_credential_and_anothers_name() {
    let world = World::new(WorldOptions::default());
    refused(&world, |change| change.credential.clear(), "credential").await;
    refused(
        &world,
        |change| change.claims.node = "worker-b".to_owned(),
        "credential.node",
    )
    .await;
    refused(
        &world,
        |change| change.key = SigningKey::generate().unwrap(),
        "claims.signature",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_aggregator_that_is_none() {
    let world = World::new(WorldOptions::default());
    let impostor = world.serve(world.node("worker-b").local, None).await;
    let worker = world.node("worker-a");
    let error = connect(&worker.local, &dial(&impostor.address)).await.unwrap_err();
    let SessionError::RefusedPeer { refusal, .. } = &error else {
        panic!("{error}")
    };
    assert!(refusal.names("peer.role"), "{error}");
    // The other end is told as well.
    assert!(log(&impostor).await.contains("peer.role"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_tls_client_gets_nowhere() {
    let world = World::new(WorldOptions::default());
    let aggregator = listening(&world).await;
    let answer = attacker::plain_tls(&aggregator.address).await;
    assert!(answer.as_ref().map_or(true, Vec::is_empty), "{answer:?}");
    let log = log(&aggregator).await;
    assert!(log.contains("no TLS with") && log.contains("wanted TLS 1.3"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stolen_certificate_needs_its_key() {
    let world = World::new(WorldOptions::default());
    let aggregator = listening(&world).await;
    let victim = world.node("worker-a").side.identity;
    let thief = world.node("worker-b").side.identity;
    // The certificate with another key: TLS itself says no, on whichever side looks first.
    let dialled = attacker::tls_dial(&aggregator.address, &victim.cert_der, &thief.key_pkcs8).await;
    if let Ok(mut stream) = dialled {
        assert!(attacker::read_frame(&mut stream).await.is_none());
    }
    // The evidence in a certificate of one's own, over a key of one's own.
    let SelfSide::Node(mut side) = world.node("worker-a").local.own else {
        panic!()
    };
    side.identity = std::sync::Arc::new(RaTlsIdentity {
        cert_der: thief.cert_der.clone(),
        key_pkcs8: thief.key_pkcs8.clone(),
        claims: victim.claims.clone(),
        spki_sha256: thief.spki_sha256,
        node: victim.node.clone(),
        credential: victim.credential.clone(),
    });
    let error = connect(&world.local(SelfSide::Node(side)), &dial(&aggregator.address))
        .await
        .unwrap_err();
    let SessionError::RefusedByPeer { refusal, .. } = &error else {
        panic!("{error}")
    };
    assert!(refusal.names("session.claims"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_ends_tls_can_pass_no_evidence_on() {
    let world = World::new(WorldOptions::default());
    let aggregator = listening(&world).await;
    // The attacker has a genuine node's certificate and key, and stands between two others.
    let owned = world.node("worker-b").side.identity;
    let (relay, task) = attacker::relay(
        aggregator.address.clone(),
        owned.cert_der.clone(),
        owned.key_pkcs8.to_vec(),
    )
    .await;
    let worker = world.node("worker-a");
    let error = connect(&worker.local, &dial(&relay)).await.unwrap_err();
    let log = log(&aggregator).await;
    assert!(log.contains("session."), "{log}");
    assert!(error.refusal().is_some(), "{error}");
    task.abort();
}

fn hello(identity: &RaTlsIdentity, nonce: [u8; 32]) -> Hello {
    Hello {
        version: 1,
        role: identity.node.role.to_string(),
        node: identity.node.node.clone(),
        nonce: bytes::Bytes::copy_from_slice(&nonce),
        policy_digest: bytes::Bytes::copy_from_slice(identity.node.policy_digest.as_bytes()),
        visitor: false,
    }
}

async fn verdict_on(world: &World, make: impl FnOnce(&RaTlsIdentity, &Hello) -> Evidence) -> Verdict {
    let aggregator = listening(world).await;
    let identity = world.node("worker-a").side.identity;
    let mut stream = attacker::tls_dial(&aggregator.address, &identity.cert_der, &identity.key_pkcs8)
        .await
        .unwrap();
    let theirs = cloister_wire::decode::<Hello>(&attacker::read_frame(&mut stream).await.unwrap(), "Hello").unwrap();
    attacker::send_frame(&mut stream, &hello(&identity, [3; 32])).await;
    attacker::send_frame(&mut stream, &make(&identity, &theirs)).await;
    let verdict = attacker::read_frame(&mut stream).await.expect("a verdict");
    // After its verdict the listener closes.
    assert!(attacker::read_frame(&mut stream).await.is_none());
    cloister_wire::decode(&verdict, "Verdict").unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layer_2_skipped_or_from_another_session() {
    let world = World::new(WorldOptions::default());
    let shown = |identity: &RaTlsIdentity, quote: Vec<u8>| Evidence {
        quote: quote.into(),
        claims: identity.claims.clone(),
        credential: identity.credential.clone(),
        ..Evidence::default()
    };
    let none = verdict_on(&world, |identity, _| shown(identity, Vec::new())).await;
    assert!(!none.accepted && none.rules[0].rule == "session.evidence", "{none:?}");
    // A genuine quote of this TD, but over other report data: an earlier session's, or one bound to nothing.
    let provider = world.node("worker-a").side.quotes;
    let stale = provider.quote([9; 64]).await.unwrap();
    let other = verdict_on(&world, |identity, _| shown(identity, stale)).await;
    assert!(!other.accepted && other.rules[0].rule == "session.binding", "{other:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nonce_that_comes_back_is_refused() {
    let world = World::new(WorldOptions::default());
    let aggregator = listening(&world).await;
    let identity = world.node("worker-a").side.identity;
    let mut stream = attacker::tls_dial(&aggregator.address, &identity.cert_der, &identity.key_pkcs8)
        .await
        .unwrap();
    let theirs = cloister_wire::decode::<Hello>(&attacker::read_frame(&mut stream).await.unwrap(), "Hello").unwrap();
    let mut reflected = hello(&identity, [0; 32]);
    reflected.nonce = theirs.nonce;
    attacker::send_frame(&mut stream, &reflected).await;
    let verdict: Verdict =
        cloister_wire::decode(&attacker::read_frame(&mut stream).await.expect("a verdict"), "Verdict").unwrap();
    assert!(
        !verdict.accepted && verdict.rules[0].rule == "session.nonce",
        "{verdict:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_dialler_is_cut_off() {
    let world = World::new(WorldOptions::default());
    let aggregator = listening(&world).await;
    let identity = world.node("worker-a").side.identity;
    let mut stream = attacker::tls_dial(&aggregator.address, &identity.cert_der, &identity.key_pkcs8)
        .await
        .unwrap();
    assert!(attacker::read_frame(&mut stream).await.is_some());
    let end = tokio::time::timeout(Duration::from_secs(15), attacker::read_frame(&mut stream)).await;
    assert!(end.unwrap().is_none());
    assert!(
        log(&aggregator)
            .await
            .contains("did not finish the attested handshake within 4 s")
    );
}
