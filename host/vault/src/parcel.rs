//! A module or a dataset sealed by itself, to travel where its key does not: `FORMAT.md`, section 6.

use std::fmt;
use std::io::{BufRead, Read, Write};

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::cipher::SegmentCipher;
use crate::format::{MAX_SEGMENTS, SEALED_SEGMENT_BYTES, SEGMENT_BYTES, nonce};
use crate::key::FileKey;
use crate::seal::{SealError, Sealer};
use crate::{Cipher, VaultKey};

/// Bytes of a parcel's header.
pub const PARCEL_HEADER_BYTES: usize = 104;
const MAGIC: [u8; 16] = *b"cloister-parcel1";

/// What a parcel holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParcelKind {
    /// A WebAssembly component.
    Module,
    /// A dataset.
    Data,
    /// A file of a model that leaves the federation.
    Model,
}

impl ParcelKind {
    /// The kind's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Module => "module",
            Self::Data => "data",
            Self::Model => "model",
        }
    }

    /// The name in 16 bytes, zeros behind it.
    fn encode(self) -> [u8; 16] {
        let mut field = [0; 16];
        field
            .iter_mut()
            .zip(self.as_str().bytes())
            .for_each(|(to, from)| *to = from);
        field
    }

    fn decode(field: &[u8; 16]) -> Option<Self> {
        [Self::Module, Self::Data, Self::Model]
            .into_iter()
            .find(|kind| kind.encode() == *field)
    }
}

impl fmt::Display for ParcelKind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

/// Why a parcel was not made or not opened. What was written to the sink until then is to be thrown away.
#[derive(Debug, thiserror::Error)]
pub enum ParcelError {
    /// The content can't be read.
    #[error("it cannot be read: {0}")]
    Source(#[source] std::io::Error),
    /// What comes of it can't be written.
    #[error("it cannot be written: {0}")]
    Sink(#[source] std::io::Error),
    /// The content has more segments than a nonce can number.
    #[error("it has more than {MAX_SEGMENTS} segments of 64 KiB, the most that one key seals")]
    TooLarge,
    /// It does not begin like a parcel.
    #[error("it is no sealed module or dataset: {0}")]
    NoParcel(&'static str),
    /// Another key sealed it, or the header was changed.
    #[error("it does not open with this key: another one sealed it, or its header was changed")]
    WrongKey,
    /// A segment is not what was sealed.
    #[error("segment {segment} is not what was sealed there: it was changed, moved or cut short")]
    Tampered {
        /// Which one, from 0.
        segment: u64,
    },
}

impl From<SealError> for ParcelError {
    fn from(error: SealError) -> Self {
        match error {
            SealError::Source(cause) => Self::Source(cause),
            SealError::Sink(cause) => Self::Sink(cause),
            SealError::Limit(_) => Self::TooLarge,
        }
    }
}

/// A parcel's key and the commitment to it: bound to kind and salt.
fn derive(key: &VaultKey, salt: &[u8; 32], kind: &[u8; 16]) -> FileKey {
    let mut info = b"cloister/parcel/v1".to_vec();
    info.extend_from_slice(kind);
    info.extend_from_slice(&(SEGMENT_BYTES as u64).to_be_bytes());
    key.derive(salt, &info)
}

/// Whether a file that starts with these bytes is a parcel, or wants to pass for one.
#[must_use]
pub fn is_parcel(start: &[u8]) -> bool {
    start.starts_with(&MAGIC)
}

/// Seals all of `source` into `sink` and gives the content's size in bytes. The salt must be fresh: two contents under one key and
/// salt would share nonces.
///
/// # Errors
/// [`ParcelError::Source`], [`ParcelError::Sink`] or [`ParcelError::TooLarge`].
pub fn seal_parcel(
    key: &VaultKey,
    kind: ParcelKind,
    salt: &[u8; 32],
    cipher: Cipher,
    source: &mut dyn BufRead,
    sink: &mut dyn Write,
) -> Result<u64, ParcelError> {
    let derived = derive(key, salt, &kind.encode());
    let segment_bytes = (SEGMENT_BYTES as u64).to_be_bytes();
    for part in [&MAGIC[..], &segment_bytes, salt, &kind.encode(), &derived.commitment] {
        sink.write_all(part).map_err(ParcelError::Sink)?;
    }
    Ok(Sealer::new(&derived, cipher).pump(source, sink)?)
}

/// Opens a parcel from end to end into `sink`, and gives its kind and the content's size in bytes. Each segment is authentic before it is
/// written, but only the last one shows that nothing is missing: the caller must not use what was written when this fails.
///
/// # Errors
/// [`ParcelError`]: no parcel, another key, or not what was sealed.
pub fn open_parcel(
    key: &VaultKey,
    cipher: Cipher,
    source: &mut dyn Read,
    sink: &mut dyn Write,
) -> Result<(ParcelKind, u64), ParcelError> {
    let mut header = [0; PARCEL_HEADER_BYTES];
    if fill(source, &mut header)? < PARCEL_HEADER_BYTES {
        return Err(ParcelError::NoParcel("it is shorter than a header"));
    }
    let (kind, salt, commitment) = decode(&header)?;
    let derived = derive(key, salt, &kind.encode());
    if !bool::from(derived.commitment.ct_eq(commitment)) {
        return Err(ParcelError::WrongKey);
    }
    let cipher = SegmentCipher::new(cipher, &derived);
    // One byte more than a segment has: it says whether another one follows.
    let mut buffer = Zeroizing::new(vec![0; SEALED_SEGMENT_BYTES + 1]);
    let (mut held, mut plain_bytes) = (0, 0);
    for segment in 0..MAX_SEGMENTS {
        held += fill(source, &mut buffer[held..])?;
        let (sealed, next) = buffer.split_at_mut(SEALED_SEGMENT_BYTES);
        let last = held <= SEALED_SEGMENT_BYTES;
        let sealed = &mut sealed[..held.min(SEALED_SEGMENT_BYTES)];
        let opened = cipher.open(nonce(segment, last), sealed);
        let plain = opened.map_err(|_| ParcelError::Tampered { segment })?;
        sink.write_all(plain).map_err(ParcelError::Sink)?;
        plain_bytes += plain.len() as u64;
        if last {
            return Ok((kind, plain_bytes));
        }
        let first = next[0];
        buffer[0] = first;
        held = 1;
    }
    Err(ParcelError::TooLarge)
}

fn decode(header: &[u8; PARCEL_HEADER_BYTES]) -> Result<(ParcelKind, &[u8; 32], &[u8; 32]), ParcelError> {
    let parts = || {
        let (magic, rest) = header.split_first_chunk::<16>()?;
        let (segment, rest) = rest.split_first_chunk::<8>()?;
        let (salt, rest) = rest.split_first_chunk::<32>()?;
        let (kind, rest) = rest.split_first_chunk::<16>()?;
        Some((magic, segment, salt, kind, rest.first_chunk::<32>()?))
    };
    let (magic, segment, salt, kind, commitment) = parts().ok_or(ParcelError::NoParcel("its header is cut short"))?;
    if *magic != MAGIC {
        return Err(ParcelError::NoParcel("it does not begin with `cloister-parcel1`"));
    }
    if u64::from_be_bytes(*segment) != SEGMENT_BYTES as u64 {
        return Err(ParcelError::NoParcel("its segments have another size than 65536 bytes"));
    }
    let kind =
        ParcelKind::decode(kind).ok_or(ParcelError::NoParcel("it is neither a module, nor data, nor a model"))?;
    Ok((kind, salt, commitment))
}

/// Reads until `place` is full or the source ends.
fn fill(source: &mut dyn Read, place: &mut [u8]) -> Result<usize, ParcelError> {
    let mut filled = 0;
    while filled < place.len() {
        match source.read(&mut place[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(ParcelError::Source(error)),
        }
    }
    Ok(filled)
}
