//! **Diversion.** The worker talks to the attacker on purpose: the attacker is a member too, and its node is genuine. It takes
//! the evidence that the worker made for *their* connection and shows it to the aggregator as its own, to be taken for the
//! worker. The quote is genuine, fresh, and of a member; but it was made for another listener.

use cloister_session::tls;
use cloister_testkit::attacker;
use cloister_wire::session::{Evidence, Hello};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::arena::{Arena, Raw, hello, refused_for};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evidence_made_for_the_attacker_is_of_no_use_elsewhere() {
    let arena = Arena::open().await;
    let attacker = arena.world.node("worker-b").side.identity;
    let victim = arena.world.node("worker-a");

    // The attacker opens its session with the aggregator first, so as to have the aggregator's nonce.
    let as_victim = Hello {
        node: "worker-a".into(),
        ..hello(&attacker)
    };
    let aggregator = &arena.aggregator.address;
    let mut far = Raw::open(aggregator, &attacker.cert_der, &attacker.key_pkcs8, &as_victim).await;

    // It hands that nonce to the victim as its own: the quote will be over it.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let trap = listener.local_addr().unwrap().to_string();
    let config = tls::server_config(&attacker.cert_der, &attacker.key_pkcs8).unwrap();
    let nonce = far.theirs.nonce.clone();
    let own_hello = Hello {
        nonce,
        ..hello(&attacker)
    };
    let caught = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut near = TlsAcceptor::from(Arc::new(config)).accept(stream).await.unwrap();
        attacker::send_frame(&mut near, &own_hello).await;
        let _hello = attacker::read_frame(&mut near).await.unwrap();
        let evidence = attacker::read_frame(&mut near).await.unwrap();
        cloister_wire::decode::<Evidence>(&evidence, "Evidence").unwrap()
    });
    let options = cloister_session::DialOptions {
        address: trap,
        proxy: None,
        role: None,
    };
    cloister_session::connect(&victim.local, &options).await.unwrap_err();
    let diverted = caught.await.unwrap();
    assert!(!diverted.quote.is_empty() && diverted.claims == victim.side.identity.claims);

    // Exactly the victim's evidence: its claims are not those of the attacker's certificate.
    refused_for(far.show(&diverted).await, "session.claims");

    // With the attacker's own claims beside the victim's quote: the quote is bound to another connection.
    let mut far = Raw::of(aggregator, &attacker).await;
    let mixed = Evidence {
        claims: attacker.claims.clone(),
        credential: attacker.credential.clone(),
        ..diverted
    };
    refused_for(far.show(&mixed).await, "session.binding");
    arena.honest_run().await;
}
