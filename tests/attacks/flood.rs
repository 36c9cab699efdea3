//! **Flood of garbage.** The attacker opens session after session, each with a certificate whose evidence looks right and is
//! worth nothing, to keep the aggregator verifying chains and taking quotes. What is cheap is checked first: none of it
//! reaches a chain, none costs a quote, and members get in meanwhile.

use std::sync::atomic::Ordering;

use cloister_attestation::State;
use cloister_session::connect;
use cloister_testkit::attacker;
use cloister_testkit::world::{World, WorldOptions, dial};

use crate::arena::{Raw, evidence, hello, refused_for};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_costs_no_quote_and_members_get_in_meanwhile() {
    let world = World::new(WorldOptions::default());
    let (aggregator, taken) = world.node_counted("aggregator", 0);
    let listening = world.serve(aggregator.local, None).await;
    assert_eq!(taken.swap(0, Ordering::SeqCst), 1, "its certificate's");

    // Genuine claims under a key of the attacker's, with a quote of zeros and with one cut short; and a stranger's TD whose
    // binding is right but which no participant stands up for.
    let victim = world.node("worker-b").side.identity;
    let stranger = world.node_with("worker-a", State::Member, |change| change.credential.clear());
    for round in 0..16 {
        let garbage = vec![0; 200 * round];
        let (cert_der, key) = attacker::certificate(&garbage, &victim.claims);
        let mut raw = Raw::open(&listening.address, &cert_der, &key, &hello(&victim)).await;
        refused_for(
            raw.show(&evidence(&victim, garbage.clone())).await,
            if round == 0 { "session.evidence" } else { "quote" },
        );
        let error = connect(&stranger.local, &dial(&listening.address)).await.unwrap_err();
        assert!(
            error.refusal().is_some_and(|refusal| refusal.names("credential")),
            "{error}"
        );
    }
    assert_eq!(taken.load(Ordering::SeqCst), 0, "garbage cost the aggregator quotes");
    let worker = world.node("worker-a");
    connect(&worker.local, &dial(&listening.address)).await.unwrap();
    assert_eq!(taken.load(Ordering::SeqCst), 1);
}
