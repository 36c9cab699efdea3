//! **Resumption.** A resumed TLS session shows no certificate, so no verifier would run: with a ticket of a session that was
//! attested, whoever has the ticket's key would be in. Listeners give no tickets, and take none; each session is attested.

use std::sync::Arc;

use cloister_session::tls;
use cloister_testkit::attacker;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::arena::Arena;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dialler_that_would_resume_has_to_be_attested_anew() {
    let arena = Arena::open().await;
    let identity = arena.world.node("worker-a").side.identity;
    let mut config = tls::client_config(&identity.cert_der, &identity.key_pkcs8).unwrap();
    // The attacker's own client keeps whatever tickets it can get, and would send data with them at once.
    config.resumption = Resumption::in_memory_sessions(16);
    config.enable_early_data = true;
    let connector = TlsConnector::from(Arc::new(config));
    for _ in 0..2 {
        let stream = TcpStream::connect(&arena.aggregator.address).await.unwrap();
        let name = ServerName::try_from("cloister.invalid").unwrap();
        let mut stream = connector.connect(name, stream).await.unwrap();
        // Reading makes the client take tickets, if any came.
        assert!(
            attacker::read_frame(&mut stream).await.is_some(),
            "the listener's Hello"
        );
        let (_, tls) = stream.get_ref();
        assert_eq!(tls.handshake_kind(), Some(rustls::HandshakeKind::Full));
        assert_eq!(tls.tls13_tickets_received(), 0);
        assert!(!tls.is_early_data_accepted());
        assert!(tls.peer_certificates().is_some());
    }
    arena.honest_run().await;
}
