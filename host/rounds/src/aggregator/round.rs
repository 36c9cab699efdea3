//! One attempt at one round.

use std::collections::BTreeMap;

use cloister_tensor::Digest;

use crate::receipt::ReceiptUpdate;
use crate::refusal::{DropReason, UpdateRefusal};

use super::event::{Action, RoundSummary};

/// Most rows that a worker may count in one round.
const MAX_ROWS: u64 = 1 << 48;

pub(super) fn require_rows(rows: u64) -> Result<(), DropReason> {
    if rows == 0 || rows > MAX_ROWS {
        return Err(DropReason::Refused(UpdateRefusal::WrongRows {
            seen: rows,
            wanted: MAX_ROWS,
        }));
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Training,
    Ready,
    Granted { since_ms: u64 },
    Received,
    Folding,
    Folded,
}

impl State {
    /// Whether an update of a worker in this state takes up one of the slots.
    fn holds_slot(self) -> bool {
        matches!(self, Self::Granted { .. } | Self::Received | Self::Folding)
    }
}

#[derive(Debug)]
struct Part {
    state: State,
    update: Option<(u64, Digest)>,
}

/// The participants' states. Sorted by node: the order in which updates are folded.
#[derive(Debug)]
pub(super) struct Round {
    index: u64,
    attempt: u32,
    started_ms: u64,
    parts: BTreeMap<String, Part>,
    drops: BTreeMap<String, DropReason>,
    closing: bool,
}

impl Round {
    pub(super) fn new(index: u64, attempt: u32, now_ms: u64, participants: &[String]) -> Self {
        let parts = participants
            .iter()
            .map(|node| {
                (
                    node.clone(),
                    Part {
                        state: State::Training,
                        update: None,
                    },
                )
            })
            .collect();
        Self {
            index,
            attempt,
            started_ms: now_ms,
            parts,
            drops: BTreeMap::new(),
            closing: false,
        }
    }

    pub(super) fn is(&self, index: u64, attempt: u32) -> bool {
        (self.index, self.attempt) == (index, attempt)
    }

    pub(super) fn index(&self) -> u64 {
        self.index
    }

    pub(super) fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Whether all updates are folded and the aggregate is awaited.
    pub(super) fn closing(&self) -> bool {
        self.closing
    }

    pub(super) fn ready(&mut self, node: &str, rows: u64, digest: Digest) -> Result<(), DropReason> {
        require_rows(rows)?;
        // A member that joined while the round ran is no part of it, and was not asked.
        let Some(part) = self.parts.get_mut(node) else {
            return Ok(());
        };
        if part.state == State::Training {
            *part = Part {
                state: State::Ready,
                update: Some((rows, digest)),
            };
        }
        Ok(())
    }

    pub(super) fn received(&mut self, node: &str) {
        if let Some(part) = self.parts.get_mut(node)
            && matches!(part.state, State::Granted { .. })
        {
            part.state = State::Received;
        }
    }

    pub(super) fn folded(&mut self, node: &str) {
        if let Some(part) = self.parts.get_mut(node)
            && part.state == State::Folding
        {
            part.state = State::Folded;
        }
    }

    /// An update that is here whole stays: it was valid when it came. Anything less goes with its node.
    pub(super) fn drop_node(&mut self, node: &str, reason: &DropReason) {
        let here = |part: &Part| matches!(part.state, State::Received | State::Folding | State::Folded);
        if self.parts.get(node).is_some_and(|part| !here(part)) {
            self.parts.remove(node);
            self.drops.insert(node.to_owned(), reason.clone());
        }
    }

    /// Whose time is over, and what was awaited. A worker that waits for a slot waits for us and is never late.
    pub(super) fn late(&self, now_ms: u64, deadline_ms: u64) -> Vec<(String, &'static str)> {
        let over = |since_ms: u64| now_ms >= since_ms.saturating_add(deadline_ms);
        self.parts
            .iter()
            .filter_map(|(node, part)| match part.state {
                State::Training if over(self.started_ms) => Some((node.clone(), "update")),
                State::Granted { since_ms } if over(since_ms) => Some((node.clone(), "end of its upload")),
                _ => None,
            })
            .collect()
    }

    pub(super) fn next_deadline_ms(&self, deadline_ms: u64) -> Option<u64> {
        self.parts
            .values()
            .filter_map(|part| match part.state {
                State::Training => Some(self.started_ms.saturating_add(deadline_ms)),
                State::Granted { since_ms } => Some(since_ms.saturating_add(deadline_ms)),
                _ => None,
            })
            .min()
    }

    /// Folds what is next, grants what there is room for, closes when all is folded.
    pub(super) fn advance(&mut self, now_ms: u64, slots: usize, needed: usize, out: &mut Vec<Action>) {
        if self.closing || self.parts.len() < needed {
            return;
        }
        let folding = self.parts.values().any(|part| part.state == State::Folding);
        let next = self
            .parts
            .iter_mut()
            .find(|(_, part)| !matches!(part.state, State::Folded | State::Folding));
        match next {
            None if !folding => {
                self.closing = true;
                out.push(Action::Close {
                    round: self.index,
                    attempt: self.attempt,
                });
            }
            Some((node, part)) if !folding && part.state == State::Received => {
                part.state = State::Folding;
                let rows = part.update.map_or(0, |(rows, _)| rows);
                out.push(Action::Fold {
                    node: node.clone(),
                    rows,
                });
            }
            _ => {}
        }
        self.grant(now_ms, slots, out);
    }

    /// Grants free slots in fold order; one is kept for the update that is next in order.
    fn grant(&mut self, now_ms: u64, slots: usize, out: &mut Vec<Action>) {
        let mut held = self.parts.values().filter(|part| part.state.holds_slot()).count();
        let mut first = true;
        let mut kept = 0;
        for (node, part) in &mut self.parts {
            if matches!(part.state, State::Folding | State::Folded) {
                continue;
            }
            if part.state == State::Ready && held + kept < slots {
                part.state = State::Granted { since_ms: now_ms };
                held += 1;
                out.push(Action::Grant {
                    node: node.clone(),
                    round: self.index,
                    attempt: self.attempt,
                });
            } else if first && !part.state.holds_slot() {
                kept = 1;
            }
            first = false;
        }
    }

    /// Why the round can't be done any more, if so.
    pub(super) fn given_up(&self, needed: usize) -> Option<String> {
        (!self.closing && self.parts.len() < needed).then(|| {
            let drops: Vec<String> = self
                .drops
                .iter()
                .map(|(node, reason)| format!("{node} {reason}"))
                .collect();
            format!(
                "{} updates can still come, {needed} are needed ({})",
                self.parts.len(),
                drops.join("; ")
            )
        })
    }

    pub(super) fn summary(&self) -> RoundSummary {
        let base = self.index.saturating_sub(1);
        let line = |(node, part): (&String, &Part)| {
            part.update.map(|(rows, digest)| ReceiptUpdate {
                node: node.clone(),
                rows,
                digest,
                base,
            })
        };
        let updates = self.parts.iter().filter_map(line).collect();
        let drops = self
            .drops
            .iter()
            .map(|(node, reason)| (node.clone(), reason.clone()))
            .collect();
        RoundSummary {
            round: self.index,
            attempt: self.attempt,
            updates,
            drops,
        }
    }
}
