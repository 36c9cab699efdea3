//! The aggregator's side of a federation as a state machine.
//!
//! ```text
//! gathering -> challenge -> confirm -> round -> (next) round ... -> finished
//!      ^___________|___________|_________|  too few members: wait, then the same round again
//! ```
//!
//! Updates are folded in ascending order of node names whatever order they arrive in, so that the aggregate has the same
//! bytes. Memory stays bounded because an update is sent only into a granted slot; one slot is always kept for the
//! update that is next in order, so slots can't lock each other.
//!
//! Where each update makes a round alone ([`Pace::Alone`]) the members work on tasks of their own in place of a round. A member
//! that the roster in force does not name waits: no more tasks are given, those that run come to their end, then there is a
//! new roster, and everybody gets a task under it.

mod advance;
mod config;
mod event;
mod outcome;
mod round;
mod steps;

use std::collections::{BTreeMap, BTreeSet};

use cloister_tensor::Digest;

use crate::refusal::{DropReason, UpdateRefusal};
use crate::roster::RosterEntry;

pub use config::{Pace, RoundsConfig};
pub use event::{Action, Event, RoundSummary, Waiting};
use round::Round;
use steps::Steps;

/// What the machine knows about a node that is connected.
#[derive(Debug)]
struct Member {
    nonce: [u8; 32],
    /// The last round and attempt that was started with it.
    started: Option<(u64, u32)>,
    /// The last one that it answered.
    answered: Option<(u64, u32)>,
}

#[derive(Debug)]
enum Phase {
    Gathering {
        since_ms: u64,
    },
    /// Quotes over the challenge are awaited.
    Challenge {
        challenge: [u8; 32],
        entries: BTreeMap<String, RosterEntry>,
        waiting: BTreeSet<String>,
        since_ms: u64,
    },
    /// Everybody looks at everybody's evidence.
    Confirm {
        digest: Digest,
        accepted: BTreeSet<String>,
        waiting: BTreeSet<String>,
        since_ms: u64,
    },
    Round(Round),
    /// Members work each at its own pace.
    Steps(Steps),
    Finished,
    Failed,
}

/// The state machine. See the module's head for its phases.
#[derive(Debug)]
pub struct Aggregator {
    config: RoundsConfig,
    members: BTreeMap<String, Member>,
    strikes: BTreeMap<String, u32>,
    phase: Phase,
    epoch: u64,
    /// Digest and members of the roster in force.
    roster: Option<(Digest, BTreeSet<String>)>,
    next_round: u64,
    next_attempt: u32,
    aggregate_failures: u32,
    /// Who fell out, or was left out, since the last receipt; where updates are applied alone.
    fell_out: BTreeMap<String, DropReason>,
}

impl Aggregator {
    /// A machine that waits for its first member. `first_round` is 1, or where a federation goes on after a restart.
    pub fn new(mut config: RoundsConfig, first_round: u64, now_ms: u64) -> Self {
        config.update_slots = config.update_slots.max(2);
        config.needed = config.needed.max(1);
        Self {
            config,
            members: BTreeMap::new(),
            strikes: BTreeMap::new(),
            phase: Phase::Gathering { since_ms: now_ms },
            epoch: 0,
            roster: None,
            next_round: first_round.max(1),
            next_attempt: 1,
            aggregate_failures: 0,
            fell_out: BTreeMap::new(),
        }
    }

    /// Whether a node may join now; the text says why not.
    pub fn may_join(&self, node: &str) -> Result<(), String> {
        if !self.config.workers.contains(node) {
            return Err(format!("the policy names no worker {node:?}"));
        }
        if self.barred(node) {
            return Err(format!(
                "{node} misbehaved {} times in this federation",
                self.config.max_strikes
            ));
        }
        match self.phase {
            Phase::Finished => Err("the federation has finished its rounds".to_owned()),
            Phase::Failed => Err("the federation has stopped".to_owned()),
            _ => Ok(()),
        }
    }

    /// Whether a node misbehaved so often that it can't join again.
    fn barred(&self, node: &str) -> bool {
        let strikes = self.strikes.get(node);
        strikes.is_some_and(|&strikes| strikes >= self.config.max_strikes)
    }

    /// Whether all rounds are done.
    pub fn finished(&self) -> bool {
        matches!(self.phase, Phase::Finished)
    }

    /// Whether the federation stopped: its aggregation kept failing, or too few workers may still join.
    pub fn failed(&self) -> bool {
        matches!(self.phase, Phase::Failed)
    }

    /// When [`Event::Tick`] is due at the latest, if anything waits for time.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        match &self.phase {
            Phase::Gathering { since_ms } => {
                (self.members.len() >= self.config.needed).then(|| since_ms.saturating_add(self.config.gather_ms))
            }
            Phase::Challenge { since_ms, .. } | Phase::Confirm { since_ms, .. } => {
                Some(since_ms.saturating_add(self.config.deadline_ms))
            }
            Phase::Round(round) => round.next_deadline_ms(self.config.deadline_ms),
            Phase::Steps(steps) => steps.next_deadline_ms(self.config.deadline_ms),
            Phase::Finished | Phase::Failed => None,
        }
    }

    /// What the waiting is for, while the machine waits for members.
    pub fn waiting(&self) -> Option<Waiting> {
        matches!(self.phase, Phase::Gathering { .. }).then(|| Waiting {
            present: self.members.keys().cloned().collect(),
            missing: self
                .config
                .workers
                .iter()
                .filter(|node| !self.members.contains_key(*node))
                .cloned()
                .collect(),
            needed: self.config.needed,
        })
    }

    /// Takes what happened; returns what to do, in this order.
    ///
    /// Events of nodes that are not members are ignored: they come from connections that were dropped already.
    pub fn handle(&mut self, now_ms: u64, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        match event {
            Event::Joined { node, nonce } => self.joined(node, nonce, now_ms, &mut out),
            Event::Left { node, reason } => self.drop_node(&node, DropReason::Left { reason }, &mut out),
            Event::Lost { node, cause } => self.drop_node(&node, DropReason::Gone { cause }, &mut out),
            Event::Refused { node, refusal } => self.drop_node(&node, DropReason::Refused(refusal), &mut out),
            Event::Evidence { node, epoch, entry } => self.evidence(node, epoch, entry, &mut out),
            Event::Accepted { node, epoch, digest } => self.accepted(node, epoch, digest, &mut out),
            Event::EvidenceRefused { node, rules } => {
                self.drop_node(&node, DropReason::Evidence { rules }, &mut out);
            }
            Event::RefusesMember { node, refused, rules } => {
                self.drop_node(&node, DropReason::RefusesMember { node: refused, rules }, &mut out);
            }
            Event::Ready {
                node,
                round,
                attempt,
                rows,
                digest,
            } => {
                self.ready(&node, (round, attempt), rows, digest, &mut out);
            }
            Event::ModuleFailed {
                node,
                round,
                attempt,
                code,
                module,
            } => {
                let reason = DropReason::ModuleFailed { code, module };
                self.module_failed(&node, (round, attempt), reason, &mut out);
            }
            Event::Received { node, round, attempt } => match &mut self.phase {
                Phase::Round(current) if current.is(round, attempt) => current.received(&node),
                Phase::Steps(steps) => steps.received(&node, (round, attempt)),
                _ => {}
            },
            Event::Folded { node } => {
                if let Phase::Round(current) = &mut self.phase {
                    current.folded(&node);
                }
            }
            Event::Aggregated { round, attempt } => self.aggregated(round, attempt, now_ms, &mut out),
            Event::AggregateFailed { round, attempt, cause } => {
                self.aggregate_failed(round, attempt, cause, now_ms, &mut out);
            }
            Event::Tick => {}
        }
        self.settle(now_ms, &mut out);
        out
    }

    fn joined(&mut self, node: String, nonce: [u8; 32], now_ms: u64, out: &mut Vec<Action>) {
        if self.may_join(&node).is_err() {
            return;
        }
        if self.members.contains_key(&node) {
            let refusal = UpdateRefusal::OutOfTurn {
                node: node.clone(),
                seen: "a second join".to_owned(),
                wanted: "one a connection".to_owned(),
            };
            return self.drop_node(&node, DropReason::Refused(refusal), out);
        }
        if self.members.is_empty() && self.roster.is_none() {
            self.phase = Phase::Gathering { since_ms: now_ms };
        }
        self.members.insert(
            node,
            Member {
                nonce,
                started: None,
                answered: None,
            },
        );
        out.extend(
            self.waiting()
                .filter(|waiting| !waiting.missing.is_empty())
                .map(Action::Wait),
        );
    }

    /// Takes a node out of everything and says so once.
    fn drop_node(&mut self, node: &str, reason: DropReason, out: &mut Vec<Action>) {
        if self.members.remove(node).is_none() {
            return;
        }
        // When it comes back, it has a new session and a new nonce: the others have to see it anew.
        if let Some((_, accepted)) = &mut self.roster {
            accepted.remove(node);
        }
        if reason.misbehaved() {
            *self.strikes.entry(node.to_owned()).or_default() += 1;
        }
        match &mut self.phase {
            Phase::Challenge { entries, waiting, .. } => {
                waiting.remove(node);
                entries.remove(node);
            }
            Phase::Confirm { accepted, waiting, .. } => {
                waiting.remove(node);
                accepted.remove(node);
            }
            Phase::Round(round) => round.drop_node(node, &reason),
            Phase::Steps(steps) => {
                steps.drop_node(node);
                self.fell_out.insert(node.to_owned(), reason.clone());
            }
            Phase::Gathering { .. } | Phase::Finished | Phase::Failed => {}
        }
        out.push(Action::Drop {
            node: node.to_owned(),
            reason,
        });
        out.extend(self.waiting().map(Action::Wait));
    }

    fn evidence(&mut self, node: String, epoch: u64, entry: RosterEntry, out: &mut Vec<Action>) {
        if !self.members.contains_key(&node) || epoch < self.epoch {
            return; // an answer to an epoch that was given up
        }
        if let Phase::Challenge { entries, waiting, .. } = &mut self.phase
            && epoch == self.epoch
            && entry.node == node
            && waiting.remove(&node)
        {
            entries.insert(node, entry);
            return;
        }
        self.out_of_turn(node, "roster evidence", "one for the epoch that was asked for", out);
    }

    fn accepted(&mut self, node: String, epoch: u64, seen: Digest, out: &mut Vec<Action>) {
        if !self.members.contains_key(&node) || epoch < self.epoch {
            return;
        }
        if let Phase::Confirm {
            digest,
            accepted,
            waiting,
            ..
        } = &mut self.phase
            && epoch == self.epoch
            && waiting.remove(&node)
        {
            let wanted = *digest;
            if seen == wanted {
                accepted.insert(node);
            } else {
                self.drop_node(&node, DropReason::OtherRoster { seen, wanted }, out);
            }
            return;
        }
        self.out_of_turn(
            node,
            "a roster's acceptance",
            "one for the roster that was relayed",
            out,
        );
    }

    fn out_of_turn(&mut self, node: String, seen: &str, wanted: &str, out: &mut Vec<Action>) {
        let refusal = UpdateRefusal::OutOfTurn {
            node: node.clone(),
            seen: seen.to_owned(),
            wanted: wanted.to_owned(),
        };
        self.drop_node(&node, DropReason::Refused(refusal), out);
    }
}
