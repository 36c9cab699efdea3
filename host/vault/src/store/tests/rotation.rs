//! The vault's key, rotated.

use super::*;

fn keys(epochs: &[u64]) -> VaultKeys {
    let key = |epoch: &u64| (*epoch, VaultKey::from_bytes([*epoch as u8 + 1; 32]));
    VaultKeys::new(epochs.iter().map(key)).unwrap()
}

fn read(vault: &Vault, file: &str) -> Vec<u8> {
    vault.get(&name(file), Cipher::Bulk).unwrap().read_all(1 << 20).unwrap()
}

#[test]
fn a_newer_key_seals_everything_anew_and_the_older_one_opens_nothing_more() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, record) = (dir.path().join("v"), dir.path().join("record"));
    let counter = || Some(Box::new(LastSeenFile::new(&record)) as Box<dyn CommitCounter>);
    let mut vault = Vault::create(&folder, keys(&[0]), counter()).unwrap();
    for (file, content) in [("a", &b"first"[..]), ("b", b"second")] {
        vault.put(&name(file), &mut &*content).unwrap();
    }
    drop(vault);
    // Reading needs the older key, and changes nothing.
    let reading = Vault::open(&folder, keys(&[0, 1]), counter(), Access::Read).unwrap();
    assert_eq!((read(&reading, "a"), reading.index().version), (b"first".to_vec(), 3));
    drop(reading);
    let writing = Vault::open(&folder, keys(&[0, 1]), counter(), Access::Write).unwrap();
    assert_eq!(
        (read(&writing, "a"), read(&writing, "b")),
        (b"first".to_vec(), b"second".to_vec())
    );
    let index = writing.index();
    assert!(
        index.version == 4 && index.files.values().all(|entry| entry.epoch == 1),
        "one commit: {index:?}"
    );
    drop(writing);
    let refused = Vault::open(&folder, keys(&[0]), None, Access::Read);
    assert!(matches!(refused, Err(VaultError::WrongKey { .. })));
    // The newest key is enough, with its epoch or alone in a file; nothing is sealed anew a second time.
    let newest = Vault::open(&folder, keys(&[1]), counter(), Access::Write).unwrap();
    assert_eq!((newest.freshness(), newest.index().version), (Freshness::Proven, 4));
    drop(newest);
    let alone = Vault::open(&folder, VaultKey::from_bytes([2; 32]), counter(), Access::Write).unwrap();
    assert_eq!((read(&alone, "b"), alone.index().version), (b"second".to_vec(), 4));
}

#[test]
fn a_key_without_its_predecessors_opens_nothing_that_was_sealed_before() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("v");
    drop(Vault::create(&folder, keys(&[0]), None).unwrap());
    let refused = Vault::open(&folder, keys(&[1]), None, Access::Write);
    assert!(matches!(refused, Err(VaultError::WrongKey { .. })));
}

#[test]
fn a_crash_amid_a_rotation_leaves_a_vault_that_opens_with_both_keys() {
    let dir = tempfile::tempdir().unwrap();
    for at in 0..64 {
        let (folder, copy) = (dir.path().join(format!("v{at}")), dir.path().join(format!("c{at}")));
        let mut vault = Vault::create(&folder, keys(&[0]), None).unwrap();
        vault.put(&name("a"), &mut &b"content"[..]).unwrap();
        vault.keys = keys(&[0, 1]);
        vault.epoch = 1;
        vault.fault = Fault {
            at: Some(at),
            crashed: Some((folder, copy.clone())),
        };
        let rotated = vault.rotate(0);
        drop(vault);
        if rotated.is_ok() {
            assert!(at > 3, "there are instants to crash at");
            return;
        }
        let vault = Vault::open(&copy, keys(&[0, 1]), None, Access::Write).unwrap();
        assert_eq!(read(&vault, "a"), b"content");
        assert!(vault.index().files.values().all(|entry| entry.epoch == 1));
    }
    panic!("it never ended");
}
