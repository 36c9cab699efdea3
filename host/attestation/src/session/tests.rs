//! Two ends in memory, and what an attacker between or at one of them may try.

use std::collections::VecDeque;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use cloister_tensor::Digest;
use cloister_wire::session::{Evidence, Hello};
use cloister_wire::{decode, encode_frame};

use super::*;
use crate::claims::{NodeClaims, State};
use crate::evidence::{Appraise, PeerEvidence, VerifiedEvidence, verify_detached};
use crate::identity::{CredentialFields, PublicKey, Role, SigningKey, endorse};
use crate::measurement::{Entry, EntryRole, Measurement};
use crate::provider::QuoteProvider as _;
use crate::ratls::{NodeIdentity, RaTlsIdentity, VisitorIdentity};
use crate::refusal::{FailedRule, Refusal};
use crate::simulated::{SimulatedAuthority, SimulatedTd, TdValues, create_authority};
use crate::verify::{Collateral, Verifier};

const NOW: u64 = 1_795_132_800;
const EXPORTER: [u8; 32] = [9; 32];

/// One authority, one participant, for all tests.
struct World {
    authority: SimulatedAuthority,
    verifier: Arc<Verifier>,
    alpha: SigningKey,
}

static WORLD: LazyLock<World> = LazyLock::new(World::new);

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("authority");
        create_authority(&path, NOW).unwrap();
        let authority = SimulatedAuthority::load(&path).unwrap();
        let collateral = Collateral::from_file(&path).unwrap();
        let verifier = Arc::new(Verifier::new(authority.root().clone(), collateral));
        Self {
            authority,
            verifier,
            alpha: SigningKey::generate().unwrap(),
        }
    }

    fn td(&self, change: impl FnOnce(&mut TdValues)) -> SimulatedTd {
        let mut values = TdValues::default();
        change(&mut values);
        SimulatedTd::new(&self.authority, values).unwrap()
    }
}

/// Knows participant alpha; wants the default MRTD.
struct TestPolicy {
    alpha: PublicKey,
}

impl Appraise for TestPolicy {
    fn participant_key(&self, participant: &str) -> Option<PublicKey> {
        (participant == "alpha").then_some(self.alpha)
    }

    fn appraise(&self, evidence: &VerifiedEvidence, _now: u64) -> Vec<FailedRule> {
        if evidence.td().mrtd == TdValues::default().mrtd {
            Vec::new()
        } else {
            vec![FailedRule::new("attestation.mrtd", "another", "the default")]
        }
    }

    fn appraise_visitor(&self, _participant: Option<&str>, _now: u64) -> Vec<FailedRule> {
        Vec::new()
    }
}

fn policy() -> Arc<dyn Appraise> {
    Arc::new(TestPolicy {
        alpha: WORLD.alpha.public(),
    })
}

fn claims_of(key: &SigningKey, node: &str, role: Role) -> NodeClaims {
    NodeClaims {
        federation: "digits".into(),
        participant: "alpha".into(),
        node: node.into(),
        role,
        state: State::Member,
        policy_digest: Digest::of(b"policy"),
        node_key: key.public(),
        measurement: Measurement::new(vec![Entry::new(EntryRole::Host, "cloister", Digest::of(b"host"))]).unwrap(),
    }
}

fn credential_fields(claims: &NodeClaims) -> CredentialFields {
    CredentialFields {
        federation: claims.federation.clone(),
        participant: claims.participant.clone(),
        node: claims.node.clone(),
        role: claims.role,
        node_key: claims.node_key,
        not_after_unix_s: NOW + 1000,
    }
}

/// A node of alpha, after somebody changed its claims and its credential.
fn node_with(
    td: &SimulatedTd,
    name: &str,
    role: Role,
    change_claims: impl FnOnce(&mut NodeClaims),
    change_credential: impl FnOnce(&mut CredentialFields),
) -> Arc<RaTlsIdentity> {
    let key = SigningKey::generate().unwrap();
    let mut claims = claims_of(&key, name, role);
    let mut fields = credential_fields(&claims);
    change_claims(&mut claims);
    change_credential(&mut fields);
    let credential = endorse(&WORLD.alpha, fields).unwrap().to_text();
    Arc::new(RaTlsIdentity::from_claims(td, &key, claims, credential.into(), NOW).unwrap())
}

fn node(td: &SimulatedTd, name: &str, role: Role) -> Arc<RaTlsIdentity> {
    node_with(td, name, role, |_| (), |_| ())
}

struct End {
    handshake: Handshake,
    queue: VecDeque<Action>,
    td: SimulatedTd,
    result: Option<Result<PeerEvidence, String>>,
}

impl End {
    fn new(side: Side, own: SelfInfo, td: SimulatedTd, peer_certificate: &[u8], exporter: [u8; 32]) -> Self {
        let (handshake, actions) = Handshake::new(HandshakeInput {
            side,
            own,
            exporter,
            peer_certificate,
            verifier: WORLD.verifier.clone(),
            appraiser: policy(),
        })
        .unwrap();
        Self {
            handshake,
            queue: actions.into(),
            td,
            result: None,
        }
    }

    /// Works off the actions; gives what goes to the peer.
    fn pump(&mut self) -> Vec<Bytes> {
        let mut out = Vec::new();
        while let Some(action) = self.queue.pop_front() {
            match action {
                Action::Send(frame) => out.push(frame),
                Action::NeedQuote(data) => {
                    let quote = self.td.quote(&data).unwrap();
                    self.queue.extend(self.handshake.provide_quote(&quote, &[]).unwrap());
                }
                Action::Done(peer) => self.result = Some(Ok(*peer)),
                Action::Refused(refusal) => self.result = Some(Err(refusal.to_string())),
            }
        }
        out
    }

    fn take(&mut self, frame: &Bytes) {
        if self.result.as_ref().is_some_and(Result::is_err) {
            return;
        }
        match self.handshake.on_frame(&frame[4..], NOW) {
            Ok(actions) => self.queue.extend(actions),
            Err(error) => self.result = Some(Err(error.to_string())),
        }
    }
}

/// Lets two ends talk; `meddle` sees every frame (true: from the client) and may change it.
fn talk(
    client: &mut End,
    server: &mut End,
    mut meddle: impl FnMut(bool, usize, Bytes) -> Bytes,
) -> [Result<PeerEvidence, String>; 2] {
    let (mut sent_by_client, mut sent_by_server) = (0, 0);
    for _ in 0..10 {
        let (to_server, to_client) = (client.pump(), server.pump());
        for frame in to_server {
            server.take(&meddle(true, sent_by_client, frame));
            sent_by_client += 1;
        }
        for frame in to_client {
            client.take(&meddle(false, sent_by_server, frame));
            sent_by_server += 1;
        }
    }
    let end = |end: &mut End| end.result.take().unwrap_or_else(|| Err("hangs".into()));
    [end(client), end(server)]
}

fn pair(client: &Arc<RaTlsIdentity>, server: &Arc<RaTlsIdentity>) -> (End, End) {
    let td = || WORLD.td(|_| ());
    (
        End::new(
            Side::Client,
            SelfInfo::Node(client.clone()),
            td(),
            &server.cert_der,
            EXPORTER,
        ),
        End::new(
            Side::Server,
            SelfInfo::Node(server.clone()),
            td(),
            &client.cert_der,
            EXPORTER,
        ),
    )
}

fn two_nodes() -> (Arc<RaTlsIdentity>, Arc<RaTlsIdentity>) {
    let td = WORLD.td(|_| ());
    (
        node(&td, "worker-a", Role::Worker),
        node(&td, "aggregator", Role::Aggregator),
    )
}

fn honest(client: &Arc<RaTlsIdentity>, server: &Arc<RaTlsIdentity>) -> [Result<PeerEvidence, String>; 2] {
    let (mut client, mut server) = pair(client, server);
    talk(&mut client, &mut server, |_, _, frame| frame)
}

fn refused(result: &Result<PeerEvidence, String>, says: &str) {
    let error = result.as_ref().unwrap_err();
    assert!(error.contains(says), "wanted {says:?} in: {error}");
}

#[test]
fn two_nodes_accept_each_other() {
    let (worker, aggregator) = two_nodes();
    let [at_worker, at_aggregator] = honest(&worker, &aggregator);
    let (Ok(PeerEvidence::Td(aggregator)), Ok(PeerEvidence::Td(worker))) = (at_worker, at_aggregator) else {
        panic!("both accept")
    };
    assert_eq!(
        (worker.node(), worker.role(), worker.participant()),
        ("worker-a", Role::Worker, "alpha")
    );
    assert_eq!((aggregator.node(), aggregator.role()), ("aggregator", Role::Aggregator));
    assert!(worker.simulated());
    assert_eq!(worker.state(), State::Member);
}

#[test]
fn an_identity_is_made_of_key_and_credential() {
    let td = WORLD.td(|_| ());
    let key = SigningKey::generate().unwrap();
    let claims = claims_of(&key, "worker-a", Role::Worker);
    let credential = endorse(&WORLD.alpha, credential_fields(&claims)).unwrap();
    let identity = NodeIdentity { key, credential };
    let measurement = claims.measurement.clone();
    let made = RaTlsIdentity::new(
        &td,
        &identity,
        State::Member,
        measurement.clone(),
        claims.policy_digest,
        NOW,
    )
    .unwrap();
    assert_eq!(made.node, claims);
    let other = NodeIdentity {
        key: SigningKey::generate().unwrap(),
        credential: identity.credential,
    };
    let error = RaTlsIdentity::new(&td, &other, State::Member, measurement, claims.policy_digest, NOW).unwrap_err();
    assert!(error.to_string().contains("endorse this key"));
}

#[test]
fn visitors_sign_or_only_look() {
    let (_, aggregator) = two_nodes();
    let mut key = Some(SigningKey::from_pem(&WORLD.alpha.to_pem()).unwrap());
    for name in [Some("alpha"), None] {
        let signer = name.map(|name: &str| (name.to_owned(), key.take().unwrap()));
        let visitor = Arc::new(VisitorIdentity::new(signer, NOW).unwrap());
        let own = SelfInfo::Visitor(visitor.clone(), [0; 32]);
        let mut client = End::new(Side::Client, own, WORLD.td(|_| ()), &aggregator.cert_der, EXPORTER);
        let own = SelfInfo::Node(aggregator.clone());
        let mut server = End::new(Side::Server, own, WORLD.td(|_| ()), &visitor.cert_der, EXPORTER);
        let [at_client, at_server] = talk(&mut client, &mut server, |_, _, frame| frame);
        assert!(matches!(at_client, Ok(PeerEvidence::Td(_))));
        let Ok(PeerEvidence::Visitor(visitor)) = at_server else {
            panic!("a visitor")
        };
        assert_eq!(visitor.participant(), name);
    }
}

#[test]
fn a_visitor_cannot_borrow_a_name() {
    let (_, aggregator) = two_nodes();
    let signer = Some(("alpha".to_owned(), SigningKey::generate().unwrap()));
    let visitor = Arc::new(VisitorIdentity::new(signer, NOW).unwrap());
    let own = SelfInfo::Visitor(visitor.clone(), [0; 32]);
    let mut client = End::new(Side::Client, own, WORLD.td(|_| ()), &aggregator.cert_der, EXPORTER);
    let own = SelfInfo::Node(aggregator);
    let mut server = End::new(Side::Server, own, WORLD.td(|_| ()), &visitor.cert_der, EXPORTER);
    let [at_client, at_server] = talk(&mut client, &mut server, |_, _, frame| frame);
    refused(&at_server, "visitor.signature");
    refused(&at_client, "refused");
}

#[test]
fn a_relayed_quote_does_not_fit_another_connection() {
    // The attacker ends the worker's connection at itself and carries every frame on over its own to the aggregator:
    // same certificates, same nonces, but each TLS connection has an exporter of its own.
    let (worker, aggregator) = two_nodes();
    let (mut client, mut server) = pair(&worker, &aggregator);
    server = End::new(
        Side::Server,
        SelfInfo::Node(aggregator.clone()),
        server.td,
        &worker.cert_der,
        [8; 32],
    );
    let [at_client, at_server] = talk(&mut client, &mut server, |_, _, frame| frame);
    refused(&at_server, "session.binding");
    refused(&at_client, "session.binding");
}

#[test]
fn evidence_is_bound_to_both_tls_keys() {
    // The attacker has a TD of its own and terminates TLS with its own key towards the aggregator, carrying the
    // worker's quote: the worker named the attacker's key as its peer, the aggregator another.
    let (worker, aggregator) = two_nodes();
    let attacker = node(&WORLD.td(|_| ()), "worker-b", Role::Worker);
    let mut client = End::new(
        Side::Client,
        SelfInfo::Node(worker.clone()),
        WORLD.td(|_| ()),
        &attacker.cert_der,
        EXPORTER,
    );
    let mut server = End::new(
        Side::Server,
        SelfInfo::Node(aggregator),
        WORLD.td(|_| ()),
        &worker.cert_der,
        EXPORTER,
    );
    let [_, at_server] = talk(&mut client, &mut server, |_, _, frame| frame);
    refused(&at_server, "session.binding");
}

#[test]
fn a_reflected_quote_is_of_the_wrong_direction() {
    // A node that dials itself by way of the attacker, who sends its own evidence back: the certificate is its own,
    // too, so only direction and nonce tell.
    let (worker, _) = two_nodes();
    let (mut client, mut server) = pair(&worker, &worker);
    let mut dialled = None;
    let [at_client, _] = talk(&mut client, &mut server, |from_client, i, frame| {
        match (from_client, i) {
            (true, 1) => dialled = Some(frame.clone()),
            (false, 1) => return dialled.clone().unwrap(),
            _ => {}
        }
        frame
    });
    refused(&at_client, "session.binding");
}

#[test]
fn a_nonce_sent_back_is_refused() {
    let (worker, aggregator) = two_nodes();
    let (mut client, mut server) = pair(&worker, &aggregator);
    let mut nonce = Bytes::new();
    let [at_client, _] = talk(&mut client, &mut server, |from_client, i, frame| {
        if i > 0 {
            return frame;
        }
        let mut hello: Hello = decode(&frame.slice(4..), "Hello").unwrap();
        if from_client {
            nonce = hello.nonce.clone();
            return frame;
        }
        hello.nonce = nonce.clone();
        encode_frame(&hello).unwrap()
    });
    refused(&at_client, "our own nonce");
}

#[test]
fn evidence_of_an_earlier_time_is_stale() {
    // Everything but the nonces is the same: both certificates and (say, by a broken TLS) even the exporter.
    let (worker, aggregator) = two_nodes();
    let (mut client, mut server) = pair(&worker, &aggregator);
    let mut earlier = Bytes::new();
    let [at_client, at_server] = talk(&mut client, &mut server, |from_client, i, frame| {
        if from_client && i == 1 {
            earlier = frame.clone();
        }
        frame
    });
    assert!(at_client.is_ok() && at_server.is_ok());
    let (mut client, mut server) = pair(&worker, &aggregator);
    let [_, at_server] = talk(&mut client, &mut server, |from_client, i, frame| {
        if from_client && i == 1 { earlier.clone() } else { frame }
    });
    refused(&at_server, "session.binding");
}

#[test]
fn skipping_layer_2_is_refused() {
    let (worker, aggregator) = two_nodes();
    for empty in [false, true] {
        let (mut client, mut server) = pair(&worker, &aggregator);
        let [_, at_server] = talk(&mut client, &mut server, |from_client, i, frame| {
            if !from_client || i != 1 {
                return frame;
            }
            let mut evidence: Evidence = decode(&frame.slice(4..), "Evidence").unwrap();
            // Nothing at all, or the certificate's quote once more.
            let certificate = crate::ratls::PeerCertificate::parse(&worker.cert_der).unwrap();
            evidence.quote = if empty {
                Bytes::new()
            } else {
                certificate.evidence.unwrap().quote
            };
            encode_frame(&evidence).unwrap()
        });
        refused(&at_server, if empty { "session.evidence" } else { "session.binding" });
    }
}

#[test]
fn a_visitors_hello_does_not_get_a_node_in() {
    let (worker, aggregator) = two_nodes();
    let (mut client, mut server) = pair(&worker, &aggregator);
    let [_, at_server] = talk(&mut client, &mut server, |from_client, i, frame| {
        if !from_client || i != 0 {
            return frame;
        }
        let hello: Hello = decode(&frame.slice(4..), "Hello").unwrap();
        encode_frame(&Hello { visitor: true, ..hello }).unwrap()
    });
    assert!(matches!(at_server, Ok(PeerEvidence::Visitor(visitor)) if visitor.participant().is_none()));
}

#[test]
fn a_stolen_certificate_does_not_fit_another_key() {
    // Without the stolen certificate's key the thief has to show one of its own, with the stolen extension in it.
    let (worker, aggregator) = two_nodes();
    let stolen = crate::ratls::PeerCertificate::parse(&worker.cert_der)
        .unwrap()
        .evidence
        .unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let extension = crate::ratls::tagged_evidence(&stolen.quote, &stolen.claims).unwrap();
    let thief = crate::ratls::self_signed(&key, "worker-a", Some(extension), NOW).unwrap();
    let (mut client, mut server) = pair(&worker, &aggregator);
    server = End::new(Side::Server, SelfInfo::Node(aggregator), server.td, &thief, EXPORTER);
    let [_, at_server] = talk(&mut client, &mut server, |_, _, frame| frame);
    refused(&at_server, "certificate.pubkey_hash");
}

#[test]
fn claims_other_than_the_certificates_are_refused() {
    let (worker, aggregator) = two_nodes();
    let other = node(&WORLD.td(|_| ()), "worker-a", Role::Worker);
    let (mut client, mut server) = pair(&worker, &aggregator);
    let [at_client, at_server] = talk(&mut client, &mut server, |from_client, i, frame| {
        if !from_client || i != 1 {
            return frame;
        }
        let evidence: Evidence = decode(&frame.slice(4..), "Evidence").unwrap();
        encode_frame(&Evidence {
            claims: other.claims.clone(),
            ..evidence
        })
        .unwrap()
    });
    refused(&at_server, "session.claims");
    refused(&at_client, "session.claims");
}

#[test]
fn a_certificate_whose_quote_is_over_other_claims_is_refused() {
    let (worker, aggregator) = two_nodes();
    let quote = WORLD.td(|_| ()).quote(&[0; 64]).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let node_key = SigningKey::generate().unwrap();
    let spki = rcgen::PublicKeyData::subject_public_key_info(&key);
    let spki = *Digest::of(&spki).as_bytes();
    let claims = crate::claims::make(&node_key, &spki, &worker.node).unwrap();
    let extension = crate::ratls::tagged_evidence(&quote, &claims).unwrap();
    let forged = crate::ratls::self_signed(&key, "worker-a", Some(extension), NOW).unwrap();
    let (mut client, mut server) = pair(&worker, &aggregator);
    server = End::new(Side::Server, SelfInfo::Node(aggregator), server.td, &forged, EXPORTER);
    let [_, at_server] = talk(&mut client, &mut server, |_, _, frame| frame);
    refused(&at_server, "quote.report_data");
}

#[test]
fn a_genuine_td_without_a_credential_is_a_stranger() {
    let (worker, aggregator) = two_nodes();
    let (mut client, mut server) = pair(&worker, &aggregator);
    let [at_client, at_server] = talk(&mut client, &mut server, |from_client, i, frame| {
        if !from_client || i != 1 {
            return frame;
        }
        let evidence: Evidence = decode(&frame.slice(4..), "Evidence").unwrap();
        encode_frame(&Evidence {
            credential: Bytes::new(),
            ..evidence
        })
        .unwrap()
    });
    refused(&at_server, "credential: seen no credential");
    refused(&at_client, "identity endorse");
}

#[test]
fn another_nodes_name_expiry_and_unknown_participants_are_refused() {
    let td = WORLD.td(|_| ());
    let (_, aggregator) = two_nodes();
    let check = |worker: Arc<RaTlsIdentity>, says: &str| refused(&honest(&worker, &aggregator)[1], says);
    check(
        node_with(&td, "worker-a", Role::Worker, |c| c.node = "worker-b".into(), |_| ()),
        "credential.node: seen worker-a; wanted worker-b",
    );
    check(
        node_with(&td, "worker-a", Role::Worker, |_| (), |f| f.not_after_unix_s = NOW - 1),
        "credential.not_after",
    );
    check(
        node_with(
            &td,
            "worker-a",
            Role::Worker,
            |_| (),
            |f| f.node_key = WORLD.alpha.public(),
        ),
        "credential.node_key",
    );
    check(
        node_with(&td, "worker-a", Role::Worker, |_| (), |f| f.role = Role::Aggregator),
        "credential.role",
    );
    check(
        node_with(&td, "worker-a", Role::Worker, |_| (), |f| f.federation = "other".into()),
        "credential.federation",
    );
    let beta = |c: &mut NodeClaims| c.participant = "beta".into();
    check(
        node_with(&td, "worker-a", Role::Worker, beta, |f| f.participant = "beta".into()),
        "credential.participant",
    );
}

#[test]
fn another_participants_signature_is_refused() {
    let td = WORLD.td(|_| ());
    let key = SigningKey::generate().unwrap();
    let claims = claims_of(&key, "worker-a", Role::Worker);
    let self_endorsed = endorse(&key, credential_fields(&claims)).unwrap().to_text();
    let worker = Arc::new(RaTlsIdentity::from_claims(&td, &key, claims, self_endorsed.into(), NOW).unwrap());
    refused(&honest(&worker, &two_nodes().1)[1], "credential.signature");
}

#[test]
fn claims_that_the_node_key_did_not_sign_are_refused() {
    // Somebody who copied a node's credential, but has not its key.
    let td = WORLD.td(|_| ());
    let (real, thief) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    let claims = claims_of(&real, "worker-a", Role::Worker);
    let credential = endorse(&WORLD.alpha, credential_fields(&claims)).unwrap().to_text();
    let worker = Arc::new(RaTlsIdentity::from_claims(&td, &thief, claims, credential.into(), NOW).unwrap());
    refused(&honest(&worker, &two_nodes().1)[1], "claims.signature");
}

#[test]
fn a_hello_under_another_name_or_policy_is_refused() {
    let (worker, aggregator) = two_nodes();
    let change: [(fn(&mut Hello), &str); 5] = [
        (
            |h| h.node = "worker-b".into(),
            "session.node: seen worker-b; wanted worker-a",
        ),
        (|h| h.role = "manager".into(), "session.role"),
        (|h| h.version = 2, "session.version: seen 2; wanted 1"),
        (|h| h.nonce = Bytes::from_static(&[1; 31]), "session.nonce"),
        (
            |h| h.policy_digest = Bytes::from_static(&[1; 32]),
            "policy.digest: seen 0101",
        ),
    ];
    for (change, says) in change {
        let (mut client, mut server) = pair(&worker, &aggregator);
        let [_, at_server] = talk(&mut client, &mut server, |from_client, i, frame| {
            if !from_client || i != 0 {
                return frame;
            }
            let mut hello: Hello = decode(&frame.slice(4..), "Hello").unwrap();
            change(&mut hello);
            encode_frame(&hello).unwrap()
        });
        refused(&at_server, says);
    }
}

#[test]
fn the_policy_and_debug_decide() {
    let (_, aggregator) = two_nodes();
    let other = WORLD.td(|values| values.mrtd = [1; 48]);
    let worker = node(&other, "worker-a", Role::Worker);
    let (mut client, mut server) = pair(&worker, &aggregator);
    client.td = other;
    let [_, at_server] = talk(&mut client, &mut server, |_, _, frame| frame);
    refused(&at_server, "attestation.mrtd");
    let debug = WORLD.td(|values| values.attributes[0] |= 1);
    let worker = node(&debug, "worker-a", Role::Worker);
    refused(&honest(&worker, &aggregator)[1], "attestation.debug");
}

#[test]
fn both_layers_have_to_be_of_one_td() {
    // A certificate from a good TD, session quotes from another one with the same key material.
    let (worker, aggregator) = two_nodes();
    let (mut client, mut server) = pair(&worker, &aggregator);
    client.td = WORLD.td(|values| values.rtmr[3] = [1; 48]);
    let [_, at_server] = talk(&mut client, &mut server, |_, _, frame| frame);
    refused(&at_server, "session.same_td.rtmr3");
}

#[test]
fn another_root_is_refused() {
    let (_, aggregator) = two_nodes();
    let other = World::new();
    let td = SimulatedTd::new(&other.authority, TdValues::default()).unwrap();
    let worker = node(&td, "worker-a", Role::Worker);
    let (mut client, mut server) = pair(&worker, &aggregator);
    client.td = td;
    let [_, at_server] = talk(&mut client, &mut server, |_, _, frame| frame);
    refused(&at_server, "attestation.root_key_id");
}

#[test]
fn frames_out_of_turn_end_the_handshake() {
    let (worker, aggregator) = two_nodes();
    let (mut client, _) = pair(&worker, &aggregator);
    assert!(client.handshake.provide_quote(&[], &[]).is_err());
    assert!(matches!(
        client.handshake.on_frame(&[], NOW),
        Err(HandshakeError::OutOfTurn { .. })
    ));
    let (mut client, _) = pair(&worker, &aggregator);
    assert!(matches!(
        client.handshake.on_frame(&[0xff; 64], NOW),
        Err(HandshakeError::Frame(_))
    ));
}

#[test]
fn roster_evidence_is_of_this_challenge() {
    let td = WORLD.td(|_| ());
    let worker = node(&td, "worker-a", Role::Worker);
    let data = |challenge: &[u8; 32]| {
        roster_report_data(challenge, &Digest::of(&worker.claims), &worker.node.measurement.root())
    };
    let quote = td.quote(&data(&[1; 32])).unwrap();
    let verify = |challenge: [u8; 32]| -> Result<VerifiedEvidence, Refusal> {
        let policy = policy();
        let (verifier, data) = (&WORLD.verifier, data(&challenge));
        verify_detached(
            &quote,
            &worker.claims,
            &worker.credential,
            &data,
            verifier,
            &*policy,
            NOW,
        )
    };
    assert_eq!(verify([1; 32]).unwrap().node(), "worker-a");
    assert!(verify([2; 32]).unwrap_err().names("quote.report_data"));
}

proptest::proptest! {
    #[test]
    fn no_frames_make_the_handshake_panic(frames in proptest::collection::vec(proptest::collection::vec(proptest::num::u8::ANY, 0..200), 1..4)) {
        let (worker, aggregator) = &*NODES;
        let (_, mut server) = pair(worker, aggregator);
        for frame in frames {
            let _ = server.handshake.on_frame(&frame, NOW);
        }
    }
}

static NODES: LazyLock<(Arc<RaTlsIdentity>, Arc<RaTlsIdentity>)> = LazyLock::new(two_nodes);
