//! Reading a log from its first line to its last, and what may be believed of it.

use std::io::{BufRead, Read as _};

use cloister_attestation::identity::PublicKey;
use cloister_tensor::Digest;

use crate::line::{Entry, MAX_LINE_BYTES, Subject};
use crate::{AuditError, Chain, Checkpoint};

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
        Ok(self.walk(source, key, None)?.1)
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
        Ok(self.chain(source, key, each)?.1)
    }

    /// As [`Reader::entries`], with what the next line has to follow.
    pub(crate) fn chain(
        &self,
        source: &mut dyn BufRead,
        key: &PublicKey,
        each: &mut dyn FnMut(Entry),
    ) -> Result<(Chain, Contents), AuditError> {
        self.walk(source, key, Some(each))
    }

    fn walk(
        &self,
        source: &mut dyn BufRead,
        key: &PublicKey,
        mut each: Option<&mut dyn FnMut(Entry)>,
    ) -> Result<(Chain, Contents), AuditError> {
        let mut chain = Chain::new(self.subject.clone());
        let mut whole_bytes = 0;
        let mut buffer = Vec::with_capacity(1024);
        let torn_bytes = loop {
            buffer.clear();
            let read = source.take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', &mut buffer);
            read.map_err(AuditError::io("read"))?;
            let line = chain.lines() + 1;
            let malformed = |why: String| AuditError::Malformed { line, why };
            let Some(bytes) = buffer.strip_suffix(b"\n") else {
                if buffer.len() > MAX_LINE_BYTES {
                    return Err(malformed(format!("it is longer than {MAX_LINE_BYTES} bytes")));
                }
                break buffer.len() as u64;
            };
            let parsed = chain.follow_line(bytes)?;
            if let Some(each) = &mut each {
                each(parsed.entry().map_err(malformed)?);
            }
            whole_bytes += buffer.len() as u64;
            self.compare(line, parsed.head_digest)?;
        };
        chain.verify(key)?;
        let lines = chain.lines();
        if let Some(wanted) = self.checkpoints.iter().map(|checkpoint| checkpoint.lines).max()
            && wanted > lines
        {
            return Err(AuditError::CutOff { lines, wanted });
        }
        let contents = Contents {
            lines,
            digest: chain.digest(),
            whole_bytes,
            torn_bytes,
            last: chain.checkpoint(),
        };
        Ok((chain, contents))
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
