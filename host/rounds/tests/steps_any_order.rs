//! Updates applied alone, in arbitrary orders of events: one at a time, each at most once, none too stale, and it comes to its end
//! whoever dies, is late or comes back.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that panics says where")]

use std::collections::{BTreeMap, BTreeSet};

use cloister_rounds::{Action, Aggregator, DropReason, Event, Pace, RosterEntry, RoundsConfig};
use cloister_tensor::Digest;
use proptest::prelude::*;

const NODES: [&str; 4] = ["a", "b", "c", "d"];
const MOST: u64 = 3;
const COUNT: u64 = 25;
const SLOTS: usize = 2;

fn entry(node: &str) -> RosterEntry {
    RosterEntry {
        node: node.to_owned(),
        claims_digest: Digest::of(node.as_bytes()),
        measurement_root: [1; 48],
    }
}

fn machine(needed: usize, first: u64) -> Aggregator {
    let config = RoundsConfig {
        rounds: COUNT,
        pace: Pace::Alone { max_staleness: MOST },
        needed,
        workers: NODES.iter().map(|&node| node.to_owned()).collect(),
        aggregator: entry("agg"),
        deadline_ms: 1_000,
        gather_ms: 500,
        update_slots: SLOTS,
        max_strikes: 3,
        max_aggregate_failures: 3,
    };
    Aggregator::new(config, first, 0)
}

/// The digest of the update for a task of one session of a node.
fn update(node: &str, session: u32, task: (u64, u32)) -> Digest {
    Digest::of(format!("{node} {session} {task:?}").as_bytes())
}

/// Members, network and aggregation of the test, and the checks over every action.
struct Driver {
    machine: Aggregator,
    now_ms: u64,
    /// What is under way; any of it may come next.
    flying: Vec<Event>,
    sessions: BTreeMap<String, u32>,
    /// The task of each member that is here.
    tasks: BTreeMap<String, (u64, u32)>,
    applying: Option<(u64, u32)>,
    /// Whose updates take up slots, and which of these are here whole.
    held: BTreeSet<String>,
    whole: BTreeSet<String>,
    applied: BTreeSet<Digest>,
    done: u64,
    stale: usize,
    /// Members that answer nothing any more.
    silent: BTreeSet<String>,
    failures_left: u32,
}

impl Driver {
    fn new(needed: usize) -> Self {
        let mut driver = Self {
            machine: machine(needed, 1),
            now_ms: 0,
            flying: Vec::new(),
            sessions: BTreeMap::new(),
            tasks: BTreeMap::new(),
            applying: None,
            held: BTreeSet::new(),
            whole: BTreeSet::new(),
            applied: BTreeSet::new(),
            done: 0,
            stale: 0,
            silent: BTreeSet::new(),
            failures_left: 4,
        };
        NODES.iter().for_each(|node| driver.join(node));
        driver
    }

    fn join(&mut self, node: &str) {
        *self.sessions.entry(node.to_owned()).or_default() += 1;
        self.silent.remove(node);
        self.flying.push(Event::Joined {
            node: node.to_owned(),
            nonce: [7; 32],
        });
    }

    /// A member's session ends: what it sent and is still on its way is lost.
    fn lose(&mut self, node: &str) {
        self.flying.retain(|event| match event {
            Event::Joined { node: of, .. }
            | Event::Evidence { node: of, .. }
            | Event::Accepted { node: of, .. }
            | Event::Ready { node: of, .. }
            | Event::Received { node: of, .. } => of != node,
            _ => true,
        });
        self.handle(Event::Lost {
            node: node.to_owned(),
            cause: "cut".to_owned(),
        });
    }

    fn handle(&mut self, event: Event) {
        if let Event::Received { node, .. } = &event {
            self.whole.insert(node.clone());
        }
        for action in self.machine.handle(self.now_ms, event) {
            self.act(action);
        }
        assert!(self.held.len() <= SLOTS, "{:?} hold slots", self.held);
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Challenge { epoch, nonces, .. } => {
                assert!(self.tasks.is_empty() && self.applying.is_none(), "a roster amid tasks");
                for (node, _) in nodes_that_answer(&self.silent, nonces) {
                    self.flying.push(Event::Evidence {
                        entry: entry(&node),
                        node,
                        epoch,
                    });
                }
            }
            Action::Relay { epoch, members, digest } => {
                let members = members.into_iter().map(|node| (node, ()));
                for (node, ()) in nodes_that_answer(&self.silent, members.collect()) {
                    self.flying.push(Event::Accepted { node, epoch, digest });
                }
            }
            Action::StartTask {
                node, round, attempt, ..
            } => {
                assert_eq!(round, self.done + 1, "a task on a model that is not the newest");
                assert!(
                    self.tasks.insert(node.clone(), (round, attempt)).is_none(),
                    "{node} has two tasks"
                );
                if !self.silent.contains(&node) {
                    let digest = update(&node, self.sessions[&node], (round, attempt));
                    self.flying.push(Event::Ready {
                        node,
                        round,
                        attempt,
                        rows: 5,
                        digest,
                    });
                }
            }
            Action::Grant { node, round, attempt } => {
                assert_eq!(self.tasks.get(&node), Some(&(round, attempt)));
                assert!(self.held.insert(node.clone()));
                if !self.silent.contains(&node) {
                    self.flying.push(Event::Received { node, round, attempt });
                }
            }
            Action::Apply {
                node, round, attempt, ..
            } => {
                assert!(self.held.contains(&node));
                assert_eq!(round, self.done + 1);
                assert!(
                    self.applying.replace((round, attempt)).is_none(),
                    "two updates at a time"
                );
                let event = if self.failures_left > 0 && round % 7 == 0 && attempt == 1 {
                    self.failures_left -= 1;
                    let cause = "trap".to_owned();
                    Event::AggregateFailed { round, attempt, cause }
                } else {
                    Event::Aggregated { round, attempt }
                };
                self.flying.push(event);
            }
            Action::LeaveOut {
                node,
                round,
                attempt,
                reason,
            } => {
                if let DropReason::Stale { behind, most } = reason {
                    assert!(behind > MOST && most == MOST && self.done - (round - 1) == behind);
                    self.stale += 1;
                } else {
                    assert!(self.applying.take().is_some());
                }
                if self.tasks.get(&node) == Some(&(round, attempt)) {
                    self.tasks.remove(&node);
                }
                self.held.remove(&node);
                self.whole.remove(&node);
            }
            Action::RoundDone(summary) => {
                self.done += 1;
                assert_eq!(summary.round, self.done);
                assert!(self.applying.take().is_some());
                let [line] = summary.updates.as_slice() else {
                    panic!("{:?}", summary.updates)
                };
                assert!(line.base < self.done && self.done - 1 - line.base <= MOST);
                assert!(self.applied.insert(line.digest), "an update was applied twice");
                self.held.remove(&line.node);
                self.whole.remove(&line.node);
                self.tasks.remove(&line.node);
            }
            Action::Drop { node, .. } => {
                self.tasks.remove(&node);
                // An update that is here whole is kept.
                if !self.whole.contains(&node) {
                    self.held.remove(&node);
                }
            }
            Action::Fail { .. } | Action::TooFew { .. } => panic!("it stopped: {action:?}"),
            _ => {}
        }
    }
}

fn nodes_that_answer<T>(silent: &BTreeSet<String>, nodes: Vec<(String, T)>) -> Vec<(String, T)> {
    nodes.into_iter().filter(|(node, _)| !silent.contains(node)).collect()
}

#[derive(Clone, Copy, Debug)]
enum Mishap {
    /// A session ends; the node comes back, later.
    Lost,
    /// A node answers nothing until its deadline; then it comes back.
    Silent,
}

fn any_mishap() -> impl Strategy<Value = (usize, usize, Mishap)> {
    let kind = prop::sample::select(vec![Mishap::Lost, Mishap::Silent]);
    (0usize..400, 0usize..NODES.len(), kind)
}

proptest! {
    #[test]
    fn no_order_of_arrivals_locks_it_or_applies_anything_twice(
        order in prop::collection::vec(any::<prop::sample::Index>(), 500),
        mishaps in prop::collection::vec(any_mishap(), 0..4),
        needed in 1usize..=4,
    ) {
        let mut driver = Driver::new(needed);
        let mut step = 0;
        while !driver.machine.finished() {
            prop_assert!(step < 5_000, "stuck after {}, waiting {:?}", driver.done, driver.machine.waiting());
            for &(at, node, mishap) in &mishaps {
                if at != step { continue; }
                match mishap {
                    Mishap::Lost => { driver.lose(NODES[node]); driver.join(NODES[node]); }
                    Mishap::Silent => {
                        let node = NODES[node];
                        driver.silent.insert(node.to_owned());
                        driver.flying.retain(|event| !matches!(event, Event::Ready { node: of, .. } | Event::Received { node: of, .. }
                            | Event::Evidence { node: of, .. } | Event::Accepted { node: of, .. } if of == node));
                    }
                }
            }
            step += 1;
            if driver.flying.is_empty() {
                // Nothing is under way: only time helps, and after it those who were silent come back.
                let Some(deadline) = driver.machine.next_deadline_ms() else {
                    let silent: Vec<String> = driver.silent.iter().cloned().collect();
                    prop_assert!(!silent.is_empty(), "nothing is awaited after {}: {:?}", driver.done, driver.machine.waiting());
                    for node in silent { driver.lose(&node); driver.join(&node); }
                    continue;
                };
                driver.now_ms = driver.now_ms.max(deadline);
                driver.handle(Event::Tick);
                let silent: Vec<String> = driver.silent.iter().cloned().collect();
                for node in silent { driver.lose(&node); driver.join(&node); }
                continue;
            }
            let next = order[step % order.len()].index(driver.flying.len());
            let event = driver.flying.swap_remove(next);
            driver.handle(event);
        }
        prop_assert_eq!(driver.done, COUNT);
        prop_assert_eq!(driver.applied.len() as u64, COUNT);
    }
}

/// The members of a roster with their first tasks.
fn at_work(machine: &mut Aggregator, nodes: &[&str]) -> Vec<Action> {
    let mut out = Vec::new();
    for node in nodes {
        out.extend(machine.handle(
            0,
            Event::Joined {
                node: (*node).to_owned(),
                nonce: [7; 32],
            },
        ));
    }
    out.extend(machine.handle(500, Event::Tick));
    let mut tasks = Vec::new();
    while let Some(action) = out.pop() {
        match action {
            Action::Challenge { epoch, nonces, .. } => {
                for (node, _) in nonces {
                    out.extend(machine.handle(
                        500,
                        Event::Evidence {
                            entry: entry(&node),
                            node,
                            epoch,
                        },
                    ));
                }
            }
            Action::Relay { epoch, members, digest } => {
                for node in members {
                    out.extend(machine.handle(500, Event::Accepted { node, epoch, digest }));
                }
            }
            Action::StartTask { .. } => tasks.push(action),
            _ => {}
        }
    }
    tasks
}

/// One member's update, from its task to the receipt.
fn whole_step(machine: &mut Aggregator, node: &str, task: (u64, u32), round: u64) -> Vec<Action> {
    let node = || node.to_owned();
    let (at, attempt) = task;
    let digest = Digest::of(format!("{} {task:?}", node()).as_bytes());
    machine.handle(
        500,
        Event::Ready {
            node: node(),
            round: at,
            attempt,
            rows: 5,
            digest,
        },
    );
    machine.handle(
        500,
        Event::Received {
            node: node(),
            round: at,
            attempt,
        },
    );
    machine.handle(500, Event::Aggregated { round, attempt: 1 })
}

#[test]
fn a_slow_member_holds_nobody_and_its_stale_update_is_left_out_without_a_strike() {
    let mut machine = machine(1, 1);
    assert_eq!(at_work(&mut machine, &["a", "b"]).len(), 2);
    for round in 1..=MOST + 1 {
        let actions = whole_step(&mut machine, "a", (round, 1), round);
        assert!(
            actions.iter().any(|action| matches!(action, Action::RoundDone(_))),
            "{actions:?}"
        );
        assert!(actions.iter().any(
            |action| matches!(action, Action::StartTask { node, round: next, .. } if node == "a" && *next == round + 1)
        ));
    }
    let late = Event::Ready {
        node: "b".to_owned(),
        round: 1,
        attempt: 1,
        rows: 5,
        digest: Digest::of(b"of b"),
    };
    let actions = machine.handle(500, late);
    assert!(
        matches!(&actions[..], [Action::LeaveOut { node: out, reason, .. }, Action::StartTask { node: again, round, .. }]
            if out == "b" && !reason.misbehaved() && again == "b" && *round == MOST + 2),
        "{actions:?}"
    );
    // The next receipt names it.
    let actions = whole_step(&mut machine, "a", (MOST + 2, 1), MOST + 2);
    let named = actions.iter().any(
        |action| matches!(action, Action::RoundDone(summary) if summary.drops[0].0 == "b" && summary.drops[0].1.code() == "stale"),
    );
    assert!(named, "{actions:?}");
}

#[test]
fn an_answer_that_comes_twice_or_to_no_task_costs_the_membership() {
    for (round, attempt) in [(1, 1), (9, 1)] {
        let mut machine = machine(1, 1);
        at_work(&mut machine, &["a", "b"]);
        let ready = |round, attempt| Event::Ready {
            node: "a".to_owned(),
            round,
            attempt,
            rows: 5,
            digest: Digest::of(b"of a"),
        };
        machine.handle(500, ready(1, 1));
        let actions = machine.handle(500, ready(round, attempt));
        assert!(
            actions
                .iter()
                .any(|action| matches!(action, Action::Drop { node, reason } if node == "a" && reason.misbehaved())),
            "{actions:?}"
        );
    }
}

#[test]
fn an_aggregation_that_keeps_failing_ends_it_and_one_failure_leaves_its_update_out() {
    let mut machine = machine(1, 1);
    at_work(&mut machine, &["a", "b"]);
    for attempt in 1..=3 {
        let node = || "a".to_owned();
        let digest = Digest::of(b"of a");
        machine.handle(
            500,
            Event::Ready {
                node: node(),
                round: 1,
                attempt,
                rows: 5,
                digest,
            },
        );
        machine.handle(
            500,
            Event::Received {
                node: node(),
                round: 1,
                attempt,
            },
        );
        let cause = "trap".to_owned();
        let actions = machine.handle(
            500,
            Event::AggregateFailed {
                round: 1,
                attempt,
                cause,
            },
        );
        assert!(
            actions
                .iter()
                .any(|action| matches!(action, Action::LeaveOut { node, .. } if node == "a"))
        );
        let again = actions
            .iter()
            .any(|action| matches!(action, Action::StartTask { round: 1, attempt: next, .. } if *next == attempt + 1));
        assert_eq!(again, attempt < 3, "{actions:?}");
    }
    assert!(machine.failed());
}
