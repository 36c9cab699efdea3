use super::*;

fn node(key: &SigningKey) -> NodeClaims {
    NodeClaims {
        federation: "digits".into(),
        participant: "alpha".into(),
        node: "worker-a".into(),
        role: Role::Worker,
        state: State::Member,
        policy_digest: Digest::of(b"policy"),
        node_key: key.public(),
        measurement: Measurement::new(vec![
            Entry::new(EntryRole::Module, "train", Digest::of(b"module")),
            Entry::new(EntryRole::Host, "cloister", Digest::of(b"host")),
        ])
        .unwrap(),
    }
}

#[test]
fn claims_come_back_as_they_were_made() {
    let key = SigningKey::generate().unwrap();
    let made = make(&key, &[7; 32], &node(&key)).unwrap();
    let claims = Claims::parse(&made).unwrap();
    assert_eq!(claims.node, node(&key));
    assert_eq!(claims.spki_sha256, [7; 32]);
    assert_eq!(claims.nonce, epoch_nonce(&Digest::of(b"policy")));
    assert_eq!(claims.digest(), Digest::of(&made));
    assert!(claims.signed_by_node());
    // The names that other verifiers of RA-TLS look for.
    assert_eq!(made[0], 0xa3);
    assert_eq!(&made[1..13], b"\x6bpubkey-hash");
}

#[test]
fn another_key_or_tls_key_does_not_verify() {
    let (key, other) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    let claims = Claims::parse(&make(&other, &[7; 32], &node(&key)).unwrap()).unwrap();
    assert!(!claims.signed_by_node());
    let mut claims = Claims::parse(&make(&key, &[7; 32], &node(&key)).unwrap()).unwrap();
    claims.spki_sha256 = [8; 32];
    assert!(!claims.signed_by_node());
}

#[test]
fn claims_of_others_are_ignored_and_ours_must_be_there_once() {
    let key = SigningKey::generate().unwrap();
    let made = make(&key, &[7; 32], &node(&key)).unwrap();
    let Value::Map(map) = decode(&made).unwrap() else {
        panic!("a map")
    };
    let mut more = map.clone();
    more.push(("vendor-claim".into(), Value::Bytes(vec![1])));
    assert!(Claims::parse(&encode(&Value::Map(more)).unwrap()).is_ok());
    for i in 0..map.len() {
        let mut fewer = map.clone();
        fewer.remove(i);
        let error = Claims::parse(&encode(&Value::Map(fewer)).unwrap()).unwrap_err();
        assert!(matches!(error, ClaimsError::Count { seen: 0, .. }));
        let mut twice = map.clone();
        twice.push(map[i].clone());
        let error = Claims::parse(&encode(&Value::Map(twice)).unwrap()).unwrap_err();
        assert!(matches!(error, ClaimsError::Count { seen: 2, .. }));
    }
}

#[test]
fn trailing_bytes_depth_and_size_are_bounded() {
    let key = SigningKey::generate().unwrap();
    let mut made = make(&key, &[7; 32], &node(&key)).unwrap();
    made.push(0);
    assert!(matches!(Claims::parse(&made), Err(ClaimsError::Cbor { .. })));
    assert!(matches!(Claims::parse(&[0x81; 4000]), Err(ClaimsError::Cbor { .. })));
    // An array and a byte string that announce far more than is there.
    assert!(Claims::parse(&[0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).is_err());
    assert!(Claims::parse(&[0x5b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]).is_err());
    assert!(matches!(
        Claims::parse(&vec![0; MAX_CLAIMS_BYTES + 1]),
        Err(ClaimsError::TooLong { .. })
    ));
}

#[test]
fn the_largest_measurement_fits() {
    let key = SigningKey::generate().unwrap();
    let entries = (0..256).map(|i| Entry::new(EntryRole::Compiled, format!("{i:0>96}"), Digest::of(b"")));
    let node = NodeClaims {
        measurement: Measurement::new(entries.collect()).unwrap(),
        ..node(&key)
    };
    assert!(Claims::parse(&make(&key, &[0; 32], &node).unwrap()).is_ok());
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
        let _ = Claims::parse(&bytes);
    }

    #[test]
    fn a_flipped_bit_never_verifies(at in 0usize..400, bit in 0u8..8) {
        let key = SigningKey::generate().unwrap();
        let made = make(&key, &[7; 32], &node(&key)).unwrap();
        let mut broken = made.clone();
        let at = at % broken.len();
        broken[at] ^= 1 << bit;
        if let Ok(claims) = Claims::parse(&broken) {
            proptest::prop_assert!(claims.digest() != Digest::of(&made));
            let was = Claims::parse(&made).unwrap();
            proptest::prop_assert!(!claims.signed_by_node() || (claims.node == was.node && claims.spki_sha256 == was.spki_sha256));
        }
    }
}
