//! The header of a sealed file and the numbers of its segments: `FORMAT.md`, section 2.

use crate::VaultError;
use crate::cipher::TAG_BYTES;
use crate::key::{FileKey, VaultKey};
use subtle::ConstantTimeEq;

/// Plaintext bytes of a segment.
pub const SEGMENT_BYTES: usize = 64 * 1024;
/// A good size for the buffer of a source that is sealed: 16 segments.
pub const READ_AHEAD_BYTES: usize = 16 * SEGMENT_BYTES;
/// Bytes of a header.
pub const HEADER_BYTES: usize = 120;
pub(crate) const SEALED_SEGMENT_BYTES: usize = SEGMENT_BYTES + TAG_BYTES;
const MAGIC: [u8; 16] = *b"cloister-sealed1";
/// The segment counter has 32 bits.
pub(crate) const MAX_SEGMENTS: u64 = 1 << 32;

/// A vault's identity: 16 random bytes.
pub type VaultId = [u8; 16];

/// What stands before the segments. Every field is bound into the file's key, and the commitment binds the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Fresh at every rewrite.
    pub salt: [u8; 32],
    /// The vault.
    pub vault: VaultId,
    /// The file's version.
    pub version: u64,
    /// The epoch of the vault key.
    pub epoch: u64,
    /// Commitment to the file's key.
    pub commitment: [u8; 32],
}

impl Header {
    /// The bytes on disk.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut at = 0;
        let segment = (SEGMENT_BYTES as u64).to_be_bytes();
        let (version, epoch) = (self.version.to_be_bytes(), self.epoch.to_be_bytes());
        for part in [
            &MAGIC[..],
            &segment,
            &self.salt,
            &self.vault,
            &version,
            &epoch,
            &self.commitment,
        ] {
            bytes[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        bytes
    }

    /// Reads the bytes on disk; `None` where magic or segment size are others.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<16>()?;
        let (segment, rest) = rest.split_first_chunk::<8>()?;
        let (salt, rest) = rest.split_first_chunk::<32>()?;
        let (vault, rest) = rest.split_first_chunk::<16>()?;
        let (version, rest) = rest.split_first_chunk::<8>()?;
        let (epoch, rest) = rest.split_first_chunk::<8>()?;
        let commitment = rest.first_chunk::<32>()?;
        (*magic == MAGIC && u64::from_be_bytes(*segment) == SEGMENT_BYTES as u64).then(|| Self {
            salt: *salt,
            vault: *vault,
            version: u64::from_be_bytes(*version),
            epoch: u64::from_be_bytes(*epoch),
            commitment: *commitment,
        })
    }

    /// Makes the header and key of a new sealed file.
    pub(crate) fn fresh(
        key: &VaultKey,
        salt: [u8; 32],
        vault: VaultId,
        name: &str,
        version: u64,
        epoch: u64,
    ) -> (Self, FileKey) {
        let derived = key.derive(&salt, &info(&vault, name, version, epoch));
        (
            Self {
                salt,
                vault,
                version,
                epoch,
                commitment: derived.commitment,
            },
            derived,
        )
    }

    /// The key of this file, if `key`, `name` and all of the header are those it was sealed with.
    pub(crate) fn file_key(&self, key: &VaultKey, name: &str) -> Option<FileKey> {
        let derived = key.derive(&self.salt, &info(&self.vault, name, self.version, self.epoch));
        bool::from(derived.commitment.ct_eq(&self.commitment)).then_some(derived)
    }
}

fn info(vault: &VaultId, name: &str, version: u64, epoch: u64) -> Vec<u8> {
    let mut info = b"cloister/vault/v1".to_vec();
    for part in [&vault[..], name.as_bytes()] {
        info.extend_from_slice(&(part.len() as u32).to_be_bytes());
        info.extend_from_slice(part);
    }
    for number in [version, epoch, SEGMENT_BYTES as u64] {
        info.extend_from_slice(&number.to_be_bytes());
    }
    info
}

/// The nonce of a segment: 7 zero bytes, the counter, and whether it is the last (STREAM, Hoang et al. 2015).
pub(crate) fn nonce(segment: u64, last: bool) -> [u8; 12] {
    let mut nonce = [0; 12];
    // Callers keep `segment` below MAX_SEGMENTS.
    nonce[7..11].copy_from_slice(&(segment as u32).to_be_bytes());
    nonce[11] = u8::from(last);
    nonce
}

/// How many segments content of this size has: at least one, since the last one proves the end.
pub(crate) fn segments(plain_bytes: u64) -> u64 {
    plain_bytes.div_ceil(SEGMENT_BYTES as u64).max(1)
}

/// Bytes of a sealed file with content of this size.
pub(crate) fn sealed_bytes(plain_bytes: u64) -> Result<u64, VaultError> {
    let count = segments(plain_bytes);
    if count > MAX_SEGMENTS {
        return Err(VaultError::Limit {
            what: "bytes in one sealed file",
            limit: MAX_SEGMENTS * SEGMENT_BYTES as u64,
        });
    }
    Ok(HEADER_BYTES as u64 + plain_bytes + count * TAG_BYTES as u64)
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|nibble| char::from_digit(nibble.into(), 16))
        .collect()
}
