//! Opening: random access into a sealed file, one segment in memory at a time.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use zeroize::Zeroize;

use crate::cipher::SegmentCipher;
use crate::format::{
    HEADER_BYTES, Header, SEALED_SEGMENT_BYTES, SEGMENT_BYTES, VaultId, hex, nonce, sealed_bytes, segments,
};
use crate::{Cipher, VaultError, VaultKeys};

/// What the sealed file must be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) vault: Option<VaultId>,
    pub(crate) name: &'a str,
    pub(crate) version: Option<u64>,
    pub(crate) epoch: Option<u64>,
    pub(crate) plain_bytes: Option<u64>,
    /// In hexadecimal.
    pub(crate) commitment: Option<&'a str>,
}

/// Plaintext of a sealed file, authenticated segment by segment as it is read: no byte is given out unchecked.
pub struct SealedReader {
    file: File,
    path: PathBuf,
    header: Header,
    cipher: SegmentCipher,
    plain_bytes: u64,
    position: u64,
    /// Which segment `buffer` holds.
    held: Option<u64>,
    buffer: Vec<u8>,
    held_bytes: usize,
}

impl std::fmt::Debug for SealedReader {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("SealedReader")
            .field("path", &self.path)
            .field("plain_bytes", &self.plain_bytes)
            .finish_non_exhaustive()
    }
}

impl SealedReader {
    pub(crate) fn open(path: &Path, keys: &VaultKeys, wanted: &Wanted<'_>, cipher: Cipher) -> Result<Self, VaultError> {
        let listed = wanted.commitment.is_some();
        // A pipe in its place must not make this wait for a writer.
        let opened = File::options()
            .read(true)
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open(path);
        let file = opened.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound if listed => VaultError::tampered(path, "the index lists it, and it is not there"),
            _ => VaultError::io("opening", path)(error),
        })?;
        let found = file.metadata().map_err(VaultError::io("reading", path))?;
        if !found.is_file() {
            return Err(VaultError::tampered(path, "it is no file"));
        }
        let on_disk = found.len();
        let mut bytes = [0; HEADER_BYTES];
        file.read_exact_at(&mut bytes, 0)
            .map_err(|_| VaultError::tampered(path, format!("{on_disk} bytes are less than a header has")))?;
        let header =
            Header::decode(&bytes).ok_or_else(|| VaultError::tampered(path, "it does not start like a sealed file"))?;
        let file_key = keys.of(header.epoch).and_then(|key| header.file_key(key, wanted.name));
        let file_key = file_key.ok_or_else(|| VaultError::WrongKey {
            path: path.to_path_buf(),
        })?;
        if wanted.vault.is_some_and(|vault| vault != header.vault) {
            return Err(VaultError::tampered(path, "it belongs to another vault"));
        }
        if let Some(version) = wanted.version.filter(|version| *version != header.version) {
            return Err(VaultError::tampered(
                path,
                format!("its version is {}, but the index lists {version}", header.version),
            ));
        }
        if let Some(epoch) = wanted.epoch.filter(|epoch| *epoch != header.epoch) {
            return Err(VaultError::tampered(
                path,
                format!("its key epoch is {}, but the index lists {epoch}", header.epoch),
            ));
        }
        if wanted
            .commitment
            .is_some_and(|listed| listed != hex(&header.commitment))
        {
            return Err(VaultError::tampered(
                path,
                "it was sealed by another write of this version than the index lists",
            ));
        }
        let plain_bytes =
            plain_bytes(on_disk).ok_or_else(|| VaultError::tampered(path, "it ends within a segment's tag"))?;
        if let Some(listed) = wanted.plain_bytes.filter(|listed| *listed != plain_bytes) {
            return Err(VaultError::tampered(
                path,
                format!("it holds {plain_bytes} bytes, but the index lists {listed}"),
            ));
        }
        Ok(Self {
            cipher: SegmentCipher::new(cipher, &file_key),
            file,
            path: path.to_path_buf(),
            header,
            plain_bytes,
            position: 0,
            held: None,
            buffer: vec![0; SEALED_SEGMENT_BYTES],
            held_bytes: 0,
        })
    }

    /// Bytes of the content.
    pub fn len(&self) -> u64 {
        self.plain_bytes
    }

    /// Whether there is no content.
    pub fn is_empty(&self) -> bool {
        self.plain_bytes == 0
    }

    /// The sealed file's header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Reads and authenticates every segment, in order; `each` hears how many bytes are done.
    ///
    /// # Errors
    /// The first segment that is not what was sealed.
    pub fn check(&mut self, each: &mut dyn FnMut(u64)) -> Result<(), VaultError> {
        for segment in 0..segments(self.plain_bytes) {
            self.load(segment)?;
            each(((segment + 1) * SEGMENT_BYTES as u64).min(self.plain_bytes));
        }
        Ok(())
    }

    /// All of the content, if it has at most `limit` bytes.
    ///
    /// # Errors
    /// It is larger, or not what was sealed.
    pub fn read_all(mut self, limit: u64) -> Result<Vec<u8>, VaultError> {
        if self.plain_bytes > limit {
            return Err(VaultError::Limit {
                what: "bytes read into memory at once",
                limit,
            });
        }
        let mut content = Vec::with_capacity(usize::try_from(self.plain_bytes).unwrap_or(0));
        for segment in 0..segments(self.plain_bytes) {
            self.load(segment)?;
            content.extend_from_slice(&self.buffer[..self.held_bytes]);
        }
        Ok(content)
    }

    fn load(&mut self, segment: u64) -> Result<(), VaultError> {
        if self.held == Some(segment) {
            return Ok(());
        }
        self.held = None;
        let last = segment + 1 == segments(self.plain_bytes);
        let start = segment * SEGMENT_BYTES as u64;
        let plain = (self.plain_bytes - start).min(SEGMENT_BYTES as u64) as usize;
        let sealed = &mut self.buffer[..plain + crate::cipher::TAG_BYTES];
        let offset = HEADER_BYTES as u64 + segment * SEALED_SEGMENT_BYTES as u64;
        self.file
            .read_exact_at(sealed, offset)
            .map_err(VaultError::io("reading", &self.path))?;
        let opened = self.cipher.open(nonce(segment, last), sealed);
        if opened.is_err() {
            sealed.zeroize();
            return Err(VaultError::tampered(
                &self.path,
                format!(
                    "segment {segment} of {} is not what was sealed there",
                    segments(self.plain_bytes)
                ),
            ));
        }
        self.held_bytes = plain;
        self.held = Some(segment);
        Ok(())
    }
}

/// The content's size out of the file's; `None` where no content gives such a file.
fn plain_bytes(on_disk: u64) -> Option<u64> {
    let body = on_disk.checked_sub(HEADER_BYTES as u64)?;
    let count = body.div_ceil(SEALED_SEGMENT_BYTES as u64).max(1);
    let plain = body.checked_sub(count * crate::cipher::TAG_BYTES as u64)?;
    (sealed_bytes(plain).ok()? == on_disk).then_some(plain)
}

impl Read for SealedReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        // An empty file has one segment too: it must be authentic before its end is believed.
        let segment = (self.position / SEGMENT_BYTES as u64).min(segments(self.plain_bytes) - 1);
        self.load(segment).map_err(io::Error::other)?;
        let within = (self.position - segment * SEGMENT_BYTES as u64) as usize;
        let Some(rest) = self.buffer.get(within..self.held_bytes) else {
            return Ok(0);
        };
        let count = rest.len().min(out.len());
        out[..count].copy_from_slice(&rest[..count]);
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for SealedReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(offset) => self.plain_bytes.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        let target =
            target.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "seek before the start of the file"))?;
        if target > self.plain_bytes {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "seek past the end of the file",
            ));
        }
        self.position = target;
        Ok(target)
    }
}

impl Drop for SealedReader {
    fn drop(&mut self) {
        self.buffer.zeroize();
    }
}
