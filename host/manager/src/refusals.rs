//! Which refusals are written into the audit log: each once, and of each asker so many in a minute that none fills the log.

use std::collections::BTreeMap;

/// Refusals of one asker that are written in a minute.
const A_MINUTE: u32 = 60;
/// One that goes on is written again after this time, in seconds.
const AGAIN_S: u64 = 3_600;
/// Askers that are counted one by one; those beyond share a count.
const MAX_ASKERS: usize = 2048;

/// So many in a minute.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    minute: u64,
    taken: u32,
}

impl Budget {
    /// Takes one, if one is left.
    pub(crate) fn take(&mut self, most: u32, now_unix_s: u64) -> bool {
        let minute = now_unix_s / 60;
        if self.minute != minute {
            (self.minute, self.taken) = (minute, 0);
        }
        let left = self.taken < most;
        self.taken += u32::from(left);
        left
    }
}

/// What was refused of each asker, in memory.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    askers: BTreeMap<String, Counted>,
}

#[derive(Debug, Default)]
struct Counted {
    budget: Budget,
    left_out: u64,
    last: Option<Last>,
}

/// The refusal that was written last.
#[derive(Debug)]
struct Last {
    what: String,
    matter: String,
    written_unix_s: u64,
}

impl Refusals {
    /// Whether one more is to be written, and how many were left out since the last one that was. One is not that says the same as the
    /// one before it: a node that waits for something asks for it again and again.
    pub(crate) fn count(&mut self, asker: &str, (what, matter): (&str, &str), now_unix_s: u64) -> Option<u64> {
        let asker = if self.askers.contains_key(asker) || self.askers.len() < MAX_ASKERS {
            asker
        } else {
            ""
        };
        let counted = self.askers.entry(asker.to_owned()).or_default();
        let same = |last: &Last| {
            let since_s = now_unix_s.saturating_sub(last.written_unix_s);
            last.what == what && last.matter == matter && since_s < AGAIN_S
        };
        if counted.last.as_ref().is_some_and(same) || !counted.budget.take(A_MINUTE, now_unix_s) {
            counted.left_out += 1;
            return None;
        }
        counted.last = Some(Last {
            what: what.to_owned(),
            matter: matter.to_owned(),
            written_unix_s: now_unix_s,
        });
        Some(std::mem::take(&mut counted.left_out))
    }

    /// What was refused last was granted: how often it was refused without being written.
    pub(crate) fn settle(&mut self, asker: &str, what: &str) -> u64 {
        let counted = self.askers.get_mut(asker);
        let settled = counted.filter(|counted| counted.last.as_ref().is_some_and(|last| last.what == what));
        settled.map_or(0, |counted| {
            counted.last = None;
            std::mem::take(&mut counted.left_out)
        })
    }
}
