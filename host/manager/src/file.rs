//! The database file, of which nothing is believed: redb takes its own pages for sound, and panics over some that are not.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use redb::{Builder, Database, DatabaseError, ReadTransaction, ReadableDatabase as _, WriteTransaction};

use crate::error::{OpenError, StoreError};

/// Of redb's, in memory.
const CACHE_BYTES: usize = 64 << 20;

/// An open database. A panic in it is an error, and so is one while it is closed.
#[derive(Debug)]
pub(crate) struct File {
    database: Option<Database>,
}

impl File {
    /// Opens a file that is there, and that no other process has open.
    pub(crate) fn open(path: &Path) -> Result<Self, OpenError> {
        if !path.exists() {
            return Err(OpenError::Missing);
        }
        guarded(|| match Builder::new().set_cache_size(CACHE_BYTES).open(path) {
            Err(DatabaseError::DatabaseAlreadyOpen) => Err(OpenError::InUse),
            opened => Ok(Self::of(opened.map_err(StoreError::io("opened"))?)),
        })
    }

    /// A new file, readable by its owner alone.
    pub(crate) fn create(path: &Path) -> Result<Self, OpenError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path);
        let file = file.map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => OpenError::Exists,
            _ => StoreError::io("made")(error).into(),
        })?;
        let database = Builder::new().set_cache_size(CACHE_BYTES).create_file(file);
        Ok(Self::of(database.map_err(StoreError::io("made"))?))
    }

    fn of(database: Database) -> Self {
        Self {
            database: Some(database),
        }
    }

    pub(crate) fn read(&self) -> Result<ReadTransaction, StoreError> {
        let database = self.database.as_ref().ok_or(StoreError::Failed)?;
        database.begin_read().map_err(StoreError::io("read"))
    }

    pub(crate) fn write(&self) -> Result<WriteTransaction, StoreError> {
        let database = self.database.as_ref().ok_or(StoreError::Failed)?;
        database.begin_write().map_err(StoreError::io("written"))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let Some(database) = self.database.take() else {
            return;
        };
        if std::thread::panicking() {
            // A second panic would end the process; the file is closed with it at the latest.
            std::mem::forget(database);
        } else {
            let _closed = catch_unwind(AssertUnwindSafe(move || drop(database)));
        }
    }
}

/// Does work with a database; a panic is told as a file that was changed. What the work was amid is not used afterwards.
pub(crate) fn guarded<T, E: From<StoreError>>(work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        let why = "the database could not be read";
        Err(StoreError::tampered("a structure", why).into())
    })
}
