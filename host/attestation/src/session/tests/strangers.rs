//! Genuine TDs that are not who or what was wanted.

use super::*;

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
    type Change = fn(&mut Hello);
    let change: [(Change, &str); 5] = [
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
    let (mut client, mut server) = pair(&worker, &aggregator);
    client.td = debug;
    let [_, at_server] = talk(&mut client, &mut server, |_, _, frame| frame);
    refused(&at_server, "attestation.debug");
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
