//! Unambiguous bytes for digests and signatures: a label, then fields with their lengths.

use cloister_tensor::Digest;
use sha2::{Digest as _, Sha256};

/// A growing canonical message. Text and byte strings carry a u32 big-endian length; numbers are u64 big-endian.
pub(crate) struct Transcript(Vec<u8>);

impl Transcript {
    /// Starts with the label, which says what the message is and its version.
    pub(crate) fn new(label: &str) -> Self {
        Self(label.as_bytes().to_vec())
    }

    /// Appends a byte string behind its length. Lengths are bounded far below `u32::MAX` by the callers' limits.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.0.extend_from_slice(&length.to_be_bytes());
        self.0.extend_from_slice(bytes);
        self
    }

    /// Appends text behind its length.
    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    /// Appends a number.
    pub(crate) fn number(&mut self, number: u64) -> &mut Self {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }

    /// Appends how many items follow.
    pub(crate) fn count(&mut self, count: usize) -> &mut Self {
        self.number(u64::try_from(count).unwrap_or(u64::MAX))
    }

    /// The bytes.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// SHA-256 over the bytes.
    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.0)
    }
}

/// A running SHA-256.
#[derive(Clone, Debug, Default)]
pub(crate) struct RunningDigest(Sha256);

impl RunningDigest {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> Digest {
        let bytes: [u8; 32] = self.0.finalize().into();
        Digest::from_bytes(bytes)
    }
}
