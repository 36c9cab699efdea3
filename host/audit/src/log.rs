//! Writing: a log that is whole when it is opened, and one line longer after each entry.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufReader, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use cloister_attestation::identity::SigningKey;

use crate::line::{Entry, Subject};
use crate::{AuditError, Chain, Reader};

/// Largest log, in bytes.
pub const MAX_LOG_BYTES: u64 = 4 << 30;

/// A log that is open for writing; nobody else can open it meanwhile.
#[derive(Debug)]
pub struct Log {
    file: File,
    chain: Chain,
    bytes: u64,
    /// An append failed: what is on the disk is not known, and nothing more is written.
    failed: bool,
}

impl Log {
    /// Opens the log, or begins a new one (mode 0600). It is read through: every line has to follow the one before it, and the
    /// last one must be signed by `key`, so that nobody adds a line while the node is not running. Half a line at the end, which
    /// a crash left and nobody was told of, is removed. `each` gets every entry; what it got is proven only when this ends well.
    ///
    /// # Errors
    /// [`AuditError`]; the file is as it was.
    pub fn open(
        path: &Path,
        subject: Subject,
        key: &SigningKey,
        each: &mut dyn FnMut(Entry),
    ) -> Result<Self, AuditError> {
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
            .map_err(AuditError::io("opened"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(AuditError::InUse),
            Err(TryLockError::Error(cause)) => return Err(AuditError::io("locked")(cause)),
        }
        let mut source = BufReader::with_capacity(1 << 16, &file);
        let (chain, contents) = Reader::new(subject).chain(&mut source, &key.public(), each)?;
        if contents.torn_bytes > 0 {
            file.set_len(contents.whole_bytes).map_err(AuditError::io("mended"))?;
        }
        file.seek(SeekFrom::End(0)).map_err(AuditError::io("read"))?;
        Ok(Self {
            file,
            chain,
            bytes: contents.whole_bytes,
            failed: false,
        })
    }

    /// How many lines there are.
    pub fn lines(&self) -> u64 {
        self.chain.lines()
    }

    /// Adds an entry, and comes back when it is on the disk.
    ///
    /// # Errors
    /// [`AuditError::Full`], [`AuditError::TooLong`], or [`AuditError::Io`], after which this log takes nothing more: open it again.
    pub fn append(
        &mut self,
        event: &str,
        what: serde_json::Value,
        now_unix_s: u64,
        key: &SigningKey,
    ) -> Result<(), AuditError> {
        if self.failed {
            let cause = std::io::Error::other("an earlier entry could not be written");
            return Err(AuditError::io("written")(cause));
        }
        let mut chain = self.chain.clone();
        let mut line = chain.append(event, what, now_unix_s, key)?;
        line.push('\n');
        let bytes = self.bytes + line.len() as u64;
        if bytes > MAX_LOG_BYTES {
            return Err(AuditError::Full { limit: MAX_LOG_BYTES });
        }
        let written = self
            .file
            .write_all(line.as_bytes())
            .and_then(|()| self.file.sync_data());
        if let Err(cause) = written {
            self.failed = true;
            return Err(AuditError::io("written")(cause));
        }
        (self.chain, self.bytes) = (chain, bytes);
        Ok(())
    }
}
