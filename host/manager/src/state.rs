//! Everything that a manager knows, in memory: read once from its store, and from then on what counts.

use std::collections::BTreeMap;

use cloister_tensor::Digest;

use crate::agreement::Agreement;
use crate::connections::Connections;
use crate::counter::Counters;
use crate::lease::Leases;
use crate::secrets::Secrets;

/// Refusals of one asker that are written into the audit log in a minute.
const REFUSALS_A_MINUTE: u32 = 60;
/// Askers that are counted one by one; those beyond share a count.
const MAX_ASKERS: usize = 2048;

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) agreement: Agreement,
    pub(crate) secrets: Secrets,
    pub(crate) counters: Counters,
    pub(crate) leases: Leases,
    pub(crate) connections: Connections,
    pub(crate) refusals: Refusals,
}

impl State {
    pub(crate) fn new(federation: &str, anchor: Digest) -> Self {
        Self {
            agreement: Agreement::new(federation, anchor),
            secrets: Secrets::default(),
            counters: Counters::default(),
            leases: Leases::default(),
            connections: Connections::default(),
            refusals: Refusals::default(),
        }
    }

    /// Takes a record that was read; the text says what is wrong with it.
    pub(crate) fn read(&mut self, name: &str, content: &[u8]) -> Result<(), String> {
        if name.starts_with(Agreement::POLICY) {
            self.agreement.read_policy(content)
        } else if let Some(rest) = name.strip_prefix(Agreement::VOW) {
            self.agreement.read_vow(rest, content)
        } else if let Some(rest) = name.strip_prefix(Agreement::TAKEN_BACK) {
            self.agreement.read_taken_back(rest)
        } else if name.starts_with(Agreement::EQUIVOCATION) {
            self.agreement.read_equivocation(content)
        } else if let Some(rest) = name.strip_prefix(Secrets::CONSENT_PREFIX) {
            self.secrets.read_consent(rest, content)
        } else if let Some(rest) = name.strip_prefix(Secrets::PREFIX) {
            self.secrets.read(rest, content)
        } else if let Some(rest) = name.strip_prefix(Counters::PREFIX) {
            self.counters.read(rest, content)
        } else if let Some(rest) = name.strip_prefix(Leases::PREFIX) {
            self.leases.read(rest, content)
        } else {
            Err("no record has such a name".to_owned())
        }
    }
}

/// How many refusals of each asker were written this minute, so that none of them fills the log.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    askers: BTreeMap<String, Counted>,
}

#[derive(Debug, Default)]
struct Counted {
    minute: u64,
    written: u32,
    left_out: u64,
}

impl Refusals {
    /// Whether one more is to be written, and how many were left out since the last one that was.
    pub(crate) fn count(&mut self, asker: &str, now_unix_s: u64) -> Option<u64> {
        let asker = if self.askers.contains_key(asker) || self.askers.len() < MAX_ASKERS {
            asker
        } else {
            ""
        };
        let counted = self.askers.entry(asker.to_owned()).or_default();
        let minute = now_unix_s / 60;
        if counted.minute != minute {
            (counted.minute, counted.written) = (minute, 0);
        }
        if counted.written >= REFUSALS_A_MINUTE {
            counted.left_out += 1;
            return None;
        }
        counted.written += 1;
        Some(std::mem::take(&mut counted.left_out))
    }
}
