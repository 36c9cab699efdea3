//! One member's call: a task that reads and checks, a task that sends.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cloister_attestation::PeerEvidence;
use cloister_rounds::reception::require_finite;
use cloister_rounds::{Layout, Reception, RosterEntry, RuleSeen, UpdateRefusal};
use cloister_session::{Clock, Peer};
use cloister_tensor::{Digest, TensorMap};
use cloister_wire::federation::{self as wire, aggregator_message, member_message};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::chunks::Chunks;
use crate::convert;
use crate::error::ExchangeError;
use crate::roster;
use crate::sink::{ModelBuffer, ModelSink, SinkError};

/// Messages that wait for a member that reads slowly; one that lets more pile up is dropped.
const OUT_QUEUE: usize = 64;
/// Messages encoded ahead.
const SEND_AHEAD: usize = 2;

/// What goes to a member.
#[allow(
    clippy::large_enum_variant,
    reason = "a queue of a few places a member; a box for each message costs more"
)]
pub(super) enum Outgoing {
    Message(aggregator_message::Body),
    /// A round's start with its model behind it.
    Round(Box<wire::RoundStart>, Arc<TensorMap>),
}

/// The upload that a member was granted; not live any more once its attempt was given up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) round: u64,
    pub(super) attempt: u32,
    pub(super) live: bool,
}

/// The driver's end of a member's call.
pub(super) struct Link {
    pub(super) connection: u64,
    pub(super) out: mpsc::Sender<Outgoing>,
    pub(super) slot: Arc<Mutex<Option<Slot>>>,
    pub(super) entry: RosterEntry,
    pub(super) measurement: String,
    pub(super) simulated: bool,
}

impl Link {
    pub(super) fn set_slot(&self, slot: Slot) {
        *lock(&self.slot) = Some(slot);
    }

    pub(super) fn give_up(&self) {
        if let Some(slot) = lock(&self.slot).as_mut() {
            slot.live = false;
        }
    }
}

fn lock(slot: &Mutex<Option<Slot>>) -> MutexGuard<'_, Option<Slot>> {
    // The value is replaced whole, so a panic elsewhere leaves it consistent.
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the driver is told.
pub(super) enum Input {
    Join {
        node: String,
        nonce: [u8; 32],
        link: Link,
        answer: oneshot::Sender<Result<(), String>>,
    },
    Said {
        node: String,
        connection: u64,
        said: Said,
    },
    Folded {
        round: u64,
        attempt: u32,
        node: String,
    },
    Aggregated {
        round: u64,
        attempt: u32,
        result: Result<super::labour::Aggregated, String>,
    },
}

/// What a member said, checked as far as one message can be.
pub(super) enum Said {
    Evidence(wire::RosterEvidence),
    Accepted {
        epoch: u64,
        digest: Digest,
    },
    RefusesMember {
        node: String,
        rules: Vec<RuleSeen>,
    },
    Ready {
        round: u64,
        attempt: u32,
        rows: u64,
        digest: Digest,
        metrics: Vec<(String, f64)>,
        train_s: f64,
    },
    Received {
        round: u64,
        attempt: u32,
        tensors: TensorMap,
    },
    Refused(UpdateRefusal),
    ModuleFailed {
        round: u64,
        attempt: u32,
        code: String,
        module: Option<Digest>,
    },
    Left {
        reason: String,
    },
    Lost {
        cause: String,
    },
}

/// What the gRPC service hands its members' calls to.
#[derive(Clone)]
pub struct AggregatorHandle {
    inputs: mpsc::Sender<Input>,
    layout: Arc<Layout>,
    sink: Arc<dyn ModelSink>,
    clock: Clock,
    connections: Arc<AtomicU64>,
}

impl AggregatorHandle {
    pub(super) fn new(inputs: mpsc::Sender<Input>, layout: Layout, sink: Arc<dyn ModelSink>, clock: Clock) -> Self {
        Self {
            inputs,
            layout: Arc::new(layout),
            sink,
            clock,
            connections: Arc::default(),
        }
    }

    /// Takes a member's call: reads its join and asks the driver. The peer is a worker that was attested.
    pub(crate) async fn join(
        &self,
        peer: Peer,
        mut messages: Streaming<wire::MemberMessage>,
    ) -> Result<impl Stream<Item = Result<wire::AggregatorMessage, Status>> + Send + use<>, Status> {
        let (Some(permit), PeerEvidence::Td(evidence)) = (peer.permit(), peer.evidence()) else {
            return Err(Status::permission_denied("only nodes take part"));
        };
        let node = permit.node().to_owned();
        let Some(member_message::Body::Join(join)) = messages.message().await?.and_then(|message| message.body) else {
            return Err(Status::invalid_argument("a member begins with its join"));
        };
        let nonce: [u8; 32] = join
            .nonce
            .as_ref()
            .try_into()
            .map_err(|_| Status::invalid_argument("a join's nonce has 32 bytes"))?;
        let connection = self.connections.fetch_add(1, Ordering::Relaxed);
        let (out, queue) = mpsc::channel(OUT_QUEUE);
        let slot = Arc::new(Mutex::new(None));
        let link = Link {
            connection,
            out,
            slot: Arc::clone(&slot),
            entry: roster::entry(evidence),
            measurement: evidence.measurement().root().to_string(),
            simulated: evidence.simulated(),
        };
        let (answer, answered) = oneshot::channel();
        let stopped = || Status::unavailable("the aggregator has stopped");
        self.inputs
            .send(Input::Join {
                node: node.clone(),
                nonce,
                link,
                answer,
            })
            .await
            .map_err(|_| stopped())?;
        answered
            .await
            .map_err(|_| stopped())?
            .map_err(Status::failed_precondition)?;
        let (encoded, sending) = mpsc::channel(SEND_AHEAD);
        let reader = Reader {
            node,
            connection,
            slot,
            inputs: self.inputs.clone(),
            layout: Arc::clone(&self.layout),
            sink: Arc::clone(&self.sink),
            announced: None,
            upload: None,
        };
        let clock = Arc::clone(&self.clock);
        let reading = tokio::spawn(reader.run(messages, move || peer.expired((clock)())));
        tokio::spawn(async move {
            send_all(queue, encoded).await;
            // The driver let go of the member: what it still sends is not read any more.
            reading.abort();
        });
        Ok(ReceiverStream::new(sending))
    }
}

/// Turns what the driver queued into messages, models chunk by chunk as the member takes them.
async fn send_all(mut queue: mpsc::Receiver<Outgoing>, encoded: mpsc::Sender<Result<wire::AggregatorMessage, Status>>) {
    let message = |body| Ok(wire::AggregatorMessage { body: Some(body) });
    loop {
        let outgoing = tokio::select! {
            outgoing = queue.recv() => outgoing,
            () = encoded.closed() => return, // the member hung up
        };
        let Some(outgoing) = outgoing else { return };
        match outgoing {
            Outgoing::Message(body) => {
                if encoded.send(message(body)).await.is_err() {
                    return;
                }
            }
            Outgoing::Round(start, model) => {
                let chunks = Chunks::new(&model);
                drop(model);
                if encoded
                    .send(message(aggregator_message::Body::RoundStart(*start)))
                    .await
                    .is_err()
                {
                    return;
                }
                for data in chunks {
                    let chunk = aggregator_message::Body::ModelChunk(wire::Chunk { data });
                    if encoded.send(message(chunk)).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

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

struct Reader {
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
    async fn run(mut self, mut messages: Streaming<wire::MemberMessage>, expired: impl Fn() -> bool + Send) {
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
        let (layout, _) = reception.finish()?;
        let Some(buffer) = buffer else { return Ok(None) };
        let checked = tokio::task::spawn_blocking(move || {
            let tensors = layout.tensors(&buffer.finish()?).map_err(UpdateRefusal::from)?;
            require_finite(&tensors)?;
            Ok::<_, UploadError>(tensors)
        });
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
