//! RTMR3: what the node is about to run is extended into it before, and a log of that goes with the node's evidence.
//!
//! The policy says what RTMR3 has to hold. Where that is zero, nothing is extended; where it may be anything, nodes extend what
//! they can, and say once where they can't; where a log has to explain it, a node that can't does not start.

use std::collections::BTreeSet;
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
        let known = self.known();
        events.retain(|(_, event)| !known.contains(&event.to_string()));
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

    /// What the TD's log has already: a node that starts again in its TD need not extend it once more, and the log stays short.
    /// Should the log not be the register's, [`Runtime::explain`] finds it out.
    fn known(&self) -> BTreeSet<String> {
        let log = self.provider.event_log().ok().flatten().unwrap_or_default();
        let texts = log.events().iter().filter_map(|event| event.text().map(str::to_owned));
        texts.collect()
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use cloister_attestation::event_log::{EventLog, MAX_SHOWN_LOG_BYTES};
    use cloister_attestation::measurement::{EntryRole, Measurement};
    use cloister_attestation::simulated::SimulatedTd;
    use cloister_attestation::{ProviderError, State};
    use cloister_tensor::Digest;
    use cloister_testkit::device;
    use cloister_testkit::world::{NOW, World, WorldOptions};

    use super::*;

    /// A simulated TD that may be on a machine which extends nothing.
    struct Machine {
        td: Arc<SimulatedTd>,
        extends: bool,
        asked: AtomicUsize,
    }

    impl Machine {
        fn new(extends: bool) -> Arc<Self> {
            Arc::new(Self {
                td: device::td(),
                extends,
                asked: AtomicUsize::new(0),
            })
        }

        fn asked(&self) -> usize {
            self.asked.load(Ordering::SeqCst)
        }

        /// What it extended.
        fn texts(&self) -> Vec<String> {
            let log = self.td.event_log().unwrap().unwrap();
            let texts = log.events().iter().map(|event| event.text().unwrap().to_owned());
            texts.collect()
        }

        /// The certificate of a node on it, with the log that goes with it.
        fn shown(&self, runtime: &Runtime) -> Result<EventLog, String> {
            let world = World::new(WorldOptions::default());
            let node = world.node("worker-a").identity;
            let (measurement, policy) = (Measurement::new(Vec::new()).unwrap(), world.policy.digest());
            let identity = RaTlsIdentity::new(self, &node, State::Member, measurement, policy, NOW).unwrap();
            let identity = runtime.explain(identity).map_err(|error| format!("{error:?}"))?;
            Ok(EventLog::parse_shown(&identity.event_log).unwrap().unwrap_or_default())
        }
    }

    impl QuoteProvider for Machine {
        fn name(&self) -> &'static str {
            "machine"
        }

        fn simulated(&self) -> bool {
            true
        }

        fn quote(&self, report_data: &[u8; 64]) -> Result<Vec<u8>, ProviderError> {
            self.td.quote(report_data)
        }

        fn extend(&self, event: &RuntimeEvent) -> Result<(), ProviderError> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            if self.extends {
                return self.td.extend(event);
            }
            Err(ProviderError::CannotExtend {
                provider: "machine",
                cause: "it is too old".into(),
            })
        }

        fn event_log(&self) -> Result<Option<EventLog>, ProviderError> {
            self.td.event_log()
        }
    }

    fn log() -> Rtmr3 {
        Rtmr3::Log { others: Vec::new() }
    }

    fn entries() -> Vec<Entry> {
        [
            (EntryRole::Module, "train"),
            (EntryRole::Data, "rows"),
            (EntryRole::Graph, "b"),
            (EntryRole::Graph, "a"),
            (EntryRole::Host, "cloister"),
        ]
        .map(|(role, name)| Entry::new(role, name, Digest::of(name.as_bytes())))
        .to_vec()
    }

    #[test]
    fn graphs_and_modules_are_extended_in_the_order_in_which_they_are_measured() {
        for rule in [log(), Rtmr3::Any] {
            let machine = Machine::new(true);
            let runtime = Runtime::new(machine.clone(), rule);
            runtime.extend(&entries()).unwrap();
            let names: Vec<_> = machine
                .texts()
                .iter()
                .map(|text| text.rsplit_once(' ').unwrap().0.to_owned())
                .collect();
            assert_eq!(names, ["cloister graph a", "cloister graph b", "cloister module train"]);
            let shown = machine.shown(&runtime).unwrap();
            assert_eq!((shown.events().len(), shown.replay(3)), (3, machine.td.rtmr3()));
            // A node that starts again in the same TD finds them there.
            let again = Runtime::new(machine.clone(), log());
            again.extend(&entries()).unwrap();
            assert_eq!(machine.asked(), 3);
            assert_eq!(machine.shown(&again).unwrap(), shown);
        }
    }

    #[test]
    fn where_the_policy_wants_zeros_nothing_is_extended() {
        let machine = Machine::new(true);
        let runtime = Runtime::new(machine.clone(), Rtmr3::Zero);
        runtime.extend(&entries()).unwrap();
        assert_eq!((machine.asked(), machine.td.rtmr3()), (0, [0; 48]));
        assert_eq!(machine.shown(&runtime).unwrap(), EventLog::default());
    }

    #[test]
    fn a_machine_that_cannot_extend_is_asked_once_and_goes_without_a_log_unless_the_policy_wants_one() {
        let machine = Machine::new(false);
        let runtime = Runtime::new(machine.clone(), Rtmr3::Any);
        runtime.extend(&entries()).unwrap();
        runtime.extend(&entries()).unwrap();
        assert_eq!(machine.asked(), 1);
        assert_eq!(machine.shown(&runtime).unwrap(), EventLog::default());

        let runtime = Runtime::new(machine, log());
        let error = format!("{:?}", runtime.extend(&entries()).unwrap_err());
        assert!(error.contains("it is too old"), "{error}");
    }

    #[test]
    fn a_log_that_peers_would_refuse_is_not_shown() {
        let (long, meddled) = (Machine::new(true), Machine::new(true));
        let event = RuntimeEvent::new("agent", "Pull", &"x".repeat(1000)).unwrap();
        (0..=MAX_SHOWN_LOG_BYTES / 1000).for_each(|_| long.td.extend(&event).unwrap());
        meddled.td.extend_rtmr3(&[1; 48]);
        for (machine, wanted) in [(long, "have a place beside"), (meddled, "something else")] {
            let any = Runtime::new(machine.clone(), Rtmr3::Any);
            assert_eq!(machine.shown(&any).unwrap(), EventLog::default());
            let error = machine.shown(&Runtime::new(machine.clone(), log())).unwrap_err();
            let words: Vec<_> = error.split_whitespace().filter(|word| *word != "│").collect();
            assert!(words.join(" ").contains(wanted), "{error}");
        }
    }
}
