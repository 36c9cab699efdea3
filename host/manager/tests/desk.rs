//! Group commit: whatever many threads hand in is answered once, in order, and only when it is on the disk.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use std::sync::mpsc::channel;

use cloister_manager::*;
use cloister_testkit::wards::{NOW, WardsPolicy};
use support::{House, commit, do_turn};

fn vault(index: u8) -> CounterId {
    CounterId {
        node: "hub".into(),
        vault: [index; 16],
    }
}

#[test]
fn what_many_threads_hand_in_is_committed_together_and_answered_after_the_commit() {
    let house = House::new();
    let mut manager = house.manager(&WardsPolicy::default());
    let hub = house.permit("hub", 1);
    let token = do_turn(&mut manager, |turn| turn.lease(&hub, &[1; 16])).unwrap().token;
    let before = manager.mark().version;
    let (desk, thread) = Desk::open(manager, || NOW).unwrap();
    let (answered, answers) = channel();
    const STEPS: u64 = 60;
    std::thread::scope(|scope| {
        for index in 0..8 {
            let (desk, answered, hub) = (desk.clone(), answered.clone(), hub.clone());
            scope.spawn(move || {
                for version in 1..=STEPS {
                    let of = |version: u64| (version > 0).then(|| commit(version, &version.to_string()));
                    let (counter, expected, next) = (vault(index), of(version - 1), of(version).unwrap());
                    let step = Step {
                        counter,
                        token,
                        expected,
                        next,
                    };
                    let (hub, answered) = (hub.clone(), answered.clone());
                    let done = move |committed: Result<(Result<Commit, Refused>, Mark), StoreError>| {
                        let (taken, mark) = committed.unwrap();
                        answered.send((index, taken.unwrap().version, mark.version)).unwrap();
                    };
                    desk.submit(move |turn| turn.commit(&hub, &step), done).unwrap();
                }
            });
        }
    });
    drop((desk, answered));
    let manager = thread.join().unwrap();
    let answers: Vec<_> = answers.into_iter().collect();
    for index in 0..8 {
        let own = answers.iter().filter(|answer| answer.0 == index);
        assert!(
            own.map(|answer| answer.1).eq(1..=STEPS),
            "in the order in which they were handed in"
        );
    }
    let commits = manager.mark().version - before;
    assert!(commits < 8 * STEPS, "{commits} commits for {} steps", 8 * STEPS);
    drop(manager);
    let manager = house.again();
    assert!((0..8).all(|index| manager.counter(&vault(index)).unwrap().version == STEPS));
}

#[test]
fn work_between_turns_sees_what_was_handed_in_before_it() {
    let house = House::new();
    let (desk, thread) = Desk::open(house.manager(&WardsPolicy::default()), || NOW).unwrap();
    let (answered, answers) = channel();
    for round in 0..3 {
        let what = serde_json::json!(round);
        desk.submit(move |turn| turn.note("round", what).unwrap(), |_| ())
            .unwrap();
        let answered = answered.clone();
        let look = move |manager: &mut Manager| answered.send(manager.lines(0, 4096).unwrap().pop().unwrap()).unwrap();
        desk.between(look).unwrap();
    }
    for round in 0..3 {
        let line: serde_json::Value = serde_json::from_str(&answers.recv().unwrap()).unwrap();
        assert_eq!(line["what"], round);
    }
    drop(desk);
    thread.join().unwrap();
}

#[test]
fn more_than_may_wait_is_turned_away_and_an_ended_desk_says_so() {
    let house = House::new();
    let (desk, thread) = Desk::open(house.manager(&WardsPolicy::default()), || NOW).unwrap();
    let (open, gate) = channel::<()>();
    let (entered, inside) = channel();
    desk.between(move |_| {
        entered.send(()).unwrap();
        let _ = gate.recv();
    })
    .unwrap();
    inside.recv().unwrap();
    let note = || desk.submit(|turn| turn.note("round", serde_json::json!(1)).unwrap(), |_| ());
    let taken = (0..MAX_WAITING + 1).take_while(|_| note().is_ok()).count();
    assert_eq!((taken, note()), (MAX_WAITING, Err(Busy::Full)));
    open.send(()).unwrap();
    // Work that panics ends the desk: nobody can know what it was amid.
    while let Err(Busy::Full) = desk.submit(|_| panic!("on purpose"), |_: Result<((), Mark), _>| ()) {
        std::thread::yield_now();
    }
    assert!(thread.join().is_err());
    assert_eq!(note(), Err(Busy::Ended));
}

#[test]
fn after_a_turn_that_came_to_no_end_nothing_more_is_written() {
    let house = House::new();
    let mut manager = house.manager(&WardsPolicy::default());
    let mark = manager.mark();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = manager.turn(NOW, |turn| {
            turn.note("round", serde_json::json!(1)).unwrap();
            panic!("on purpose")
        });
    }));
    assert!(panicked.is_err());
    assert_eq!(manager.turn(NOW, |_| ()).unwrap_err(), StoreError::Failed);
    assert!(manager.split_anew(&house.plan(2), NOW).is_err());
    drop(manager);
    assert_eq!(house.loaded(&Remembered::default()).mark(), mark);
}
