//! **Downgrade to one layer.** A certificate alone is open to relay and diversion, so the attacker would have the peer be
//! content with it: by leaving layer 2's quote out, by showing the certificate's once more, by calling itself a visitor, by
//! accepting before anything was shown, or by an older TLS.

use std::sync::Arc;

use cloister_attestation::ratls::PeerCertificate;
use cloister_session::{SessionError, connect, tls};
use cloister_testkit::attacker;
use cloister_testkit::world::dial;
use cloister_wire::session::{Hello, Verdict};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::arena::{Arena, Raw, evidence, hello, refusal, refused_for};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_session_quote_and_the_certificates_quote_again_are_refused() {
    let arena = Arena::open().await;
    let identity = arena.world.node("worker-a").side.identity;
    let mut raw = Raw::of(&arena.aggregator.address, &identity).await;
    refused_for(raw.show(&evidence(&identity, Vec::new())).await, "session.evidence");
    let certificate = PeerCertificate::parse(&identity.cert_der).unwrap();
    let (quote, _) = certificate.shown().unwrap();
    let mut raw = Raw::of(&arena.aggregator.address, &identity).await;
    refused_for(raw.show(&evidence(&identity, quote.to_vec())).await, "session.binding");
    arena.honest_run().await;
}

/// A node that says it is a visitor gets a visitor's leave, which is to look; never a permit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_calls_itself_a_visitor_gets_no_permit() {
    let arena = Arena::open().await;
    let identity = arena.world.node("worker-a").side.identity;
    let visiting = Hello {
        visitor: true,
        ..hello(&identity)
    };
    let mut raw = Raw::open(
        &arena.aggregator.address,
        &identity.cert_der,
        &identity.key_pkcs8,
        &visiting,
    )
    .await;
    // In a member's name it wants that participant's signature.
    let mut borrowed = evidence(&identity, Vec::new());
    borrowed.participant = identity.node.participant.clone();
    refused_for(raw.show(&borrowed).await, "visitor.signature");
    arena.honest_run().await;
}

/// A listener that says "accepted" where its evidence is due.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_that_accepts_instead_of_showing_evidence_is_refused() {
    let arena = Arena::open().await;
    let own = arena.world.node("aggregator").side.identity;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let config = tls::server_config(&own.cert_der, &own.key_pkcs8).unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut near = TlsAcceptor::from(Arc::new(config)).accept(stream).await.unwrap();
        attacker::send_frame(&mut near, &hello(&own)).await;
        let _ = (
            attacker::read_frame(&mut near).await,
            attacker::read_frame(&mut near).await,
        );
        let accepted = Verdict {
            accepted: true,
            rules: Vec::new(),
        };
        attacker::send_frame(&mut near, &accepted).await;
        attacker::read_frame(&mut near).await
    });
    let worker = arena.world.node("worker-a");
    let error = connect(&worker.local, &dial(&address)).await.unwrap_err();
    assert!(refusal(&error).names("session.evidence"), "{error}");
    arena.honest_run().await;
}

/// TLS 1.2 has no exporter that both ends' certificates are bound into as 1.3's are: it is not spoken at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_without_certificates_or_our_protocol_gets_nowhere() {
    let arena = Arena::open().await;
    let answer = attacker::plain_tls(&arena.aggregator.address).await;
    assert!(answer.as_ref().map_or(true, Vec::is_empty), "{answer:?}");
    let log = arena.log().await;
    assert!(log.contains("no TLS with") && log.contains("wanted TLS 1.3"), "{log}");
    let identity = arena.world.node("worker-a").side.identity;
    let server = tls::server_config(&identity.cert_der, &identity.key_pkcs8).unwrap();
    let client = tls::client_config(&identity.cert_der, &identity.key_pkcs8).unwrap();
    assert!(server.alpn_protocols == [tls::ALPN] && client.alpn_protocols == [tls::ALPN]);
    let suites = &server.crypto_provider().cipher_suites;
    assert!(suites.iter().all(|suite| suite.tls13().is_some()), "{suites:?}");
    let worker = arena.world.node("worker-a");
    let no_listener = connect(&worker.local, &dial("127.0.0.1:1")).await.unwrap_err();
    assert!(matches!(no_listener, SessionError::Unreachable { .. }));
    arena.honest_run().await;
}
