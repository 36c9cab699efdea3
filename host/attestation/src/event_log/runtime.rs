//! Events that are extended at run time, in the form of Confidential Containers (guest-components, AAEL): the tag, the
//! text's length, and `DOMAIN OPERATION CONTENT`; what is extended is SHA-384 over these bytes.

use std::fmt;

use sha2::{Digest as _, Sha384};

use super::Event;
use crate::measurement::{Entry, EntryRole};

/// The domain of what this host extends.
pub const DOMAIN: &str = "cloister";
/// Longest text of an event that is extended, in bytes.
pub const MAX_EVENT_TEXT_BYTES: usize = 1024;

/// The register that runtime events go into.
const REGISTER: usize = 3;
/// EV_EVENT_TAG.
pub(super) const TAGGED: u32 = 6;
/// The tag of such events, as a little-endian u32: "AAEL".
const TAG: u32 = 0x4141_454c;

/// Why texts are no event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a runtime event is DOMAIN OPERATION CONTENT, the first two without spaces, without control characters and at most \
     {MAX_EVENT_TEXT_BYTES} bytes"
)]
pub struct EventTextError;

/// An event to extend into RTMR3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeEvent {
    domain: String,
    operation: String,
    content: String,
}

impl RuntimeEvent {
    /// An event.
    ///
    /// # Errors
    /// [`EventTextError`] if the three texts could not be told apart again, or are too long.
    pub fn new(domain: &str, operation: &str, content: &str) -> Result<Self, EventTextError> {
        let word = |text: &str| !text.is_empty() && !text.contains(char::is_whitespace);
        let event = Self {
            domain: domain.to_owned(),
            operation: operation.to_owned(),
            content: content.to_owned(),
        };
        let text = event.to_string();
        let fits = text.len() <= MAX_EVENT_TEXT_BYTES && !text.contains(char::is_control);
        if fits && word(domain) && word(operation) && !content.is_empty() {
            return Ok(event);
        }
        Err(EventTextError)
    }

    /// What is extended before an entry of the measurement runs: `cloister ROLE NAME SHA256` for policies, modules and
    /// graphs, nothing for the others.
    pub fn before(entry: &Entry) -> Option<Self> {
        let runs = matches!(entry.role, EntryRole::Policy | EntryRole::Module | EntryRole::Graph);
        // A measurement's names are shorter than an event, and without control characters.
        runs.then(|| Self {
            domain: DOMAIN.to_owned(),
            operation: entry.role.as_str().to_owned(),
            content: format!("{} {}", entry.name, entry.digest),
        })
    }

    /// Whose event it is.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// What happens.
    pub fn operation(&self) -> &str {
        &self.operation
    }

    /// What it happens with.
    pub fn content(&self) -> &str {
        &self.content
    }

    /// What is extended.
    pub fn digest(&self) -> [u8; 48] {
        Sha384::digest(self.data()).into()
    }

    /// The event as it stands in a log.
    pub fn to_event(&self) -> Event {
        Event {
            register: REGISTER,
            kind: TAGGED,
            digest: self.digest(),
            data: self.data(),
            text: Some(self.to_string()),
        }
    }

    fn data(&self) -> Vec<u8> {
        let text = self.to_string();
        let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
        [&TAG.to_le_bytes(), &length.to_le_bytes(), text.as_bytes()].concat()
    }
}

impl fmt::Display for RuntimeEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.domain, self.operation, self.content)
    }
}

/// The text of a runtime event, if these are one's type and data and `digest` is that of the data.
pub(super) fn text(kind: u32, digest: &[u8; 48], data: &[u8]) -> Option<String> {
    let (tag, rest) = data.split_first_chunk::<4>()?;
    let (length, text) = rest.split_first_chunk::<4>()?;
    let tagged = kind == TAGGED && u32::from_le_bytes(*tag) == TAG;
    let whole = usize::try_from(u32::from_le_bytes(*length)) == Ok(text.len());
    if !tagged || !whole || Sha384::digest(data)[..] != digest[..] {
        return None;
    }
    str::from_utf8(text).ok().and_then(shown)
}

/// A text that may be shown: what is longer, or would play tricks on a terminal, is none.
pub(super) fn shown(text: &str) -> Option<String> {
    let fits = text.len() <= MAX_EVENT_TEXT_BYTES && !text.contains(char::is_control);
    fits.then(|| text.to_owned())
}
