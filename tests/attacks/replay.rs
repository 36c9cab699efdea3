//! **Replay.** The attacker recorded what a worker showed in an earlier session, and let us even say that it has the worker's
//! TLS key by now (a crash dump). It dials with the worker's certificate and shows the old evidence again: genuine, of the
//! right TD, over the right claims. The listener's nonce and the connection's exporter are new each time.

use crate::arena::{Arena, Raw, evidence, refused_for, session_report_data};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evidence_of_an_earlier_session_is_stale() {
    let arena = Arena::open().await;
    let worker = arena.world.node("worker-a");
    let identity = &worker.side.identity;

    let mut earlier = Raw::of(&arena.aggregator.address, identity).await;
    let report_data = session_report_data(&earlier.bound(identity));
    let recorded = evidence(identity, worker.side.quotes.quote(report_data).await.unwrap());
    earlier
        .show(&recorded)
        .await
        .expect("in its own session it is believed");

    let mut again = Raw::of(&arena.aggregator.address, identity).await;
    refused_for(again.show(&recorded).await, "session.binding");

    // Even with the exporter of the new connection: one stale field is enough.
    let mut again = Raw::of(&arena.aggregator.address, identity).await;
    let mut bound = again.bound(identity);
    bound[4] = earlier.theirs.nonce.to_vec();
    let stale_nonce = worker.side.quotes.quote(session_report_data(&bound)).await.unwrap();
    refused_for(again.show(&evidence(identity, stale_nonce)).await, "session.binding");
    arena.honest_run().await;
}
