//! A store opens with enough of the right shares, for its own federation, node and founders.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use cloister_manager::*;
use cloister_testkit::wards::{HOSPITALS, NOW, WardsPolicy};
use support::{House, do_turn, module_key};

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
    let old_copy = house.wards.folder().join("old.redb");
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
