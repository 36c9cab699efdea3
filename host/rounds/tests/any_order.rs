//! Arbitrary event orders: the aggregator's machine never panics, never folds an update twice, folds in one order.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that panics says where")]

use std::collections::{BTreeMap, BTreeSet};

use cloister_rounds::{Action, Aggregator, Event, Pace, RosterEntry, RoundsConfig, UpdateRefusal};
use cloister_tensor::Digest;
use proptest::prelude::*;

const NODES: [&str; 4] = ["a", "b", "c", "d"];

fn entry(node: &str) -> RosterEntry {
    RosterEntry {
        node: node.to_owned(),
        claims_digest: Digest::of(node.as_bytes()),
        measurement_root: [1; 48],
    }
}

fn config(rounds: u64, needed: usize) -> RoundsConfig {
    RoundsConfig {
        rounds,
        pace: Pace::Together,
        needed,
        workers: NODES.iter().map(|&n| n.to_owned()).collect(),
        aggregator: entry("agg"),
        deadline_ms: 1_000,
        gather_ms: 500,
        update_slots: 2,
        max_strikes: 3,
        max_aggregate_failures: 3,
    }
}

/// What the test's imaginary driver knows, and the checks over every action.
#[derive(Default)]
struct Observer {
    folded: BTreeMap<(u64, u32), Vec<String>>,
    granted: BTreeSet<(u64, u32, String)>,
    held: BTreeSet<String>,
    running: Option<(u64, u32)>,
    done: Vec<u64>,
    finished: usize,
    dropped: Vec<String>,
    /// Who saw a roster since it joined.
    seen_roster: BTreeSet<String>,
}

impl Observer {
    fn see(&mut self, actions: &[Action], needed: usize) {
        for action in actions {
            match action {
                Action::StartRound {
                    round,
                    attempt,
                    participants,
                    ..
                } => {
                    assert!(participants.len() >= needed && participants.is_sorted());
                    assert!(
                        participants.iter().all(|node| self.seen_roster.contains(node)),
                        "no roster for a participant"
                    );
                    assert_eq!(*round, self.done.len() as u64 + 1);
                    self.running = Some((*round, *attempt));
                    self.held.clear();
                }
                Action::Grant { node, round, attempt } => {
                    assert_eq!(self.running, Some((*round, *attempt)));
                    assert!(
                        self.granted.insert((*round, *attempt, node.clone())),
                        "{node} granted twice"
                    );
                    assert!(self.held.insert(node.clone()));
                }
                Action::Fold { node, .. } => {
                    let order = self.folded.entry(self.running.unwrap()).or_default();
                    assert!(
                        order.last().is_none_or(|last| last < node),
                        "{node} folded after {order:?}"
                    );
                    order.push(node.clone());
                }
                Action::RoundDone(summary) => {
                    let folded = &self.folded[&(summary.round, summary.attempt)];
                    assert_eq!(
                        &summary.updates.iter().map(|u| u.node.clone()).collect::<Vec<_>>(),
                        folded
                    );
                    assert!(folded.len() >= needed);
                    self.done.push(summary.round);
                    self.running = None;
                }
                Action::Abort { .. } => self.running = None,
                Action::Relay { members, .. } => self.seen_roster.extend(members.iter().cloned()),
                Action::Drop { node, .. } => {
                    self.dropped.push(node.clone());
                    self.seen_roster.remove(node);
                }
                Action::Finish => self.finished += 1,
                _ => {}
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Event(Event),
    Elapse(u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    let node = || prop::sample::select(NODES.to_vec()).prop_map(str::to_owned);
    let (round, attempt, epoch) = (|| 1u64..4, || 1u32..4, || 1u64..5);
    prop_oneof![
        6 => node().prop_map(|node| Step::Event(Event::Joined { node, nonce: [7; 32] })),
        6 => (node(), epoch()).prop_map(|(node, epoch)| Step::Event(Event::Evidence { entry: entry(&node), node, epoch })),
        4 => (node(), epoch()).prop_map(|(node, epoch)| Step::Event(Event::Accepted { node, epoch, digest: Digest::of(b"?") })),
        6 => (node(), round(), attempt(), 0u64..3).prop_map(|(node, round, attempt, rows)| Step::Event(Event::Ready { node, round, attempt, rows, digest: Digest::of(b"u") })),
        6 => (node(), round(), attempt()).prop_map(|(node, round, attempt)| Step::Event(Event::Received { node, round, attempt })),
        6 => node().prop_map(|node| Step::Event(Event::Folded { node })),
        2 => (node(), round(), attempt()).prop_map(|(node, round, attempt)| Step::Event(Event::ModuleFailed { node, round, attempt, code: "trap".into(), module: None })),
        2 => node().prop_map(|node| Step::Event(Event::Lost { node, cause: "cut".into() })),
        1 => node().prop_map(|node| Step::Event(Event::Refused { refusal: UpdateRefusal::AfterEnd { node: node.clone() }, node })),
        3 => (round(), attempt()).prop_map(|(round, attempt)| Step::Event(Event::Aggregated { round, attempt })),
        1 => (round(), attempt()).prop_map(|(round, attempt)| Step::Event(Event::AggregateFailed { round, attempt, cause: "trap".into() })),
        3 => (0u64..1500).prop_map(Step::Elapse),
    ]
}

proptest! {
    /// Nonsense of every kind: the invariants in `Observer` hold.
    #[test]
    fn nothing_upsets_it(steps in prop::collection::vec(any_step(), 0..200)) {
        let mut machine = Aggregator::new(config(3, 2), 1, 0);
        let (mut seen, mut now) = (Observer::default(), 0);
        for step in steps {
            let actions = match step {
                Step::Event(event) => machine.handle(now, event),
                Step::Elapse(ms) => { now += ms; machine.handle(now, Event::Tick) }
            };
            seen.see(&actions, 2);
        }
        prop_assert!(seen.finished <= 1);
    }

    /// Honest members with arbitrary delays, some of them dying: rounds end, in one fold order, with at most two
    /// updates held at a time.
    #[test]
    fn honest_members_get_through(order in prop::collection::vec(any::<prop::sample::Index>(), 400), deaths in prop::collection::vec((0usize..300, 0usize..4), 0..2)) {
        let mut machine = Aggregator::new(config(3, 2), 1, 0);
        let mut seen = Observer::default();
        // Events that are under way; any of them may come next.
        let mut flying: Vec<Event> = NODES.iter().map(|&n| Event::Joined { node: n.into(), nonce: [7; 32] }).collect();
        let mut dead = BTreeSet::new();
        let (mut now, mut step) = (0, 0);
        // Updates that take up memory: granted, not yet let go.
        let (mut held, mut received) = (BTreeSet::new(), BTreeSet::new());
        while !machine.finished() && step < 2_000 {
            for &(at, node) in &deaths {
                if at == step && dead.insert(NODES[node].to_owned()) {
                    flying.push(Event::Lost { node: NODES[node].into(), cause: "died".into() });
                }
            }
            let event = if flying.is_empty() {
                now = machine.next_deadline_ms().unwrap_or(now);
                Event::Tick
            } else {
                flying.swap_remove(order[step % order.len()].index(flying.len()))
            };
            step += 1;
            match &event {
                Event::Received { node, .. } if held.contains(node) => { received.insert(node.clone()); }
                Event::Folded { node } => { held.remove(node); }
                _ => {}
            }
            let actions = machine.handle(now, event);
            seen.see(&actions, 2);
            for action in actions {
                match action {
                    Action::Challenge { epoch, nonces, .. } => flying.extend(nonces.into_iter().filter(|(n, _)| !dead.contains(n)).map(|(node, _)| Event::Evidence { entry: entry(&node), node, epoch })),
                    Action::Relay { epoch, members, digest } => flying.extend(members.into_iter().filter(|n| !dead.contains(n)).map(|node| Event::Accepted { node, epoch, digest })),
                    Action::StartRound { round, attempt, participants, .. } => {
                        held.clear();
                        received.clear();
                        flying.extend(participants.into_iter().filter(|n| !dead.contains(n)).map(|node| Event::Ready { digest: Digest::of(node.as_bytes()), node, round, attempt, rows: 5 }));
                    }
                    Action::Grant { node, round, attempt } => {
                        held.insert(node.clone());
                        if !dead.contains(&node) { flying.push(Event::Received { node, round, attempt }); }
                    }
                    Action::Fold { node, .. } => flying.push(Event::Folded { node }),
                    Action::Close { round, attempt } => flying.push(Event::Aggregated { round, attempt }),
                    Action::Drop { node, reason } => {
                        if !received.contains(&node) { held.remove(&node); }
                        prop_assert!(dead.contains(&node), "{node} dropped: {reason}");
                    }
                    _ => {}
                }
                prop_assert!(held.len() <= 2);
            }
        }
        prop_assert!(machine.finished(), "stuck after {:?}, waiting {:?}", seen.done, machine.waiting());
        prop_assert_eq!(seen.done, vec![1, 2, 3]);
    }
}

fn fails(machine: &mut Aggregator, node: &str) -> Vec<Action> {
    let joined = Event::Joined {
        node: node.into(),
        nonce: [7; 32],
    };
    let refusal = UpdateRefusal::AfterEnd { node: node.into() };
    let mut actions = machine.handle(0, joined);
    actions.extend(machine.handle(
        0,
        Event::Refused {
            node: node.into(),
            refusal,
        },
    ));
    actions
}

#[test]
fn where_too_few_workers_may_still_join_it_stops_and_names_those_that_may_not() {
    let mut machine = Aggregator::new(config(3, 3), 1, 0);
    for _ in 0..3 {
        fails(&mut machine, "b");
    }
    assert!(!machine.failed(), "three others may still come");
    fails(&mut machine, "d");
    fails(&mut machine, "d");
    assert!(!machine.failed());
    let actions = fails(&mut machine, "d");
    let stop = Action::TooFew {
        round: 1,
        barred: vec!["b".into(), "d".into()],
        strikes: 3,
        needed: 3,
    };
    assert_eq!(
        actions.iter().filter(|action| **action == stop).count(),
        1,
        "{actions:?}"
    );
    assert!(machine.failed() && machine.may_join("a").is_err());
}

#[test]
fn a_policy_with_too_few_workers_waits_as_before() {
    let mut machine = Aggregator::new(config(3, 5), 1, 0);
    fails(&mut machine, "a");
    assert!(
        !machine.failed(),
        "nobody misbehaved too often: the waiting says who is missing"
    );
}
