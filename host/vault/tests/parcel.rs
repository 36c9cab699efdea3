//! Parcels: what is sealed comes back, and nothing else ever does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use cloister_tensor::Digest;
use cloister_vault::{
    Cipher, PARCEL_HEADER_BYTES, ParcelError, ParcelKind, SEGMENT_BYTES, VaultKey, open_parcel, seal_parcel,
};
use proptest::prelude::*;

fn key() -> VaultKey {
    VaultKey::from_bytes(std::array::from_fn(|at| at as u8))
}

fn sealed(kind: ParcelKind, content: &[u8], cipher: Cipher) -> Vec<u8> {
    let mut out = Vec::new();
    let bytes = seal_parcel(&key(), kind, &[0x22; 32], cipher, &mut &*content, &mut out).unwrap();
    assert_eq!(bytes, content.len() as u64);
    out
}

fn opened(parcel: &[u8], cipher: Cipher) -> Result<(ParcelKind, Vec<u8>), ParcelError> {
    let mut out = Vec::new();
    let (kind, bytes) = open_parcel(&key(), cipher, &mut &*parcel, &mut out)?;
    assert_eq!(bytes, out.len() as u64);
    Ok((kind, out))
}

fn counting(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| at as u8).collect()
}

#[test]
fn the_vectors_of_the_format_hold_with_both_ciphers() {
    let document = include_str!("../FORMAT.md");
    let large = counting(SEGMENT_BYTES + 1);
    let contents: [(&str, &[u8]); 3] = [("empty", b""), ("hello", b"hello"), ("two segments", &large)];
    let mut lacking = Vec::new();
    for kind in [ParcelKind::Module, ParcelKind::Data] {
        for (name, content) in contents {
            let parcel = sealed(kind, content, Cipher::Bulk);
            assert_eq!(parcel, sealed(kind, content, Cipher::Portable), "{name}");
            let commitment: String = parcel[72..PARCEL_HEADER_BYTES]
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            let row = format!(
                "| {kind} | {name} | {} | `{commitment}` | `{}` |",
                parcel.len(),
                Digest::of(&parcel)
            );
            if !document.contains(&row) {
                lacking.push(row);
            }
        }
    }
    assert!(lacking.is_empty(), "FORMAT.md lacks\n{}", lacking.join("\n"));
}

#[test]
fn every_flipped_bit_of_a_parcel_shows() {
    let parcel = sealed(ParcelKind::Data, b"rows", Cipher::Bulk);
    for bit in 0..parcel.len() * 8 {
        let mut changed = parcel.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(opened(&changed, Cipher::Bulk).is_err(), "bit {bit}");
    }
}

#[test]
fn a_parcel_of_another_key_or_kind_does_not_open() {
    let parcel = sealed(ParcelKind::Module, b"code", Cipher::Bulk);
    let other = VaultKey::from_bytes([9; 32]);
    let mut out = Vec::new();
    let error = open_parcel(&other, Cipher::Bulk, &mut parcel.as_slice(), &mut out).unwrap_err();
    assert!(matches!(error, ParcelError::WrongKey), "{error}");
    assert!(out.is_empty());
    // A module can't be passed off as data: the commitment is to the kind, too.
    let mut renamed = parcel;
    renamed[56..72].copy_from_slice(&sealed(ParcelKind::Data, b"", Cipher::Bulk)[56..72]);
    assert!(matches!(opened(&renamed, Cipher::Bulk), Err(ParcelError::WrongKey)));
}

#[test]
fn segments_cut_off_swapped_or_added_are_refused() {
    let content = counting(3 * SEGMENT_BYTES);
    let parcel = sealed(ParcelKind::Data, &content, Cipher::Bulk);
    let (header, body) = parcel.split_at(PARCEL_HEADER_BYTES);
    let segments: Vec<&[u8]> = body.chunks(SEGMENT_BYTES + 16).collect();
    assert_eq!(segments.len(), 3);
    for order in [&[0, 1][..], &[1, 0, 2], &[0, 1, 2, 2], &[0, 1, 2, 0], &[0, 2], &[]] {
        let picked = order.iter().map(|at| segments[*at]).collect::<Vec<_>>().concat();
        let error = opened(&[header, &picked].concat(), Cipher::Bulk).unwrap_err();
        assert!(matches!(error, ParcelError::Tampered { .. }), "{order:?}: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn what_is_sealed_comes_back(
        segments in 0_usize..3,
        more in prop_oneof![Just(0_usize), Just(1), Just(SEGMENT_BYTES - 1), 0..SEGMENT_BYTES],
        module in any::<bool>(),
    ) {
        let kind = if module { ParcelKind::Module } else { ParcelKind::Data };
        let content = counting(segments * SEGMENT_BYTES + more);
        let parcel = sealed(kind, &content, Cipher::Bulk);
        prop_assert_eq!(opened(&parcel, Cipher::Portable).unwrap(), (kind, content));
        for cut in [0, 1, 15, PARCEL_HEADER_BYTES.min(parcel.len()), parcel.len() - 1] {
            prop_assert!(opened(&parcel[..cut], Cipher::Bulk).is_err());
        }
    }

    #[test]
    fn any_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(opened(&bytes, Cipher::Bulk).is_err());
        let mut headed = b"cloister-parcel1\0\0\0\0\0\x01\0\0".to_vec();
        headed.extend(&bytes);
        prop_assert!(opened(&headed, Cipher::Bulk).is_err());
    }
}
