//! Sealing: a reader's bytes become a sealed file, in memory that doesn't grow with the content.

use std::io::{Read, Write};
use std::sync::mpsc;

use crate::cipher::{SegmentCipher, TAG_BYTES};
use crate::format::{Header, MAX_SEGMENTS, SEALED_SEGMENT_BYTES, SEGMENT_BYTES, VaultId, nonce};
use crate::key::{FileKey, VaultKey};
use crate::{Cipher, VaultError};

/// Segments that travel together between the sealing and the writing thread.
const SEGMENTS_A_BLOCK: usize = 16;
/// Blocks in flight: one being read, one being sealed or queued, one being written.
const BLOCKS: usize = 4;

/// What a sealed file is bound to.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The vault.
    pub vault: VaultId,
    /// The file's name in the vault; the index itself has the empty name.
    pub name: &'a str,
    /// The file's version.
    pub version: u64,
    /// The epoch of the vault key.
    pub epoch: u64,
    /// Fresh at every rewrite: two contents under one salt would share a key and its nonces.
    pub salt: [u8; 32],
}

/// Where a failure came from.
#[derive(Debug)]
pub(crate) enum SealError {
    Source(std::io::Error),
    Sink(std::io::Error),
    Limit(VaultError),
}

/// Seals all of `source` into `sink` on this thread: the plain form, for small content and test vectors.
///
/// # Errors
/// The source can't be read, the sink can't be written, or the content is too large.
pub fn seal(
    key: &VaultKey,
    subject: &Subject<'_>,
    cipher: Cipher,
    source: &mut dyn Read,
    sink: &mut dyn Write,
) -> Result<Header, VaultError> {
    let (header, file_key) = Header::fresh(
        key,
        subject.salt,
        subject.vault,
        subject.name,
        subject.version,
        subject.epoch,
    );
    let mut sealer = Sealer::new(&file_key, cipher);
    let failed = |error| match error {
        SealError::Source(cause) | SealError::Sink(cause) => VaultError::Source {
            name: subject.name.to_owned(),
            cause,
        },
        SealError::Limit(error) => error,
    };
    sink.write_all(&header.encode())
        .map_err(|cause| failed(SealError::Sink(cause)))?;
    let mut block = Block::new();
    while sealer.next_block(source, &mut block).map_err(failed)? {
        sink.write_all(block.sealed())
            .map_err(|cause| failed(SealError::Sink(cause)))?;
    }
    Ok(header)
}

/// Seals on this thread while another one writes: reading, sealing and writing overlap. Gives the content's size.
pub(crate) fn seal_pipelined(
    header: &Header,
    file_key: &FileKey,
    source: &mut dyn Read,
    sink: &mut (dyn Write + Send),
) -> Result<u64, SealError> {
    sink.write_all(&header.encode()).map_err(SealError::Sink)?;
    let mut sealer = Sealer::new(file_key, Cipher::Bulk);
    let (full_in, full_out) = mpsc::sync_channel::<Block>(BLOCKS);
    let (empty_in, empty_out) = mpsc::channel::<Block>();
    for _ in 0..BLOCKS {
        // The receiver lives on this stack frame: sending cannot fail.
        let _ = empty_in.send(Block::new());
    }
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || -> std::io::Result<()> {
            for block in full_out {
                sink.write_all(block.sealed())?;
                let _ = empty_in.send(block);
            }
            Ok(())
        });
        let mut outcome = Ok(());
        while let Ok(mut block) = empty_out.recv() {
            match sealer.next_block(source, &mut block) {
                Ok(true) => {
                    if full_in.send(block).is_err() {
                        break; // the writer failed and says why below
                    }
                }
                Ok(false) => break,
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        drop(full_in);
        match writer.join() {
            Ok(Ok(())) => outcome.map(|()| sealer.plain_bytes),
            Ok(Err(cause)) => Err(SealError::Sink(cause)),
            Err(_) => Err(SealError::Sink(std::io::Error::other("the writing thread died"))),
        }
    })
}

/// Sealed segments on their way to the disk. The memory is zeroed once and used again.
struct Block {
    bytes: Box<[u8]>,
    used: usize,
}

impl Block {
    fn new() -> Self {
        Self {
            bytes: vec![0; SEGMENTS_A_BLOCK * SEALED_SEGMENT_BYTES].into(),
            used: 0,
        }
    }

    fn sealed(&self) -> &[u8] {
        &self.bytes[..self.used]
    }
}

struct Sealer {
    cipher: SegmentCipher,
    segment: u64,
    plain_bytes: u64,
    /// One byte read ahead: only it tells whether a full segment is the last one.
    ahead: Option<u8>,
    done: bool,
}

impl Sealer {
    fn new(key: &FileKey, cipher: Cipher) -> Self {
        Self {
            cipher: SegmentCipher::new(cipher, key),
            segment: 0,
            plain_bytes: 0,
            ahead: None,
            done: false,
        }
    }

    /// Fills `block` with up to [`SEGMENTS_A_BLOCK`] sealed segments; false when there is nothing left.
    fn next_block(&mut self, source: &mut dyn Read, block: &mut Block) -> Result<bool, SealError> {
        block.used = 0;
        while !self.done && block.used < block.bytes.len() {
            let start = block.used;
            let buffer = &mut block.bytes[start..start + SEGMENT_BYTES];
            let mut filled = 0;
            if let Some(byte) = self.ahead.take() {
                buffer[0] = byte;
                filled = 1;
            }
            filled += read_full(source, &mut buffer[filled..]).map_err(SealError::Source)?;
            let last = filled < SEGMENT_BYTES || {
                let mut byte = [0];
                let more = read_full(source, &mut byte).map_err(SealError::Source)? == 1;
                self.ahead = more.then_some(byte[0]);
                !more
            };
            if self.segment >= MAX_SEGMENTS {
                return Err(SealError::Limit(VaultError::Limit {
                    what: "segments in one sealed file",
                    limit: MAX_SEGMENTS,
                }));
            }
            let tag = self
                .cipher
                .seal(nonce(self.segment, last), &mut block.bytes[start..start + filled])
                .map_err(|_| SealError::Source(std::io::Error::other("AES-256-GCM refused a segment")))?;
            block.used = start + filled + TAG_BYTES;
            block.bytes[start + filled..block.used].copy_from_slice(&tag);
            self.segment += 1;
            self.plain_bytes += filled as u64;
            self.done = last;
        }
        Ok(block.used > 0)
    }
}

/// Reads until `buffer` is full or the source ends.
fn read_full(source: &mut dyn Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
