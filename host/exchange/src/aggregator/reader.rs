//! What a member says, read and checked: message by message, and an upload piece by piece.

use std::sync::{Arc, Mutex};

use cloister_rounds::{Layout, Reception, UpdateRefusal};
use cloister_tensor::Digest;
use cloister_wire::federation::{self as wire, member_message};
use tokio::sync::mpsc;
use tonic::Streaming;

use super::member::{Input, Said, Slot, lock};
use crate::convert;
use crate::error::ExchangeError;
use crate::sink::{ModelBuffer, ModelSink, SinkError};

struct Announced {
    round: u64,
    attempt: u32,
    digest: Digest,
}

struct Upload {
    round: u64,
    attempt: u32,
    reception: Reception,
    /// None while an upload is read to its end that nobody wants any more.
    buffer: Option<Box<dyn ModelBuffer>>,
}

/// Reads one member's call and tells the driver.
pub(super) struct Reader {
    node: String,
    connection: u64,
    slot: Arc<Mutex<Option<Slot>>>,
    inputs: mpsc::Sender<Input>,
    layout: Arc<Layout>,
    sink: Arc<dyn ModelSink>,
    announced: Option<Announced>,
    upload: Option<Upload>,
}

/// Why a piece of an upload was not taken.
enum UploadError {
    Refusal(UpdateRefusal),
    Sink(SinkError),
}

impl From<UpdateRefusal> for UploadError {
    fn from(refusal: UpdateRefusal) -> Self {
        Self::Refusal(refusal)
    }
}

impl From<SinkError> for UploadError {
    fn from(error: SinkError) -> Self {
        Self::Sink(error)
    }
}

impl Reader {
    /// A reader of this node's call, which has announced nothing yet.
    pub(super) fn new(
        node: String,
        connection: u64,
        slot: Arc<Mutex<Option<Slot>>>,
        inputs: mpsc::Sender<Input>,
        layout: &Arc<Layout>,
        sink: &Arc<dyn ModelSink>,
    ) -> Self {
        Self {
            node,
            connection,
            slot,
            inputs,
            layout: Arc::clone(layout),
            sink: Arc::clone(sink),
            announced: None,
            upload: None,
        }
    }

    /// Reads until the call ends, the member leaves, or what it says is refused.
    pub(super) async fn run(mut self, mut messages: Streaming<wire::MemberMessage>, expired: impl Fn() -> bool + Send) {
        let cause = loop {
            match messages.message().await {
                Ok(Some(_)) if expired() => break "its permit has expired".to_owned(),
                Ok(Some(wire::MemberMessage { body: Some(body) })) => {
                    let said = match self.take(body).await {
                        Ok(Some(said)) => said,
                        Ok(None) => continue,
                        Err(UploadError::Refusal(refusal)) => Said::Refused(refusal),
                        Err(UploadError::Sink(error)) => Said::Lost {
                            cause: error.to_string(),
                        },
                    };
                    let over = matches!(said, Said::Refused(_) | Said::Left { .. } | Said::Lost { .. });
                    self.say(said).await;
                    if over {
                        return;
                    }
                }
                Ok(Some(_)) => break "it sent an empty message".to_owned(),
                Ok(None) => break "it ended its call".to_owned(),
                Err(status) => break convert::tame(status.message()),
            }
        };
        self.say(Said::Lost { cause }).await;
    }

    async fn say(&mut self, said: Said) {
        let input = Input::Said {
            node: self.node.clone(),
            connection: self.connection,
            said,
        };
        // A driver that is gone needs to hear nothing.
        let _ = self.inputs.send(input).await;
    }

    fn out_of_turn(&self, seen: &str, wanted: &str) -> UpdateRefusal {
        UpdateRefusal::OutOfTurn {
            node: self.node.clone(),
            seen: seen.to_owned(),
            wanted: wanted.to_owned(),
        }
    }

    async fn take(&mut self, body: member_message::Body) -> Result<Option<Said>, UploadError> {
        let malformed = |this: &Self, error: &ExchangeError| this.out_of_turn(&error.to_string(), "a valid message");
        if self.upload.is_some()
            && !matches!(
                body,
                member_message::Body::UpdateChunk(_) | member_message::Body::Leave(_)
            )
        {
            return Err(self
                .out_of_turn("another message amid its upload", "the upload's chunks")
                .into());
        }
        Ok(Some(match body {
            member_message::Body::Join(_) => return Err(self.out_of_turn("a second join", "one a call").into()),
            member_message::Body::RosterEvidence(evidence) => Said::Evidence(evidence),
            member_message::Body::RosterAccepted(accepted) => {
                let digest = convert::digest(&accepted.roster_digest, "a roster's acceptance");
                Said::Accepted {
                    epoch: accepted.epoch,
                    digest: digest.map_err(|error| malformed(self, &error))?,
                }
            }
            member_message::Body::RosterRefused(refused) => Said::RefusesMember {
                node: convert::tame(&refused.node),
                rules: convert::rules(&refused.rules),
            },
            member_message::Body::UpdateReady(ready) => {
                let layout = convert::layout(ready.manifest, u64::MAX).map_err(UpdateRefusal::from)?;
                self.check_layout(&layout)?;
                let digest = convert::digest(&ready.digest, "an update").map_err(|error| malformed(self, &error))?;
                let (round, attempt) = (ready.round, ready.attempt);
                self.announced = Some(Announced { round, attempt, digest });
                let train_s = if ready.train_s.is_finite() {
                    ready.train_s.max(0.0)
                } else {
                    0.0
                };
                Said::Ready {
                    round,
                    attempt,
                    rows: ready.rows,
                    digest,
                    metrics: convert::metrics(ready.metrics),
                    train_s,
                }
            }
            member_message::Body::UpdateChunk(chunk) => return self.chunk(&chunk.data).await,
            member_message::Body::ModuleFailed(failed) => {
                let module = convert::optional_digest(&failed.module_digest, "a module's failure")
                    .map_err(|error| malformed(self, &error))?;
                let (round, attempt) = (failed.round, failed.attempt);
                Said::ModuleFailed {
                    round,
                    attempt,
                    code: convert::word(&failed.code),
                    module,
                }
            }
            member_message::Body::Leave(leave) => Said::Left {
                reason: convert::tame(&leave.reason),
            },
        }))
    }

    /// The wrong number of bytes is said as such; anything else names the first difference.
    fn check_layout(&self, seen: &Layout) -> Result<(), UpdateRefusal> {
        let (seen_bytes, wanted) = (seen.wire_bytes(), self.layout.wire_bytes());
        if seen.specs().len() == self.layout.specs().len() && seen_bytes != wanted {
            return Err(UpdateRefusal::WrongLength {
                seen: seen_bytes,
                wanted,
            });
        }
        Ok(self.layout.require(seen)?)
    }

    async fn chunk(&mut self, data: &[u8]) -> Result<Option<Said>, UploadError> {
        let slot = *lock(&self.slot);
        if self.upload.is_none() {
            let granted = self.announced.take_if(|announced| {
                slot.is_some_and(|slot| (slot.round, slot.attempt) == (announced.round, announced.attempt))
            });
            let Some(Announced { round, attempt, digest }) = granted else {
                return Err(self
                    .out_of_turn("an update's bytes", "an announced update and a grant for it")
                    .into());
            };
            let reception = Reception::new((*self.layout).clone(), digest);
            let buffer = self.sink.create(self.layout.buffer_bytes())?;
            self.upload = Some(Upload {
                round,
                attempt,
                reception,
                buffer: Some(buffer),
            });
        }
        let Some(upload) = &mut self.upload else {
            return Ok(None);
        };
        let live = slot.is_some_and(|slot| slot.live && (slot.round, slot.attempt) == (upload.round, upload.attempt));
        if !live {
            upload.buffer = None;
        }
        let buffer = &mut upload.buffer;
        upload.reception.accept(data, |bytes| match buffer {
            Some(buffer) => buffer.write(bytes).map_err(UploadError::Sink),
            None => Ok(()),
        })?;
        if !upload.reception.complete() {
            return Ok(None);
        }
        let Some(Upload {
            round,
            attempt,
            reception,
            buffer,
        }) = self.upload.take()
        else {
            return Ok(None);
        };
        let received = reception.finish()?;
        let Some(buffer) = buffer else { return Ok(None) };
        let checked = tokio::task::spawn_blocking(move || Ok::<_, UploadError>(received.check(&buffer.finish()?)?));
        let tensors = checked.await.map_err(|error| SinkError {
            bytes: 0,
            cause: error.to_string(),
        })??;
        Ok(Some(Said::Received {
            round,
            attempt,
            tensors,
        }))
    }
}
