//! What follows from the state alone: who is late, which phase comes next.

use std::collections::{BTreeMap, BTreeSet};

use crate::refusal::DropReason;
use crate::roster::{self, RosterEntry};

use super::config::Pace;
use super::event::Action;
use super::round::Round;
use super::steps::Steps;
use super::{Aggregator, Phase};

impl Aggregator {
    /// Lets time and counts decide until nothing changes. Each turn goes one phase on or ends the loop.
    pub(super) fn settle(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        loop {
            self.drop_late(now_ms, out);
            let again = match &mut self.phase {
                Phase::Gathering { .. } => self.leave_gathering(now_ms, out),
                Phase::Challenge { waiting, .. } => waiting.is_empty() && self.relay(now_ms, out),
                Phase::Confirm { waiting, .. } => waiting.is_empty() && self.confirm(now_ms, out),
                Phase::Round(round) => {
                    round.advance(now_ms, self.config.update_slots, self.config.needed, out);
                    match round.given_up(self.config.needed) {
                        Some(reason) => {
                            out.push(Action::Abort {
                                round: round.index(),
                                attempt: round.attempt(),
                                reason,
                            });
                            self.next_attempt = round.attempt().saturating_add(1);
                            self.back_to_gathering(now_ms, out)
                        }
                        None => false,
                    }
                }
                Phase::Steps(_) => self.step(now_ms, out),
                Phase::Finished | Phase::Failed => false,
            };
            if !again {
                return;
            }
        }
    }

    fn drop_late(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        let deadline_ms = self.config.deadline_ms;
        let late: Vec<(String, &'static str)> = match &self.phase {
            Phase::Challenge { waiting, since_ms, .. } if now_ms >= since_ms.saturating_add(deadline_ms) => {
                waiting.iter().map(|node| (node.clone(), "roster evidence")).collect()
            }
            Phase::Confirm { waiting, since_ms, .. } if now_ms >= since_ms.saturating_add(deadline_ms) => waiting
                .iter()
                .map(|node| (node.clone(), "answer to the roster"))
                .collect(),
            Phase::Round(round) => round.late(now_ms, deadline_ms),
            Phase::Steps(steps) => steps.late(now_ms, deadline_ms),
            _ => Vec::new(),
        };
        for (node, wanted) in late {
            self.drop_node(
                &node,
                DropReason::Late {
                    wanted,
                    waited_ms: deadline_ms,
                },
                out,
            );
        }
    }

    /// Gives tasks while the roster in force covers enough members, and all of them; else lets what runs come to its end.
    fn step(&mut self, now_ms: u64, out: &mut Vec<Action>) -> bool {
        let Pace::Alone { max_staleness } = self.config.pace else {
            return false;
        };
        let Phase::Steps(steps) = &mut self.phase else {
            return false;
        };
        // First what frees members, then their tasks, so that a stale update's node gets one in the same turn.
        let left_out = steps.advance(now_ms, self.config.update_slots, max_staleness, out);
        self.fell_out.extend(left_out);
        let covering = self.roster.as_ref().filter(|(_, accepted)| {
            self.members.len() >= self.config.needed && self.members.keys().all(|node| accepted.contains(node))
        });
        if let Some((digest, _)) = covering {
            for (node, member) in &mut self.members {
                if steps.busy(node) {
                    continue;
                }
                let (round, attempt) = steps.start(node, member.started, now_ms);
                member.started = Some((round, attempt));
                out.push(Action::StartTask {
                    node: node.clone(),
                    round,
                    attempt,
                    roster_digest: *digest,
                });
            }
            return false;
        }
        if !steps.idle() {
            return false;
        }
        self.next_round = steps.applied() + 1;
        self.back_to_gathering(now_ms, out)
    }

    /// Waits, and says so where members are missing; gives whether there are enough to go on.
    pub(super) fn back_to_gathering(&mut self, now_ms: u64, out: &mut Vec<Action>) -> bool {
        self.phase = Phase::Gathering { since_ms: now_ms };
        if self.members.len() < self.config.needed {
            if !self.give_up(out) {
                out.extend(self.waiting().map(Action::Wait));
            }
            return false;
        }
        true
    }

    /// Stops where no waiting helps: too few workers are left that may still join. Gives whether it did.
    fn give_up(&mut self, out: &mut Vec<Action>) -> bool {
        let barred: Vec<String> = self
            .config
            .workers
            .iter()
            .filter(|node| self.barred(node))
            .cloned()
            .collect();
        if self.config.workers.len() - barred.len() >= self.config.needed || barred.is_empty() {
            return false;
        }
        self.phase = Phase::Failed;
        out.push(Action::TooFew {
            round: self.next_round,
            barred,
            strikes: self.config.max_strikes,
            needed: self.config.needed,
        });
        true
    }

    /// Starts a round where the roster in force covers all members, else a new roster.
    fn leave_gathering(&mut self, now_ms: u64, out: &mut Vec<Action>) -> bool {
        let Phase::Gathering { since_ms } = self.phase else {
            return false;
        };
        if self.members.len() < self.config.needed {
            self.give_up(out);
            return false;
        }
        if let Some((digest, accepted)) = &self.roster
            && self.members.keys().all(|node| accepted.contains(node))
        {
            if let Pace::Alone { .. } = self.config.pace {
                self.phase = Phase::Steps(Steps::new(self.next_round.saturating_sub(1)));
                return true;
            }
            let (round, attempt, digest) = (self.next_round, self.next_attempt, *digest);
            let participants: Vec<String> = self.members.keys().cloned().collect();
            for member in self.members.values_mut() {
                member.started = Some((round, attempt));
            }
            self.phase = Phase::Round(Round::new(round, attempt, now_ms, &participants));
            out.push(Action::StartRound {
                round,
                attempt,
                participants,
                roster_digest: digest,
            });
            return false;
        }
        let all_here = self.members.len() == self.config.workers.len();
        if self.roster.is_none() && !all_here && now_ms < since_ms.saturating_add(self.config.gather_ms) {
            return false;
        }
        self.epoch += 1;
        let nonces: Vec<(String, [u8; 32])> = self
            .members
            .iter()
            .map(|(node, member)| (node.clone(), member.nonce))
            .collect();
        // Names come out of a sorted map, so only a federation above the limit of members has no challenge.
        let Some(challenge) = roster::challenge(self.epoch, &nonces) else {
            return false;
        };
        let waiting = self.members.keys().cloned().collect();
        self.phase = Phase::Challenge {
            challenge,
            entries: BTreeMap::new(),
            waiting,
            since_ms: now_ms,
        };
        out.push(Action::Challenge {
            epoch: self.epoch,
            nonces,
            challenge,
        });
        false
    }

    fn relay(&mut self, now_ms: u64, out: &mut Vec<Action>) -> bool {
        let Phase::Challenge { challenge, entries, .. } = &mut self.phase else {
            return false;
        };
        let entries: Vec<RosterEntry> = std::mem::take(entries).into_values().collect();
        let digest = roster::digest(self.epoch, challenge, &self.config.aggregator, &entries);
        let (Some(digest), true) = (digest, entries.len() >= self.config.needed) else {
            return self.back_to_gathering(now_ms, out);
        };
        let members: Vec<String> = entries.into_iter().map(|entry| entry.node).collect();
        let waiting = members.iter().cloned().collect();
        self.phase = Phase::Confirm {
            digest,
            accepted: BTreeSet::new(),
            waiting,
            since_ms: now_ms,
        };
        out.push(Action::Relay {
            epoch: self.epoch,
            members,
            digest,
        });
        false
    }

    fn confirm(&mut self, now_ms: u64, out: &mut Vec<Action>) -> bool {
        let Phase::Confirm { digest, accepted, .. } = &mut self.phase else {
            return false;
        };
        if accepted.len() >= self.config.needed {
            self.roster = Some((*digest, std::mem::take(accepted)));
        }
        self.back_to_gathering(now_ms, out)
    }
}
