//! Event logs: what was extended into the run-time measurement registers, in order, so that a verifier replays it and
//! compares the result with the registers of a quote.
//!
//! A log proves nothing by itself: whoever hands it over may write what it likes. It is evidence once
//! [`EventLog::replay`] gives exactly the quoted register; then nothing is left out, added or in another order.
//!
//! On the wire a log has the form of the confidential-computing event log (CCEL: UEFI 2.11, section 38.4; TCG PC Client
//! Platform Firmware Profile, section 10), to which Confidential Containers append their runtime events (AAEL): tagged
//! events over `DOMAIN OPERATION CONTENT`. Files may have dstack's form besides ([`EventLog::parse_file`]).

mod ccel;
mod dstack;
mod runtime;

#[cfg(test)]
mod tests;

use sha2::{Digest as _, Sha384};

pub use runtime::{DOMAIN, EventTextError, MAX_EVENT_TEXT_BYTES, RuntimeEvent};

/// Longest log that is read, in bytes: firmware leaves tables of 64 KiB and more.
pub const MAX_EVENT_LOG_BYTES: usize = 2 << 20;
/// Longest log that travels with evidence, in bytes: it shares a frame with a quote and claims.
pub const MAX_SHOWN_LOG_BYTES: usize = 24 * 1024;
/// Most events of a log.
pub const MAX_EVENTS: usize = 8192;
/// How many runtime registers a TD has.
pub const REGISTERS: usize = 4;

/// The type of events that tell something and extend nothing.
const EV_NO_ACTION: u32 = 3;

/// Why bytes are no event log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventLogError {
    /// Longer than a log can be here.
    #[error("an event log of {seen} bytes, wanted at most {most}")]
    TooLong {
        /// Its length, in bytes.
        seen: usize,
        /// What is read.
        most: usize,
    },
    /// More events than are read.
    #[error("an event log of more than {MAX_EVENTS} events")]
    TooMany,
    /// It ends inside a field.
    #[error("the event log ends inside {what} at byte {at}: {wanted} bytes wanted, {left} are left")]
    Cut {
        /// Where the field begins.
        at: usize,
        /// The field.
        what: &'static str,
        /// Its length, in bytes.
        wanted: usize,
        /// What is there, in bytes.
        left: usize,
    },
    /// A field has a value that it can't have.
    #[error("the event log has {what} {seen} at byte {at}, wanted {wanted}")]
    Value {
        /// Where the field begins.
        at: usize,
        /// The field.
        what: &'static str,
        /// What stands there.
        seen: u32,
        /// What may stand there.
        wanted: &'static str,
    },
    /// An event was not extended with SHA-384, or with two such digests.
    #[error("the event log's event at byte {at} has {seen} SHA-384 digests, wanted one")]
    Digests {
        /// Where the event begins.
        at: usize,
        /// How many.
        seen: usize,
    },
    /// A file of dstack's form that is none.
    #[error("the event log is not JSON of events: {cause}")]
    Json {
        /// What is wrong.
        cause: String,
    },
}

/// Something that was extended into a register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    register: usize,
    kind: u32,
    digest: [u8; 48],
    data: Vec<u8>,
    text: Option<String>,
}

impl Event {
    /// 0 to 3, as in RTMR0 to RTMR3.
    pub fn register(&self) -> usize {
        self.register
    }

    /// The event's type (TCG PC Client Platform Firmware Profile, section 10.4.1).
    pub fn kind(&self) -> u32 {
        self.kind
    }

    /// What was extended.
    pub fn digest(&self) -> &[u8; 48] {
        &self.digest
    }

    /// What a runtime event says, where what was extended is the digest of just that: `None` for events that merely come
    /// with a description.
    pub fn text(&self) -> Option<&str> {
        self.text.as_deref()
    }
}

/// Events in the order in which they were extended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventLog {
    events: Vec<Event>,
}

impl EventLog {
    /// Reads a log in the form of the CCEL. Firmware's table is filled up with 0xff, which ends it.
    ///
    /// # Errors
    /// [`EventLogError`] for anything else than whole events, each extended with SHA-384.
    pub fn parse(bytes: &[u8]) -> Result<Self, EventLogError> {
        ccel::parse(bytes, MAX_EVENT_LOG_BYTES)
    }

    /// Reads the log that came with evidence; `None` if none did.
    ///
    /// # Errors
    /// [`EventLogError`] as [`EventLog::parse`], and for more than [`MAX_SHOWN_LOG_BYTES`].
    pub fn parse_shown(bytes: &[u8]) -> Result<Option<Self>, EventLogError> {
        if bytes.is_empty() {
            return Ok(None);
        }
        ccel::parse(bytes, MAX_SHOWN_LOG_BYTES).map(Some)
    }

    /// Reads a log out of a file: in the form of the CCEL, or dstack's JSON.
    ///
    /// # Errors
    /// [`EventLogError`] if it is neither.
    pub fn parse_file(bytes: &[u8]) -> Result<Self, EventLogError> {
        // No CCEL begins so: its first byte is a register's number.
        if matches!(bytes.trim_ascii_start().first(), Some(b'[' | b'{')) {
            return dstack::parse(bytes);
        }
        Self::parse(bytes)
    }

    /// The log in the form of the CCEL, with the header that tools look for.
    pub fn to_bytes(&self) -> Vec<u8> {
        ccel::write(&self.events)
    }

    /// The events, in order.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// Adds an event.
    ///
    /// # Errors
    /// [`EventLogError::TooMany`] beyond [`MAX_EVENTS`].
    pub fn push(&mut self, event: Event) -> Result<(), EventLogError> {
        if self.events.len() >= MAX_EVENTS {
            return Err(EventLogError::TooMany);
        }
        self.events.push(event);
        Ok(())
    }

    /// The events of one register alone.
    #[must_use]
    pub fn of_register(&self, register: usize) -> Self {
        let events = self.events.iter().filter(|event| event.register == register);
        Self {
            events: events.cloned().collect(),
        }
    }

    /// The log as it was before its last event.
    #[must_use]
    pub fn without_last(&self) -> Self {
        let events = self
            .events
            .split_last()
            .map_or_else(Vec::new, |(_, before)| before.to_vec());
        Self { events }
    }

    /// What a register holds after these events, beginning from zeros as a TD's do.
    pub fn replay(&self, register: usize) -> [u8; 48] {
        let events = self.events.iter().filter(|event| event.register == register);
        events.fold([0; 48], |value, event| extended(&value, &event.digest))
    }
}

impl FromIterator<RuntimeEvent> for EventLog {
    fn from_iter<T: IntoIterator<Item = RuntimeEvent>>(events: T) -> Self {
        let events = events.into_iter().take(MAX_EVENTS);
        Self {
            events: events.map(|event| event.to_event()).collect(),
        }
    }
}

/// What a register holds once a digest has been extended into it.
pub fn extended(value: &[u8; 48], digest: &[u8; 48]) -> [u8; 48] {
    Sha384::new().chain_update(value).chain_update(digest).finalize().into()
}
