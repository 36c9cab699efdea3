//! The test vectors of `FORMAT.md`, section 5: another implementation must give the same bytes.
#![allow(clippy::unwrap_used, reason = "helpers of tests stand outside of #[test] functions")]

use cloister_vault::{Cipher, HEADER_BYTES, Subject, VaultKey, seal};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sealed(content: &[u8], cipher: Cipher) -> Vec<u8> {
    let key: [u8; 32] = std::array::from_fn(|at| at as u8);
    let subject = Subject {
        vault: [0x11; 16],
        name: "model.safetensors",
        version: 3,
        epoch: 0,
        salt: [0x22; 32],
    };
    let mut out = Vec::new();
    seal(&VaultKey::from_bytes(key), &subject, cipher, &mut &*content, &mut out).unwrap();
    out
}

#[test]
fn the_vectors_of_the_format_hold_with_both_ciphers() {
    let document = include_str!("../FORMAT.md");
    let large: Vec<u8> = (0..65_537_u32).map(|at| at as u8).collect();
    let cases: [(&str, &[u8]); 3] = [("empty", b""), ("hello", b"hello"), ("two segments", &large)];
    for (name, content) in cases {
        let bulk = sealed(content, Cipher::Bulk);
        assert_eq!(bulk, sealed(content, Cipher::Portable), "{name}");
        let commitment = hex(&bulk[HEADER_BYTES - 32..HEADER_BYTES]);
        let digest = cloister_tensor::Digest::of(&bulk).to_string();
        let row = format!("| {name} | {} | `{commitment}` | `{digest}` |", bulk.len());
        assert!(document.contains(&row), "FORMAT.md lacks the row\n{row}");
    }
    let hello = hex(&sealed(b"hello", Cipher::Bulk)[HEADER_BYTES..]);
    assert!(
        document.contains(&format!("`{hello}`")),
        "FORMAT.md lacks the segment {hello}"
    );
}
