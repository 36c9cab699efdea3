//! What honest ends see.

use super::*;

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
fn frames_out_of_turn_end_the_handshake() {
    let (worker, aggregator) = two_nodes();
    let (mut client, _) = pair(&worker, &aggregator);
    assert!(client.handshake.provide_quote(&[], &BatchPath::default()).is_err());
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
        let shown = DetachedEvidence {
            quote: &quote,
            claims: &worker.claims,
            credential: &worker.credential,
            event_log: &[],
        };
        verify_detached(&shown, &data, verifier, &*policy, NOW)
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
