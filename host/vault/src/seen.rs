//! What was seen of a vault before, kept outside of it: the only thing against which an older whole vault shows.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use aws_lc_rs::hmac;

use crate::VaultError;
use crate::format::VaultId;
use crate::key::{VaultKey, VaultKeys};

const MAGIC: &[u8; 16] = b"cloister-seen/v1";
const RECORD_BYTES: usize = 16 + 16 + 8 + 32 + 32;

/// A commit of a vault as it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The vault.
    pub vault: VaultId,
    /// The vault's version.
    pub version: u64,
    /// SHA-256 of the sealed index of that version.
    pub index: [u8; 32],
}

/// Remembers the newest commit of a vault where whoever can write the vault can't write too.
pub trait CommitCounter: Send {
    /// Where it remembers, for errors.
    fn place(&self) -> String;

    /// The newest commit it was told of; nothing if none yet. `found` is what is at hand, if anything is: one that keeps
    /// digests alone compares with it, and of a commit that is another one tells the version, and zeros for the rest.
    ///
    /// # Errors
    /// It can't be asked, or its answer is not authentic.
    fn newest(&mut self, keys: &VaultKeys, found: Option<&Seen>) -> Result<Option<Seen>, VaultError>;

    /// Remembers a commit; one that is far away may begin to, and be done by [`CommitCounter::settle`].
    ///
    /// # Errors
    /// It can't be told. The commit stands all the same, and counts as newer than the record when the vault is opened again.
    fn remember(&mut self, keys: &VaultKeys, seen: &Seen) -> Result<(), VaultError>;

    /// Waits until every commit that it was told of is remembered for good.
    ///
    /// # Errors
    /// One is not.
    fn settle(&mut self) -> Result<(), VaultError> {
        Ok(())
    }
}

/// A file outside the vault, authenticated under a key derived from the vault's. It protects against an older vault put back,
/// not against one who puts back an older record with it.
#[derive(Clone, Debug)]
pub struct LastSeenFile {
    path: PathBuf,
}

impl LastSeenFile {
    /// The record at `path`, which need not be there yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    fn bad(&self, what: &str) -> VaultError {
        VaultError::BadRecord {
            record: self.place(),
            what: what.to_owned(),
        }
    }
}

impl CommitCounter for LastSeenFile {
    fn place(&self) -> String {
        self.path.display().to_string()
    }

    fn newest(&mut self, keys: &VaultKeys, _found: Option<&Seen>) -> Result<Option<Seen>, VaultError> {
        let bytes = match fs::metadata(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(VaultError::io("reading", &self.path)(error)),
            Ok(found) if found.len() != RECORD_BYTES as u64 => return Err(self.bad("its length is another one")),
            Ok(_) => fs::read(&self.path).map_err(VaultError::io("reading", &self.path))?,
        };
        let (content, tag) = bytes
            .split_at_checked(RECORD_BYTES - 32)
            .ok_or_else(|| self.bad("its length is another one"))?;
        // A crash amid a rotation leaves a record under the key before.
        let authentic = |key| hmac::verify(&record_key(key), content, tag).is_ok();
        if !keys.newest_first().any(authentic) {
            return Err(self.bad("it is not authentic under this key"));
        }
        let seen = decode(content).ok_or_else(|| self.bad("it does not start like one"))?;
        Ok(Some(seen))
    }

    fn remember(&mut self, keys: &VaultKeys, seen: &Seen) -> Result<(), VaultError> {
        let mut record = Vec::with_capacity(RECORD_BYTES);
        record.extend_from_slice(MAGIC);
        record.extend_from_slice(&seen.vault);
        record.extend_from_slice(&seen.version.to_be_bytes());
        record.extend_from_slice(&seen.index);
        let key = keys
            .newest_first()
            .next()
            .ok_or_else(|| self.bad("there is no key for it"))?;
        let tag = hmac::sign(&record_key(key), &record);
        record.extend_from_slice(tag.as_ref());
        let fresh = self.path.with_added_extension("new");
        File::create(&fresh)
            .and_then(|mut file| file.write_all(&record).and_then(|()| file.sync_all()))
            .map_err(VaultError::io("writing", &fresh))?;
        fs::rename(&fresh, &self.path).map_err(VaultError::io("replacing", &self.path))?;
        sync_folder(
            self.path
                .parent()
                .filter(|folder| !folder.as_os_str().is_empty())
                .unwrap_or(Path::new(".")),
        )
    }
}

pub(crate) fn sync_folder(folder: &Path) -> Result<(), VaultError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(VaultError::io("syncing", folder))
}

fn record_key(key: &VaultKey) -> hmac::Key {
    let derived = key.derive(&[0; 32], b"cloister/vault/last-seen/v1");
    hmac::Key::new(hmac::HMAC_SHA256, &derived.cipher_key)
}

fn decode(content: &[u8]) -> Option<Seen> {
    let (magic, rest) = content.split_first_chunk::<16>()?;
    let (vault, rest) = rest.split_first_chunk::<16>()?;
    let (version, rest) = rest.split_first_chunk::<8>()?;
    let index = rest.first_chunk::<32>()?;
    (magic == MAGIC).then(|| Seen {
        vault: *vault,
        version: u64::from_be_bytes(*version),
        index: *index,
    })
}
