//! **Collateral downgrade.** What makes an old platform look good is old collateral: from before the flaw was known, or before
//! a key was revoked. A peer can't bring collateral along (what comes with evidence is not read); but whoever runs the
//! *verifier's* machine feeds its cache, and the attacker's own platform is out of date.

use std::sync::Arc;

use cloister_attestation::simulated::reissue_collateral;
use cloister_attestation::{Collateral, State, Verifier};
use cloister_session::{Local, connect};
use cloister_testkit::world::{NOW, dial};

use crate::arena::{Arena, refusal};

const DAY: u64 = 86_400;

/// A worker whose machine serves it collateral that was issued that many days ago.
fn fed_with_old(arena: &Arena, days: u64) -> Local {
    let folder = arena.world.folder().join("authority");
    reissue_collateral(&folder, NOW - days * DAY).unwrap();
    let collateral = Collateral::from_file(&folder).unwrap();
    let root = arena.world.verifier.root().clone();
    Local {
        verifier: Arc::new(Verifier::new(root, collateral)),
        ..arena.world.node("worker-a").local
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_collateral_verifies_nobody() {
    let arena = Arena::open().await;
    let local = fed_with_old(&arena, 40);
    let error = connect(&local, &dial(&arena.aggregator.address)).await.unwrap_err();
    let rules = &refusal(&error).failed;
    assert!(
        rules
            .iter()
            .any(|failed| failed.to_string().to_lowercase().contains("expired")),
        "{error}"
    );
    arena.honest_run().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn collateral_in_force_but_older_than_the_policy_takes_is_refused() {
    let arena = Arena::with("collateral_max_age_s = 604800").await;
    let local = fed_with_old(&arena, 8);
    let error = connect(&local, &dial(&arena.aggregator.address)).await.unwrap_err();
    assert!(refusal(&error).names("attestation.collateral_max_age_s"), "{error}");
    let fresh = fed_with_old(&arena, 6);
    connect(&fresh, &dial(&arena.aggregator.address)).await.unwrap();
    arena.honest_run().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn collateral_of_an_older_evaluation_than_the_policy_takes_is_refused() {
    // The simulated collateral is of evaluation 1: to this policy that is yesterday's.
    let arena = Arena::with("min_tcb_eval_data_number = 2").await;
    let error = arena.dial_as(&arena.world.node("worker-a")).await.unwrap_err();
    assert!(refusal(&error).names("attestation.min_tcb_eval_data_number"), "{error}");
    Arena::with("min_tcb_eval_data_number = 1").await.honest_run().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_platform_that_is_out_of_date_is_refused() {
    let arena = Arena::open().await;
    let old = arena
        .world
        .node_with("worker-b", State::Member, |change| change.values.tee_tcb_svn = [0; 16]);
    let error = arena.dial_as(&old).await.unwrap_err();
    assert!(refusal(&error).names("attestation.tcb_statuses"), "{error}");
    arena.honest_run().await;
}
