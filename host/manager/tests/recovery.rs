//! A store opens with enough of the right shares, and starts only where others confirm that it is the newest.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use std::path::Path;

use cloister_manager::*;
use cloister_testkit::wards::{HOSPITALS, NOW, WardsPolicy};
use redb::{ReadableDatabase as _, ReadableTable as _};
use support::{House, commit, do_turn, module_key, value};

fn recovery(error: OpenError) -> RecoveryError {
    match error {
        OpenError::Recovery(error) => error,
        other => panic!("{other}"),
    }
}

fn nothing() -> Remembered {
    Remembered::default()
}

#[test]
fn enough_shares_of_the_holders_open_the_store_and_it_goes_on_where_it_was() {
    let house = House::new();
    let mut manager = house.manager(&WardsPolicy::default());
    let alpha = house.visit("alpha");
    do_turn(&mut manager, |turn| turn.put(&alpha, module_key("key", "file"))).unwrap();
    let (mark, secrets) = (manager.mark(), manager.secrets(&alpha).unwrap());
    assert!(matches!(Locked::open(&house.path), Err(OpenError::InUse)));
    drop(manager);
    for names in [["alpha", "beta"], ["gamma", "alpha"]] {
        let locked = Locked::open(&house.path).unwrap();
        assert_eq!(
            (locked.federation(), locked.threshold(), locked.shares().len()),
            ("wards", 2, 3)
        );
        let shares = names.map(|name| house.share(&locked, name, &nothing()));
        locked.check(&shares).unwrap();
        let loaded = locked.recover(&shares, house.settings(), house.key.clone()).unwrap();
        assert_eq!(loaded.mark(), mark);
    }
    let manager = house.again();
    assert_eq!(manager.secrets(&alpha).unwrap(), secrets);
}

#[test]
fn too_few_twice_the_same_wrong_and_foreign_shares_are_told_apart() {
    let house = House::new();
    drop(house.made());
    let locked = Locked::open(&house.path).unwrap();
    let share = |name: &str| house.share(&locked, name, &nothing());
    let fails = |shares: &[RecoveryShare]| recovery(locked.check(shares).unwrap_err());
    assert_eq!(fails(&[]), RecoveryError::TooFew { have: 0, wanted: 2 });
    assert_eq!(fails(&[share("beta")]), RecoveryError::TooFew { have: 1, wanted: 2 });
    assert_eq!(
        fails(&[share("beta"), share("beta")]),
        RecoveryError::Twice {
            participant: "beta".into()
        }
    );
    // A share under another's name: what its holder was given is another one.
    let key = SealingKey::of(house.wards.key("alpha")).unwrap();
    let mut stolen = locked.shares()[0].clone();
    assert_eq!(stolen.participant, "alpha");
    stolen.participant = "beta".into();
    assert!(matches!(
        RecoveryShare::open("wards", &stolen, &key),
        Err(RecoveryError::Sealing(_))
    ));
    let other = House::new();
    drop(other.made());
    let elsewhere = Locked::open(&other.path).unwrap();
    let foreign = other.share(&elsewhere, "alpha", &nothing());
    assert_eq!(
        fails(&[share("beta"), foreign]),
        RecoveryError::OtherStore {
            participant: "alpha".into()
        }
    );
}

#[test]
fn a_share_that_was_changed_on_its_way_is_named() {
    let house = House::new();
    drop(house.made());
    let locked = Locked::open(&house.path).unwrap();
    // What its holder seals to the manager is whatever it likes: here another 33 bytes.
    let td = SealingKey::generate().unwrap();
    let mut plain = locked.store().as_bytes().to_vec();
    plain.extend(1_u32.to_be_bytes());
    plain.extend([9; 33]);
    plain.extend(5_u32.to_be_bytes());
    plain.extend(b"alpha");
    plain.extend(br#"{"newest":null,"without_nodes":false}"#);
    let sealed = td.public().seal(Purpose::Recovery, b"wards", &plain).unwrap();
    let forged = RecoveryShare::receive("wards", &sealed, &td).unwrap();
    let wrong = locked
        .check(&[house.share(&locked, "beta", &nothing()), forged])
        .unwrap_err();
    assert_eq!(
        recovery(wrong),
        RecoveryError::Wrong {
            participant: "alpha".into()
        }
    );
    for cut in 0..plain.len() {
        let sealed = td.public().seal(Purpose::Recovery, b"wards", &plain[..cut]).unwrap();
        assert!(RecoveryShare::receive("wards", &sealed, &td).is_err(), "{cut} bytes");
    }
}

#[test]
fn shares_of_before_a_new_splitting_are_stale_and_an_older_store_shows_by_newer_shares() {
    let house = House::new();
    let mut manager = house.manager(&WardsPolicy::default());
    let old_copy = house.wards.folder.path().join("old.redb");
    manager.backup(&old_copy, NOW).unwrap();
    let old: Vec<_> = manager
        .shares()
        .iter()
        .map(|sealed| house.pass_on(sealed, &nothing()))
        .collect();
    let new = manager.split_anew(&house.plan(3), NOW).unwrap();
    let new: Vec<_> = new.iter().map(|sealed| house.pass_on(sealed, &nothing())).collect();
    drop(manager);
    let locked = Locked::open(&house.path).unwrap();
    let stale = RecoveryError::Stale {
        participant: "alpha".into(),
        epoch: 1,
        current: 2,
    };
    assert_eq!(recovery(locked.check(&old).unwrap_err()), stale);
    assert_eq!(
        recovery(locked.check(&new[..2]).unwrap_err()),
        RecoveryError::TooFew { have: 2, wanted: 3 }
    );
    locked.check(&new).unwrap();
    let locked = Locked::open(&old_copy).unwrap();
    let older = RecoveryError::OlderStore {
        participant: "alpha".into(),
        epoch: 2,
        current: 1,
    };
    assert_eq!(recovery(locked.check(&new).unwrap_err()), older);
}

#[test]
fn plans_that_protect_nothing_or_name_others_are_refused() {
    let house = House::new();
    let plan = |threshold, names: &[&str]| RecoveryPlan {
        threshold,
        holders: names.iter().map(|name| house.recipient(name)).collect(),
    };
    for bad in [
        plan(1, &HOSPITALS),
        plan(4, &HOSPITALS),
        plan(2, &["alpha", "alpha"]),
        plan(2, &["alpha"]),
    ] {
        let made = Manager::create(&house.path, house.settings(), house.key.clone(), &bad, NOW);
        assert!(
            matches!(made, Err(OpenError::Recovery(RecoveryError::Plan(_)))),
            "{bad:?}"
        );
        assert!(!house.path.exists());
    }
    let mut manager = house.manager(&WardsPolicy::default());
    let mut forged = plan(2, &HOSPITALS);
    forged.holders[0].key = SealingKey::generate().unwrap().public();
    assert!(matches!(
        manager.split_anew(&forged, NOW),
        Err(OpenError::Recovery(RecoveryError::Plan(_)))
    ));
    let again = Manager::create(&house.path, house.settings(), house.key.clone(), &house.plan(2), NOW);
    assert!(matches!(again, Err(OpenError::Exists)));
}

fn statements(house: &House, nodes: &[&str], newest: Option<Mark>) -> Vec<Statement> {
    let nodes = nodes.iter().map(|node| Statement {
        permit: house.permit(node, 1),
        newest,
    });
    nodes.collect()
}

const WORKERS: [&str; 3] = ["alpha-worker", "beta-worker", "gamma-worker"];

#[test]
fn a_quorum_of_nodes_confirms_and_fewer_strangers_and_forgetful_ones_do_not() {
    let house = House::new();
    let manager = house.manager(&WardsPolicy::default());
    let mark = manager.mark();
    drop(manager);
    let loaded = house.loaded(&nothing());
    let quorum = loaded.quorum().unwrap();
    assert_eq!((quorum.nodes().len(), quorum.wanted()), (4, 3));
    let says = |nodes: &[&str], newest| statements(&house, nodes, newest);
    let refused = |loaded: Loaded, said: &[Statement], now| {
        let (loaded, refused) = loaded.confirm(said, now).unwrap_err();
        (*loaded, refused)
    };
    let (loaded, few) = refused(loaded, &says(&WORKERS[..2], Some(mark)), NOW);
    assert_eq!(
        few,
        Refused::NoQuorum {
            confirmed: 2,
            wanted: 3,
            silent: vec!["hub".into(), "gamma-worker".into()]
        }
    );
    let (loaded, twice) = refused(loaded, &says(&["hub", "hub", "hub"], Some(mark)), NOW);
    assert!(matches!(twice, Refused::NoQuorum { confirmed: 1, .. }));
    let (loaded, managers) = refused(loaded, &says(&["safe", "hub", "alpha-worker"], Some(mark)), NOW);
    assert!(matches!(managers, Refused::NoQuorum { confirmed: 2, .. }));
    let (loaded, forgetful) = refused(loaded, &says(&WORKERS, None), NOW);
    assert!(matches!(forgetful, Refused::NoQuorum { confirmed: 0, .. }));
    let (loaded, ended) = refused(loaded, &says(&WORKERS, Some(mark)), NOW + 3_601);
    assert!(matches!(ended, Refused::NoQuorum { confirmed: 0, .. }));
    let manager = loaded.confirm(&says(&WORKERS, Some(mark)), NOW).unwrap();
    assert!(manager.mark().version > mark.version);
}

/// Two states of one manager: `old` is a copy from before the last change.
fn put_back(house: &House) -> (Mark, Mark) {
    let mut manager = house.manager(&WardsPolicy::default());
    let copy = house.wards.folder.path().join("copy.redb");
    let old = manager.backup(&copy, NOW).unwrap();
    do_turn(&mut manager, |turn| turn.note("round", serde_json::json!(1))).unwrap();
    let new = manager.mark();
    drop(manager);
    std::fs::rename(&copy, &house.path).unwrap();
    (old, new)
}

#[test]
fn an_older_store_or_backup_put_back_is_refused_by_one_node_that_has_seen_newer() {
    let house = House::new();
    let (old, new) = put_back(&house);
    let mut said = statements(&house, &WORKERS[..2], Some(old));
    said.extend(statements(&house, &WORKERS[2..], Some(new)));
    let (_, refused) = house.loaded(&nothing()).confirm(&said, NOW).unwrap_err();
    assert_eq!(
        refused,
        Refused::ManagerOlder {
            witness: "gamma-worker".into(),
            saw: new.version,
            shown: old.version
        }
    );
    // Where nobody has seen newer, it is the newest that anybody can know of.
    let said = statements(&house, &WORKERS, Some(old));
    assert!(house.loaded(&nothing()).confirm(&said, NOW).is_ok());
}

#[test]
fn a_store_put_back_and_written_on_is_a_fork_whatever_its_version() {
    let house = House::new();
    let (old, new) = put_back(&house);
    let said = statements(&house, &WORKERS, Some(old));
    let mut manager = house.loaded(&nothing()).confirm(&said, NOW).unwrap();
    for round in 0..5 {
        do_turn(&mut manager, |turn| turn.note("round", serde_json::json!(round))).unwrap();
    }
    assert!(manager.mark().version > new.version);
    drop(manager);
    let said = statements(&house, &WORKERS, Some(new));
    let (_, refused) = house.loaded(&nothing()).confirm(&said, NOW).unwrap_err();
    assert_eq!(
        refused,
        Refused::ManagerForked {
            witness: "alpha-worker".into(),
            version: new.version
        }
    );
}

#[test]
fn a_holder_of_a_share_who_has_seen_newer_stops_the_start_too() {
    let house = House::new();
    let (old, new) = put_back(&house);
    let said = statements(&house, &WORKERS, Some(old));
    let saw = Remembered {
        newest: Some(new),
        without_nodes: true,
    };
    let (loaded, refused) = house.loaded(&saw).confirm(&said, NOW).unwrap_err();
    assert_eq!(refused.code(), "manager-older");
    let (_, refused) = loaded.confirm_without_nodes(NOW).unwrap_err();
    assert_eq!(refused.code(), "manager-older");
}

#[test]
fn without_nodes_as_many_holders_as_it_takes_have_to_agree_and_remember() {
    let house = House::new();
    let manager = house.manager(&WardsPolicy::default());
    let mark = manager.mark();
    let newest = Some(mark);
    drop(manager);
    for (remembered, starts) in [
        (
            Remembered {
                newest,
                without_nodes: false,
            },
            false,
        ),
        (
            Remembered {
                newest: None,
                without_nodes: true,
            },
            false,
        ),
        (
            Remembered {
                newest,
                without_nodes: true,
            },
            true,
        ),
    ] {
        let started = house.loaded(&remembered).confirm_without_nodes(NOW);
        assert_eq!(started.is_ok(), starts, "{remembered:?}");
        if let Ok(manager) = started {
            let events = House::events(&manager, mark.lines);
            assert_eq!(
                (events[0].0.as_str(), events[0].1["confirmed_by"].as_str()),
                ("manager-started", Some("participants"))
            );
        }
    }
}

#[test]
fn another_federation_node_anchor_or_key_does_not_open_the_store() {
    let house = House::new();
    drop(house.manager(&WardsPolicy::default()));
    let open = |change: &dyn Fn(&mut Settings), key: &std::sync::Arc<cloister_attestation::identity::SigningKey>| {
        let mut settings = house.settings();
        change(&mut settings);
        let locked = Locked::open(&house.path).unwrap();
        let shares = ["alpha", "beta"].map(|name| house.share(&locked, name, &nothing()));
        locked.recover(&shares, settings, key.clone()).map(|_| ()).unwrap_err()
    };
    let changes: [&dyn Fn(&mut Settings); 2] = [&|s| s.federation = "other".into(), &|s| {
        s.anchor = support::digest("other founders")
    }];
    for change in changes {
        assert!(matches!(open(change, &house.key), OpenError::Other { .. }));
    }
    // The audit log names the node, and is signed by its key.
    assert!(matches!(
        open(&|s| s.node = "other".into(), &house.key),
        OpenError::Store(_)
    ));
    let other = std::sync::Arc::new(cloister_attestation::identity::SigningKey::generate().unwrap());
    assert!(matches!(open(&|_| (), &other), OpenError::Store(_)));
}

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
    let shares = ["alpha", "beta"].map(|name| house.share(&locked, name, &nothing()));
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
                subject: CounterSubject::Node,
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
