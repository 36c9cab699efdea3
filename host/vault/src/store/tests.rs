//! A vault under crashes, tampering and rollback.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};

use proptest::prelude::*;

use super::*;
use crate::{HEADER_BYTES, LastSeenFile, SEGMENT_BYTES, Subject, seal};

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
fn every_flipped_bit_shows() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("v");
    let mut vault = Vault::create(&folder, key(), None).unwrap();
    vault.put(&name("a"), &mut &[5_u8; 300][..]).unwrap();
    let path = blob_of(&vault, "a");
    let good = fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        fs::write(&path, &bad).unwrap();
        let outcome = vault
            .get(&name("a"), Cipher::Bulk)
            .and_then(|reader| reader.read_all(1000));
        assert!(
            matches!(outcome, Err(VaultError::Tampered { .. } | VaultError::WrongKey { .. })),
            "byte {at}: {outcome:?}"
        );
    }
    drop(vault);
    let index = fs::read(folder.join("index")).unwrap();
    for at in 0..index.len() {
        let mut bad = index.clone();
        bad[at] ^= 0x80;
        fs::write(folder.join("index"), &bad).unwrap();
        assert!(reopen(&folder).is_err(), "byte {at} of the index");
    }
}

#[test]
fn a_file_cut_short_or_with_segments_swapped_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut vault = Vault::create(&dir.path().join("v"), key(), None).unwrap();
    vault
        .put(&name("a"), &mut vec![1_u8; 4 * SEGMENT_BYTES].as_slice())
        .unwrap();
    let path = blob_of(&vault, "a");
    let good = fs::read(&path).unwrap();
    let sealed = SEGMENT_BYTES + 16;
    let mut cuts: Vec<Vec<u8>> = [
        0,
        10,
        HEADER_BYTES,
        HEADER_BYTES + sealed,
        good.len() - 1,
        good.len() - sealed,
    ]
    .iter()
    .map(|length| good[..*length].to_vec())
    .collect();
    let mut swapped = good.clone();
    let (first, second) = swapped[HEADER_BYTES..HEADER_BYTES + 2 * sealed].split_at_mut(sealed);
    first.swap_with_slice(second);
    cuts.push(swapped);
    cuts.push([&good[..], &[0; 16]].concat());
    for bad in cuts {
        fs::write(&path, &bad).unwrap();
        let error = vault
            .get(&name("a"), Cipher::Bulk)
            .and_then(|reader| reader.read_all(u64::MAX))
            .unwrap_err();
        assert!(
            matches!(error, VaultError::Tampered { .. }),
            "{} bytes: {error}",
            bad.len()
        );
    }
}

#[test]
fn a_cut_at_a_segment_shows_even_where_the_index_is_not_asked() {
    // The last segment's nonce says that it is the last.
    let subject = Subject {
        vault: [1; 16],
        name: "x",
        version: 1,
        epoch: 0,
        salt: [2; 32],
    };
    let mut sealed = Vec::new();
    seal(
        &key(),
        &subject,
        Cipher::Bulk,
        &mut vec![9_u8; 3 * SEGMENT_BYTES].as_slice(),
        &mut sealed,
    )
    .unwrap();
    sealed.truncate(HEADER_BYTES + 2 * (SEGMENT_BYTES + 16));
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("x"), &sealed).unwrap();
    let wanted = Wanted {
        vault: None,
        name: "x",
        version: None,
        epoch: None,
        plain_bytes: None,
        commitment: None,
    };
    let reader = SealedReader::open(&dir.path().join("x"), &key(), &wanted, Cipher::Bulk).unwrap();
    assert!(matches!(reader.read_all(u64::MAX), Err(VaultError::Tampered { .. })));
}

#[test]
fn a_file_that_is_gone_or_no_file_is_told_and_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut vault = Vault::create(&dir.path().join("v"), key(), None).unwrap();
    vault.put(&name("a"), &mut &b"1"[..]).unwrap();
    let path = blob_of(&vault, "a");
    let told = |vault: &Vault| vault.get(&name("a"), Cipher::Bulk).unwrap_err().to_string();
    fs::remove_file(&path).unwrap();
    assert!(told(&vault).contains("the index lists it, and it is not there"));
    fs::create_dir(&path).unwrap();
    assert!(told(&vault).contains("it is no file"));
    fs::remove_dir(&path).unwrap();
    // A pipe without a writer.
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    assert!(told(&vault).contains("it is no file"));
}

#[test]
fn an_older_version_of_one_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut vault = Vault::create(&dir.path().join("v"), key(), None).unwrap();
    vault.put(&name("a"), &mut &b"old"[..]).unwrap();
    vault.put(&name("b"), &mut &b"oth"[..]).unwrap();
    let old = fs::read(blob_of(&vault, "a")).unwrap();
    let other = fs::read(blob_of(&vault, "b")).unwrap();
    vault.put(&name("a"), &mut &b"new"[..]).unwrap();
    fs::write(blob_of(&vault, "a"), old).unwrap();
    let error = vault.get(&name("a"), Cipher::Bulk).unwrap_err().to_string();
    assert!(error.contains("its version is 2, but the index lists 3"), "{error}");
    fs::write(blob_of(&vault, "a"), other).unwrap();
    assert!(
        matches!(vault.get(&name("a"), Cipher::Bulk), Err(VaultError::WrongKey { .. })),
        "another name has another key"
    );
}

#[test]
fn a_blob_of_an_interrupted_write_does_not_pass_for_the_one_that_was_committed() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, after) = (dir.path().join("v"), dir.path().join("after"));
    let mut vault = Vault::create(&folder, key(), None).unwrap();
    vault.put(&name("a"), &mut &b"old"[..]).unwrap();
    // Crashes before the index is written: the blob with version 3 of "a" is whole, and listed nowhere.
    vault.fault = Fault {
        at: Some(3),
        crashed: Some((folder.clone(), after.clone())),
    };
    vault.put(&name("a"), &mut &b"bad"[..]).unwrap_err();
    drop(vault);
    let listed = blob_of(&reopen(&folder).unwrap(), "a");
    let blobs: Vec<_> = fs::read_dir(after.join("blobs"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    let left = blobs
        .iter()
        .find(|path| path.file_name() != listed.file_name())
        .unwrap();
    let mut vault = reopen(&folder).unwrap();
    vault.put(&name("a"), &mut &b"new"[..]).unwrap();
    fs::copy(left, blob_of(&vault, "a")).unwrap();
    let error = vault.get(&name("a"), Cipher::Bulk).unwrap_err().to_string();
    assert!(error.contains("another write of this version"), "{error}");
}

#[test]
fn no_empty_vault_takes_the_place_of_one_on_record() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, record) = (dir.path().join("v"), dir.path().join("seen"));
    let counter = || Some(Box::new(LastSeenFile::new(&record)) as Box<dyn CommitCounter>);
    let mut vault = Vault::create(&folder, key(), counter()).unwrap();
    vault.put(&name("a"), &mut &b"1"[..]).unwrap();
    drop(vault);
    let known = fs::read(&record).unwrap();
    fs::remove_dir_all(&folder).unwrap();
    let error = Vault::create(&folder, key(), counter()).unwrap_err();
    assert!(matches!(error, VaultError::Gone { seen: 2, .. }), "{error}");
    assert_eq!(fs::read(&record).unwrap(), known);
    assert!(fs::read_dir(&folder).unwrap().next().is_none());
}

#[test]
fn a_vault_whose_making_crashed_is_made_anew_and_nothing_else_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("v");
    fs::create_dir_all(folder.join("blobs")).unwrap();
    fs::write(folder.join("lock"), b"").unwrap();
    fs::write(folder.join("index.new"), b"half an index").unwrap();
    let mut vault = Vault::create(&folder, key(), None).unwrap();
    vault.put(&name("a"), &mut &b"1"[..]).unwrap();
    drop(vault);
    assert_eq!(content(&reopen(&folder).unwrap(), "a"), b"1");

    // An index that was taken away is no unfinished making: what was sealed is still there.
    fs::remove_file(folder.join("index")).unwrap();
    let refused = |folder: &Path| matches!(Vault::create(folder, key(), None), Err(VaultError::NotEmpty(_)));
    assert!(refused(&folder));
    let other = dir.path().join("other");
    fs::create_dir_all(&other).unwrap();
    fs::write(other.join("letter.txt"), b"keep me").unwrap();
    assert!(refused(&other));
    assert_eq!(fs::read_dir(&other).unwrap().count(), 1, "nothing was left in it");
}

#[test]
fn an_index_that_is_swapped_between_two_looks_at_it_does_not_pass_for_the_one_on_record() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("v");
    let mut vault = Vault::create(&folder, key(), None).unwrap();
    vault.put(&name("a"), &mut &b"1"[..]).unwrap();
    let (seen, _, digest) = read_index(&folder.join("index"), &key()).unwrap();
    assert_eq!(index_digest(&folder.join("index"), &seen).unwrap(), digest);
    vault.put(&name("a"), &mut &b"2"[..]).unwrap();
    let error = index_digest(&folder.join("index"), &seen).unwrap_err();
    assert!(matches!(error, VaultError::Tampered { .. }), "{error}");
}

#[test]
fn an_older_whole_vault_is_refused_against_the_record_and_doubted_without() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, record) = (dir.path().join("v"), dir.path().join("seen"));
    let counter = || Some(Box::new(LastSeenFile::new(&record)) as Box<dyn CommitCounter>);
    let mut vault = Vault::create(&folder, key(), counter()).unwrap();
    vault.put(&name("a"), &mut &b"1"[..]).unwrap();
    copy(&folder, &dir.path().join("old"));
    vault.put(&name("a"), &mut &b"2"[..]).unwrap();
    drop(vault);
    let fresh = Vault::open(&folder, key(), counter(), Access::Read).unwrap();
    assert_eq!(fresh.freshness(), Freshness::Proven);
    drop(fresh);

    let old = dir.path().join("old");
    let error = Vault::open(&old, key(), counter(), Access::Write).unwrap_err();
    assert!(
        matches!(error, VaultError::RolledBack { found: 2, seen: 3, .. }),
        "{error}"
    );
    assert_eq!(
        Vault::open(&old, key(), None, Access::Read).unwrap().freshness(),
        Freshness::NotProven
    );

    // A copy that went its own way to the same version.
    let mut own = reopen(&old).unwrap();
    own.put(&name("a"), &mut &b"3"[..]).unwrap();
    drop(own);
    assert!(matches!(
        Vault::open(&old, key(), counter(), Access::Read),
        Err(VaultError::Forked { version: 3, .. })
    ));

    // A record of another vault, a broken one, and one under another key.
    let other = Vault::create(
        &dir.path().join("w"),
        key(),
        Some(Box::new(LastSeenFile::new(dir.path().join("seen-w")))),
    )
    .unwrap();
    drop(other);
    fs::copy(dir.path().join("seen-w"), &record).unwrap();
    assert!(matches!(
        Vault::open(&folder, key(), counter(), Access::Read),
        Err(VaultError::BadRecord { .. })
    ));
    let mut bytes = fs::read(&record).unwrap();
    bytes[20] ^= 1;
    fs::write(&record, &bytes).unwrap();
    assert!(matches!(
        Vault::open(&folder, key(), counter(), Access::Read),
        Err(VaultError::BadRecord { .. })
    ));
    fs::write(&record, b"short").unwrap();
    assert!(matches!(
        Vault::open(&folder, key(), counter(), Access::Read),
        Err(VaultError::BadRecord { .. })
    ));
}

#[test]
fn a_crash_at_any_instant_leaves_the_old_or_the_new_version() {
    for at in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let (folder, after, record) = (dir.path().join("v"), dir.path().join("after"), dir.path().join("seen"));
        let counter = || Some(Box::new(LastSeenFile::new(&record)) as Box<dyn CommitCounter>);
        let mut vault = Vault::create(&folder, key(), counter()).unwrap();
        vault.put(&name("a"), &mut &b"old"[..]).unwrap();
        vault.fault = Fault {
            at: Some(at),
            crashed: Some((folder.clone(), after.clone())),
        };
        let outcome = vault.put(&name("a"), &mut &b"new"[..]);
        drop(vault);
        if outcome.is_ok() {
            assert!(at >= 6, "the steps are all seen");
            return;
        }
        for place in [&after, &folder] {
            let vault = Vault::open(place, key(), counter(), Access::Write).unwrap();
            let found = content(&vault, "a");
            assert!(found == b"old" || found == b"new", "step {at}: {found:?}");
            assert_eq!(
                fs::read_dir(place.join("blobs")).unwrap().count(),
                1,
                "step {at}: leftovers are removed"
            );
            assert!(!place.join("index.new").exists());
        }
    }
}

/// Gives that many bytes, then an error.
struct Failing(usize);

impl Read for Failing {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        if self.0 == 0 {
            return Err(std::io::Error::other("link down"));
        }
        let count = out.len().min(self.0);
        self.0 -= count;
        Ok(count)
    }
}

#[test]
fn several_files_are_one_commit_and_a_crash_at_any_instant_leaves_all_of_them_old_or_new() {
    for at in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let (folder, after, record) = (dir.path().join("v"), dir.path().join("after"), dir.path().join("seen"));
        let counter = || Some(Box::new(LastSeenFile::new(&record)) as Box<dyn CommitCounter>);
        let mut vault = Vault::create(&folder, key(), counter()).unwrap();
        let round = |vault: &mut Vault, text: &str| {
            let (mut model, mut receipt) = (text.as_bytes(), text.as_bytes());
            vault.put_all(BTreeMap::from([
                (name("model"), &mut model as &mut dyn BufRead),
                (name("receipt"), &mut receipt as &mut dyn BufRead),
            ]))
        };
        round(&mut vault, "old").unwrap();
        assert_eq!(vault.index().version, 2, "two files, one commit");
        vault.fault = Fault {
            at: Some(at),
            crashed: Some((folder.clone(), after.clone())),
        };
        let outcome = round(&mut vault, "new");
        drop(vault);
        if outcome.is_ok() {
            assert!(at >= 8, "the steps are all seen");
            return;
        }
        for place in [&after, &folder] {
            let vault = Vault::open(place, key(), counter(), Access::Write).unwrap();
            let found = content(&vault, "model");
            assert_eq!(
                content(&vault, "receipt"),
                found,
                "step {at}: one file is of another round"
            );
            assert!(found == b"old" || found == b"new", "step {at}: {found:?}");
            assert_eq!(
                fs::read_dir(place.join("blobs")).unwrap().count(),
                2,
                "step {at}: leftovers are removed"
            );
        }
    }
}

#[test]
fn several_files_of_which_one_cannot_be_read_leave_the_old_versions() {
    let dir = tempfile::tempdir().unwrap();
    let mut vault = Vault::create(&dir.path().join("v"), key(), None).unwrap();
    vault.put(&name("a"), &mut &b"old"[..]).unwrap();
    let (mut good, mut bad) = (&b"new"[..], BufReader::new(Failing(SEGMENT_BYTES)));
    let error = vault
        .put_all(BTreeMap::from([
            (name("a"), &mut good as &mut dyn BufRead),
            (name("b"), &mut bad as &mut dyn BufRead),
        ]))
        .unwrap_err();
    assert!(error.to_string().contains("link down"), "{error}");
    assert_eq!(content(&vault, "a"), b"old");
    assert!(vault.get(&name("b"), Cipher::Bulk).is_err());
    assert_eq!(fs::read_dir(dir.path().join("v/blobs")).unwrap().count(), 1);
}

#[test]
fn a_source_that_fails_leaves_the_old_version() {
    let dir = tempfile::tempdir().unwrap();
    let mut vault = Vault::create(&dir.path().join("v"), key(), None).unwrap();
    vault.put(&name("a"), &mut &b"old"[..]).unwrap();
    let error = vault
        .put(&name("a"), &mut BufReader::new(Failing(3 * SEGMENT_BYTES)))
        .unwrap_err()
        .to_string();
    assert!(error.contains("link down") && error.contains("unchanged"), "{error}");
    assert_eq!(content(&vault, "a"), b"old");
    assert_eq!(fs::read_dir(dir.path().join("v/blobs")).unwrap().count(), 1);
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
