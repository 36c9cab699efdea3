//! Aligned buffers for outputs that come back when the tensors made of them are dropped.
//!
//! Fresh pages are the dear part of a big output (a page fault each 4 KiB), so a compiled graph reuses its buffers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;

/// A cache line, and the widest vector register.
const ALIGNMENT: usize = 64;

/// Buffers waiting to be used again.
#[derive(Debug)]
pub(crate) struct Pool(Arc<Shelf>);

#[derive(Debug)]
struct Shelf {
    max_idle_bytes: usize,
    idle: Mutex<Idle>,
}

#[derive(Debug, Default)]
struct Idle {
    bytes: usize,
    by_length: HashMap<usize, Vec<Vec<u8>>>,
}

impl Pool {
    /// A pool that keeps at most `max_idle_bytes` for later; buffers beyond that are freed when they are dropped.
    pub(crate) fn new(max_idle_bytes: usize) -> Self {
        Self(Arc::new(Shelf {
            max_idle_bytes,
            idle: Mutex::default(),
        }))
    }

    /// A buffer of `length` bytes, at a multiple of 64. Its content is unspecified: zeros, or what an earlier run of
    /// the same graph left.
    pub(crate) fn take(&self, length: usize) -> Buffer {
        let storage = self.0.take(length).unwrap_or_else(|| vec![0; length + ALIGNMENT - 1]);
        let offset = storage.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT - 1);
        Buffer {
            storage,
            offset,
            length,
            home: Arc::downgrade(&self.0),
        }
    }

    #[cfg(test)]
    fn idle_bytes(&self) -> usize {
        self.0.lock().bytes
    }
}

impl Shelf {
    fn lock(&self) -> std::sync::MutexGuard<'_, Idle> {
        // Every state of the shelf is sound, so one that a panic left behind is too.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, length: usize) -> Option<Vec<u8>> {
        let mut idle = self.lock();
        let storage = idle.by_length.get_mut(&length)?.pop()?;
        idle.bytes -= storage.len();
        Some(storage)
    }

    fn put(&self, length: usize, storage: Vec<u8>) {
        let mut idle = self.lock();
        if idle.bytes + storage.len() <= self.max_idle_bytes {
            idle.bytes += storage.len();
            idle.by_length.entry(length).or_default().push(storage);
        }
    }
}

/// A buffer out of a [`Pool`]; dropped, it goes back there.
#[derive(Debug)]
pub(crate) struct Buffer {
    storage: Vec<u8>,
    offset: usize,
    length: usize,
    home: Weak<Shelf>,
}

impl Buffer {
    pub(crate) fn as_mut(&mut self) -> &mut [u8] {
        &mut self.storage[self.offset..self.offset + self.length]
    }

    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// The content, shared from now on; the buffer goes back to its pool with the last clone.
    pub(crate) fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.storage[self.offset..self.offset + self.length]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(home) = self.home.upgrade() {
            home.put(self.length, std::mem::take(&mut self.storage));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_come_back() {
        let pool = Pool::new(1 << 20);
        for length in [0, 1, 4, 63, 64, 65, 4096] {
            let mut buffer = pool.take(length);
            assert_eq!(buffer.len(), length);
            assert_eq!(buffer.as_mut().as_ptr() as usize % ALIGNMENT, 0);
        }
        let mut buffer = pool.take(100);
        buffer.as_mut().fill(7);
        let at = buffer.as_ref().as_ptr();
        let bytes = buffer.into_bytes();
        let clone = bytes.clone();
        drop(bytes);
        assert_ne!(pool.take(100).as_ref().as_ptr(), at, "still in use");
        assert_eq!(clone[..], [7; 100]);
        drop(clone);
        let again = [pool.take(100), pool.take(100)];
        assert!(again.iter().any(|buffer| buffer.as_ref().as_ptr() == at), "came back");
    }

    #[test]
    fn idle_bytes_are_bounded() {
        let pool = Pool::new(10_000);
        let many: Vec<Buffer> = (0..100).map(|_| pool.take(1000)).collect();
        drop(many);
        assert!(pool.idle_bytes() <= 10_000);
        let late = pool.take(10);
        drop(pool);
        drop(late);
    }
}
