//! Shared memory that nobody can change any more.
//!
//! A [`SharedBlob`] is a memfd that is written to by positioned writes; [`SharedBlob::seal`] makes it a [`SealedBlob`]:
//! it can neither shrink, grow nor be written to by anyone, for good (`F_SEAL_SHRINK | GROW | WRITE | SEAL`). Only sealed
//! memory is mapped, so a process on the other side of a socket can't change what was checked, nor make a read fault.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use memmap2::{Mmap, MmapOptions};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, ftruncate, memfd_create};

/// How often a seal is tried, and the pause after the first time; it grows with each.
const SEAL_TRIES: u32 = 8;
const SEAL_PAUSE: Duration = Duration::from_millis(10);

/// Why shared memory was not made or not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlobError {
    /// The system gave no memory or refused a call.
    #[error("shared memory: {what}")]
    System {
        /// The step that failed.
        what: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// What was handed over is not sealed shared memory, so its sender could still change it.
    #[error("shared memory was handed over without the seals {missing}, wanted it sealed against every change")]
    NotSealed {
        /// The seals that are not there.
        missing: String,
    },
    /// Too large.
    #[error("shared memory of {seen} bytes, at most {limit} are allowed")]
    TooLarge {
        /// Its size.
        seen: u64,
        /// The limit.
        limit: u64,
    },
    /// A write beyond the end.
    #[error("a write of {len} bytes at {offset} reaches beyond the {size} bytes of the shared memory")]
    OutOfBounds {
        /// Where the write starts.
        offset: u64,
        /// Its length.
        len: usize,
        /// Bytes of the memory.
        size: u64,
    },
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> BlobError {
    move |source| BlobError::System { what, source }
}

/// Shared memory of a fixed size that is still being written; zeros where nothing was.
#[derive(Debug)]
pub struct SharedBlob {
    file: File,
    len: u64,
    appended: u64,
}

impl SharedBlob {
    /// Takes `len` bytes of shared memory, at most `limit`. The memory itself is taken as it is written.
    pub fn create(len: u64, limit: u64) -> Result<Self, BlobError> {
        if len > limit {
            return Err(BlobError::TooLarge { seen: len, limit });
        }
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // Linux before 6.3 does not know that memory can be barred from being executed.
        let memory = memfd_create(c"cloister", flags | MemfdFlags::NOEXEC_SEAL)
            .or_else(|_| memfd_create(c"cloister", flags))
            .map_err(|error| system("memfd_create")(error.into()))?;
        ftruncate(&memory, len).map_err(|error| system("ftruncate")(error.into()))?;
        fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW)
            .map_err(|error| system("F_ADD_SEALS")(error.into()))?;
        Ok(Self {
            file: File::from(memory),
            len,
            appended: 0,
        })
    }

    /// A sealed copy of some bytes.
    pub fn copy_of(bytes: &[u8]) -> Result<SealedBlob, BlobError> {
        let mut blob = Self::create(bytes.len() as u64, u64::MAX)?;
        blob.append(bytes)?;
        blob.seal()
    }

    /// Bytes in all.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no byte in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Writes at a place.
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), BlobError> {
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > self.len) {
            return Err(BlobError::OutOfBounds {
                offset,
                len: bytes.len(),
                size: self.len,
            });
        }
        self.file.write_all_at(bytes, offset).map_err(system("write"))
    }

    /// Writes behind what was appended before.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        self.write_at(self.appended, bytes)?;
        self.appended += bytes.len() as u64;
        Ok(())
    }

    /// Ends the writing for good and maps the memory.
    pub fn seal(self) -> Result<SealedBlob, BlobError> {
        let mut tries = 1;
        while let Err(error) = fcntl_add_seals(&self.file, SealFlags::WRITE | SealFlags::SEAL) {
            // The kernel refuses while anything else holds one of the pages, as it does itself for moments when it moves memory about.
            if error != rustix::io::Errno::BUSY || tries == SEAL_TRIES {
                return Err(system("F_ADD_SEALS")(error.into()));
            }
            std::thread::sleep(SEAL_PAUSE * tries);
            tries += 1;
        }
        SealedBlob::accept(self.file.into(), self.len)
    }
}

/// Shared memory that nobody can change, mapped for reading; cloning shares it.
#[derive(Clone, Debug)]
pub struct SealedBlob {
    memory: Arc<Memory>,
    bytes: Bytes,
}

/// The descriptor and its mapping. [`SealedBlob::bytes`] and slices of them keep both.
#[derive(Debug)]
struct Memory {
    descriptor: OwnedFd,
    /// None of nothing.
    map: Option<Mmap>,
}

/// What [`Bytes`] own: the memory with its descriptor.
struct Kept(Arc<Memory>);

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        self.0.map.as_deref().unwrap_or_default()
    }
}

/// A [`SealedBlob`] that is not kept: it is there as long as somebody has its bytes.
#[derive(Clone, Debug)]
pub struct WeakBlob(Weak<Memory>);

impl WeakBlob {
    /// The blob, if anybody still has bytes of it.
    pub fn upgrade(&self) -> Option<SealedBlob> {
        self.0.upgrade().map(SealedBlob::of)
    }

    /// Whether nobody has bytes of it any more.
    pub fn is_gone(&self) -> bool {
        self.0.strong_count() == 0
    }
}

impl SealedBlob {
    /// Checks that a descriptor is shared memory with all seals and of at most `limit` bytes, then maps it.
    pub fn accept(memory: OwnedFd, limit: u64) -> Result<Self, BlobError> {
        let wanted = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
        // A file, a socket or a pipe has no seals at all: the call fails with EINVAL.
        let missing = wanted - fcntl_get_seals(&memory).unwrap_or(SealFlags::empty());
        if !missing.is_empty() {
            let names = missing
                .iter_names()
                .map(|(name, _)| name)
                .collect::<Vec<_>>()
                .join(", ");
            return Err(BlobError::NotSealed { missing: names });
        }
        let file = File::from(memory);
        let len = file.metadata().map_err(system("fstat"))?.len();
        if len > limit {
            return Err(BlobError::TooLarge { seen: len, limit });
        }
        // Nothing can be mapped of nothing.
        let map = match len {
            0 => None,
            _ => Some(
                MmapOptions::new()
                    .map_if_safe(&file)
                    .map_err(|error| system("mmap")(error.into()))?,
            ),
        };
        Ok(Self::of(Arc::new(Memory {
            descriptor: file.into(),
            map,
        })))
    }

    fn of(memory: Arc<Memory>) -> Self {
        let bytes = Bytes::from_owner(Kept(Arc::clone(&memory)));
        Self { memory, bytes }
    }

    /// This blob, without keeping it.
    pub fn downgrade(&self) -> WeakBlob {
        WeakBlob(Arc::downgrade(&self.memory))
    }

    /// The bytes; slices of them share the memory and keep it.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

impl AsFd for SealedBlob {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.descriptor.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let mut blob = SharedBlob::create(10, 10).unwrap();
        blob.append(b"abc").unwrap();
        blob.append(b"def").unwrap();
        blob.write_at(8, b"xy").unwrap();
        assert!(matches!(blob.write_at(9, b"zz"), Err(BlobError::OutOfBounds { .. })));
        assert!(matches!(
            blob.write_at(u64::MAX, b"z"),
            Err(BlobError::OutOfBounds { .. })
        ));
        assert_eq!(blob.seal().unwrap().bytes().as_ref(), b"abcdef\0\0xy");
        assert!(SharedBlob::copy_of(b"").unwrap().bytes().is_empty());
        assert!(matches!(
            SharedBlob::create(11, 10),
            Err(BlobError::TooLarge { seen: 11, limit: 10 })
        ));
    }

    #[test]
    fn a_weak_blob_lives_as_long_as_a_slice_of_its_bytes() {
        let sealed = SharedBlob::copy_of(b"abcdef").unwrap();
        let (weak, slice) = (sealed.downgrade(), sealed.bytes().slice(2..4));
        drop(sealed);
        assert_eq!(weak.upgrade().unwrap().bytes().as_ref(), b"abcdef");
        assert_eq!(
            weak.upgrade().unwrap().bytes()[2..].as_ptr(),
            slice.as_ptr(),
            "the same memory"
        );
        drop(slice);
        assert!(weak.is_gone() && weak.upgrade().is_none());
    }

    #[test]
    fn sealed_memory_cannot_be_written_through_its_descriptor() {
        let sealed = SharedBlob::copy_of(b"abc").unwrap();
        let file = File::from(sealed.as_fd().try_clone_to_owned().unwrap());
        assert!(file.write_all_at(b"x", 0).is_err());
        assert!(file.set_len(0).is_err() && file.set_len(10).is_err());
        assert_eq!(sealed.bytes().as_ref(), b"abc");
    }

    #[test]
    fn unsealed_or_partly_sealed_memory_and_files_are_refused() {
        let memory = memfd_create(c"test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&memory, 4).unwrap();
        let refused = |fd: &OwnedFd| {
            SealedBlob::accept(fd.try_clone().unwrap(), 100)
                .unwrap_err()
                .to_string()
        };
        assert!(refused(&memory).contains("WRITE"));
        fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW).unwrap();
        assert!(refused(&memory).contains("WRITE"));
        fcntl_add_seals(&memory, SealFlags::FUTURE_WRITE | SealFlags::SEAL).unwrap();
        assert!(
            refused(&memory).contains("without the seals WRITE"),
            "memory that stays writable where it is mapped"
        );
        let file: OwnedFd = tempfile::tempfile().unwrap().into();
        assert!(refused(&file).contains("SHRINK"));
        let sealed = SharedBlob::copy_of(&[0; 101]).unwrap();
        let too_large = SealedBlob::accept(sealed.as_fd().try_clone_to_owned().unwrap(), 100).unwrap_err();
        assert!(matches!(too_large, BlobError::TooLarge { seen: 101, limit: 100 }));
    }
}
