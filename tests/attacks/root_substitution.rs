//! **Root substitution.** A participant with a true credential but no TD makes a root of its own, with the same names in its
//! certificates, and quotes under it. Everything verifies, but not under the federation's root. The policy pins that root by
//! its key; simulation is one more root, and not taken beside Intel's.

use std::sync::Arc;

use cloister_attestation::simulated::{SimulatedAuthority, SimulatedTd, TdValues, create_authority};
use cloister_attestation::{QuoteProvider, RaTlsIdentity, State, TrustRoot, Verifier};
use cloister_session::{Local, NodeSide, QuoteService, SelfSide, connect};
use cloister_testkit::world::{NOW, dial};

use crate::arena::{Arena, refusal};

/// A node with its true key and credential, whose quotes lead to a root of its own.
fn under_own_root(arena: &Arena, name: &str) -> Local {
    let folder = arena.world.folder().join(format!("authority-of-{name}"));
    create_authority(&folder, NOW).unwrap();
    let authority = SimulatedAuthority::load(&folder).unwrap();
    let provider: Arc<dyn QuoteProvider> = Arc::new(SimulatedTd::new(&authority, TdValues::default()).unwrap());
    let genuine = arena.world.node(name);
    let node = &genuine.side.identity.node;
    let identity = RaTlsIdentity::new(
        &*provider,
        &genuine.identity,
        State::Member,
        node.measurement.clone(),
        node.policy_digest,
        NOW,
    );
    arena.world.local(SelfSide::Node(NodeSide {
        identity: Arc::new(identity.unwrap()),
        quotes: QuoteService::new(provider),
    }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quotes_under_a_root_of_ones_own_are_refused_at_either_end() {
    let arena = Arena::open().await;
    let forger = under_own_root(&arena, "worker-b");
    let error = connect(&forger, &dial(&arena.aggregator.address)).await.unwrap_err();
    assert!(refusal(&error).names("attestation.root_key_id"), "{error}");

    let forged = arena.world.serve(under_own_root(&arena, "aggregator"), None).await;
    let worker = arena.world.node("worker-a");
    let error = connect(&worker.local, &dial(&forged.address)).await.unwrap_err();
    assert!(refusal(&error).names("attestation.root_key_id"), "{error}");
    arena.honest_run().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_simulated_quote_is_none_where_intels_root_is_wanted() {
    let arena = Arena::open().await;
    let worker = arena.world.node("worker-a");
    // A worker in production, which knows Intel's root alone.
    let collateral = (*arena.world.verifier.collateral()).clone();
    let local = Local {
        verifier: Arc::new(Verifier::new(TrustRoot::intel().unwrap(), collateral)),
        ..worker.local
    };
    let error = connect(&local, &dial(&arena.aggregator.address)).await.unwrap_err();
    assert!(refusal(&error).names("attestation.root_key_id"), "{error}");
    arena.honest_run().await;
}
