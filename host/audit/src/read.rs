//! Reading a log from its first line to its last, and what may be believed of it.

use std::io::{BufRead, Read as _};

use cloister_attestation::identity::PublicKey;
use cloister_tensor::Digest;

use crate::line::{Entry, Line, MAX_LINE_BYTES, Subject};
use crate::{AuditError, Checkpoint};

/// What a whole log holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// How many lines.
    pub lines: u64,
    /// Digest of the last line; of the origin if there is none.
    pub digest: Digest,
    /// Bytes of the whole lines.
    pub whole_bytes: u64,
    /// Bytes behind the last newline: a line that the node was writing when it stopped. It was never acknowledged.
    pub torn_bytes: u64,
    /// The last line as a checkpoint, if there is a line.
    pub last: Option<Checkpoint>,
}

/// Reads a log line by line and checks that each follows the one before it.
#[derive(Clone, Debug)]
pub struct Reader {
    subject: Subject,
    checkpoints: Vec<Checkpoint>,
}

impl Reader {
    /// Reads the log of that node.
    pub fn new(subject: Subject) -> Self {
        Self {
            subject,
            checkpoints: Vec::new(),
        }
    }

    /// Wants the log to extend that checkpoint, which must be of this node.
    ///
    /// # Errors
    /// [`AuditError::StrangeCheckpoint`].
    pub fn extends(mut self, checkpoint: Checkpoint, key: &PublicKey) -> Result<Self, AuditError> {
        checkpoint.verify(&self.subject, key)?;
        self.checkpoints.push(checkpoint);
        Ok(self)
    }

    /// Reads all of it and checks chain, checkpoints and the last line's signature. That one signature vouches for all lines.
    ///
    /// # Errors
    /// The first line that does not follow the one before it, or [`AuditError::Unsigned`], [`AuditError::CutOff`],
    /// [`AuditError::Forked`].
    pub fn verify(&self, source: &mut dyn BufRead, key: &PublicKey) -> Result<Contents, AuditError> {
        self.walk(source, key, None)
    }

    /// As [`Reader::verify`], and gives every entry to `each` on the way. What `each` gets is proven only when this ends well.
    ///
    /// # Errors
    /// As [`Reader::verify`].
    pub fn entries(
        &self,
        source: &mut dyn BufRead,
        key: &PublicKey,
        each: &mut dyn FnMut(Entry),
    ) -> Result<Contents, AuditError> {
        self.walk(source, key, Some(each))
    }

    fn walk(
        &self,
        source: &mut dyn BufRead,
        key: &PublicKey,
        mut each: Option<&mut dyn FnMut(Entry)>,
    ) -> Result<Contents, AuditError> {
        let mut contents = Contents {
            lines: 0,
            digest: self.subject.origin(),
            whole_bytes: 0,
            torn_bytes: 0,
            last: None,
        };
        let mut buffer = Vec::with_capacity(1024);
        loop {
            buffer.clear();
            let read = source.take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', &mut buffer);
            read.map_err(AuditError::io("read"))?;
            let line = contents.lines + 1;
            let malformed = |why: String| AuditError::Malformed { line, why };
            let Some(bytes) = buffer.strip_suffix(b"\n") else {
                if buffer.len() > MAX_LINE_BYTES {
                    return Err(malformed(format!("it is longer than {MAX_LINE_BYTES} bytes")));
                }
                contents.torn_bytes = buffer.len() as u64;
                break;
            };
            let parsed = Line::read(bytes).map_err(malformed)?;
            let (index, before) = parsed.link().map_err(malformed)?;
            if index != contents.lines {
                let what = "its index is not the next one";
                return Err(AuditError::Broken { line, what });
            }
            if before != contents.digest {
                let what = "it has another digest of the line before it";
                return Err(AuditError::Broken { line, what });
            }
            if let Some(each) = &mut each {
                each(parsed.entry().map_err(malformed)?);
            }
            contents.lines = line;
            contents.digest = parsed.digest;
            contents.whole_bytes += buffer.len() as u64;
            self.compare(line, parsed.head_digest)?;
            contents.last = Some(Checkpoint {
                subject: self.subject.clone(),
                lines: line,
                digest: parsed.head_digest,
                signature: parsed.signature,
            });
        }
        let lines = contents.lines;
        let signed = |last: &Checkpoint| last.verify(&self.subject, key).is_ok();
        if contents.last.as_ref().is_some_and(|last| !signed(last)) {
            return Err(AuditError::Unsigned { line: lines });
        }
        match self.checkpoints.iter().map(|checkpoint| checkpoint.lines).max() {
            Some(wanted) if wanted > lines => Err(AuditError::CutOff { lines, wanted }),
            _ => Ok(contents),
        }
    }

    fn compare(&self, line: u64, seen: Digest) -> Result<(), AuditError> {
        let here = self.checkpoints.iter().filter(|checkpoint| checkpoint.lines == line);
        for checkpoint in here {
            let wanted = checkpoint.digest;
            if wanted != seen {
                return Err(AuditError::Forked { line, seen, wanted });
            }
        }
        Ok(())
    }
}
