//! Sealing: a reader's bytes become a sealed file, in memory that doesn't grow with the content.

use std::io::{BufRead, Write};
use std::sync::mpsc;

use crate::cipher::{SegmentCipher, TAG_BYTES};
use crate::format::{Header, MAX_SEGMENTS, SEALED_SEGMENT_BYTES, SEGMENT_BYTES, VaultId, nonce};
use crate::key::{FileKey, VaultKey};
use crate::{Cipher, VaultError};

/// Segments that travel together between the sealing and the writing thread.
const SEGMENTS_A_BLOCK: usize = 16;
/// Segments that are sealed before they are written where one thread does both: they stay in its cache.
const SEGMENTS_AT_ONCE: usize = 2;
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

/// Seals all of `source` into `sink` on this thread: the plain form, for content in memory and test vectors. A slice is
/// read where it lies; a file wants a [`std::io::BufReader`] of several segments.
///
/// # Errors
/// The source can't be read, the sink can't be written, or the content is too large.
pub fn seal(
    key: &VaultKey,
    subject: &Subject<'_>,
    cipher: Cipher,
    source: &mut dyn BufRead,
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
    let sealer = Sealer::new(&file_key, cipher);
    let failed = |error| match error {
        SealError::Source(cause) | SealError::Sink(cause) => VaultError::Source {
            name: subject.name.to_owned(),
            cause,
        },
        SealError::Limit(error) => error,
    };
    sink.write_all(&header.encode())
        .map_err(|cause| failed(SealError::Sink(cause)))?;
    sealer.pump(source, sink).map_err(failed)?;
    Ok(header)
}

/// Seals on this thread while another one writes: reading, sealing and writing overlap. Gives the content's size.
pub(crate) fn seal_pipelined(
    header: &Header,
    file_key: &FileKey,
    source: &mut dyn BufRead,
    sink: &mut (dyn Write + Send),
) -> Result<u64, SealError> {
    sink.write_all(&header.encode()).map_err(SealError::Sink)?;
    let mut sealer = Sealer::new(file_key, Cipher::Bulk);
    let (full_in, full_out) = mpsc::sync_channel::<Block>(BLOCKS);
    let (empty_in, empty_out) = mpsc::channel::<Block>();
    for _ in 0..BLOCKS {
        // The receiver lives on this stack frame: sending cannot fail.
        let _ = empty_in.send(Block::of(SEGMENTS_A_BLOCK));
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
    fn of(segments: usize) -> Self {
        Self {
            bytes: vec![0; segments * SEALED_SEGMENT_BYTES].into(),
            used: 0,
        }
    }

    fn sealed(&self) -> &[u8] {
        &self.bytes[..self.used]
    }
}

pub(crate) struct Sealer {
    cipher: SegmentCipher,
    segment: u64,
    plain_bytes: u64,
    done: bool,
}

impl Sealer {
    pub(crate) fn new(key: &FileKey, cipher: Cipher) -> Self {
        Self {
            cipher: SegmentCipher::new(cipher, key),
            segment: 0,
            plain_bytes: 0,
            done: false,
        }
    }

    /// Seals all of `source` into `sink` on this thread, and gives the content's size.
    pub(crate) fn pump(mut self, source: &mut dyn BufRead, sink: &mut dyn Write) -> Result<u64, SealError> {
        let mut block = Block::of(SEGMENTS_AT_ONCE);
        while self.next_block(source, &mut block)? {
            sink.write_all(block.sealed()).map_err(SealError::Sink)?;
        }
        Ok(self.plain_bytes)
    }

    /// Fills `block` with sealed segments; false when there is nothing left.
    fn next_block(&mut self, source: &mut dyn BufRead, block: &mut Block) -> Result<bool, SealError> {
        block.used = 0;
        while !self.done && block.used < block.bytes.len() {
            if self.segment >= MAX_SEGMENTS {
                return Err(SealError::Limit(VaultError::Limit {
                    what: "segments in one sealed file",
                    limit: MAX_SEGMENTS,
                }));
            }
            let place = &mut block.bytes[block.used..block.used + SEALED_SEGMENT_BYTES];
            let plain_bytes = self.next_segment(source, place)?;
            block.used += plain_bytes + TAG_BYTES;
            self.segment += 1;
            self.plain_bytes += plain_bytes as u64;
        }
        Ok(block.used > 0)
    }

    /// Seals one segment into `place`, tag behind it, and gives the size of its content.
    fn next_segment(&mut self, source: &mut dyn BufRead, place: &mut [u8]) -> Result<usize, SealError> {
        let refused = |_| SealError::Source(std::io::Error::other("AES-256-GCM refused a segment"));
        if buffered(source)? > SEGMENT_BYTES {
            // More follows this one, so it is not the last: sealed from where it lies.
            let plain = source.fill_buf().map_err(SealError::Source)?;
            let sealed = self
                .cipher
                .seal_into(nonce(self.segment, false), &plain[..SEGMENT_BYTES], place);
            sealed.map_err(refused)?;
            source.consume(SEGMENT_BYTES);
            return Ok(SEGMENT_BYTES);
        }
        // Less is at hand: it is gathered, and what comes after it says whether it is the last.
        let mut filled = 0;
        let mut ahead = buffered(source)?;
        while filled < SEGMENT_BYTES && ahead > 0 {
            let plain = source.fill_buf().map_err(SealError::Source)?;
            let count = plain.len().min(SEGMENT_BYTES - filled);
            place[filled..filled + count].copy_from_slice(&plain[..count]);
            source.consume(count);
            filled += count;
            ahead = buffered(source)?;
        }
        self.done = ahead == 0;
        let made = self
            .cipher
            .seal(nonce(self.segment, self.done), &mut place[..filled])
            .map_err(refused)?;
        place[filled..filled + TAG_BYTES].copy_from_slice(&made);
        Ok(filled)
    }
}

/// How many bytes lie in the source's buffer, read now if there are none; 0 at the end.
fn buffered(source: &mut dyn BufRead) -> Result<usize, SealError> {
    loop {
        match source.fill_buf() {
            Ok(plain) => return Ok(plain.len()),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(SealError::Source(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use proptest::prelude::*;

    use super::*;

    fn sealed(source: &mut dyn BufRead, pipelined: bool) -> Vec<u8> {
        let key = VaultKey::from_bytes([7; 32]);
        let (header, file_key) = Header::fresh(&key, [1; 32], [2; 16], "name", 1, 0);
        let subject = Subject {
            vault: [2; 16],
            name: "name",
            version: 1,
            epoch: 0,
            salt: [1; 32],
        };
        let mut out = Vec::new();
        if pipelined {
            seal_pipelined(&header, &file_key, source, &mut out).unwrap();
        } else {
            seal(&key, &subject, Cipher::Bulk, source, &mut out).unwrap();
        }
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn the_bytes_do_not_depend_on_the_sources_buffer(
            segments in 0_usize..4,
            more in prop_oneof![Just(0_usize), Just(1), Just(SEGMENT_BYTES - 1), 0..SEGMENT_BYTES],
            buffer in prop_oneof![Just(SEGMENT_BYTES), Just(SEGMENT_BYTES + 1), 1_usize..4 * SEGMENT_BYTES],
        ) {
            let content: Vec<u8> = (0..segments * SEGMENT_BYTES + more).map(|at| (at % 251) as u8).collect();
            let whole = sealed(&mut content.as_slice(), false);
            prop_assert_eq!(&whole, &sealed(&mut BufReader::with_capacity(buffer, content.as_slice()), false));
            prop_assert_eq!(&whole, &sealed(&mut BufReader::with_capacity(buffer, content.as_slice()), true));
        }
    }
}
