//! The commitment of a dataset: which rows, without saying which.
//!
//! ```text
//! commitment = SHA-256(
//!     "cloister/dataset/v1"
//!   | lp(salt)                          32 random bytes, kept by the owner of the data
//!   | lp(name of the dataset)
//!   | u32be inputs
//!   | for each input, sorted by the bytes of its name:
//!         lp(name) | lp(dtype)          dtype in the words of safetensors: "F32", "I64"
//!       | u32be rank    | u64be for each dimension of a row
//!       | u32be columns | for each, in the policy's order:
//!             lp(column) | f64be scale | f64be offset     IEEE 754 bits
//!   | u64be rows
//!   | for each row, in file order; for each input, sorted as above:
//!         its values, after scale and offset, little-endian, without padding
//! )
//! lp(x) = u32be length of x in bytes | x
//! ```
//!
//! The values are those that a graph is fed with, so the same numbers give the same commitment from CSV and from
//! Parquet, and columns that no input reads don't matter. Without the salt nobody can confirm a guess of the rows.

use cloister_policy::dataset::DatasetSpec;
use cloister_tensor::Digest;
use sha2::{Digest as _, Sha256};

use crate::dataset::Rows;
use crate::number::dtype_of;

/// Bytes of a salt.
pub const SALT_BYTES: usize = 32;

const DOMAIN: &[u8] = b"cloister/dataset/v1";

pub(crate) fn commit(spec: &DatasetSpec, rows: &Rows, salt: &[u8; SALT_BYTES]) -> Digest {
    let mut hash = Sha256::new();
    hash.update(DOMAIN);
    prefixed(&mut hash, salt);
    prefixed(&mut hash, spec.name.as_bytes());
    count(&mut hash, spec.inputs.len());
    for (name, input) in &spec.inputs {
        prefixed(&mut hash, name.as_bytes());
        prefixed(&mut hash, dtype_of(input.dtype).name().as_bytes());
        count(&mut hash, input.shape.len());
        for dim in &input.shape {
            hash.update((*dim as u64).to_be_bytes());
        }
        count(&mut hash, input.columns.len());
        for (column, (scale, offset)) in input.columns.iter().zip(input.scale.iter().zip(&input.offset)) {
            prefixed(&mut hash, column.as_bytes());
            hash.update(scale.to_bits().to_be_bytes());
            hash.update(offset.to_bits().to_be_bytes());
        }
    }
    hash.update(u64::from(rows.count).to_be_bytes());
    for row in 0..rows.count as usize {
        for input in &rows.inputs {
            hash.update(&input.bytes[row * input.row_bytes..(row + 1) * input.row_bytes]);
        }
    }
    Digest::from_bytes(hash.finalize().into())
}

fn prefixed(hash: &mut Sha256, bytes: &[u8]) {
    count(hash, bytes.len());
    hash.update(bytes);
}

/// Names and lists are bounded far below 2^32 by the policy and by the limits.
fn count(hash: &mut Sha256, value: usize) {
    hash.update(u32::try_from(value).unwrap_or(u32::MAX).to_be_bytes());
}
