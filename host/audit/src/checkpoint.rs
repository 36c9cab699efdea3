//! What others keep of a log: how long it was, and what its last line was, signed by the node.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cloister_attestation::identity::PublicKey;
use cloister_tensor::Digest;
use serde::{Deserialize, Serialize};

use crate::AuditError;
use crate::line::{Line, Subject};

/// Longest checkpoint file, in bytes.
const MAX_BYTES: usize = 4096;

/// A log's length and last line, signed by the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Whose log it is.
    pub subject: Subject,
    /// How many lines it had; at least one.
    pub lines: u64,
    /// Digest of the head of the last of them: what the node signed.
    pub digest: Digest,
    /// The node's signature, as it stands in that line.
    pub signature: [u8; 64],
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    federation: String,
    node: String,
    lines: u64,
    digest: Digest,
    signature: String,
}

impl Checkpoint {
    /// Reads a checkpoint file. Whether the node signed it is for [`Checkpoint::verify`] to say.
    ///
    /// # Errors
    /// [`AuditError::NoCheckpoint`].
    pub fn parse(bytes: &[u8]) -> Result<Self, AuditError> {
        let no = |why: String| AuditError::NoCheckpoint { why };
        if bytes.len() > MAX_BYTES {
            return Err(no(format!("{} bytes, at most {MAX_BYTES} are read", bytes.len())));
        }
        let file: File = serde_json::from_slice(bytes).map_err(|error| no(error.to_string()))?;
        let signature = STANDARD
            .decode(&file.signature)
            .ok()
            .and_then(|bytes| bytes.try_into().ok());
        if file.format != 1 || file.lines == 0 {
            return Err(no("format 1 and at least one line are wanted".to_owned()));
        }
        Ok(Self {
            subject: Subject {
                federation: file.federation,
                node: file.node,
            },
            lines: file.lines,
            digest: file.digest,
            signature: signature.ok_or_else(|| no("its signature is not base64 of 64 bytes".to_owned()))?,
        })
    }

    /// What a line, without its newline, is as a checkpoint: that the log had a line of that index and content.
    ///
    /// # Errors
    /// [`AuditError::Malformed`].
    pub fn of_line(subject: &Subject, line: &[u8]) -> Result<Self, AuditError> {
        let malformed = |why: String| AuditError::Malformed { line: 1, why };
        let parsed = Line::read(line).map_err(malformed)?;
        let (index, _) = parsed.link().map_err(malformed)?;
        Ok(Self {
            subject: subject.clone(),
            lines: index.saturating_add(1),
            digest: parsed.head_digest,
            signature: parsed.signature,
        })
    }

    /// The file's text.
    pub fn to_text(&self) -> String {
        let file = File {
            format: 1,
            federation: self.subject.federation.clone(),
            node: self.subject.node.clone(),
            lines: self.lines,
            digest: self.digest,
            signature: STANDARD.encode(self.signature),
        };
        // Strings and numbers: this cannot fail.
        serde_json::to_string_pretty(&file).unwrap_or_default() + "\n"
    }

    /// Whether it is that node's.
    ///
    /// # Errors
    /// [`AuditError::StrangeCheckpoint`].
    pub fn verify(&self, subject: &Subject, key: &PublicKey) -> Result<(), AuditError> {
        if self.subject != *subject {
            let why = "it names another federation or node";
            return Err(AuditError::StrangeCheckpoint { why });
        }
        if !key.verify(&subject.message(self.lines - 1, &self.digest), &self.signature) {
            let why = "its signature is not by this node's key";
            return Err(AuditError::StrangeCheckpoint { why });
        }
        Ok(())
    }
}
