//! The node's audit log: what happened at this node, in lines that it signs (`cloister_audit`).

use std::sync::{Arc, Mutex, PoisonError};

use cloister_attestation::NodeIdentity;
use cloister_audit::{AuditError, Entry, Log, Subject};
use cloister_exchange::work::RoundRecord;
use cloister_session::Clock;
use serde_json::{Value, json};

use super::config::NodeConfig;
use crate::ui::{Exit, fail, failed};

/// Refusals that are written down a minute. Whoever can dial can cause them, and a log has to hold the rest, too: the next one
/// that is written says how many were left out.
const REFUSALS_A_MINUTE: u32 = 60;

/// The entry that says which policy the node runs.
pub const AGREEMENT: &str = "agreement";

/// Where things are written down; nowhere, where the node file names no log.
#[derive(Clone)]
pub struct Audit {
    open: Option<Arc<Open>>,
}

struct Open {
    log: Mutex<Log>,
    refusals: Mutex<Refusals>,
    identity: Arc<NodeIdentity>,
    clock: Clock,
}

/// Refusals of the current minute.
#[derive(Default)]
pub struct Refusals {
    minute: u64,
    written: u32,
    left_out: u64,
}

impl Refusals {
    /// Whether one more is written now, and then how many were left out before it.
    pub fn one_more(&mut self, now_unix_s: u64) -> Option<u64> {
        let minute = now_unix_s / 60;
        if minute != self.minute {
            (self.minute, self.written) = (minute, 0);
        }
        if self.written >= REFUSALS_A_MINUTE {
            self.left_out += 1;
            return None;
        }
        self.written += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

impl Audit {
    /// Opens the log that the node file names, and reads it through. A policy of a lower version than one that this node ran by its log
    /// is refused: a policy that took effect is not forgotten.
    pub fn open(
        config: &NodeConfig,
        identity: &Arc<NodeIdentity>,
        policy_version: u64,
        clock: Clock,
    ) -> Result<Self, miette::Report> {
        let Some(path) = &config.audit else {
            return Ok(Self { open: None });
        };
        let fields = &identity.credential.fields;
        let subject = Subject {
            federation: fields.federation.clone(),
            node: fields.node.clone(),
        };
        let mut newest = 0;
        let mut each = |entry: Entry| {
            if entry.event == AGREEMENT {
                newest = newest.max(entry.what["version"].as_u64().unwrap_or(0));
            }
        };
        let log = Log::open(path, subject, &identity.key, &mut each).map_err(|error| {
            let help = "`cloister audit verify` says more; move the file away (and keep it) to begin a new one";
            failed(Exit::Failed, format!("{}: {error}", path.display()), Some(help.into()))
        })?;
        if newest > policy_version {
            let text = format!(
                "this node's policy is version {policy_version}, but by its audit log {} it has run version {newest}",
                path.display()
            );
            let help = "run the newest policy: one that took effect is not taken back, but followed by another";
            return Err(failed(Exit::Denied, text, Some(help.into())));
        }
        Ok(Self {
            open: Some(Arc::new(Open {
                log: Mutex::new(log),
                refusals: Mutex::default(),
                identity: Arc::clone(identity),
                clock,
            })),
        })
    }

    /// Writes something down, and comes back when it is on the disk.
    pub fn record(&self, event: &str, what: Value) -> Result<(), AuditError> {
        let Some(open) = &self.open else { return Ok(()) };
        let mut log = open.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.append(event, what, (open.clock)(), &open.identity.key)
    }

    /// As [`Audit::record`], at the start of a node: what can't be written down keeps it from starting.
    pub fn must(&self, event: &str, what: Value) -> Result<(), miette::Report> {
        self.record(event, what).map_err(|error| fail(Exit::Failed, error))
    }

    /// As [`Audit::record`], where nothing can be undone any more: the next round fails, since the log takes nothing after a failure.
    pub fn note(&self, event: &str, what: Value) {
        if let Err(error) = self.record(event, what) {
            tracing::error!("{event} is not written down: {error}");
        }
    }

    /// Writes a refusal down, within a rate.
    pub fn refused(&self, reason: &str) {
        let Some(open) = &self.open else { return };
        let now = (open.clock)();
        let mut refusals = open.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(left_out) = refusals.one_more(now) {
            let reason: String = reason.chars().take(4096).collect();
            self.note("refused", json!({ "reason": reason, "left_out_before": left_out }));
        }
    }

    /// Writes a round down, by its receipt.
    pub fn round(&self, record: &RoundRecord) -> Result<(), AuditError> {
        let receipt = &record.receipt;
        let updates = receipt.updates.iter();
        let updates: Vec<_> = updates
            .map(|update| {
                json!({ "node": update.node, "rows": update.rows, "digest": update.digest, "base": update.base })
            })
            .collect();
        let drops = receipt.drops.iter();
        let drops: Vec<_> = drops
            .map(|drop| json!({ "node": drop.node, "code": drop.code }))
            .collect();
        let mut what = json!({
            "round": receipt.round,
            "attempt": receipt.attempt,
            "receipt": receipt.digest(),
            "roster": receipt.roster_digest,
            "model_before": receipt.model_before,
            "model_after": receipt.model_after,
            "updates": updates,
            "dropped": drops,
        });
        if let Some(state) = &receipt.state {
            what["state"] = json!(state);
        }
        self.record("round", what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refusals_leaves_room_for_the_rest_and_is_counted() {
        let mut refusals = Refusals::default();
        let written = (0..1000).filter(|_| refusals.one_more(60).is_some()).count();
        assert_eq!(written, 60);
        assert_eq!(refusals.one_more(120), Some(940));
        assert_eq!(refusals.one_more(121), Some(0));
    }
}
