//! Counters only go up, for one live instance of a node, whatever clocks do.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use cloister_manager::*;
use cloister_policy::Permit;
use cloister_testkit::wards::{NOW, WardsPolicy};
use proptest::prelude::*;
use support::{House, LEASE_S, commit, do_turn};

fn vault(node: &str) -> CounterId {
    CounterId {
        node: node.into(),
        vault: [7; 16],
    }
}

fn step(token: u64, expected: Option<Commit>, next: Commit) -> Step {
    Step {
        counter: vault("hub"),
        token,
        expected,
        next,
    }
}

struct Held {
    house: House,
    manager: Manager,
    hub: Permit,
    token: u64,
}

fn held() -> Held {
    let house = House::new();
    let mut manager = house.manager(&WardsPolicy::default());
    let hub = house.permit("hub", 1);
    let token = do_turn(&mut manager, |turn| turn.lease(&hub, &[1; 16])).unwrap().token;
    Held {
        house,
        manager,
        hub,
        token,
    }
}

#[test]
fn a_counter_steps_from_what_is_expected_and_a_repeated_step_is_answered_again() {
    let Held {
        manager, hub, token, ..
    } = &mut held();
    let (one, two, other) = (commit(1, "one"), commit(2, "two"), commit(2, "other"));
    do_turn(manager, |turn| {
        assert_eq!(turn.commit(hub, &step(*token, None, one)), Ok(one));
        assert_eq!(turn.commit(hub, &step(*token, Some(one), two)), Ok(two));
        // The answer was lost.
        assert_eq!(turn.commit(hub, &step(*token, Some(one), two)), Ok(two));
        let stale = turn.commit(hub, &step(*token, Some(one), other)).unwrap_err();
        let Refused::Stale { held, expected, .. } = stale else {
            panic!("{stale}")
        };
        assert_eq!((held, expected), (Some(one), Some(two)));
        let back = turn
            .commit(hub, &step(*token, Some(two), commit(1, "back")))
            .unwrap_err();
        assert_eq!(back.code(), "not-ahead");
        let same = turn.commit(hub, &step(*token, Some(two), other)).unwrap_err();
        assert_eq!(same.code(), "not-ahead");
        // Versions in between may be left out.
        assert!(turn.commit(hub, &step(*token, Some(two), commit(9, "nine"))).is_ok());
    });
    assert_eq!(manager.counter(&vault("hub")), Some(&commit(9, "nine")));
}

#[test]
fn a_node_proves_that_it_holds_the_newest_or_is_told_what_is_stale() {
    let Held {
        manager, hub, token, ..
    } = &mut held();
    let (one, two) = (commit(1, "one"), commit(2, "two"));
    let mut prove =
        |held| do_turn(manager, |turn| turn.prove_newest(hub, &vault("hub"), held)).map_err(|refused| refused.code());
    assert_eq!(prove(None), Ok(()));
    assert_eq!(prove(Some(one)), Err("unconfirmed"));
    do_turn(manager, |turn| {
        turn.commit(hub, &step(*token, None, one)).unwrap();
        turn.commit(hub, &step(*token, Some(one), two)).unwrap();
    });
    let mut prove =
        |held| do_turn(manager, |turn| turn.prove_newest(hub, &vault("hub"), held)).map_err(|refused| refused.code());
    assert_eq!(prove(Some(two)), Ok(()));
    assert_eq!(prove(Some(one)), Err("stale"));
    assert_eq!(prove(None), Err("stale"));
    assert_eq!(prove(Some(commit(2, "other"))), Err("stale"));
    assert_eq!(prove(Some(commit(3, "three"))), Err("unconfirmed"));
}

#[test]
fn nobody_counts_for_another_node_and_a_node_has_as_many_counters_as_there_may_be_policies() {
    let Held {
        house,
        manager,
        hub,
        token,
    } = &mut held();
    let worker = house.permit("alpha-worker", 2);
    do_turn(manager, |turn| {
        let foreign = turn.commit(&worker, &step(*token, None, commit(1, "x"))).unwrap_err();
        assert_eq!(foreign.code(), "not-your-counter");
        let asked = turn.prove_newest(&worker, &vault("hub"), None).unwrap_err();
        assert_eq!(asked.code(), "not-your-counter");
        for number in 0..=MAX_COUNTERS_OF_NODE {
            let mut vault = [0; 16];
            vault[..8].copy_from_slice(&number.to_be_bytes());
            let counter = CounterId {
                node: "hub".into(),
                vault,
            };
            let taken = turn.commit(
                hub,
                &Step {
                    counter,
                    ..step(*token, None, commit(1, "x"))
                },
            );
            assert_eq!(taken.is_ok(), number < MAX_COUNTERS_OF_NODE);
        }
    });
}

#[test]
fn a_second_live_instance_is_fenced_until_the_first_ones_lease_ends() {
    let Held {
        manager, hub, token, ..
    } = &mut held();
    let second = do_turn(manager, |turn| turn.lease(hub, &[2; 16])).unwrap_err();
    assert_eq!(
        second,
        Refused::LeaseHeld {
            node: "hub".into(),
            until_unix_s: NOW + LEASE_S
        }
    );
    let renewed = manager
        .turn(NOW + 30, |turn| turn.lease(hub, &[1; 16]))
        .unwrap()
        .0
        .unwrap();
    assert_eq!((renewed.token, renewed.expires_unix_s), (*token, NOW + 30 + LEASE_S));
    // It ends; the second one takes over, and the first can count no more.
    let later = NOW + 30 + LEASE_S;
    let taken = manager
        .turn(later, |turn| turn.lease(hub, &[2; 16]))
        .unwrap()
        .0
        .unwrap();
    assert_eq!(taken.token, *token + 1);
    let fenced = manager
        .turn(later, |turn| turn.commit(hub, &step(*token, None, commit(1, "x"))))
        .unwrap()
        .0;
    assert_eq!(
        fenced,
        Err(Refused::Fenced {
            node: "hub".into(),
            seen: *token,
            newest: *token + 1
        })
    );
    let counted = manager
        .turn(later, |turn| turn.commit(hub, &step(taken.token, None, commit(1, "x"))))
        .unwrap()
        .0;
    assert!(counted.is_ok());
}

#[test]
fn a_lease_that_ended_counts_no_more_and_one_given_back_is_free_at_once() {
    let Held {
        manager, hub, token, ..
    } = &mut held();
    let late = manager
        .turn(NOW + LEASE_S, |turn| {
            turn.commit(hub, &step(*token, None, commit(1, "x")))
        })
        .unwrap()
        .0;
    assert_eq!(late.unwrap_err().code(), "fenced");
    let own = manager
        .turn(NOW + LEASE_S, |turn| turn.lease(hub, &[1; 16]))
        .unwrap()
        .0
        .unwrap();
    assert!(own.token > *token);
    let freed = manager.turn(NOW + LEASE_S, |turn| {
        turn.give_back(hub, own.token).unwrap();
        assert_eq!(turn.give_back(hub, own.token).unwrap_err().code(), "fenced");
        turn.lease(hub, &[2; 16])
    });
    assert!(freed.unwrap().0.is_ok());
}

#[test]
fn a_clock_that_is_set_back_a_little_stands_still_and_ends_no_lease() {
    let Held {
        manager, hub, token, ..
    } = &mut held();
    let lease = |manager: &mut Manager, now, instance: u8| {
        let answer = manager.turn(now, |turn| turn.lease(hub, &[instance; 16]));
        answer.unwrap().0
    };
    assert_eq!(lease(manager, NOW + 30, 1).unwrap().expires_unix_s, NOW + 30 + LEASE_S);
    let renewed = lease(manager, NOW, 1).unwrap();
    assert_eq!((renewed.token, renewed.expires_unix_s), (*token, NOW + 30 + LEASE_S));
    assert_eq!(lease(manager, NOW, 2).unwrap_err().code(), "lease-held");
    assert!(lease(manager, NOW + 30 + LEASE_S, 2).is_ok());
}

#[test]
fn a_clock_that_jumps_forwards_and_back_stops_nothing_and_tokens_go_on_also_after_a_restart() {
    const YEAR_S: u64 = 365 * 86_400;
    let Held {
        house,
        mut manager,
        hub,
        token,
    } = held();
    let policy = house.policy.clone();
    let shown = house.wards.evidence(&policy, "hub");
    let lease = |manager: &mut Manager, now, permit: &Permit, instance: u8| {
        let answer = manager.turn(now, |turn| turn.lease(permit, &[instance; 16]));
        answer.unwrap().0.map_err(|refused| refused.code())
    };
    let count = |manager: &mut Manager, now, step: Step| {
        let answer = manager.turn(now, |turn| turn.commit(&hub, &step));
        answer.unwrap().0.map_err(|refused| refused.code())
    };
    assert!(count(&mut manager, NOW, step(token, None, commit(1, "one"))).is_ok());
    // Forwards: permits of before have ended, and leases have; another instance takes over by a permit of the time that is shown.
    let jumped = NOW + YEAR_S;
    assert_eq!(lease(&mut manager, jumped, &hub, 2), Err("permit-ended"));
    let early = NOW + 3_000;
    let second = lease(&mut manager, early, &hub, 2).unwrap();
    assert!(second.token > token);
    let one = Some(commit(1, "one"));
    let late = count(&mut manager, early, step(token, one, commit(2, "first")));
    assert_eq!(late, Err("fenced"));
    // Back: the second one's lease ended with the time that never was, and whoever comes first has the next token.
    let back = lease(&mut manager, NOW + 1, &hub, 1).unwrap();
    assert_eq!((back.token, back.expires_unix_s), (second.token + 1, NOW + 1 + LEASE_S));
    for token in [token, second.token] {
        assert_eq!(
            count(&mut manager, NOW + 1, step(token, one, commit(2, "older"))),
            Err("fenced")
        );
    }
    assert!(count(&mut manager, NOW + 1, step(back.token, one, commit(2, "two"))).is_ok());
    // A state that was left in the future is opened again in the present.
    manager
        .turn(jumped, |turn| turn.note("round", serde_json::json!(1)))
        .unwrap()
        .0
        .unwrap();
    drop(manager);
    let mut manager = house.again();
    let again = lease(&mut manager, NOW + 2, &shown.permit([2; 32], NOW + 2), 1).unwrap();
    assert!(again.token >= back.token);
    let two = Some(commit(2, "two"));
    assert!(count(&mut manager, NOW + 2, step(again.token, two, commit(3, "three"))).is_ok());
    assert!(manager.grants(&hub, NOW + 2).is_ok());
    // What the jumped clock had permitted ends with it.
    let permit = shown.permit([3; 32], NOW + 20_000);
    assert_eq!(lease(&mut manager, NOW + 3, &permit, 1), Err("permit-ended"));
}

#[test]
fn counters_and_names_of_them_survive_their_text() {
    for id in [
        vault("hub"),
        CounterId {
            node: "a-b".into(),
            vault: [0xab; 16],
        },
    ] {
        assert_eq!(id.to_string().parse::<CounterId>().unwrap(), id);
    }
    for no in [
        "hub",
        "hub/",
        "hub/vault",
        "hub/vault/zz",
        "Hub/node",
        "hub/node",
        "/vault/00000000000000000000000000000000",
    ] {
        assert!(no.parse::<CounterId>().is_err(), "{no}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Any steps by two instances, at any times, with restarts: a counter never goes down, never takes two contents for one
    /// version, and only the holder of the newest token moves it.
    #[test]
    fn no_order_of_steps_leases_and_clocks_moves_a_counter_back(
        moves in prop::collection::vec((0_u8..8, 0_u64..200, 0_u64..6, 0_u8..2), 1..40),
    ) {
        let Held { house, mut manager, hub, .. } = held();
        let mut newest: Option<Commit> = None;
        let mut tokens = [0_u64; 2];
        let mut highest = 0;
        for (kind, time, version, instance) in moves {
            let now = NOW + time;
            let who = usize::from(instance);
            match kind {
                0..=1 => {
                    if let Ok(lease) = manager.turn(now, |turn| turn.lease(&hub, &[instance + 1; 16])).unwrap().0 {
                        prop_assert!(lease.token >= highest);
                        (tokens[who], highest) = (lease.token, lease.token);
                    }
                }
                2 => {
                    drop(manager);
                    manager = house.again();
                }
                _ => {
                    let next = commit(version, &format!("{version} by {instance}"));
                    let expected = if kind == 3 { None } else { newest };
                    let taken = manager.turn(now, |turn| turn.commit(&hub, &step(tokens[who], expected, next))).unwrap().0;
                    if taken.is_ok() {
                        prop_assert_eq!(tokens[who], highest);
                        prop_assert!(newest == Some(next) || newest.is_none_or(|newest| newest.version < version));
                        newest = Some(next);
                    }
                }
            }
            prop_assert_eq!(manager.counter(&vault("hub")).copied(), newest);
        }
    }
}
