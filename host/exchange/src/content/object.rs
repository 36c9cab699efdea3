//! An object on its way out, read piece by piece: who fetches it takes up a chunk or two of memory, never the whole, and not for ever.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use cloister_tensor::{Digest, Digester};
use cloister_wire::MAX_CHUNK_BYTES;
use tokio::fs::File;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{Turn, failed};
use crate::error::ExchangeError;

/// Chunks that wait for their reader: one, and the place that is kept for the last word.
const AHEAD: usize = 2;

/// An object that is read from its beginning.
pub(crate) struct Object {
    file: File,
    path: PathBuf,
    digest: Digest,
    digester: Digester,
    /// How much of it is read at most from here on.
    left_bytes: u64,
}

impl Object {
    /// Opens the object in this file, if it is there.
    pub(super) async fn open(path: &Path, digest: Digest, limit_bytes: u64) -> Result<Option<Self>, ExchangeError> {
        match File::open(path).await {
            Ok(file) => Ok(Some(Self {
                file,
                path: path.to_owned(),
                digest,
                digester: Digester::new(),
                left_bytes: limit_bytes,
            })),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(source) => Err(failed("opening", path, source)),
        }
    }

    /// The next chunk; none behind the last one, once the digest of all of them is the object's: a store on disk is not trusted to
    /// have kept it.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, ExchangeError> {
        let mut chunk = BytesMut::with_capacity(MAX_CHUNK_BYTES);
        while chunk.len() < MAX_CHUNK_BYTES {
            let room = MAX_CHUNK_BYTES - chunk.len();
            let read = (&mut self.file).take(room as u64).read_buf(&mut chunk).await;
            if read.map_err(|source| failed("reading", &self.path, source))? == 0 {
                break;
            }
        }
        let within = chunk.len() as u64 <= self.left_bytes;
        if within && !chunk.is_empty() {
            self.left_bytes -= chunk.len() as u64;
            self.digester.update(&chunk);
            return Ok(Some(chunk.freeze()));
        }
        let seen = std::mem::take(&mut self.digester).finish();
        if within && seen == self.digest {
            return Ok(None);
        }
        Err(ExchangeError::Digest {
            what: format!("the object in {}", self.path.display()),
            seen: if within { seen.to_string() } else { "no end".to_owned() },
            wanted: self.digest.to_string(),
        })
    }

    /// Its chunks, as fast as they are taken. Where none is taken for `patience`, or the object is not what it was, the last item is
    /// why. The turn is given back with that.
    pub(crate) fn send(mut self, turn: Turn, patience: Duration) -> ReceiverStream<Result<Bytes, SendError>> {
        let (sender, receiver) = mpsc::channel(AHEAD);
        tokio::spawn(async move {
            let _turn = turn;
            let Ok(last_word) = sender.clone().reserve_owned().await else {
                return;
            };
            let why = loop {
                let chunk = match self.chunk().await {
                    Ok(Some(chunk)) => chunk,
                    Ok(None) => return,
                    Err(error) => break SendError::Store(error),
                };
                match sender.send_timeout(Ok(chunk), patience).await {
                    Ok(()) => {}
                    Err(mpsc::error::SendTimeoutError::Timeout(_)) => break SendError::NotTaken { patience },
                    Err(mpsc::error::SendTimeoutError::Closed(_)) => return,
                }
            };
            last_word.send(Err(why));
        });
        ReceiverStream::new(receiver)
    }
}

/// Why an object did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    /// Its reader is too slow.
    #[error("no part of it was taken for {} s", patience.as_secs())]
    NotTaken {
        /// How long was waited.
        patience: Duration,
    },
    /// It is damaged, or can't be read.
    #[error(transparent)]
    Store(ExchangeError),
}
