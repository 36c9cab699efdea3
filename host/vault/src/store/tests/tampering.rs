//! A disk that changes, cuts, mixes or puts back what was written.

use super::*;

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
    let reader = SealedReader::open(&dir.path().join("x"), &key().into(), &wanted, Cipher::Bulk).unwrap();
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
fn an_index_that_is_swapped_between_two_looks_at_it_does_not_pass_for_the_one_on_record() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("v");
    let mut vault = Vault::create(&folder, key(), None).unwrap();
    vault.put(&name("a"), &mut &b"1"[..]).unwrap();
    let (seen, _, digest) = read_index(&folder.join("index"), &key().into()).unwrap();
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
