//! Writing: blobs first, then one index that lists them, renamed over the old one. A crash at any instant leaves the old or the new
//! version of the vault.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::{Access, Vault, random};
use crate::format::{Header, hex};
use crate::key::FileKey;
use crate::seal::{SealError, seal_pipelined};
use crate::seen::sync_folder;
use crate::{Cipher, Entry, FileName, Index, READ_AHEAD_BYTES, Seen, VaultError};

impl Vault {
    /// Seals `source` under `name`, as a new file or a new version of the one that is there. Gives its entry. A source
    /// with a buffer of several segments ([`READ_AHEAD_BYTES`](crate::READ_AHEAD_BYTES)) is sealed without a copy.
    ///
    /// # Errors
    /// The source can't be read, or the disk not written: then the vault is as it was.
    pub fn put(&mut self, name: &FileName, source: &mut dyn BufRead) -> Result<Entry, VaultError> {
        self.put_all(BTreeMap::from([(name.clone(), source)]))?;
        self.index.files.get(name).cloned().ok_or_else(|| self.no_file(name))
    }

    /// Seals several files in one commit: whoever opens the vault finds all of them, or none and what was there before. Their
    /// entries stand in [`Vault::index`] then.
    ///
    /// # Errors
    /// A source can't be read, or the disk not written: then the vault is as it was.
    pub fn put_all(&mut self, files: BTreeMap<FileName, &mut dyn BufRead>) -> Result<(), VaultError> {
        if self.access == Access::Read {
            return Err(VaultError::ReadOnly(self.folder.clone()));
        }
        let mut written = Vec::new();
        let outcome = self.write_and_commit(files, &mut written);
        if outcome.is_err() {
            // What is left of a failed write is of no use; the next opening for writing would clean it up as well. But where
            // the new index stands already, its blobs have to stay.
            for blob in written {
                if !self.index.files.values().any(|entry| entry.blob == blob) {
                    let _ = fs::remove_file(self.blob(&blob));
                }
            }
        }
        outcome
    }

    fn write_and_commit(
        &mut self,
        files: BTreeMap<FileName, &mut dyn BufRead>,
        written: &mut Vec<String>,
    ) -> Result<(), VaultError> {
        let mut next = self.index.clone();
        next.version += 1;
        let mut replaced = Vec::new();
        for (name, source) in files {
            // Never a version that this name had before, even if it was removed meanwhile.
            let version = self
                .index
                .files
                .get(&name)
                .map_or(next.version, |entry| entry.version + 1);
            let blob = hex(&random::<16>()?);
            written.push(blob.clone());
            let entry = self.write_blob(&name, version, blob, source)?;
            replaced.extend(next.files.insert(name, entry));
        }
        self.step("sync blobs")?;
        sync_folder(&self.folder.join("blobs"))?;
        self.commit(next)?;
        for old in replaced {
            // Only now: until the new index stands, the old one needs its blob.
            let _ = fs::remove_file(self.blob(&old.blob));
        }
        Ok(())
    }

    fn write_blob(
        &mut self,
        name: &FileName,
        version: u64,
        blob: String,
        source: &mut dyn BufRead,
    ) -> Result<Entry, VaultError> {
        let path = self.blob(&blob);
        self.step("create blob")?;
        let mut file = new_file(&path)?;
        let (header, key) = self.fresh(name.as_str(), version)?;
        let bytes = seal_pipelined(&header, &key, source, &mut file).map_err(|error| match error {
            SealError::Source(cause) => VaultError::Source {
                name: name.as_str().to_owned(),
                cause,
            },
            SealError::Sink(cause) => VaultError::io("writing", &path)(cause),
            SealError::Limit(error) => error,
        })?;
        self.step("sync blob")?;
        file.sync_all().map_err(VaultError::io("syncing", &path))?;
        Ok(Entry {
            blob,
            commitment: hex(&header.commitment),
            version,
            epoch: self.epoch,
            bytes,
        })
    }

    /// Seals what is under keys of older epochs under the newest one, in one commit: whoever has an older key alone reads nothing of it
    /// from then on. `index` is the epoch of the index.
    pub(super) fn rotate(&mut self, index: u64) -> Result<(), VaultError> {
        let newest = self.epoch;
        let older = self.index.files.iter().filter(|(_, entry)| entry.epoch != newest);
        let older: Vec<FileName> = older.map(|(name, _)| name.clone()).collect();
        if older.is_empty() && index == newest {
            return Ok(());
        }
        let open = |name: &FileName| {
            let reader = self.get(name, Cipher::Bulk)?;
            Ok((name.clone(), BufReader::with_capacity(READ_AHEAD_BYTES, reader)))
        };
        let mut readers: Vec<_> = older.iter().map(open).collect::<Result<_, VaultError>>()?;
        let files = readers
            .iter_mut()
            .map(|(name, reader)| (name.clone(), reader as &mut dyn BufRead));
        self.put_all(files.collect())?;
        self.settle()
    }

    /// Header and key of a file that is sealed now.
    fn fresh(&self, name: &str, version: u64) -> Result<(Header, FileKey), VaultError> {
        let key = self.keys.of(self.epoch).ok_or_else(|| VaultError::WrongKey {
            path: self.folder.clone(),
        })?;
        Ok(Header::fresh(key, random()?, self.id, name, version, self.epoch))
    }

    /// Makes `next` the vault's index: written beside the old one, synced, renamed over it; then the record outside is told.
    pub(super) fn commit(&mut self, next: Index) -> Result<(), VaultError> {
        let (path, fresh) = (self.folder.join("index"), self.folder.join("index.new"));
        let plain = next.encode()?;
        self.step("create index")?;
        if fresh.exists() {
            fs::remove_file(&fresh).map_err(VaultError::io("removing", &fresh))?;
        }
        let mut file = new_file(&fresh)?;
        let (header, key) = self.fresh("", next.version)?;
        let mut hashing = Hashing {
            file: &mut file,
            hash: Sha256::new(),
        };
        seal_pipelined(&header, &key, &mut plain.as_slice(), &mut hashing).map_err(|error| match error {
            SealError::Source(cause) | SealError::Sink(cause) => VaultError::io("writing", &fresh)(cause),
            SealError::Limit(error) => error,
        })?;
        let digest = hashing.hash.finalize().into();
        self.step("sync index")?;
        file.sync_all().map_err(VaultError::io("syncing", &fresh))?;
        self.step("rename index")?;
        fs::rename(&fresh, &path).map_err(VaultError::io("replacing", &path))?;
        self.index = next;
        self.step("sync folder")?;
        sync_folder(&self.folder)?;
        self.step("remember")?;
        let seen = Seen {
            vault: self.id,
            version: self.index.version,
            index: digest,
        };
        match &mut self.counter {
            Some(counter) => counter.remember(&self.keys, &seen),
            None => Ok(()),
        }
    }

    /// Removes what a crash left: blobs that the index doesn't list, an index that was never committed.
    pub(super) fn clean(&self) -> Result<(), VaultError> {
        let fresh = self.folder.join("index.new");
        if fresh.exists() {
            fs::remove_file(&fresh).map_err(VaultError::io("removing", &fresh))?;
        }
        let blobs = self.folder.join("blobs");
        for found in fs::read_dir(&blobs).map_err(VaultError::io("reading", &blobs))? {
            let found = found.map_err(VaultError::io("reading", &blobs))?;
            let listed = self
                .index
                .files
                .values()
                .any(|entry| found.file_name().to_str() == Some(&entry.blob));
            if !listed {
                fs::remove_file(found.path()).map_err(VaultError::io("removing", &found.path()))?;
            }
        }
        Ok(())
    }

    #[cfg(not(test))]
    #[allow(clippy::unused_self, reason = "tests crash the vault here")]
    fn step(&mut self, _what: &'static str) -> Result<(), VaultError> {
        Ok(())
    }

    #[cfg(test)]
    fn step(&mut self, what: &'static str) -> Result<(), VaultError> {
        self.fault.step(what)
    }
}

struct Hashing<'a> {
    file: &'a mut File,
    hash: Sha256,
}

impl std::io::Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hash.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

fn new_file(path: &Path) -> Result<File, VaultError> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(VaultError::io("writing", path))
}
