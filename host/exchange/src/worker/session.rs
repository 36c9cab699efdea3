//! A worker's part over one connection.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cloister_attestation::identity::{PublicKey, Role};
use cloister_attestation::{PeerEvidence, State};
use cloister_policy::agreement::RoundMode;
use cloister_rounds::worker::{RoundHead, WorkerConfig};
use cloister_rounds::{Layout, RosterEntry, Worker};
use cloister_session::{NodeSide, Peer, SessionError, connect};
use cloister_tensor::TensorMap;
use cloister_wire::federation::{self as wire, aggregator_message, member_message};
use tokio::sync::mpsc;
use tonic::Streaming;

use crate::aggregator::loss_of;
use crate::client::Client;
use crate::convert;
use crate::error::{ExchangeError, RoundFailure};
use crate::progress::Happening;
use crate::roster;
use crate::work::{Ledger, RoundInfo, WorkError, WorkerWork};

use super::step::Trained;
use super::{Lasting, Retry, SessionEnd, WorkerOptions};

/// Messages that wait to be sent.
const SEND_QUEUE: usize = 2;
/// How long the goodbye may take to get through.
const GOODBYE: Duration = Duration::from_secs(2);

pub(super) type Inbound = Streaming<wire::AggregatorMessage>;

/// Connects, joins and works until the connection or the federation ends.
pub(super) async fn run(
    options: &WorkerOptions,
    node: &NodeSide,
    config: &WorkerConfig,
    state: &mut Lasting,
    work: &mut Option<Box<dyn WorkerWork>>,
    retry: &mut Retry,
) -> Result<SessionEnd, ExchangeError> {
    let cancelled = options.cancel.clone();
    let dialled = tokio::select! {
        dialled = connect(&options.local, &options.dial) => dialled?,
        () = cancelled.cancelled() => return Ok(SessionEnd::Left),
    };
    let (aggregator, aggregator_key, simulated) = match dialled.peer().evidence() {
        PeerEvidence::Td(evidence) if evidence.role() == Role::Aggregator => {
            if evidence.state() != State::Member {
                let why = format!("the aggregator {} still collects its content", evidence.node());
                return Ok(SessionEnd::Again { why });
            }
            (roster::entry(evidence), evidence.node_key(), evidence.simulated())
        }
        _ => {
            return Err(SessionError::Own {
                cause: "the peer that was dialled is no aggregator".to_owned(),
            }
            .into());
        }
    };
    let measurement = hex(&aggregator.measurement_root);
    options.progress.happened(&Happening::Verified {
        node: aggregator.node.clone(),
        role: "aggregator".to_owned(),
        measurement,
        simulated,
    });
    let peer = dialled.peer().clone();
    let nonce = fresh_nonce()?;
    let mut client = Client::new(dialled).await?;
    let (out, queue) = mpsc::channel(SEND_QUEUE);
    // The call opens when the first message is there.
    let join = member_message::Body::Join(wire::Join {
        nonce: Bytes::copy_from_slice(&nonce),
    });
    let _ = out.send(wire::MemberMessage { body: Some(join) }).await;
    let inbound = client.member(&config.node, queue).await?;
    retry.succeeded();
    let machine = Worker::new(config.clone(), nonce, state.chain.clone());
    let mut session = Session {
        options,
        node,
        machine,
        aggregator,
        aggregator_key,
        peer,
        out,
        stash: None,
        layout: None,
        running: None,
        steps: None,
        ledger: Arc::clone(&state.ledger),
        failure: state.failure.take(),
    };
    let result = session.work_through(inbound, work).await;
    state.chain = session.machine.chain().clone();
    state.failure = session.failure;
    result
}

pub(super) struct Session<'a> {
    pub(super) options: &'a WorkerOptions,
    pub(super) node: &'a NodeSide,
    pub(super) machine: Worker,
    pub(super) aggregator: RosterEntry,
    pub(super) aggregator_key: PublicKey,
    peer: Peer,
    out: mpsc::Sender<wire::MemberMessage>,
    /// A message that came while the training ran.
    pub(super) stash: Option<aggregator_message::Body>,
    layout: Option<Layout>,
    pub(super) running: Option<Running>,
    /// How many trainings went before, where each member counts its own.
    steps: Option<u64>,
    pub(super) ledger: Arc<dyn Ledger>,
    failure: Option<RoundFailure>,
}

/// What belongs to the round that this member works on.
pub(super) struct Running {
    pub(super) info: RoundInfo,
    pub(super) update: Option<TensorMap>,
    /// Loss that the own trainer reports.
    pub(super) loss: Option<f64>,
    pub(super) started: Instant,
    pub(super) train_s: f64,
}

impl Session<'_> {
    async fn work_through(
        &mut self,
        mut inbound: Inbound,
        work: &mut Option<Box<dyn WorkerWork>>,
    ) -> Result<SessionEnd, ExchangeError> {
        let cancel = self.options.cancel.clone();
        loop {
            let body = match self.stash.take() {
                Some(body) => body,
                None => tokio::select! {
                    body = next(&mut inbound) => match body? {
                        Some(body) => body,
                        None => return Ok(SessionEnd::Again { why: "the aggregator ended the call".to_owned() }),
                    },
                    () = cancel.cancelled() => return self.leave("the node stops", &mut inbound).await,
                },
            };
            match self.take(body, &mut inbound, work).await {
                Ok(None) => {}
                Ok(Some(end)) => return Ok(end),
                Err(error) => {
                    // What the aggregator did wrong is said to it as well; a network error reaches nobody.
                    if matches!(error, ExchangeError::Aggregator(_) | ExchangeError::Message { .. }) {
                        self.leave(&error.to_string(), &mut inbound).await?;
                    }
                    return Err(error);
                }
            }
        }
    }

    async fn take(
        &mut self,
        body: aggregator_message::Body,
        inbound: &mut Inbound,
        work: &mut Option<Box<dyn WorkerWork>>,
    ) -> Result<Option<SessionEnd>, ExchangeError> {
        match body {
            aggregator_message::Body::Waiting(waiting) => {
                self.shows(Happening::Waiting {
                    why: convert::tame(&waiting.reason),
                });
            }
            aggregator_message::Body::RosterChallenge(challenge) => self.challenged(challenge).await?,
            aggregator_message::Body::Roster(roster) => self.roster(&roster, inbound).await?,
            aggregator_message::Body::RoundStart(start) => return self.round(start, inbound, work).await,
            aggregator_message::Body::ModelChunk(_) => {
                return Err(out_of_place("a chunk of a model", "no round was started"));
            }
            aggregator_message::Body::Grant(grant) => {
                self.machine.granted(grant.round, grant.attempt)?;
                return self.upload().await;
            }
            aggregator_message::Body::RoundResult(result) => self.result(result).await?,
            aggregator_message::Body::Finish(finish) => return self.finish(&finish, inbound).await.map(Some),
            aggregator_message::Body::Dropped(dropped) => return dropped_end(&dropped).map(Some),
        }
        Ok(None)
    }

    /// All rounds are done.
    pub(super) async fn finish(
        &mut self,
        finish: &wire::Finish,
        inbound: &mut Inbound,
    ) -> Result<SessionEnd, ExchangeError> {
        self.machine
            .finished(convert::optional_digest(&finish.receipt, "the end")?)?;
        self.shows(Happening::Finished { rounds: finish.rounds });
        self.leave("all rounds are done", inbound).await?;
        Ok(SessionEnd::Finished)
    }

    async fn round(
        &mut self,
        start: wire::RoundStart,
        inbound: &mut Inbound,
        work: &mut Option<Box<dyn WorkerWork>>,
    ) -> Result<Option<SessionEnd>, ExchangeError> {
        let started = Instant::now();
        if self.peer.expired((self.options.local.clock)()) {
            let why = "the permit of this session has expired".to_owned();
            self.leave(&why, inbound).await?;
            return Ok(Some(SessionEnd::Again { why }));
        }
        let head = RoundHead {
            round: start.round,
            attempt: start.attempt,
            roster_digest: convert::digest(&start.roster_digest, "a round's start")?,
            model_digest: convert::digest(&start.model_digest, "a round's start")?,
            previous: convert::optional_digest(&start.previous_receipt, "a round's start")?,
        };
        let undone = self.machine.round_start(head)?;
        if undone > 0 {
            tracing::warn!(
                "the aggregator was started anew and goes on with round {}: {undone} rounds of which this node has receipts were not \
                 sealed yet, and are made anew",
                start.round
            );
        }
        self.running = None;
        let info = RoundInfo {
            round: start.round,
            rounds: start.rounds,
            attempt: start.attempt,
            seed: start.seed,
            step: self.next_step(start.round),
        };
        // A step shows by its end alone.
        if !self.options.local.policy.rounds.mode.by_steps() {
            self.shows(Happening::RoundStarted {
                round: info.round,
                rounds: info.rounds,
                attempt: info.attempt,
                participants: 0,
            });
        }
        let limit = self.options.model_limit_bytes;
        let layout = convert::layout(start.manifest, limit).map_err(|error| out_of_place("a model", error))?;
        if let Some(known) = &self.layout {
            known.require(&layout).map_err(|error| out_of_place("a model", error))?;
        }
        self.layout = Some(layout.clone());
        let Some(model) = self.receive(layout, head.model_digest, inbound).await? else {
            return Ok(Some(SessionEnd::Again {
                why: "the aggregator ended the call amid a model".to_owned(),
            }));
        };
        let (result, train_s) = match self.train(info, model, inbound, work).await? {
            Trained::Done(result, train_s) => (result, train_s),
            Trained::Ended(end) => return Ok(Some(end)),
        };
        if matches!(self.stash, Some(aggregator_message::Body::RoundStart(_))) {
            return Ok(None); // the attempt was given up meanwhile
        }
        self.running = Some(Running {
            info,
            update: None,
            loss: None,
            started,
            train_s,
        });
        match result {
            Ok((update, digest, layout)) => {
                let ready = wire::UpdateReady {
                    round: info.round,
                    attempt: info.attempt,
                    rows: update.rows,
                    manifest: Some(convert::manifest(&layout)),
                    digest: convert::digest_bytes(&digest),
                    metrics: convert::metric_messages(&update.metrics),
                    train_s,
                };
                self.machine.trained(digest);
                if let Some(running) = &mut self.running {
                    running.loss = loss_of(&update.metrics);
                    running.update = Some(update.tensors);
                }
                self.send(member_message::Body::UpdateReady(ready)).await;
            }
            Err(failure) => {
                tracing::error!(round = info.round, %failure, "the training failed");
                self.machine.failed();
                let failed = wire::ModuleFailed {
                    round: info.round,
                    attempt: info.attempt,
                    code: convert::word(&failure.code),
                    module_digest: failure.module.as_ref().map(convert::digest_bytes).unwrap_or_default(),
                };
                self.send(member_message::Body::ModuleFailed(failed)).await;
                let round = info.round;
                self.failure = Some(RoundFailure { round, failure });
            }
        }
        Ok(None)
    }

    /// Sends; gives whether the stream still takes messages.
    pub(super) async fn send(&self, body: member_message::Body) -> bool {
        self.out.send(wire::MemberMessage { body: Some(body) }).await.is_ok()
    }

    /// Says goodbye, closes this side, and reads the other side to its end, for a bounded time.
    pub(super) async fn leave(&mut self, reason: &str, inbound: &mut Inbound) -> Result<SessionEnd, ExchangeError> {
        let goodbye = async {
            self.send(member_message::Body::Leave(wire::Leave {
                reason: convert::tame(reason),
            }))
            .await;
            let (closed, _) = mpsc::channel(1);
            self.out = closed;
            while let Ok(Some(_)) = inbound.message().await {}
        };
        // Whether the goodbye got through does not matter: this side leaves.
        let _ = tokio::time::timeout(GOODBYE, goodbye).await;
        Ok(SessionEnd::Left)
    }

    /// Whether each update is applied alone.
    pub(super) fn alone(&self) -> bool {
        self.options.local.policy.rounds.mode == RoundMode::Asynchronous
    }

    /// How many trainings of this member went before. Where each counts its own, it begins with its share of all that were applied.
    fn next_step(&mut self, round: u64) -> u64 {
        let policy = &self.options.local.policy;
        let before = round.saturating_sub(1);
        if !self.alone() {
            return before;
        }
        let workers = policy.nodes_with(Role::Worker).count() as u64;
        let step = self.steps.unwrap_or(before / workers.max(1));
        self.steps = Some(step + 1);
        step
    }

    pub(super) fn shows(&self, happening: Happening) {
        self.options.progress.happened(&happening);
    }
}

pub(super) async fn next(inbound: &mut Inbound) -> Result<Option<aggregator_message::Body>, ExchangeError> {
    match inbound.message().await {
        Ok(Some(message)) => match message.body {
            Some(body) => Ok(Some(body)),
            None => Err(out_of_place("an empty message", "every message says something")),
        },
        Ok(None) => Ok(None),
        Err(status) => Err(ExchangeError::call("taking part", &status)),
    }
}

pub(super) fn dropped_end(dropped: &wire::Dropped) -> Result<SessionEnd, ExchangeError> {
    let (code, reason) = (convert::word(&dropped.code), convert::tame(&dropped.reason));
    if dropped.may_rejoin {
        return Ok(SessionEnd::Again {
            why: format!("the aggregator dropped this node ({code}): {reason}"),
        });
    }
    Err(ExchangeError::Dropped {
        code,
        reason,
        failure: None,
    })
}

pub(super) fn out_of_place(what: &'static str, cause: impl std::fmt::Display) -> ExchangeError {
    ExchangeError::Message {
        what,
        cause: cause.to_string(),
    }
}

fn fresh_nonce() -> Result<[u8; 32], ExchangeError> {
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce).map_err(|error| WorkError::new("drawing a nonce", error))?;
    Ok(nonce)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
