//! **Interception by a TLS proxy.** Many firewalls end TLS and show a certificate of the company's own authority. That is the
//! network in the middle with a licence: it gets nothing, and the operator is told what stands in the way and what to do,
//! instead of a certificate error.

use cloister_session::{Proxy, SessionError, connect};
use cloister_testkit::attacker;
use cloister_testkit::link::{Faults, Link};
use cloister_testkit::world::dial;

use crate::arena::Arena;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tls_proxy_is_recognised_and_named() {
    let arena = Arena::open().await;
    let worker = arena.world.node("worker-a");
    // With the authority's certificate behind its own, and with its own alone.
    for whole_chain in [true, false] {
        let (proxy, task) = attacker::tls_proxy(arena.aggregator.address.clone(), whole_chain).await;
        let error = connect(&worker.local, &dial(&proxy)).await.unwrap_err();
        let SessionError::Intercepted { names, .. } = &error else {
            panic!("{error}")
        };
        assert!(names.issuer.contains("Example Corp Inspection CA"), "{names:?}");
        let said = error.to_string();
        assert!(
            said.contains("a TLS proxy stands between this node and") && said.contains("CONNECT"),
            "{said}"
        );
        assert!(error.refusal().is_some(), "it ends with the exit code of a refusal");
        task.abort();
    }
    arena.honest_run().await;
}

/// What the message advises works: the proxy passes TLS through.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_a_connect_proxy_the_honest_run_passes() {
    let arena = Arena::open().await;
    let faults = Faults {
        connect: true,
        ..Faults::default()
    };
    let link = Link::open(&arena.aggregator.address, faults).await;
    let mut options = dial(&arena.aggregator.address);
    options.proxy = Some(link.address.parse::<Proxy>().unwrap());
    let worker = arena.world.node("worker-a");
    connect(&worker.local, &options).await.unwrap();
    arena.honest_run().await;
}
