//! Where attacks take place: a federation whose aggregator listens, and a dialler that says what a test wants it to say.

use std::time::Duration;

use bytes::Bytes;
use cloister_attestation::ratls::PeerCertificate;
use cloister_attestation::session::EXPORTER_LABEL;
use cloister_attestation::{PeerEvidence, RaTlsIdentity, Refusal};
use cloister_session::{SessionError, connect};
use cloister_tensor::Digest;
use cloister_testkit::attacker;
use cloister_testkit::world::{RunningAggregator, World, WorldNode, WorldOptions, dial};
use cloister_wire::decode;
use cloister_wire::session::{Evidence, Hello, Verdict};
use sha2::{Digest as _, Sha512};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// A federation whose aggregator listens.
pub(crate) struct Arena {
    pub(crate) world: World,
    pub(crate) aggregator: RunningAggregator,
}

impl Arena {
    pub(crate) async fn open() -> Self {
        Self::with("").await
    }

    /// With these lines in the policy's `[attestation]`.
    pub(crate) async fn with(attestation: &str) -> Self {
        let world = World::new(WorldOptions {
            attestation: attestation.to_owned(),
            ..WorldOptions::default()
        });
        let aggregator = world.serve(world.node("aggregator").local, None).await;
        Self { world, aggregator }
    }

    /// A worker dials here; nobody else could have been let in so far.
    pub(crate) async fn dial_as(&self, node: &WorldNode) -> Result<(), SessionError> {
        connect(&node.local, &dial(&self.aggregator.address)).await.map(drop)
    }

    /// The honest run: a worker as the policy wants it gets in, and knows the aggregator for what it is.
    pub(crate) async fn honest_run(&self) {
        let worker = self.world.node("worker-a");
        let session = connect(&worker.local, &dial(&self.aggregator.address))
            .await
            .expect("an honest worker");
        let PeerEvidence::Td(evidence) = session.peer().evidence() else {
            panic!("an aggregator without a TD")
        };
        assert_eq!(evidence.node(), "aggregator");
    }

    /// What the aggregator says of whom it refused.
    pub(crate) async fn log(&self) -> String {
        for _ in 0..500 {
            let lines = self.aggregator.refused.lock().unwrap().join("\n");
            if !lines.is_empty() {
                return lines;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("nobody was refused");
    }
}

/// The refusal in an error.
pub(crate) fn refusal(error: &SessionError) -> &Refusal {
    error.refusal().unwrap_or_else(|| panic!("not a refusal: {error}"))
}

/// A dialler's session up to the Hellos, by hand.
pub(crate) struct Raw {
    stream: TlsStream<TcpStream>,
    exporter: [u8; 32],
    own_spki: [u8; 32],
    peer_spki: [u8; 32],
    /// The listener's Hello.
    pub(crate) theirs: Hello,
}

/// What an honest node of this identity says first.
pub(crate) fn hello(identity: &RaTlsIdentity) -> Hello {
    Hello {
        version: 1,
        role: identity.node.role.to_string(),
        node: identity.node.node.clone(),
        nonce: Bytes::from_static(&[3; 32]),
        policy_digest: Bytes::copy_from_slice(identity.node.policy_digest.as_bytes()),
        visitor: false,
    }
}

/// What an honest node of this identity shows, with this quote.
pub(crate) fn evidence(identity: &RaTlsIdentity, quote: Vec<u8>) -> Evidence {
    Evidence {
        quote: quote.into(),
        claims: identity.claims.clone(),
        credential: identity.credential.clone(),
        event_log: identity.event_log.clone(),
        ..Evidence::default()
    }
}

impl Raw {
    /// TLS with this certificate and key, then this Hello.
    pub(crate) async fn open(address: &str, cert_der: &[u8], key_pkcs8: &[u8], own: &Hello) -> Self {
        let mut stream = attacker::tls_dial(address, cert_der, key_pkcs8).await.unwrap();
        let theirs = attacker::read_frame(&mut stream).await.expect("the listener's Hello");
        let theirs = decode(&theirs, "Hello").unwrap();
        attacker::send_frame(&mut stream, own).await;
        let (_, tls) = stream.get_ref();
        let exporter = tls.export_keying_material([0; 32], EXPORTER_LABEL, Some(&[])).unwrap();
        let spki = |der: &[u8]| *PeerCertificate::parse(der).unwrap().spki_sha256();
        let peer_spki = spki(&tls.peer_certificates().unwrap()[0]);
        Self {
            stream,
            exporter,
            own_spki: spki(cert_der),
            peer_spki,
            theirs,
        }
    }

    /// As a node, honest so far.
    pub(crate) async fn of(address: &str, identity: &RaTlsIdentity) -> Self {
        Self::open(address, &identity.cert_der, &identity.key_pkcs8, &hello(identity)).await
    }

    /// What ARCHITECTURE.md says a dialler's report data is the hash of, in that order: side, exporter, own and peer's TLS
    /// key, peer's nonce, claims, measurement root.
    pub(crate) fn bound(&self, identity: &RaTlsIdentity) -> [Vec<u8>; 7] {
        [
            b"client".to_vec(),
            self.exporter.to_vec(),
            self.own_spki.to_vec(),
            self.peer_spki.to_vec(),
            self.theirs.nonce.to_vec(),
            Digest::of(&identity.claims).as_bytes().to_vec(),
            identity.node.measurement.root().as_bytes().to_vec(),
        ]
    }

    /// Shows evidence: the listener's evidence if it was believed, else its verdict.
    pub(crate) async fn show(&mut self, evidence: &Evidence) -> Result<Evidence, Verdict> {
        attacker::send_frame(&mut self.stream, evidence).await;
        let answer = attacker::read_frame(&mut self.stream).await.expect("an answer");
        let verdict: Verdict = decode(&answer, "Verdict").unwrap();
        if verdict.rules.is_empty() {
            return Ok(decode(&answer, "Evidence").unwrap());
        }
        // After a refusal nothing more comes.
        assert!(attacker::read_frame(&mut self.stream).await.is_none());
        Err(verdict)
    }

    /// The next frame: a verdict where one is due.
    pub(crate) async fn verdict(&mut self) -> Verdict {
        let frame = attacker::read_frame(&mut self.stream).await.expect("a verdict");
        decode(&frame, "Verdict").unwrap()
    }
}

/// Report data of a session, computed here from the document alone.
pub(crate) fn session_report_data(bound: &[Vec<u8>]) -> [u8; 64] {
    let mut message = b"cloister/session/v1".to_vec();
    for field in bound {
        message.extend_from_slice(&u32::try_from(field.len()).unwrap().to_be_bytes());
        message.extend_from_slice(field);
    }
    Sha512::digest(message).into()
}

/// The rule for which somebody was refused.
pub(crate) fn refused_for(answer: Result<Evidence, Verdict>, rule: &str) {
    let verdict = answer.expect_err("believed");
    assert!(!verdict.accepted);
    let rules: Vec<_> = verdict.rules.iter().map(|failed| failed.rule.as_str()).collect();
    assert!(rules.contains(&rule), "{rule} not among {rules:?}");
}
