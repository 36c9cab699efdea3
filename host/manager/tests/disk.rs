//! Whoever has the manager's disk reads nothing, changes nothing unseen, and crashes nothing.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use std::path::Path;
use std::sync::LazyLock;

use cloister_manager::*;
use cloister_testkit::wards::WardsPolicy;
use proptest::prelude::*;
use redb::{ReadableDatabase as _, ReadableTable as _};
use support::{House, commit, do_turn, value};

fn edit(path: &Path, change: impl FnOnce(&redb::WriteTransaction)) {
    let database = redb::Database::open(path).unwrap();
    let write = database.begin_write().unwrap();
    change(&write);
    write.commit().unwrap();
}

const RECORDS: redb::TableDefinition<'static, &[u8], &[u8]> = redb::TableDefinition::new("records");
const LINES: redb::TableDefinition<'static, u64, &[u8]> = redb::TableDefinition::new("lines");
const TOP: redb::TableDefinition<'static, &str, &[u8]> = redb::TableDefinition::new("top");

/// All records of a store as they lie on the disk.
fn records(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let database = redb::Database::open(path).unwrap();
    let read = database.begin_read().unwrap();
    let table = read.open_table(RECORDS).unwrap();
    let all = table.iter().unwrap().map(|entry| {
        let (key, value) = entry.unwrap();
        (key.value().to_vec(), value.value().to_vec())
    });
    all.collect()
}

fn open_error(house: &House) -> StoreError {
    let locked = Locked::open(&house.path).unwrap();
    let shares = ["alpha", "beta"].map(|name| house.share(&locked, name, &Remembered::default()));
    match locked.recover(&shares, house.settings(), house.key.clone()) {
        Err(OpenError::Store(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn whoever_changes_removes_adds_or_mixes_what_lies_on_the_disk_is_found_out() {
    let stocked = || {
        let house = House::new();
        let mut manager = house.manager(&WardsPolicy::default());
        let hub = house.permit("hub", 1);
        let count = |manager: &mut Manager, expected, next| {
            let token = do_turn(manager, |turn| turn.lease(&hub, &[1; 16])).unwrap().token;
            let counter = CounterId {
                node: "hub".into(),
                vault: [1; 16],
            };
            do_turn(manager, |turn| {
                turn.commit(
                    &hub,
                    &Step {
                        counter,
                        token,
                        expected,
                        next,
                    },
                )
            })
            .unwrap();
        };
        count(&mut manager, None, commit(1, "one"));
        drop(manager);
        let before = records(&house.path);
        let mut manager = house.again();
        count(&mut manager, Some(commit(1, "one")), commit(2, "two"));
        drop(manager);
        (house, before)
    };
    let (house, before) = stocked();
    // One record of an earlier commit put back: it opens, but does not belong to the others.
    let after = records(&house.path);
    let (place, old) = before.iter().find(|record| !after.contains(record)).unwrap().clone();
    edit(&house.path, |write| {
        write.open_table(RECORDS).unwrap().insert(&place[..], &old[..]).unwrap();
    });
    assert_eq!(open_error(&house), StoreError::Mixed);

    let (house, _) = stocked();
    let (place, mut sealed) = records(&house.path).remove(0);
    edit(&house.path, |write| {
        write.open_table(RECORDS).unwrap().remove(&place[..]).unwrap();
    });
    assert_eq!(open_error(&house), StoreError::Mixed);
    *sealed.last_mut().unwrap() ^= 1;
    edit(&house.path, |write| {
        write
            .open_table(RECORDS)
            .unwrap()
            .insert(&place[..], &sealed[..])
            .unwrap();
    });
    assert!(matches!(open_error(&house), StoreError::Tampered { .. }));

    // The end of the audit log cut off; a line moved; rubbish in place of a head.
    let (house, _) = stocked();
    edit(&house.path, |write| {
        write.open_table(LINES).unwrap().pop_last().unwrap();
    });
    assert!(
        open_error(&house).to_string().contains("lines"),
        "{}",
        open_error(&house)
    );
    let (house, _) = stocked();
    edit(&house.path, |write| {
        let mut lines = write.open_table(LINES).unwrap();
        let first = lines.get(0).unwrap().unwrap().value().to_vec();
        lines.insert(1, &first[..]).unwrap();
    });
    assert!(open_error(&house).to_string().contains("line 2"));
    let (house, _) = stocked();
    edit(&house.path, |write| {
        write.open_table(TOP).unwrap().insert("head", &[0_u8; 200][..]).unwrap();
    });
    assert!(open_error(&house).to_string().contains("head"));
}

#[test]
fn files_that_are_no_store_are_told_as_such() {
    let house = House::new();
    assert!(matches!(Locked::open(&house.path), Err(OpenError::Missing)));
    std::fs::write(&house.path, b"rubbish").unwrap();
    assert!(matches!(Locked::open(&house.path), Err(OpenError::Store(_))));
    std::fs::remove_file(&house.path).unwrap();
    drop(redb::Database::create(&house.path).unwrap());
    assert!(matches!(Locked::open(&house.path), Err(OpenError::Store(_))));
}

#[test]
fn nothing_of_a_secret_or_of_its_name_lies_on_the_disk_in_the_clear() {
    let house = House::new();
    let mut manager = house.manager(&WardsPolicy::default());
    let alpha = house.visit("alpha");
    let secret = NewSecret {
        name: "a-telling-name".into(),
        kind: SecretKind::Value,
        value: value("a value that nobody may see"),
        ciphertext: None,
        plaintext: None,
    };
    do_turn(&mut manager, |turn| turn.put(&alpha, secret)).unwrap();
    drop(manager);
    let bytes = std::fs::read(&house.path).unwrap();
    let holds = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
    for text in [
        "a-telling-name",
        "a value that nobody",
        "YSB2YWx1ZSB0aGF0IG5vYm9keSBtYXkgc2Vl",
    ] {
        assert!(!holds(text.as_bytes()), "{text}");
    }
    assert!(holds(b"wards"), "what is in the clear can be found so");
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(&house.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Whatever stands on the disk, opening ends in the very state or an error.
    #[test]
    fn any_changed_bytes_of_the_file_end_in_the_same_state_or_an_error(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        static HOUSE: LazyLock<(House, Mark, Vec<u8>)> = LazyLock::new(|| {
            let house = House::new();
            let mark = house.manager(&WardsPolicy::default()).mark();
            let whole = std::fs::read(&house.path).unwrap();
            (house, mark, whole)
        });
        let (house, mark, whole) = &*HOUSE;
        let used = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        let mut bytes = whole.clone();
        for (at, byte) in changes {
            bytes[at.index(used)] = byte;
        }
        std::fs::write(&house.path, &bytes).unwrap();
        if let Ok(locked) = Locked::open(&house.path)
            && locked.shares().len() == 3
        {
            let sealed = |name: &str| locked.shares().iter().find(|share| share.participant == name).cloned();
            let open = |name: &str| {
                let key = SealingKey::of(house.wards.key(name)).unwrap();
                RecoveryShare::open("wards", &sealed(name)?, &key).ok()
            };
            if let (Some(alpha), Some(beta)) = (open("alpha"), open("beta"))
                && let Ok(loaded) = locked.recover(&[alpha, beta], house.settings(), house.key.clone())
            {
                prop_assert_eq!(loaded.mark(), *mark);
            }
        }
    }
}
