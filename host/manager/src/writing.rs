//! What a turn writes into the audit log.

use std::sync::Arc;

use cloister_attestation::identity::is_name;
use cloister_policy::Permit;
use serde_json::{Value, json};

use crate::notes::{ExportNote, may_note};
use crate::refused::Refused;
use crate::release;
use crate::turn::Turn;

/// Longest content of a note, in bytes of its JSON.
pub const MAX_NOTE_BYTES: usize = 32 * 1024;
/// Longest reason of a refusal in the audit log, in characters.
const MAX_REASON_CHARS: usize = 512;

impl Turn<'_> {
    /// Writes down that an aggregator is about to let a model out.
    ///
    /// # Errors
    /// [`Refused::NotItsToNote`], [`Refused::BadName`] of no recipient, [`Refused::TooManyNotes`].
    pub fn export(&mut self, who: &Permit, export: &ExportNote) -> Result<(), Refused> {
        let now = self.now_unix_s;
        let result = self.as_node(who, |state, node, _| {
            may_note(who)?;
            export.check()?;
            state.notes.export(node, now)
        });
        self.or_logged(who.node(), "export", result)?;
        let ExportNote { to, round, model } = export;
        self.log(
            "export",
            json!({ "node": who.node(), "to": to, "round": round, "model": model }),
        );
        Ok(())
    }

    /// Writes down which evidence a node showed, once for each of its sessions, when it first does something over it.
    pub(crate) fn meet(&mut self, who: &Permit) {
        let (now, state) = (self.now_unix_s, &mut *self.state);
        let policy = state.agreement.active().map(Arc::as_ref);
        let Ok(asker) = release::asker(policy, who.into(), now) else {
            return;
        };
        if state.connections.meet(&asker) && state.notes.attested(who.node(), now) {
            let what = json!({
                "node": who.node(),
                "participant": who.participant(),
                "role": who.role().as_str(),
                "state": who.state().as_str(),
                "measurement": who.measurement_root(),
                "tcb": who.tcb_status(),
            });
            self.log("attested", what);
        }
    }

    /// Writes into the audit log what happened elsewhere in the manager.
    ///
    /// # Errors
    /// [`Refused::BadName`], [`Refused::TooMuch`].
    pub fn note(&mut self, event: &str, what: Value) -> Result<(), Refused> {
        if !is_name(event) {
            let seen = event.chars().take(64).collect();
            return Err(Refused::BadName { seen });
        }
        let (seen, limit) = (what.to_string().len(), MAX_NOTE_BYTES);
        if seen > limit {
            let what = "bytes in a note";
            return Err(Refused::TooMuch { what, seen, limit });
        }
        self.log(event, what);
        Ok(())
    }

    /// Writes a refusal down, unless it says again what was said last; and when it is granted at last, how often it was refused meanwhile.
    pub(crate) fn or_logged<T>(&mut self, asker: &str, what: &str, result: Result<T, Refused>) -> Result<T, Refused> {
        let done = self.or_refused(asker, what, result)?;
        self.settle(asker, what);
        Ok(done)
    }

    /// The same, for what may be granted to one instance of a node while another one is refused.
    pub(crate) fn or_refused<T>(&mut self, asker: &str, what: &str, result: Result<T, Refused>) -> Result<T, Refused> {
        if let Err(refused) = &result
            && let matter = refused.matter()
            && let Some(left_out) = self.state.refusals.count(asker, (what, &matter), self.now_unix_s)
        {
            let reason: String = refused.to_string().chars().take(MAX_REASON_CHARS).collect();
            let mut entry = json!({ "what": what, "by": asker, "code": refused.code(), "reason": reason });
            if left_out > 0 {
                entry["left_out_before"] = left_out.into();
            }
            self.log("refused", entry);
        }
        result
    }

    /// What was refused is granted now.
    pub(crate) fn settle(&mut self, asker: &str, what: &str) {
        let times = self.state.refusals.settle(asker, what);
        if times > 0 {
            self.log("refused-again", json!({ "what": what, "by": asker, "times": times }));
        }
    }

    pub(crate) fn log(&mut self, event: &str, what: Value) {
        let index = self.chain.lines();
        match self.chain.append(event, what, self.now_unix_s, self.key) {
            Ok(line) => self.done.lines.push((index, line)),
            Err(error) => self.done.broken = Some(error.to_string()),
        }
    }
}
