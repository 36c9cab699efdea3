//! **Reflection.** The attacker has no evidence of its own and sends back what it gets: the listener's nonce as its own, so
//! that one quote would serve both directions; or the dialler's evidence as the listener's.

use std::sync::Arc;

use cloister_session::{connect, tls};
use cloister_testkit::attacker;
use cloister_testkit::world::dial;
use cloister_wire::encode_frame;
use cloister_wire::session::Hello;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::arena::{Arena, evidence, hello, refusal};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nonce_that_comes_back_is_refused() {
    let arena = Arena::open().await;
    let identity = arena.world.node("worker-a").side.identity;
    let mut stream = attacker::tls_dial(&arena.aggregator.address, &identity.cert_der, &identity.key_pkcs8)
        .await
        .unwrap();
    let theirs = attacker::read_frame(&mut stream).await.unwrap();
    let theirs: Hello = cloister_wire::decode(&theirs, "Hello").unwrap();
    let reflected = Hello {
        nonce: theirs.nonce,
        ..hello(&identity)
    };
    attacker::send_frame(&mut stream, &reflected).await;
    let verdict = attacker::read_frame(&mut stream).await.expect("a verdict");
    let verdict: cloister_wire::session::Verdict = cloister_wire::decode(&verdict, "Verdict").unwrap();
    assert_eq!(verdict.rules[0].rule, "session.nonce", "{verdict:?}");
    arena.honest_run().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dialler_does_not_take_its_own_evidence_for_the_listeners() {
    let arena = Arena::open().await;
    let own = arena.world.node("worker-b").side.identity;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mirror = listener.local_addr().unwrap().to_string();
    let config = tls::server_config(&own.cert_der, &own.key_pkcs8).unwrap();
    let mirroring = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut near = TlsAcceptor::from(Arc::new(config)).accept(stream).await.unwrap();
        attacker::send_frame(&mut near, &hello(&own)).await;
        let _hello = attacker::read_frame(&mut near).await.unwrap();
        let shown = attacker::read_frame(&mut near).await.unwrap();
        let shown: cloister_wire::session::Evidence = cloister_wire::decode(&shown, "Evidence").unwrap();
        // Once as it came, and once dressed in the attacker's own claims, in the hope that the quote alone is looked at.
        let dressed = evidence(&own, shown.quote.to_vec());
        let _ = near.write_all(&encode_frame(&dressed).unwrap()).await;
        let _ = near.flush().await;
        attacker::read_frame(&mut near).await
    });
    let worker = arena.world.node("worker-a");
    let error = connect(&worker.local, &dial(&mirror)).await.unwrap_err();
    assert!(refusal(&error).names("session.binding"), "{error}");
    let told = mirroring.await.unwrap().expect("the attacker is told");
    let told: cloister_wire::session::Verdict = cloister_wire::decode(&told, "Verdict").unwrap();
    assert!(!told.accepted);
    arena.honest_run().await;
}
