//! One member's call: how it joins, and the task that sends. The task that reads and checks is [`Reader`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cloister_attestation::PeerEvidence;
use cloister_rounds::{Layout, RosterEntry, RuleSeen, UpdateRefusal};
use cloister_session::{Clock, Peer};
use cloister_tensor::{Digest, TensorMap};
use cloister_wire::federation::{self as wire, aggregator_message, member_message};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::reader::Reader;
use super::second::{JoinRefused, Joining};
use crate::chunks::Chunks;
use crate::roster;
use crate::sink::ModelSink;

/// Messages that wait for a member that reads slowly, such as the receipts of what others do while it takes a model; one that lets more
/// pile up is dropped.
const OUT_QUEUE: usize = 1024;
/// How long a call may stay silent before its join.
const JOIN: Duration = Duration::from_secs(10);
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
    pub(super) peer: Peer,
    /// When it joined, in seconds since 1970.
    pub(super) since_unix_s: u64,
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

pub(super) fn lock(slot: &Mutex<Option<Slot>>) -> MutexGuard<'_, Option<Slot>> {
    // The value is replaced whole, so a panic elsewhere leaves it consistent.
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the driver is told.
pub(super) enum Input {
    Join(Joining),
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
        let first = tokio::time::timeout(JOIN, messages.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded(format!("no join came in {} s", JOIN.as_secs())))??;
        let Some(member_message::Body::Join(join)) = first.and_then(|message| message.body) else {
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
            peer: peer.clone(),
            since_unix_s: (self.clock)(),
        };
        let (answer, answered) = oneshot::channel();
        let stopped = || Status::unavailable("the aggregator has stopped");
        self.inputs
            .send(Input::Join(Joining {
                node: node.clone(),
                nonce,
                link,
                answer,
            }))
            .await
            .map_err(|_| stopped())?;
        answered
            .await
            .map_err(|_| stopped())?
            .map_err(JoinRefused::into_status)?;
        let (encoded, sending) = mpsc::channel(SEND_AHEAD);
        let reader = Reader::new(node, connection, slot, self.inputs.clone(), &self.layout, &self.sink);
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
