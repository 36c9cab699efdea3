//! Updates that are applied one by one, each member at its own pace.
//!
//! ```text
//! training -> ready -> granted -> received -> applying -> (next task)
//!               |_____________________|  too stale, or not applicable: left out, next task
//! ```
//!
//! Updates are granted in the order in which they are announced and applied in the order in which they arrive. A task's
//! number is that of the update that would come next when it is given, so a member's tasks grow.

use std::collections::BTreeMap;

use cloister_tensor::Digest;

use crate::receipt::ReceiptUpdate;
use crate::refusal::DropReason;

use super::event::Action;
use super::round::require_rows;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Announced {
    rows: u64,
    digest: Digest,
    /// When it came to this state, by the count of all arrivals.
    order: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Training { since_ms: u64 },
    Ready(Announced),
    Granted { since_ms: u64, update: Announced },
    Received(Announced),
    Applying(Announced),
}

#[derive(Debug)]
struct Task {
    round: u64,
    attempt: u32,
    state: State,
}

impl Task {
    /// How many updates the model that it is computed on had behind it.
    fn base(&self) -> u64 {
        self.round.saturating_sub(1)
    }
}

/// What the members work on, and how many updates have been applied.
#[derive(Debug)]
pub(super) struct Steps {
    applied: u64,
    /// Attempt at the update that comes next.
    attempt: u32,
    arrivals: u64,
    tasks: BTreeMap<String, Task>,
}

impl Steps {
    pub(super) fn new(applied: u64) -> Self {
        Self {
            applied,
            attempt: 1,
            arrivals: 0,
            tasks: BTreeMap::new(),
        }
    }

    pub(super) fn applied(&self) -> u64 {
        self.applied
    }

    /// Whether nobody works on anything and nothing waits to be applied.
    pub(super) fn idle(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Whether this node works on something, or something of it waits to be applied.
    pub(super) fn busy(&self, node: &str) -> bool {
        self.tasks.contains_key(node)
    }

    /// Gives a node that is not busy its next task. `last` is the one that it had before.
    pub(super) fn start(&mut self, node: &str, last: Option<(u64, u32)>, now_ms: u64) -> (u64, u32) {
        let round = self.applied + 1;
        let attempt = match last {
            Some((before, attempt)) if before == round => attempt.saturating_add(1),
            _ => 1,
        };
        let task = Task {
            round,
            attempt,
            state: State::Training { since_ms: now_ms },
        };
        self.tasks.insert(node.to_owned(), task);
        (round, attempt)
    }

    fn task(&mut self, node: &str, at: (u64, u32)) -> Option<&mut Task> {
        self.tasks.get_mut(node).filter(|task| (task.round, task.attempt) == at)
    }

    pub(super) fn ready(&mut self, node: &str, at: (u64, u32), rows: u64, digest: Digest) -> Result<(), DropReason> {
        require_rows(rows)?;
        self.arrivals += 1;
        let order = self.arrivals;
        if let Some(task) = self.task(node, at)
            && matches!(task.state, State::Training { .. })
        {
            task.state = State::Ready(Announced { rows, digest, order });
        }
        Ok(())
    }

    pub(super) fn received(&mut self, node: &str, at: (u64, u32)) {
        self.arrivals += 1;
        let order = self.arrivals;
        if let Some(task) = self.task(node, at)
            && let State::Granted { update, .. } = task.state
        {
            task.state = State::Received(Announced { order, ..update });
        }
    }

    /// An update that is here whole stays: it was valid when it came. Anything less goes with its node.
    pub(super) fn drop_node(&mut self, node: &str) {
        let here = |task: &Task| matches!(task.state, State::Received(_) | State::Applying(_));
        if self.tasks.get(node).is_some_and(|task| !here(task)) {
            self.tasks.remove(node);
        }
    }

    /// The update is applied: gives its line of the receipt.
    pub(super) fn applied_as(&mut self, round: u64, attempt: u32) -> Option<ReceiptUpdate> {
        let (node, task, update) = self.take_applying(round, attempt)?;
        self.applied = round;
        self.attempt = 1;
        Some(ReceiptUpdate {
            node,
            rows: update.rows,
            digest: update.digest,
            base: task.base(),
        })
    }

    /// The update could not be applied: gives whose it was, and its task.
    pub(super) fn failed(&mut self, round: u64, attempt: u32) -> Option<(String, (u64, u32))> {
        let (node, task, _) = self.take_applying(round, attempt)?;
        self.attempt = self.attempt.saturating_add(1);
        Some((node, (task.round, task.attempt)))
    }

    fn take_applying(&mut self, round: u64, attempt: u32) -> Option<(String, Task, Announced)> {
        if (round, attempt) != (self.applied + 1, self.attempt) {
            return None;
        }
        let node = self.tasks.iter().find_map(|(node, task)| match task.state {
            State::Applying(update) => Some((node.clone(), update)),
            _ => None,
        });
        let (node, update) = node?;
        let task = self.tasks.remove(&node)?;
        Some((node, task, update))
    }

    /// Whose time is over, and what was awaited. A worker that waits for a slot waits for us and is never late.
    pub(super) fn late(&self, now_ms: u64, deadline_ms: u64) -> Vec<(String, &'static str)> {
        let over = |since_ms: u64| now_ms >= since_ms.saturating_add(deadline_ms);
        self.tasks
            .iter()
            .filter_map(|(node, task)| match task.state {
                State::Training { since_ms } if over(since_ms) => Some((node.clone(), "update")),
                State::Granted { since_ms, .. } if over(since_ms) => Some((node.clone(), "end of its upload")),
                _ => None,
            })
            .collect()
    }

    pub(super) fn next_deadline_ms(&self, deadline_ms: u64) -> Option<u64> {
        self.tasks
            .values()
            .filter_map(|task| match task.state {
                State::Training { since_ms } | State::Granted { since_ms, .. } => {
                    Some(since_ms.saturating_add(deadline_ms))
                }
                _ => None,
            })
            .min()
    }

    /// Leaves out what is too stale, applies what came first, grants what there is room for. Gives who was left out.
    pub(super) fn advance(
        &mut self,
        now_ms: u64,
        slots: usize,
        max_staleness: u64,
        out: &mut Vec<Action>,
    ) -> Vec<(String, DropReason)> {
        let left_out = self.leave_stale_out(max_staleness, out);
        self.apply(out);
        let holds = |task: &&Task| {
            matches!(
                task.state,
                State::Granted { .. } | State::Received(_) | State::Applying(_)
            )
        };
        let held = self.tasks.values().filter(holds).count();
        for _ in held..slots {
            let ready = self.tasks.iter_mut().filter_map(|(node, task)| match task.state {
                State::Ready(update) => Some((update.order, node, task, update)),
                _ => None,
            });
            let Some((_, node, task, update)) = ready.min_by_key(|(order, ..)| *order) else {
                break;
            };
            task.state = State::Granted {
                since_ms: now_ms,
                update,
            };
            out.push(Action::Grant {
                node: node.clone(),
                round: task.round,
                attempt: task.attempt,
            });
        }
        left_out
    }

    fn leave_stale_out(&mut self, most: u64, out: &mut Vec<Action>) -> Vec<(String, DropReason)> {
        let applied = self.applied;
        let stale = self.tasks.extract_if(.., |_, task| {
            matches!(task.state, State::Ready(_) | State::Received(_)) && applied.saturating_sub(task.base()) > most
        });
        let stale: Vec<_> = stale
            .map(|(node, task)| {
                let behind = applied.saturating_sub(task.base());
                let reason = DropReason::Stale { behind, most };
                out.push(Action::LeaveOut {
                    node: node.clone(),
                    round: task.round,
                    attempt: task.attempt,
                    reason: reason.clone(),
                });
                (node, reason)
            })
            .collect();
        stale
    }

    fn apply(&mut self, out: &mut Vec<Action>) {
        if self.tasks.values().any(|task| matches!(task.state, State::Applying(_))) {
            return;
        }
        let received = self.tasks.iter_mut().filter_map(|(node, task)| match task.state {
            State::Received(update) => Some((update.order, node, task, update)),
            _ => None,
        });
        let Some((_, node, task, update)) = received.min_by_key(|(order, ..)| *order) else {
            return;
        };
        task.state = State::Applying(update);
        out.push(Action::Apply {
            node: node.clone(),
            rows: update.rows,
            round: self.applied + 1,
            attempt: self.attempt,
        });
    }
}
