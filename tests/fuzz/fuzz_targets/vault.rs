//! The header of a sealed file: whoever holds the disk writes it.
#![no_main]

use cloister_fuzz::plant;
use cloister_vault::{HEADER_BYTES, Header};
use libfuzzer_sys::fuzz_target;

fn seeds() -> Vec<Vec<u8>> {
    let header = Header {
        salt: [1; 32],
        vault: [2; 16],
        version: 3,
        epoch: 4,
        commitment: [5; 32],
    };
    vec![header.encode().to_vec()]
}

fuzz_target!(init: plant("vault", seeds()), |data: &[u8]| {
    let Some(bytes) = data.first_chunk::<HEADER_BYTES>() else { return };
    if let Some(header) = Header::decode(bytes) {
        assert_eq!(&header.encode(), bytes);
    }
});
