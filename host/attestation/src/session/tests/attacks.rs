//! What an attacker between two ends, or at one of them, may try.

use super::*;

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
