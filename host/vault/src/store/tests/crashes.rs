//! Steps that fail, at any instant.

use super::*;

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
