//! A manager starts only where others confirm that its state is the newest.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use cloister_manager::*;
use cloister_testkit::wards::{NOW, WardsPolicy};
use support::{House, do_turn};

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
    let loaded = house.loaded(&Remembered::default());
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
    let copy = house.wards.folder().join("copy.redb");
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
    let (_, refused) = house.loaded(&Remembered::default()).confirm(&said, NOW).unwrap_err();
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
    assert!(house.loaded(&Remembered::default()).confirm(&said, NOW).is_ok());
}

#[test]
fn a_store_put_back_and_written_on_is_a_fork_whatever_its_version() {
    let house = House::new();
    let (old, new) = put_back(&house);
    let said = statements(&house, &WORKERS, Some(old));
    let mut manager = house.loaded(&Remembered::default()).confirm(&said, NOW).unwrap();
    for round in 0..5 {
        do_turn(&mut manager, |turn| turn.note("round", serde_json::json!(round))).unwrap();
    }
    assert!(manager.mark().version > new.version);
    drop(manager);
    let said = statements(&house, &WORKERS, Some(new));
    let (_, refused) = house.loaded(&Remembered::default()).confirm(&said, NOW).unwrap_err();
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
