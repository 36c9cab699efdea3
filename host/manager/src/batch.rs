//! What one commit writes, sealed: the same bytes for the store at hand and for every replica of it.

use cloister_tensor::Digest;
use serde::{Deserialize, Serialize};

use crate::error::StoreError;

/// Largest batch, in bytes: with its envelope it fits into one message between managers.
pub const MAX_BATCH_BYTES: usize = 3 << 20;

/// Which state a store holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// How many commits made it.
    pub version: u64,
    /// Its digest.
    pub digest: Digest,
}

/// The writes of one commit. Everything in it is sealed under the state key but positions, and places, which are codes of names. It
/// follows one state alone: a store that holds another one passes it over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub(crate) base: Position,
    pub(crate) after: Position,
    pub(crate) head: Vec<u8>,
    /// The description of the store in the clear, where it changed.
    pub(crate) about: Option<Vec<u8>>,
    pub(crate) records: Vec<([u8; 32], Option<Vec<u8>>)>,
    pub(crate) lines: Vec<(u64, Vec<u8>)>,
}

/// Where the commits of a manager go. What it answers is told only when this has said that the commit stands.
pub trait Commits: Send {
    /// Makes a batch stand: on this disk, or on those of most replicas.
    ///
    /// # Errors
    /// [`StoreError`]: whether it stands is not known then.
    fn commit(&mut self, batch: Batch) -> Result<(), StoreError>;

    /// Makes sure that a state is still the newest, so that what was read from it may be told.
    ///
    /// # Errors
    /// [`StoreError::NotLeading`].
    fn confirm(&mut self, at: &Position) -> Result<(), StoreError>;
}

impl Batch {
    /// The state that it follows.
    pub fn base(&self) -> &Position {
        &self.base
    }

    /// The state that it makes.
    pub fn after(&self) -> &Position {
        &self.after
    }

    /// Its bytes (`FORMAT.md`, section 6).
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for position in [&self.base, &self.after] {
            bytes.extend_from_slice(&position.version.to_be_bytes());
            bytes.extend_from_slice(position.digest.as_bytes());
        }
        put(&mut bytes, &self.head);
        put_maybe(&mut bytes, self.about.as_deref());
        bytes.extend_from_slice(&(self.records.len() as u32).to_be_bytes());
        for (place, content) in &self.records {
            bytes.extend_from_slice(place);
            put_maybe(&mut bytes, content.as_deref());
        }
        bytes.extend_from_slice(&(self.lines.len() as u32).to_be_bytes());
        for (index, line) in &self.lines {
            bytes.extend_from_slice(&index.to_be_bytes());
            put(&mut bytes, line);
        }
        bytes
    }

    /// A batch out of its bytes; nothing may follow them.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > MAX_BATCH_BYTES {
            return None;
        }
        let mut rest = Rest(bytes);
        let batch = Self {
            base: rest.position()?,
            after: rest.position()?,
            head: rest.part()?,
            about: rest.maybe()?,
            records: rest.list(|rest| Some((rest.array()?, rest.maybe()?)))?,
            lines: rest.list(|rest| Some((u64::from_be_bytes(rest.array()?), rest.part()?)))?,
        };
        (rest.0.is_empty() && batch.base.version.checked_add(1) == Some(batch.after.version)).then_some(batch)
    }
}

fn put(bytes: &mut Vec<u8>, part: &[u8]) {
    bytes.extend_from_slice(&(part.len() as u32).to_be_bytes());
    bytes.extend_from_slice(part);
}

fn put_maybe(bytes: &mut Vec<u8>, part: Option<&[u8]>) {
    bytes.push(part.is_some().into());
    if let Some(part) = part {
        put(bytes, part);
    }
}

/// What is left to be read.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*array)
    }

    fn part(&mut self) -> Option<Vec<u8>> {
        let length = u32::from_be_bytes(self.array()?) as usize;
        let (part, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(part.to_vec())
    }

    fn maybe(&mut self) -> Option<Option<Vec<u8>>> {
        match self.array()? {
            [0] => Some(None),
            [1] => self.part().map(Some),
            _ => None,
        }
    }

    fn position(&mut self) -> Option<Position> {
        let version = u64::from_be_bytes(self.array()?);
        let digest = Digest::from_bytes(self.array()?);
        Some(Position { version, digest })
    }

    /// Nothing is set aside for what a count claims: each element takes bytes that have to be there.
    fn list<T>(&mut self, mut element: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = u32::from_be_bytes(self.array()?);
        (0..count).map(|_| element(self)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_read_as_it_was_written_and_nothing_else_is() {
        let position = |version| Position {
            version,
            digest: Digest::of(&[version as u8]),
        };
        let batch = Batch {
            base: position(4),
            after: position(5),
            head: vec![1; 40],
            about: Some(vec![2; 3]),
            records: vec![([3; 32], Some(vec![4; 5])), ([5; 32], None)],
            lines: vec![(7, vec![6; 9])],
        };
        let bytes = batch.to_bytes();
        assert_eq!(Batch::from_bytes(&bytes), Some(batch.clone()));
        for cut in 0..bytes.len() {
            assert_eq!(Batch::from_bytes(&bytes[..cut]), None);
        }
        assert_eq!(Batch::from_bytes(&[&bytes[..], &[0]].concat()), None);
        let skips = Batch {
            after: position(6),
            ..batch
        };
        assert_eq!(Batch::from_bytes(&skips.to_bytes()), None, "a version was left out");
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0xff;
            // Counts and lengths that claim more than is there end in nothing, not in memory.
            let _ = Batch::from_bytes(&changed);
        }
    }
}
