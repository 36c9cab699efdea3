//! What members and the aggregation answer, and what becomes of it.

use cloister_tensor::Digest;

use crate::refusal::{DropReason, UpdateRefusal};

use super::event::{Action, RoundSummary};
use super::{Aggregator, Phase};

impl Aggregator {
    /// A member's update of a round is computed.
    pub(super) fn ready(&mut self, node: &str, at: (u64, u32), rows: u64, digest: Digest, out: &mut Vec<Action>) {
        self.answer(node, at, "an update", out, |phase| match phase {
            Phase::Round(round) if round.is(at.0, at.1) => round.ready(node, rows, digest),
            Phase::Steps(steps) => steps.ready(node, at, rows, digest),
            // The attempt was given up while the answer was on its way.
            _ => Ok(()),
        });
    }

    /// A member's module failed in a round.
    pub(super) fn module_failed(&mut self, node: &str, at: (u64, u32), reason: DropReason, out: &mut Vec<Action>) {
        self.answer(node, at, "a module's failure", out, |phase| match phase {
            Phase::Round(round) if !round.is(at.0, at.1) => Ok(()),
            Phase::Round(_) | Phase::Steps(_) => Err(reason),
            _ => Ok(()),
        });
    }

    /// A member's one answer to a round or a task: its update or its module's failure.
    fn answer(
        &mut self,
        node: &str,
        at: (u64, u32),
        what: &str,
        out: &mut Vec<Action>,
        take: impl FnOnce(&mut Phase) -> Result<(), DropReason>,
    ) {
        let finished = self.finished() || self.failed();
        let Some(member) = self.members.get_mut(node) else {
            return;
        };
        let reason = if member.answered.is_some_and(|answered| at <= answered) {
            DropReason::Refused(UpdateRefusal::Twice {
                node: node.to_owned(),
                round: at.0,
            })
        } else if finished {
            DropReason::Refused(UpdateRefusal::AfterEnd { node: node.to_owned() })
        } else if member.started.is_none_or(|started| at > started) {
            return self.out_of_turn(node.to_owned(), what, "an answer to a round that was started", out);
        } else {
            member.answered = Some(at);
            match take(&mut self.phase) {
                Ok(()) => return,
                Err(reason) => reason,
            }
        };
        self.drop_node(node, reason, out);
    }

    /// The aggregate is there.
    pub(super) fn aggregated(&mut self, round: u64, attempt: u32, now_ms: u64, out: &mut Vec<Action>) {
        let summary = match &mut self.phase {
            Phase::Round(current) if current.is(round, attempt) && current.closing() => current.summary(),
            Phase::Steps(steps) => {
                let Some(update) = steps.applied_as(round, attempt) else {
                    return;
                };
                RoundSummary {
                    round,
                    attempt,
                    updates: vec![update],
                    drops: std::mem::take(&mut self.fell_out).into_iter().collect(),
                }
            }
            _ => return,
        };
        out.push(Action::RoundDone(summary));
        self.aggregate_failures = 0;
        self.next_round = round + 1;
        self.next_attempt = 1;
        if self.next_round > self.config.rounds {
            self.phase = Phase::Finished;
            out.push(Action::Finish);
        } else if matches!(self.phase, Phase::Round(_)) {
            self.back_to_gathering(now_ms, out);
        }
    }

    /// The aggregation gave no result: the round is tried again, or the one update that it was to apply is left out.
    pub(super) fn aggregate_failed(
        &mut self,
        round: u64,
        attempt: u32,
        cause: String,
        now_ms: u64,
        out: &mut Vec<Action>,
    ) {
        match &mut self.phase {
            Phase::Round(current) if current.is(round, attempt) => {
                out.push(Action::Abort {
                    round,
                    attempt,
                    reason: format!("the aggregation failed: {cause}"),
                });
                self.next_attempt = attempt.saturating_add(1);
            }
            Phase::Steps(steps) => {
                let Some((node, task)) = steps.failed(round, attempt) else {
                    return;
                };
                let reason = DropReason::NotApplied { cause: cause.clone() };
                self.fell_out.insert(node.clone(), reason.clone());
                out.push(Action::LeaveOut {
                    node,
                    round: task.0,
                    attempt: task.1,
                    reason,
                });
            }
            _ => return,
        }
        self.aggregate_failures += 1;
        if self.aggregate_failures >= self.config.max_aggregate_failures {
            self.phase = Phase::Failed;
            out.push(Action::Fail {
                round,
                failures: self.aggregate_failures,
                cause,
            });
        } else if matches!(self.phase, Phase::Round(_)) {
            self.back_to_gathering(now_ms, out);
        }
    }
}
