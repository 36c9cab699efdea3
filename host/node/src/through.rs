//! What is read or written on its way, with its digest.

use std::io::{self, Read, Write};

use cloister_tensor::{Digest, Digester};

/// A source or a sink of which everything that goes through is digested.
pub struct Through<T> {
    inner: T,
    digester: Digester,
}

impl<T> Through<T> {
    /// Nothing went through yet.
    pub fn new(inner: T) -> Self {
        let digester = Digester::new();
        Self { inner, digester }
    }

    /// What is behind it, for looking at.
    pub fn inner(&mut self) -> &mut T {
        &mut self.inner
    }

    /// What is behind it, and SHA-256 of all that went through.
    pub fn finish(self) -> (T, Digest) {
        (self.inner, self.digester.finish())
    }
}

impl<T: Read> Read for Through<T> {
    fn read(&mut self, place: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(place)?;
        self.digester.update(&place[..count]);
        Ok(count)
    }
}

impl<T: Write> Write for Through<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.digester.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
