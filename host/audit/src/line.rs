//! One line: the entry, the digest of the line before it, and the node's signature (`FORMAT.md`, section 1).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cloister_attestation::encoding::Layout;
use cloister_attestation::identity::SigningKey;
use cloister_tensor::Digest;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::AuditError;

/// Longest line, in bytes, without the newline.
pub const MAX_LINE_BYTES: usize = 64 * 1024;

/// What stands between the entry and the signature, and behind that.
const BEFORE_SIGNATURE: &str = ",\"signature\":\"";
const BEHIND_SIGNATURE: &str = "\"}";
/// Base64 of 64 bytes.
const SIGNATURE_CHARS: usize = 88;
const TAIL_BYTES: usize = BEFORE_SIGNATURE.len() + SIGNATURE_CHARS + BEHIND_SIGNATURE.len();

/// Whose log it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The federation.
    pub federation: String,
    /// The node.
    pub node: String,
}

impl Subject {
    /// What stands as the digest before the first line.
    pub(crate) fn origin(&self) -> Digest {
        let layout = Layout::new("cloister/audit-origin/v1");
        let layout = layout.lp(self.federation.as_bytes()).lp(self.node.as_bytes());
        Digest::of(&layout.into_bytes())
    }

    /// What the node signs for the line of that index whose head has that digest.
    pub(crate) fn message(&self, index: u64, head: &Digest) -> Vec<u8> {
        Layout::new("cloister/audit/v1")
            .lp(self.federation.as_bytes())
            .lp(self.node.as_bytes())
            .raw(&index.to_be_bytes())
            .raw(head.as_bytes())
            .into_bytes()
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Which line, from 0.
    pub index: u64,
    /// When, by the node's clock, in seconds since 1970.
    pub time_unix_s: u64,
    /// What kind of thing.
    pub event: String,
    /// What there is to know of it.
    pub what: serde_json::Value,
    /// Digest of the line before it.
    pub before: Digest,
}

/// An entry with its content passed over: enough to check the chain.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Link<'a> {
    index: u64,
    #[serde(rename = "time_unix_s")]
    _time_unix_s: u64,
    #[serde(borrow, rename = "event")]
    _event: std::borrow::Cow<'a, str>,
    #[serde(rename = "what")]
    _what: IgnoredAny,
    before: Digest,
}

/// A line that was written.
pub(crate) struct Written {
    /// The line, without the newline.
    pub(crate) text: String,
    /// Digest of the whole line, which the next one holds.
    pub(crate) digest: Digest,
    /// Digest of its head.
    pub(crate) head_digest: Digest,
    /// The node's signature over that.
    pub(crate) signature: [u8; 64],
}

/// Writes and signs a line.
pub(crate) fn write(entry: &Entry, subject: &Subject, key: &SigningKey) -> Result<Written, AuditError> {
    let mut text = serde_json::to_string(entry).map_err(|error| AuditError::Malformed {
        line: entry.index + 1,
        why: error.to_string(),
    })?;
    // The signature takes the place of the closing brace.
    let end = text.pop();
    debug_assert_eq!(end, Some('}'));
    let seen = text.len() + TAIL_BYTES;
    if seen > MAX_LINE_BYTES {
        let limit = MAX_LINE_BYTES;
        return Err(AuditError::TooLong { seen, limit });
    }
    let head_digest = digest(HEAD, text.as_bytes());
    let signature = key.sign(&subject.message(entry.index, &head_digest));
    text.push_str(BEFORE_SIGNATURE);
    text.push_str(&STANDARD.encode(signature));
    text.push_str(BEHIND_SIGNATURE);
    Ok(Written {
        digest: digest(LINE, text.as_bytes()),
        text,
        head_digest,
        signature,
    })
}

const HEAD: &str = "cloister/audit-head/v1";
const LINE: &str = "cloister/audit-line/v1";

fn digest(domain: &str, bytes: &[u8]) -> Digest {
    Digest::of(&Layout::new(domain).lp(bytes).into_bytes())
}

/// A line that was read, and what it is worth.
pub(crate) struct Line<'a> {
    head: &'a str,
    /// Digest of the whole line, which the next one holds.
    pub(crate) digest: Digest,
    /// Digest of its head, which the node signs.
    pub(crate) head_digest: Digest,
    /// The signature that stands there.
    pub(crate) signature: [u8; 64],
}

impl<'a> Line<'a> {
    /// Takes a line apart; `Err` says why it is none.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8 text".to_owned())?;
        let cut = text
            .len()
            .checked_sub(TAIL_BYTES)
            .and_then(|cut| text.split_at_checked(cut));
        let (head, tail) = cut.ok_or("it is too short to be signed")?;
        let signature = tail
            .strip_prefix(BEFORE_SIGNATURE)
            .and_then(|rest| rest.strip_suffix(BEHIND_SIGNATURE))
            .and_then(|signature| STANDARD.decode(signature).ok())
            .and_then(|signature| signature.try_into().ok())
            .ok_or("it does not end with a signature")?;
        Ok(Self {
            head,
            digest: digest(LINE, bytes),
            head_digest: digest(HEAD, head.as_bytes()),
            signature,
        })
    }

    /// Its index, and the digest that it has of the line before it.
    pub(crate) fn link(&self) -> Result<(u64, Digest), String> {
        let whole = format!("{}}}", self.head);
        let link: Link<'_> = serde_json::from_str(&whole).map_err(|error| error.to_string())?;
        Ok((link.index, link.before))
    }

    /// All of it.
    pub(crate) fn entry(&self) -> Result<Entry, String> {
        serde_json::from_str(&format!("{}}}", self.head)).map_err(|error| error.to_string())
    }
}
