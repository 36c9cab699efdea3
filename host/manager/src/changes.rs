//! What one turn changes: records by name, collected until they are written together.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::Serialize;
use zeroize::Zeroizing;

/// Records to be written, or removed.
#[derive(Default)]
pub(crate) struct Changes {
    records: BTreeMap<String, Option<Zeroizing<Vec<u8>>>>,
    /// How much was put, also what was replaced since.
    bytes: usize,
    /// Why a record could not be written down.
    broken: Option<String>,
}

impl Changes {
    /// Writes a record. What it was before, also in this turn, is replaced.
    pub(crate) fn put(&mut self, name: String, content: &impl Serialize) {
        // Counted first, since a buffer that grows would leave copies of a secret behind.
        let mut counted = Count(0);
        let written = serde_json::to_writer(&mut counted, content).and_then(|()| {
            let mut bytes = Zeroizing::new(Vec::with_capacity(counted.0));
            serde_json::to_writer(&mut *bytes, content).map(|()| bytes)
        });
        match written {
            Ok(bytes) => {
                self.bytes += name.len() + bytes.len();
                self.records.insert(name, Some(bytes));
            }
            Err(error) => self.broken = Some(format!("{name}: {error}")),
        }
    }

    /// Removes a record.
    pub(crate) fn remove(&mut self, name: String) {
        self.records.insert(name, None);
    }

    pub(crate) fn records(&self) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
        let records = self.records.iter();
        records.map(|(name, content)| (name.as_str(), content.as_ref().map(|bytes| bytes.as_slice())))
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty() && self.broken.is_none()
    }

    pub(crate) fn broken(&self) -> Option<&str> {
        self.broken.as_deref()
    }
}

/// Counts what is written to it.
struct Count(usize);

impl Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
