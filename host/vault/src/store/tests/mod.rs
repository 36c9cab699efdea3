//! A vault under crashes, tampering and rollback.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};

mod crashes;
mod rotation;
mod tampering;

use proptest::prelude::*;

use super::*;
use crate::{HEADER_BYTES, LastSeenFile, SEGMENT_BYTES, Subject, VaultKey, seal};

/// Fails at the n-th durable step, and keeps a copy of the vault as a crash at that instant would leave it.
#[derive(Default)]
pub(crate) struct Fault {
    at: Option<usize>,
    crashed: Option<(PathBuf, PathBuf)>,
}

impl Fault {
    pub(crate) fn step(&mut self, what: &'static str) -> Result<(), VaultError> {
        match &mut self.at {
            None => Ok(()),
            Some(0) => {
                if let Some((from, to)) = self.crashed.take() {
                    copy(&from, &to);
                }
                Err(VaultError::Io {
                    what,
                    path: PathBuf::new(),
                    cause: std::io::Error::other("injected"),
                })
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn key() -> VaultKey {
    VaultKey::from_bytes([7; 32])
}

fn name(text: &str) -> FileName {
    text.parse().unwrap()
}

fn content(vault: &Vault, file: &str) -> Vec<u8> {
    vault
        .get(&name(file), Cipher::Bulk)
        .unwrap()
        .read_all(u64::MAX)
        .unwrap()
}

fn reopen(folder: &Path) -> Result<Vault, VaultError> {
    Vault::open(folder, key(), None, Access::Write)
}

fn blob_of(vault: &Vault, file: &str) -> PathBuf {
    vault.blob(&vault.index.files[&name(file)].blob)
}

#[test]
fn what_was_put_comes_back_by_either_cipher() {
    let dir = tempfile::tempdir().unwrap();
    let mut vault = Vault::create(&dir.path().join("v"), key(), None).unwrap();
    for size in [
        0,
        1,
        SEGMENT_BYTES - 1,
        SEGMENT_BYTES,
        SEGMENT_BYTES + 1,
        40 * SEGMENT_BYTES,
        40 * SEGMENT_BYTES + 7,
    ] {
        let plain: Vec<u8> = (0..size).map(|at| (at * 31 % 251) as u8).collect();
        let entry = vault.put(&name("model"), &mut plain.as_slice()).unwrap();
        assert_eq!(entry.bytes, size as u64);
        for cipher in [Cipher::Bulk, Cipher::Portable] {
            assert_eq!(
                vault.get(&name("model"), cipher).unwrap().read_all(u64::MAX).unwrap(),
                plain
            );
        }
    }
    assert_eq!(
        fs::read_dir(dir.path().join("v/blobs")).unwrap().count(),
        1,
        "old versions are removed"
    );
    vault.verify(&mut |_, _, _| {}).unwrap();
    assert_eq!(vault.freshness(), Freshness::NotProven);
}

#[test]
fn reading_at_random_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let mut vault = Vault::create(&dir.path().join("v"), key(), None).unwrap();
    let plain: Vec<u8> = (0..5 * SEGMENT_BYTES + 11).map(|at| (at / 3) as u8).collect();
    vault.put(&name("a"), &mut plain.as_slice()).unwrap();
    let mut reader = vault.get(&name("a"), Cipher::Bulk).unwrap();
    for start in [3 * SEGMENT_BYTES - 2, 0, 5 * SEGMENT_BYTES + 10, SEGMENT_BYTES] {
        reader.seek(SeekFrom::Start(start as u64)).unwrap();
        let mut some = vec![0; 9.min(plain.len() - start)];
        reader.read_exact(&mut some).unwrap();
        assert_eq!(some, plain[start..start + some.len()]);
    }
    assert!(reader.seek(SeekFrom::Start(plain.len() as u64 + 1)).is_err());
}

#[test]
fn a_wrong_key_a_missing_vault_and_a_second_writer_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("v");
    assert!(matches!(reopen(&folder), Err(VaultError::NoVault(_))));
    let vault = Vault::create(&folder, key(), None).unwrap();
    assert!(matches!(reopen(&folder), Err(VaultError::InUse(_))));
    drop(vault);
    assert!(matches!(
        Vault::create(&folder, key(), None),
        Err(VaultError::NotEmpty(_))
    ));
    let wrong = Vault::open(&folder, VaultKey::from_bytes([8; 32]), None, Access::Read);
    assert!(matches!(wrong, Err(VaultError::WrongKey { .. })));
    let mut reader = Vault::open(&folder, key(), None, Access::Read).unwrap();
    assert!(matches!(
        reader.put(&name("a"), &mut &b""[..]),
        Err(VaultError::ReadOnly(_))
    ));
    assert!(matches!(
        reader.get(&name("a"), Cipher::Bulk),
        Err(VaultError::NoFile { .. })
    ));
}

#[test]
fn key_files_are_private_and_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    key().save(&path).unwrap();
    assert!(VaultKey::load(&path).is_ok());
    assert!(key().save(&path).is_err());
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    assert!(VaultKey::load(&path).unwrap_err().to_string().contains("chmod 600"));
    for bad in ["", "00", &"g".repeat(64), &"+1".repeat(32), &"ä".repeat(32)] {
        let path = dir.path().join("bad");
        let _ = fs::remove_file(&path);
        fs::write(&path, bad).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        assert!(
            VaultKey::load(&path)
                .unwrap_err()
                .to_string()
                .contains("64 hexadecimal digits"),
            "{bad}"
        );
    }
    assert_eq!(format!("{:?}", key()), "VaultKey(..)");
}

proptest! {
    #[test]
    fn names_are_names_or_refused(text in "\\PC{0,40}") {
        if let Ok(name) = text.parse::<FileName>() {
            prop_assert!(!name.as_str().split('/').any(|part| part.is_empty() || part == ".."));
        }
    }

    #[test]
    fn arbitrary_bytes_are_no_sealed_file(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("blobs")).unwrap();
        fs::write(dir.path().join("index"), &bytes).unwrap();
        prop_assert!(reopen(dir.path()).is_err());
    }

    #[test]
    fn arbitrary_text_is_no_index(text in "\\PC{0,200}") {
        prop_assert!(Index::decode(text.as_bytes()).is_err());
    }
}
