//! The salt of a commitment in a file beside the data: 64 hexadecimal digits and a line end, for its owner alone (mode 0600).

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::commitment::SALT_BYTES;

/// Why a salt was not read or not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SaltError {
    /// The file can't be read or written.
    #[error("salt {path}: cannot be {what}")]
    File {
        /// The file.
        path: PathBuf,
        /// What failed.
        what: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Others may read the file.
    #[error(
        "salt {path}: its mode is {mode:03o}, wanted 600: who knows the salt can confirm guesses of the rows (chmod 600)"
    )]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It holds something else.
    #[error("salt {path}: wanted 64 hexadecimal digits and a line end")]
    Form {
        /// The file.
        path: PathBuf,
    },
}

/// Where the salt of a data file is kept: `FILE.salt`.
pub fn path_beside(data: &Path) -> PathBuf {
    let mut name = OsString::from(data);
    name.push(".salt");
    name.into()
}

/// Reads a salt.
///
/// # Errors
/// The file is not there, others may read it, or it holds no salt. [`SaltError::File`] keeps the kind `NotFound`.
pub fn read(path: &Path) -> Result<[u8; SALT_BYTES], SaltError> {
    let failed = |source| SaltError::File {
        path: path.to_owned(),
        what: "read",
        source,
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(SaltError::Mode {
            path: path.to_owned(),
            mode,
        });
    }
    let mut text = String::new();
    file.take(100).read_to_string(&mut text).map_err(failed)?;
    parse(text.trim_end()).ok_or_else(|| SaltError::Form { path: path.to_owned() })
}

/// Writes a new salt, which must be 32 random bytes; refuses to replace a file.
///
/// # Errors
/// The file is there already, or can't be written.
pub fn create(path: &Path, salt: &[u8; SALT_BYTES]) -> Result<(), SaltError> {
    let failed = |source| SaltError::File {
        path: path.to_owned(),
        what: "made",
        source,
    };
    let mut text: String = salt.iter().map(|byte| format!("{byte:02x}")).collect();
    text.push('\n');
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(failed)
}

/// Reads a salt's text: 64 hexadecimal digits. Says `None` of anything else.
#[must_use]
pub fn parse(text: &str) -> Option<[u8; SALT_BYTES]> {
    let mut salt = [0; SALT_BYTES];
    if text.len() != 2 * SALT_BYTES || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, pair) in salt.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(salt)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_salt_comes_back_and_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = path_beside(&folder.path().join("train.csv"));
        assert!(path.ends_with("train.csv.salt"));
        create(&path, &[0xa5; 32]).unwrap();
        assert_eq!(read(&path).unwrap(), [0xa5; 32]);
        assert!(matches!(create(&path, &[1; 32]), Err(SaltError::File { .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(read(&path), Err(SaltError::Mode { mode: 0o640, .. })));
    }

    #[test]
    fn other_texts_are_refused() {
        assert_eq!(parse(&"0".repeat(64)), Some([0; 32]));
        for text in [
            String::new(),
            "0".repeat(63),
            "0".repeat(65),
            "+0".repeat(32),
            "ä".repeat(32),
        ] {
            assert_eq!(parse(&text), None, "{text:?}");
        }
    }
}
