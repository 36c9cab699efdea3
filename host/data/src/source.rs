//! Where the bytes of a dataset come from: an open file or memory, never a path.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::DataError;
use crate::limits::DataLimits;

/// An open file, or bytes in memory, with the name that errors show.
///
/// Reads are positioned (`pread`), so that the descriptor's own offset neither matters nor moves.
#[derive(Clone, Debug)]
pub struct Source {
    name: String,
    content: Content,
    len: u64,
}

#[derive(Clone, Debug)]
enum Content {
    File(Arc<File>),
    Memory(Bytes),
}

impl Source {
    /// Takes an open file. It must be a regular file (or shared memory): pipes and sockets have no length.
    pub fn from_file(name: impl Into<String>, file: File) -> Result<Self, DataError> {
        let name = name.into();
        let metadata = match file.metadata() {
            Ok(metadata) => metadata,
            Err(source) => return Err(DataError::Read { file: name, source }),
        };
        if metadata.is_dir() {
            return Err(DataError::Malformed {
                file: name,
                problem: "seen a folder, wanted one regular file; a folder of images is packed as a ZIP archive first \
                          (in it: zip -0 -r ../images.zip .)"
                    .to_owned(),
            });
        }
        if !metadata.is_file() {
            return Err(DataError::Malformed {
                file: name,
                problem: "seen no regular file, wanted one".to_owned(),
            });
        }
        Ok(Self {
            name,
            len: metadata.len(),
            content: Content::File(Arc::new(file)),
        })
    }

    /// Takes bytes in memory.
    pub fn from_bytes(name: impl Into<String>, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self {
            name: name.into(),
            len: bytes.len() as u64,
            content: Content::Memory(bytes),
        }
    }

    /// The name that errors show.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of the source when it was opened.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no byte in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Refuses a source beyond the limit.
    pub(crate) fn check_size(&self, limits: &DataLimits) -> Result<(), DataError> {
        if self.len > limits.file_bytes {
            let (seen, limit) = (self.len, limits.file_bytes);
            return Err(DataError::TooMuch {
                file: self.name.clone(),
                what: "bytes of the file",
                seen,
                limit,
            });
        }
        Ok(())
    }

    /// A reader from byte `start` on, up to the length that the source had when it was opened.
    pub(crate) fn reader(&self, start: u64) -> SourceReader {
        SourceReader {
            source: self.clone(),
            position: start,
        }
    }

    fn read_at(&self, position: u64, into: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.len.saturating_sub(position)).unwrap_or(usize::MAX);
        let count = into.len().min(left);
        let into = &mut into[..count];
        match &self.content {
            Content::File(file) => file.read_at(into, position),
            Content::Memory(bytes) => {
                // `left` is 0 for a position beyond the end, and a position within it fits a usize.
                let start = usize::try_from(position).unwrap_or(usize::MAX).min(bytes.len());
                into.copy_from_slice(&bytes[start..start + count]);
                Ok(count)
            }
        }
    }
}

/// Reads a [`Source`] in order.
#[derive(Debug)]
pub(crate) struct SourceReader {
    source: Source,
    position: u64,
}

impl SourceReader {
    /// The byte that is read next.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }
}

impl Seek for SourceReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.source.len.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

impl Read for SourceReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read_at(self.position, into)?;
        self.position = self.position.saturating_add(count as u64);
        Ok(count)
    }
}
