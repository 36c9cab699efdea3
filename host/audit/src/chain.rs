//! The end of a log: what the next line has to follow.

use cloister_attestation::identity::{PublicKey, SigningKey};
use cloister_tensor::Digest;

use crate::line::{self, Entry, Line, Subject};
use crate::{AuditError, Checkpoint};

/// The lines of a log so far, of which it keeps the number and the last one's digest: enough to write the next line, or to tell
/// whether one that was read follows. [`crate::Log`] and [`crate::Reader`] work with it over files; who keeps the lines elsewhere
/// works with it alone.
#[derive(Clone, Debug)]
pub struct Chain {
    subject: Subject,
    lines: u64,
    digest: Digest,
    /// Head digest and signature of the last line.
    last: Option<(Digest, [u8; 64])>,
}

impl Chain {
    /// A log of that node without a line.
    pub fn new(subject: Subject) -> Self {
        let digest = subject.origin();
        Self {
            subject,
            lines: 0,
            digest,
            last: None,
        }
    }

    /// Whose log it is.
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// How many lines there are.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// Digest of the last line; of the origin if there is none.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The last line as a checkpoint, if there is a line.
    pub fn checkpoint(&self) -> Option<Checkpoint> {
        self.last.map(|(digest, signature)| Checkpoint {
            subject: self.subject.clone(),
            lines: self.lines,
            digest,
            signature,
        })
    }

    /// The next line, signed and without its newline.
    ///
    /// # Errors
    /// [`AuditError::TooLong`]; the chain is as it was.
    pub fn append(
        &mut self,
        event: &str,
        what: serde_json::Value,
        now_unix_s: u64,
        key: &SigningKey,
    ) -> Result<String, AuditError> {
        let entry = Entry {
            index: self.lines,
            time_unix_s: now_unix_s,
            event: event.to_owned(),
            what,
            before: self.digest,
        };
        let written = line::write(&entry, &self.subject, key)?;
        self.lines += 1;
        self.digest = written.digest;
        self.last = Some((written.head_digest, written.signature));
        Ok(written.text)
    }

    /// Takes a line, without its newline, that has to be the next one. Its signature is not looked at: [`Chain::verify`] does
    /// that for the last one, which vouches for all.
    ///
    /// # Errors
    /// [`AuditError::Malformed`] or [`AuditError::Broken`]; the chain is as it was.
    pub fn follow(&mut self, line: &[u8]) -> Result<(), AuditError> {
        self.follow_line(line).map(|_| ())
    }

    pub(crate) fn follow_line<'a>(&mut self, bytes: &'a [u8]) -> Result<Line<'a>, AuditError> {
        let line = self.lines + 1;
        let malformed = |why: String| AuditError::Malformed { line, why };
        let parsed = Line::read(bytes).map_err(malformed)?;
        let (index, before) = parsed.link().map_err(malformed)?;
        if index != self.lines {
            let what = "its index is not the next one";
            return Err(AuditError::Broken { line, what });
        }
        if before != self.digest {
            let what = "it has another digest of the line before it";
            return Err(AuditError::Broken { line, what });
        }
        self.lines = line;
        self.digest = parsed.digest;
        self.last = Some((parsed.head_digest, parsed.signature));
        Ok(parsed)
    }

    /// Whether the node signed the last line, and so all of them. A log without a line has nobody's signature.
    ///
    /// # Errors
    /// [`AuditError::Unsigned`].
    pub fn verify(&self, key: &PublicKey) -> Result<(), AuditError> {
        match self.checkpoint() {
            Some(last) if last.verify(&self.subject, key).is_err() => Err(AuditError::Unsigned { line: self.lines }),
            _ => Ok(()),
        }
    }
}
