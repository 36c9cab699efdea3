//! A vault on disk: `index`, `lock`, and one blob a file below `blobs/`. Opening and reading; [`commit`] writes.

mod commit;

use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest as _, Sha256};

use crate::format::{HEADER_BYTES, Header, VaultId};
use crate::index::MAX_INDEX_BYTES;
use crate::reader::Wanted;
use crate::{Cipher, CommitCounter, FileName, Index, SealedReader, Seen, VaultError, VaultKeys};

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
    keys: VaultKeys,
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
    /// Makes a new, empty vault in an empty or missing folder, or in one where a crash left a making unfinished.
    ///
    /// # Errors
    /// The folder isn't empty or can't be written, or `counter` has seen a vault before: the one that was there is gone.
    pub fn create(
        folder: &Path,
        keys: impl Into<VaultKeys>,
        mut counter: Option<Box<dyn CommitCounter>>,
    ) -> Result<Self, VaultError> {
        let keys = keys.into();
        fs::create_dir_all(folder).map_err(VaultError::io("making", folder))?;
        if !unused(folder)? {
            return Err(VaultError::NotEmpty(folder.to_path_buf()));
        }
        // An empty vault in place of the one on record is a rollback to the beginning.
        if let Some(counter) = &mut counter
            && let Some(seen) = counter.newest(&keys, None)?
        {
            return Err(VaultError::Gone {
                path: folder.to_path_buf(),
                seen: seen.version,
                record: counter.place(),
            });
        }
        let blobs = folder.join("blobs");
        fs::create_dir_all(&blobs).map_err(VaultError::io("making", &blobs))?;
        let lock = lock(folder, Access::Write)?;
        // Two that make it at the same time: the second one comes here when the first one's index stands.
        if folder.join("index").exists() {
            return Err(VaultError::NotEmpty(folder.to_path_buf()));
        }
        let mut vault = Self {
            folder: folder.to_path_buf(),
            epoch: keys.epoch(0),
            keys,
            id: random()?,
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
        vault.settle()?;
        Ok(vault)
    }

    /// Opens a vault and compares it with what `counter` has seen. For writing, and with a key of a newer epoch than something in it
    /// is sealed under, all of that is sealed anew, in one commit.
    ///
    /// # Errors
    /// There is none, the key is another one, the index was changed, the vault is older than the record (or of another history),
    /// or somebody else has it open.
    pub fn open(
        folder: &Path,
        keys: impl Into<VaultKeys>,
        counter: Option<Box<dyn CommitCounter>>,
        access: Access,
    ) -> Result<Self, VaultError> {
        let index_path = folder.join("index");
        if !index_path.is_file() {
            return Err(VaultError::NoVault(folder.to_path_buf()));
        }
        let lock = lock(folder, access)?;
        let keys = keys.into();
        let (header, index, digest) = read_index(&index_path, &keys)?;
        let mut vault = Self {
            folder: folder.to_path_buf(),
            epoch: keys.epoch(header.epoch),
            keys,
            id: header.vault,
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
            vault.rotate(header.epoch)?;
        }
        Ok(vault)
    }

    /// Whether the vault is known to be the newest one.
    pub fn freshness(&self) -> Freshness {
        self.freshness
    }

    /// Waits until all commits are remembered outside: before anything that they hold is told to others.
    ///
    /// # Errors
    /// One is not, and may be rolled back.
    pub fn settle(&mut self) -> Result<(), VaultError> {
        self.counter.as_mut().map_or(Ok(()), |counter| counter.settle())
    }

    /// The files and the vault's version.
    pub fn index(&self) -> &Index {
        &self.index
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
        SealedReader::open(&self.blob(&entry.blob), &self.keys, &wanted, cipher)
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

    fn compare_with_record(&mut self, digest: [u8; 32]) -> Result<(), VaultError> {
        let Some(counter) = &mut self.counter else {
            return Ok(());
        };
        let found = Seen {
            vault: self.id,
            version: self.index.version,
            index: digest,
        };
        match counter.newest(&self.keys, Some(&found))? {
            // The first look at this vault: from here on it can't go back.
            None => {
                self.freshness = Freshness::NotProven;
                if self.access == Access::Write {
                    counter.remember(&self.keys, &found)?;
                    counter.settle()?;
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
                counter.remember(&self.keys, &found)?;
                counter.settle()?;
            }
            Some(_) => {}
        }
        self.freshness = Freshness::Proven;
        Ok(())
    }
}

fn read_index(path: &Path, keys: &VaultKeys) -> Result<(Header, Index, [u8; 32]), VaultError> {
    let wanted = Wanted {
        vault: None,
        name: "",
        version: None,
        epoch: None,
        plain_bytes: None,
        commitment: None,
    };
    let reader = SealedReader::open(path, keys, &wanted, Cipher::Portable)?;
    let header = reader.header().clone();
    let plain = reader.read_all(MAX_INDEX_BYTES)?;
    let index = Index::decode(&plain).map_err(|what| VaultError::tampered(path, what))?;
    if index.version != header.version {
        return Err(VaultError::tampered(
            path,
            "the index and its header have different versions",
        ));
    }
    let digest = index_digest(path, &header)?;
    Ok((header, index, digest))
}

/// SHA-256 of the sealed index, read once more. The disk may answer otherwise this time: so the header must be the one whose
/// index was read. Whoever then believes the digest believes this header and, by its salt and its commitment, that index.
fn index_digest(path: &Path, header: &Header) -> Result<[u8; 32], VaultError> {
    let mut file = BufReader::new(File::open(path).map_err(VaultError::io("opening", path))?);
    let mut again = [0; HEADER_BYTES];
    file.read_exact(&mut again).map_err(VaultError::io("reading", path))?;
    if again != header.encode() {
        return Err(VaultError::tampered(path, "it became another file while it was read"));
    }
    let mut hash = Sha256::new();
    hash.update(again);
    let mut buffer = [0; 8192];
    loop {
        match file.read(&mut buffer).map_err(VaultError::io("reading", path))? {
            0 => break,
            count => hash.update(&buffer[..count]),
        }
    }
    Ok(hash.finalize().into())
}

/// Whether nothing was ever sealed in a folder: it is empty, or holds what making a vault leaves before its first index.
fn unused(folder: &Path) -> Result<bool, VaultError> {
    for found in fs::read_dir(folder).map_err(VaultError::io("reading", folder))? {
        let found = found.map_err(VaultError::io("reading", folder))?;
        let path = found.path();
        let left = match found.file_name().to_str() {
            Some("blobs") if path.is_dir() => fs::read_dir(&path)
                .map_err(VaultError::io("reading", &path))?
                .next()
                .is_none(),
            Some("lock" | "index.new") => true,
            _ => false,
        };
        if !left {
            return Ok(false);
        }
    }
    Ok(true)
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

fn random<const N: usize>() -> Result<[u8; N], VaultError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| VaultError::Randomness(error.to_string()))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
