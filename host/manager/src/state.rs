//! Everything that a manager knows, in memory: read once from its store, and from then on what counts.

use cloister_tensor::Digest;

use crate::agreement::Agreement;
use crate::connections::Connections;
use crate::counter::Counters;
use crate::lease::Leases;
use crate::notes::Notes;
use crate::refusals::Refusals;
use crate::secrets::Secrets;

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) agreement: Agreement,
    pub(crate) secrets: Secrets,
    pub(crate) counters: Counters,
    pub(crate) leases: Leases,
    pub(crate) connections: Connections,
    pub(crate) refusals: Refusals,
    pub(crate) notes: Notes,
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
            notes: Notes::default(),
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
