//! The vault key, and the keys that are derived from it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::VaultError;

/// The key of a vault: 32 random bytes. In a file: 64 hexadecimal digits, readable by its owner alone.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct VaultKey([u8; 32]);

/// A vault's keys by epoch: the newest one seals, older ones open what was sealed before the key was rotated.
#[derive(Clone, Debug)]
pub struct VaultKeys {
    epochs: BTreeMap<u64, VaultKey>,
    /// One key of which nobody said of which epoch it is: it is tried whatever a file says.
    any_epoch: bool,
}

impl VaultKeys {
    /// Keys with their epochs; `None` without any.
    pub fn new(epochs: impl IntoIterator<Item = (u64, VaultKey)>) -> Option<Self> {
        let epochs: BTreeMap<_, _> = epochs.into_iter().collect();
        (!epochs.is_empty()).then_some(Self {
            epochs,
            any_epoch: false,
        })
    }

    /// The epoch that files are sealed under from now on, in a vault that is at `current`.
    pub(crate) fn epoch(&self, current: u64) -> u64 {
        match self.epochs.last_key_value() {
            Some((newest, _)) if !self.any_epoch => *newest,
            _ => current,
        }
    }

    /// The key of an epoch.
    pub(crate) fn of(&self, epoch: u64) -> Option<&VaultKey> {
        match self.any_epoch {
            true => self.epochs.values().next(),
            false => self.epochs.get(&epoch),
        }
    }

    /// All of them, the newest one first.
    pub(crate) fn newest_first(&self) -> impl Iterator<Item = &VaultKey> {
        self.epochs.values().rev()
    }
}

impl From<VaultKey> for VaultKeys {
    /// The key of a vault of one epoch, whichever that is.
    fn from(key: VaultKey) -> Self {
        Self {
            epochs: BTreeMap::from([(0, key)]),
            any_epoch: true,
        }
    }
}

/// A key for AES-256-GCM and the commitment to it.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(crate) struct FileKey {
    pub(crate) cipher_key: [u8; 32],
    pub(crate) commitment: [u8; 32],
}

impl VaultKey {
    /// A key of these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// A fresh random key.
    ///
    /// # Errors
    /// The operating system gives no randomness.
    pub fn generate() -> Result<Self, VaultError> {
        let mut key = Self([0; 32]);
        getrandom::fill(&mut key.0).map_err(|error| VaultError::Randomness(error.to_string()))?;
        Ok(key)
    }

    /// A fresh salt for a file.
    ///
    /// # Errors
    /// The operating system gives no randomness.
    pub fn salt() -> Result<[u8; 32], VaultError> {
        let mut salt = [0; 32];
        getrandom::fill(&mut salt).map_err(|error| VaultError::Randomness(error.to_string()))?;
        Ok(salt)
    }

    /// Reads a key file.
    ///
    /// # Errors
    /// It can't be read, others than its owner may read it, or it isn't 64 hexadecimal digits.
    pub fn load(path: &Path) -> Result<Self, VaultError> {
        let bad = |what: String| VaultError::KeyFile {
            path: path.to_path_buf(),
            what,
        };
        let file = File::open(path).map_err(|cause| {
            let what_to_do = match cause.kind() {
                ErrorKind::NotFound => {
                    "; name the vault's key file, or make one for a new vault: `cloister vault keygen`"
                }
                ErrorKind::PermissionDenied => "; run this as the key's owner",
                _ => "",
            };
            bad(format!("can't be read: {cause}{what_to_do}"))
        })?;
        let mode = file
            .metadata()
            .map_err(|cause| bad(format!("can't be read: {cause}")))?
            .mode()
            & 0o777;
        if mode & 0o077 != 0 {
            return Err(bad(format!(
                "may be read by others (mode {mode:03o}); run `chmod 600` on it"
            )));
        }
        let mut text = Zeroizing::new(String::with_capacity(128));
        file.take(100)
            .read_to_string(&mut text)
            .map_err(|cause| bad(format!("can't be read: {cause}")))?;
        Self::parse(&text)
            .ok_or_else(|| bad("does not hold 64 hexadecimal digits; `cloister vault keygen` makes one".into()))
    }

    /// Reads the text of a key file: 64 hexadecimal digits. Says `None` of anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.trim();
        if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        let mut key = Self([0; 32]);
        for (at, byte) in key.0.iter_mut().enumerate() {
            *byte = u8::from_str_radix(digits.get(2 * at..2 * at + 2)?, 16).ok()?;
        }
        Some(key)
    }

    /// Writes a new key file with mode 600. A file that is there already is never overwritten.
    ///
    /// # Errors
    /// It can't be written, or is there already.
    pub fn save(&self, path: &Path) -> Result<(), VaultError> {
        let bad = |cause: std::io::Error| VaultError::KeyFile {
            path: path.to_path_buf(),
            what: match cause.kind() {
                ErrorKind::AlreadyExists => {
                    "is there already, and a key is never overwritten; choose another name".to_owned()
                }
                _ => format!("can't be written: {cause}"),
            },
        };
        let mut digits = Zeroizing::new(String::with_capacity(65));
        for byte in self.0 {
            for nibble in [byte >> 4, byte & 15] {
                digits.push(char::from_digit(nibble.into(), 16).unwrap_or('0'));
            }
        }
        digits.push('\n');
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(bad)?;
        file.write_all(digits.as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(bad)
    }

    /// HKDF-SHA-256 (RFC 5869): extract with `salt`, expand with `info`.
    pub(crate) fn derive(&self, salt: &[u8; 32], info: &[u8]) -> FileKey {
        let mut okm = Zeroizing::new([0_u8; 64]);
        let (_, hkdf) = Hkdf::<Sha256>::extract(Some(salt), &self.0);
        // 64 bytes are far below the 255 * 32 that HKDF can give: expand cannot fail.
        let expanded = hkdf.expand(info, okm.as_mut());
        debug_assert!(expanded.is_ok());
        let mut key = FileKey {
            cipher_key: [0; 32],
            commitment: [0; 32],
        };
        key.cipher_key.copy_from_slice(&okm[..32]);
        key.commitment.copy_from_slice(&okm[32..]);
        key
    }
}

impl fmt::Debug for VaultKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("VaultKey(..)")
    }
}
