//! A vault on disk: `index`, `lock`, and one blob a file below `blobs/`.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest as _, Sha256};

use crate::format::{Header, VaultId, hex};
use crate::index::MAX_INDEX_BYTES;
use crate::reader::Wanted;
use crate::seal::{SealError, seal_pipelined};
use crate::seen::sync_folder;
use crate::{Cipher, CommitCounter, Entry, FileName, Index, SealedReader, Seen, VaultError, VaultKey};

/// What a vault is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Only reading; others may read too.
    Read,
    /// Reading and writing; nobody else may do either.
    Write,
}

/// Whether the vault is known to be the newest one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// It is at least as new as everything the record has seen.
    Proven,
    /// There is no record outside of the vault to compare it with: it may be an older copy.
    NotProven,
}

/// An open vault.
pub struct Vault {
    folder: PathBuf,
    key: VaultKey,
    id: VaultId,
    epoch: u64,
    index: Index,
    access: Access,
    freshness: Freshness,
    counter: Option<Box<dyn CommitCounter>>,
    /// Holds the lock as long as the vault is open.
    _lock: File,
    #[cfg(test)]
    pub(crate) fault: tests::Fault,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Vault")
            .field("folder", &self.folder)
            .field("version", &self.index.version)
            .finish_non_exhaustive()
    }
}

impl Vault {
    /// Makes a new, empty vault in an empty or missing folder.
    ///
    /// # Errors
    /// The folder isn't empty or can't be written, or `counter` has seen a vault before: the one that was there is gone.
    pub fn create(folder: &Path, key: VaultKey, counter: Option<Box<dyn CommitCounter>>) -> Result<Self, VaultError> {
        fs::create_dir_all(folder).map_err(VaultError::io("making", folder))?;
        let mut found = fs::read_dir(folder).map_err(VaultError::io("reading", folder))?;
        if found.next().is_some() {
            return Err(VaultError::NotEmpty(folder.to_path_buf()));
        }
        // An empty vault in place of the one on record is a rollback to the beginning.
        if let Some(counter) = &counter
            && let Some(seen) = counter.newest(&key)?
        {
            return Err(VaultError::Gone {
                path: folder.to_path_buf(),
                seen: seen.version,
                record: counter.place(),
            });
        }
        let blobs = folder.join("blobs");
        fs::create_dir(&blobs).map_err(VaultError::io("making", &blobs))?;
        let lock = lock(folder, Access::Write)?;
        let mut vault = Self {
            folder: folder.to_path_buf(),
            key,
            id: random()?,
            epoch: 0,
            index: Index::first(),
            access: Access::Write,
            freshness: if counter.is_some() {
                Freshness::Proven
            } else {
                Freshness::NotProven
            },
            counter,
            _lock: lock,
            #[cfg(test)]
            fault: tests::Fault::default(),
        };
        vault.commit(vault.index.clone())?;
        Ok(vault)
    }

    /// Opens a vault and compares it with what `counter` has seen.
    ///
    /// # Errors
    /// There is none, the key is another one, the index was changed, the vault is older than the record (or of another history),
    /// or somebody else has it open.
    pub fn open(
        folder: &Path,
        key: VaultKey,
        counter: Option<Box<dyn CommitCounter>>,
        access: Access,
    ) -> Result<Self, VaultError> {
        let index_path = folder.join("index");
        if !index_path.is_file() {
            return Err(VaultError::NoVault(folder.to_path_buf()));
        }
        let lock = lock(folder, access)?;
        let (header, index, digest) = read_index(&index_path, &key)?;
        let mut vault = Self {
            folder: folder.to_path_buf(),
            key,
            id: header.vault,
            epoch: header.epoch,
            index,
            access,
            freshness: Freshness::NotProven,
            counter,
            _lock: lock,
            #[cfg(test)]
            fault: tests::Fault::default(),
        };
        vault.compare_with_record(digest)?;
        if access == Access::Write {
            vault.clean()?;
        }
        Ok(vault)
    }

    /// Whether the vault is known to be the newest one.
    pub fn freshness(&self) -> Freshness {
        self.freshness
    }

    /// The files and the vault's version.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Seals `source` under `name`, as a new file or a new version of the one that is there. Gives its entry. A source
    /// with a buffer of several segments ([`READ_AHEAD_BYTES`](crate::READ_AHEAD_BYTES)) is sealed without a copy.
    ///
    /// # Errors
    /// The source can't be read, or the disk not written: then the vault is as it was.
    pub fn put(&mut self, name: &FileName, source: &mut dyn BufRead) -> Result<Entry, VaultError> {
        if self.access == Access::Read {
            return Err(VaultError::ReadOnly(self.folder.clone()));
        }
        let next_vault_version = self.index.version + 1;
        // Never a version that this name had before, even if it was removed meanwhile.
        let version = self
            .index
            .files
            .get(name)
            .map_or(next_vault_version, |entry| entry.version + 1);
        let blob = hex(&random::<16>()?);
        let path = self.blob(&blob);
        let entry = self.write_blob(&path, name, version, blob, source).inspect_err(|_| {
            // What is left of a failed write is of no use; the next opening for writing would clean it up as well.
            let _ = fs::remove_file(&path);
        })?;
        let mut next = self.index.clone();
        next.version = next_vault_version;
        let old = next.files.insert(name.clone(), entry.clone());
        self.commit(next).inspect_err(|_| {
            if !self.index.files.values().any(|entry| self.blob(&entry.blob) == path) {
                let _ = fs::remove_file(&path);
            }
        })?;
        if let Some(old) = old {
            // Only now: until the new index stands, the old one needs its blob.
            let _ = fs::remove_file(self.blob(&old.blob));
        }
        Ok(entry)
    }

    /// Opens a file for reading.
    ///
    /// # Errors
    /// There is none of this name, or what lies on disk is not the version that the index lists.
    pub fn get(&self, name: &FileName, cipher: Cipher) -> Result<SealedReader, VaultError> {
        let entry = self.index.files.get(name).ok_or_else(|| self.no_file(name))?;
        let wanted = Wanted {
            vault: Some(self.id),
            name: name.as_str(),
            version: Some(entry.version),
            epoch: Some(entry.epoch),
            plain_bytes: Some(entry.bytes),
            commitment: Some(&entry.commitment),
        };
        SealedReader::open(&self.blob(&entry.blob), &self.key, &wanted, cipher)
    }

    /// Reads and authenticates every file, with the portable cipher; `progress` hears name, bytes done and bytes in all.
    ///
    /// # Errors
    /// The first file that is not what was sealed.
    pub fn verify(&self, progress: &mut dyn FnMut(&FileName, u64, u64)) -> Result<(), VaultError> {
        for (name, entry) in &self.index.files {
            self.get(name, Cipher::Portable)?
                .check(&mut |done| progress(name, done, entry.bytes))?;
        }
        Ok(())
    }

    fn no_file(&self, name: &FileName) -> VaultError {
        let wanted = name.as_str();
        let alike = |other: &&FileName| {
            let other = other.as_str();
            other.starts_with(wanted) || wanted.starts_with(other) || other.eq_ignore_ascii_case(wanted)
        };
        VaultError::NoFile {
            name: wanted.to_owned(),
            nearest: self.index.files.keys().find(alike).map(|name| name.as_str().to_owned()),
        }
    }

    fn blob(&self, blob: &str) -> PathBuf {
        self.folder.join("blobs").join(blob)
    }

    fn write_blob(
        &mut self,
        path: &Path,
        name: &FileName,
        version: u64,
        blob: String,
        source: &mut dyn BufRead,
    ) -> Result<Entry, VaultError> {
        self.step("create blob")?;
        let mut file = new_file(path)?;
        let (header, key) = Header::fresh(&self.key, random()?, self.id, name.as_str(), version, self.epoch);
        let bytes = seal_pipelined(&header, &key, source, &mut file).map_err(|error| match error {
            SealError::Source(cause) => VaultError::Source {
                name: name.as_str().to_owned(),
                cause,
            },
            SealError::Sink(cause) => VaultError::io("writing", path)(cause),
            SealError::Limit(error) => error,
        })?;
        self.step("sync blob")?;
        file.sync_all().map_err(VaultError::io("syncing", path))?;
        self.step("sync blobs")?;
        sync_folder(&self.folder.join("blobs"))?;
        Ok(Entry {
            blob,
            commitment: hex(&header.commitment),
            version,
            epoch: self.epoch,
            bytes,
        })
    }

    /// Makes `next` the vault's index: written beside the old one, synced, renamed over it; then the record outside is told.
    fn commit(&mut self, next: Index) -> Result<(), VaultError> {
        let (path, fresh) = (self.folder.join("index"), self.folder.join("index.new"));
        let plain = next.encode()?;
        self.step("create index")?;
        if fresh.exists() {
            fs::remove_file(&fresh).map_err(VaultError::io("removing", &fresh))?;
        }
        let mut file = new_file(&fresh)?;
        let (header, key) = Header::fresh(&self.key, random()?, self.id, "", next.version, self.epoch);
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
            Some(counter) => counter.remember(&self.key, &seen),
            None => Ok(()),
        }
    }

    fn compare_with_record(&mut self, digest: [u8; 32]) -> Result<(), VaultError> {
        let Some(counter) = &mut self.counter else {
            return Ok(());
        };
        let found = Seen {
            vault: self.id,
            version: self.index.version,
            index: digest,
        };
        match counter.newest(&self.key)? {
            // The first look at this vault: from here on it can't go back.
            None => {
                self.freshness = Freshness::NotProven;
                if self.access == Access::Write {
                    counter.remember(&self.key, &found)?;
                }
                return Ok(());
            }
            Some(seen) if seen.vault != self.id => {
                return Err(VaultError::BadRecord {
                    record: counter.place(),
                    what: "it is another vault's".into(),
                });
            }
            Some(seen) if seen.version > found.version => {
                return Err(VaultError::RolledBack {
                    path: self.folder.clone(),
                    found: found.version,
                    seen: seen.version,
                    record: counter.place(),
                });
            }
            Some(seen) if seen.version == found.version && seen.index != digest => {
                return Err(VaultError::Forked {
                    path: self.folder.clone(),
                    version: found.version,
                    record: counter.place(),
                });
            }
            // A crash between commit and record leaves the vault ahead: only the key's holder can have made it so.
            Some(seen) if seen.version < found.version && self.access == Access::Write => {
                counter.remember(&self.key, &found)?
            }
            Some(_) => {}
        }
        self.freshness = Freshness::Proven;
        Ok(())
    }

    /// Removes what a crash left: blobs that the index doesn't list, an index that was never committed.
    fn clean(&self) -> Result<(), VaultError> {
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
    #[allow(clippy::unused_self)] // tests crash the vault here
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

fn read_index(path: &Path, key: &VaultKey) -> Result<(Header, Index, [u8; 32]), VaultError> {
    let wanted = Wanted {
        vault: None,
        name: "",
        version: None,
        epoch: None,
        plain_bytes: None,
        commitment: None,
    };
    let reader = SealedReader::open(path, key, &wanted, Cipher::Portable)?;
    let header = reader.header().clone();
    let plain = reader.read_all(MAX_INDEX_BYTES)?;
    let index = Index::decode(&plain).map_err(|what| VaultError::tampered(path, what))?;
    if index.version != header.version {
        return Err(VaultError::tampered(
            path,
            "the index and its header have different versions",
        ));
    }
    let mut hash = Sha256::new();
    let mut file = BufReader::new(File::open(path).map_err(VaultError::io("opening", path))?);
    let mut buffer = [0; 8192];
    loop {
        match file.read(&mut buffer).map_err(VaultError::io("reading", path))? {
            0 => break,
            count => hash.update(&buffer[..count]),
        }
    }
    Ok((header, index, hash.finalize().into()))
}

fn lock(folder: &Path, access: Access) -> Result<File, VaultError> {
    let path = folder.join("lock");
    let file = OpenOptions::new()
        .read(true)
        .write(access == Access::Write)
        .create(access == Access::Write)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(VaultError::io("opening", &path))?;
    let operation = match access {
        Access::Read => FlockOperation::NonBlockingLockShared,
        Access::Write => FlockOperation::NonBlockingLockExclusive,
    };
    flock(&file, operation).map_err(|error| match error {
        rustix::io::Errno::WOULDBLOCK => VaultError::InUse(folder.to_path_buf()),
        error => VaultError::io("locking", &path)(error.into()),
    })?;
    Ok(file)
}

fn new_file(path: &Path) -> Result<File, VaultError> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(VaultError::io("writing", path))
}

fn random<const N: usize>() -> Result<[u8; N], VaultError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| VaultError::Randomness(error.to_string()))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
