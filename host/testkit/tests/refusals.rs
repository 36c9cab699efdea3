//! Who does not get a session: each refusal says what was seen and what was wanted, on both ends.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics says where"
)]

use std::time::Duration;

use cloister_attestation::State;
use cloister_attestation::measurement::{EntryRole, Measurement};
use cloister_session::{SessionError, connect};
use cloister_tensor::Digest;
use cloister_testkit::attacker;
use cloister_testkit::world::{NodeChange, RunningAggregator, World, WorldOptions, dial};

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
