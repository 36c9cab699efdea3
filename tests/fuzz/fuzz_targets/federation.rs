//! Messages of the federation's service: what one side says is read, and written anew.
#![no_main]

use bytes::Bytes;
use cloister_fuzz::plant;
use cloister_wire::federation::{self as wire, aggregator_message, member_message};
use libfuzzer_sys::fuzz_target;
use prost::Message;

fn seeds() -> Vec<Vec<u8>> {
    let entry = wire::ManifestEntry {
        name: "weight".into(),
        dtype: "f32".into(),
        shape: vec![5, 3],
    };
    let manifest = Some(wire::Manifest { entries: vec![entry] });
    let member = |body| wire::MemberMessage { body: Some(body) }.encode_to_vec();
    let aggregator = |body| wire::AggregatorMessage { body: Some(body) }.encode_to_vec();
    let kind = |kind: u8, message: Vec<u8>| [&[kind][..], &message].concat();
    let ready = wire::UpdateReady {
        round: 1,
        attempt: 1,
        rows: 10,
        manifest: manifest.clone(),
        digest: Bytes::from_static(&[1; 32]),
        ..Default::default()
    };
    let start = wire::RoundStart {
        round: 1,
        manifest,
        ..Default::default()
    };
    let nonce = wire::RosterNonce {
        node: "worker-a".into(),
        nonce: Bytes::from_static(&[2; 32]),
    };
    let challenge = wire::RosterChallenge {
        epoch: 1,
        nonces: vec![nonce],
    };
    vec![
        kind(0, member(member_message::Body::UpdateReady(ready))),
        kind(1, aggregator(aggregator_message::Body::RoundStart(start))),
        kind(1, aggregator(aggregator_message::Body::RosterChallenge(challenge))),
        kind(2, wire::Receipt::default().encode_to_vec()),
        kind(3, wire::SubmitPart::default().encode_to_vec()),
    ]
}

fn read<M: Message + Default + PartialEq>(data: &[u8]) {
    let Ok(message) = M::decode(data) else { return };
    let again = M::decode(&message.encode_to_vec()[..]).expect("what was read can be written and read");
    // NaN in a metric is not equal to itself; its bytes are.
    assert_eq!(again.encode_to_vec(), message.encode_to_vec());
}

fuzz_target!(init: plant("federation", seeds()), |data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    match kind % 6 {
        0 => read::<wire::MemberMessage>(data),
        1 => read::<wire::AggregatorMessage>(data),
        2 => read::<wire::Receipt>(data),
        3 => read::<wire::SubmitPart>(data),
        4 => read::<wire::ListReply>(data),
        _ => read::<wire::FetchRequest>(data),
    }
});
