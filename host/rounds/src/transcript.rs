//! Unambiguous bytes for digests and signatures: a label, then fields with their lengths.

use cloister_tensor::Digest;

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

    /// Appends a digest, or no bytes for none.
    pub(crate) fn optional_digest(&mut self, digest: Option<&Digest>) -> &mut Self {
        self.bytes(digest.map_or(&[], |digest| digest.as_bytes().as_slice()))
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

/// Reads a transcript back, field by field. Whatever is missing or too long is `None`.
pub(crate) struct TranscriptReader<'a>(&'a [u8]);

impl<'a> TranscriptReader<'a> {
    /// Behind the label, if the message begins with it.
    pub(crate) fn new(label: &str, message: &'a [u8]) -> Option<Self> {
        message.strip_prefix(label.as_bytes()).map(Self)
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    /// A byte string.
    pub(crate) fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(u32::from_be_bytes(self.take()?)).ok()?;
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    /// Text.
    pub(crate) fn text(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?.to_vec()).ok()
    }

    /// A digest.
    pub(crate) fn digest(&mut self) -> Option<Digest> {
        self.bytes()?.try_into().ok().map(Digest::from_bytes)
    }

    /// A digest, or none for no bytes.
    pub(crate) fn optional_digest(&mut self) -> Option<Option<Digest>> {
        match self.bytes()? {
            [] => Some(None),
            digest => Some(Some(Digest::from_bytes(digest.try_into().ok()?))),
        }
    }

    /// A number.
    pub(crate) fn number(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }

    /// A list: its count, at most `most`, and as many items. Grows with what is there, not with what is announced.
    pub(crate) fn list<T>(&mut self, most: u64, item: impl Fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = self.number().filter(|&count| count <= most)?;
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(item(self)?);
        }
        Some(items)
    }

    /// Whether nothing is left.
    pub(crate) fn ended(&self) -> bool {
        self.0.is_empty()
    }
}
