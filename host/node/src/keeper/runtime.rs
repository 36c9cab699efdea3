//! RTMR3: what the node is about to run is extended into it before, and a log of that goes with the node's evidence.
//!
//! The policy says what RTMR3 has to hold. Where that is zero, nothing is extended; where it may be anything, nodes extend what
//! they can, and say once where they can't; where a log has to explain it, a node that can't does not start.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use cloister_attestation::encoding::hex;
use cloister_attestation::measurement::Entry;
use cloister_attestation::{QuoteProvider, RaTlsIdentity, RuntimeEvent};
use cloister_policy::agreement::Rtmr3;

use crate::ui::{Exit, failed};

/// The register that runtime events go into.
const REGISTER: usize = 3;

/// What is extended at run time.
pub struct Runtime {
    provider: Arc<dyn QuoteProvider>,
    rule: Rtmr3,
    /// Something was not extended: a log would not explain what runs.
    given_up: AtomicBool,
}

impl Runtime {
    /// Extends by this provider, as far as the policy's rule wants it.
    pub fn new(provider: Arc<dyn QuoteProvider>, rule: Rtmr3) -> Self {
        Self {
            provider,
            rule,
            given_up: AtomicBool::new(false),
        }
    }

    /// Extends RTMR3 by what is about to run, in the order in which it is measured. Blocks.
    ///
    /// # Errors
    /// The platform can't, and the policy wants a log.
    pub fn extend(&self, entries: &[Entry]) -> Result<(), miette::Report> {
        if self.rule == Rtmr3::Zero {
            return Ok(());
        }
        let mut events: Vec<(&Entry, RuntimeEvent)> = entries
            .iter()
            .filter_map(|entry| Some((entry, RuntimeEvent::before(entry)?)))
            .collect();
        events.sort_by_key(|(entry, _)| (entry.role.as_str(), entry.name.as_str()));
        for (_, event) in events {
            if self.given_up.load(Ordering::Relaxed) {
                return Ok(());
            }
            match self.provider.extend(&event) {
                Ok(()) => tracing::info!("RTMR3 extended by {:?}", event.to_string()),
                Err(error) => self.give_up(&error)?,
            }
        }
        Ok(())
    }

    /// The same identity, which shows a log beside its quotes if there is one.
    ///
    /// # Errors
    /// The policy wants a log, and this node has none that explains its own quotes: peers would refuse it.
    pub fn explain(&self, identity: RaTlsIdentity) -> Result<RaTlsIdentity, miette::Report> {
        if self.rule == Rtmr3::Zero || self.given_up.load(Ordering::Relaxed) {
            return Ok(identity);
        }
        match self.log(&identity) {
            Ok(log) => Ok(identity.with_event_log(log)),
            Err(why) => self.give_up(&why).map(|()| identity),
        }
    }

    /// The log, or why it is of no use.
    fn log(&self, identity: &RaTlsIdentity) -> Result<Bytes, String> {
        let log = self.provider.event_log().map_err(|error| error.to_string())?;
        let log = log.ok_or("nothing here keeps one")?.of_register(REGISTER);
        let quoted = &identity.td.rtmr[REGISTER];
        if &log.replay(REGISTER) != quoted {
            return Err(format!(
                "the {} events of the log give {}, and quotes show {}: something else extends RTMR3",
                log.events().len(),
                hex(&log.replay(REGISTER)),
                hex(quoted)
            ));
        }
        let log = Bytes::from(log.to_bytes());
        let most = identity.room_for_log();
        if log.len() > most {
            return Err(format!(
                "it has {} bytes, {most} have a place beside quote and claims",
                log.len()
            ));
        }
        Ok(log)
    }

    /// Goes on without a log, and says so; unless the policy wants one.
    fn give_up(&self, why: &dyn std::fmt::Display) -> Result<(), miette::Report> {
        if let Rtmr3::Log { .. } = self.rule {
            return Err(failed(
                Exit::Denied,
                format!("the policy wants RTMR3 explained by a log, and this node has none: {why}"),
                Some("run it where RTMR3 can be extended (Linux 6.16, or a pod whose agent keeps a log), or agree on `rtmr3 = \"zero\"`".into()),
            ));
        }
        self.given_up.store(true, Ordering::Relaxed);
        tracing::warn!("evidence goes without a log of RTMR3: {why}");
        Ok(())
    }
}
