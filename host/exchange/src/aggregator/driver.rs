//! The loop around the rounds' state machine: events in from members, the clock and the work; actions out.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use cloister_attestation::identity::Role;
use cloister_policy::{Appraiser, Expected};
use cloister_rounds::{Action, Aggregator, DropReason, Event, UpdateRefusal};
use cloister_tensor::{Digest, TensorMap};
use cloister_wire::federation::{self as wire, aggregator_message::Body};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::convert;
use crate::error::ExchangeError;
use crate::progress::Happening;
use crate::roster;
use crate::work::{AggregatorWork, FoldMessage, RoundRecord, WorkError, WorkerUpdate};

use super::labour::{self, Order};
use super::member::{Input, Link, Outgoing, Said, Slot};
use super::running::Running;
use super::second::{JoinRefused, Joining, Seconds};
use super::{AggregatorOptions, rounds_config};

/// How long members get to hang up by themselves after the last message.
const GOODBYE: Duration = Duration::from_secs(5);

/// How the rounds ended.
#[derive(Clone, Debug)]
pub struct AggregatorEnd {
    /// The final model.
    pub model: TensorMap,
    /// The records of the rounds that were run.
    pub records: Vec<RoundRecord>,
}

/// Runs the rounds.
pub struct Driver {
    pub(super) options: AggregatorOptions,
    machine: Aggregator,
    inputs: mpsc::Receiver<Input>,
    pub(super) sender: mpsc::Sender<Input>,
    started: Instant,
    links: HashMap<String, Link>,
    seconds: Seconds,
    challenge: [u8; 32],
    evidence: BTreeMap<String, wire::RosterEvidence>,
    pub(super) model: Arc<TensorMap>,
    pub(super) model_digest: Digest,
    pub(super) previous: Option<Digest>,
    pub(super) round: Option<Running>,
    pub(super) records: Vec<RoundRecord>,
}

impl Driver {
    pub(super) fn new(
        options: AggregatorOptions,
        model_digest: Digest,
        sender: mpsc::Sender<Input>,
        inputs: mpsc::Receiver<Input>,
    ) -> Self {
        let machine = Aggregator::new(rounds_config(&options), options.start.next_round, 0);
        Self {
            machine,
            inputs,
            sender,
            started: Instant::now(),
            links: HashMap::new(),
            seconds: Seconds::default(),
            challenge: [0; 32],
            evidence: BTreeMap::new(),
            model: Arc::new(options.start.model.clone()),
            model_digest,
            previous: options.start.previous,
            round: None,
            records: Vec::new(),
            options,
        }
    }

    /// Runs until the last round is done, the aggregation keeps failing, too few workers are left that may join, keeping fails, or the node is told to stop.
    pub async fn run(mut self, work: Box<dyn AggregatorWork>) -> Result<AggregatorEnd, ExchangeError> {
        // The model is held once, in `self.model`.
        self.options.start.model = TensorMap::new();
        let (orders, order_queue) = mpsc::unbounded_channel();
        let sender = self.sender.clone();
        let labour = tokio::task::spawn_blocking(move || labour::run(work, order_queue, &sender));
        let result = self.work_through(&orders).await;
        // Ends the aggregation that may still wait for updates, then the thread.
        self.round = None;
        drop(orders);
        if result.is_ok() {
            self.see_off().await;
        }
        self.inputs.close();
        let goodbye = match &result {
            Ok(()) => None,
            Err(error) => Some(wire::Dropped {
                code: "stopped".to_owned(),
                reason: convert::tame(&format!("the aggregator stops: {error}")),
                may_rejoin: matches!(error, ExchangeError::Cancelled),
            }),
        };
        self.say_goodbye(goodbye).await;
        if labour.await.is_err() {
            return Err(WorkError::new("the aggregator's work", "its thread panicked").into());
        }
        result?;
        let model = Arc::try_unwrap(self.model).unwrap_or_else(|shared| (*shared).clone());
        Ok(AggregatorEnd {
            model,
            records: self.records,
        })
    }

    async fn work_through(&mut self, orders: &mpsc::UnboundedSender<Order>) -> Result<(), ExchangeError> {
        let cancel = self.options.cancel.clone();
        self.handle(Event::Tick, orders).await?;
        while !self.machine.finished() {
            let machine = self.machine.next_deadline_ms();
            let machine = machine.map(|ms| self.started + Duration::from_millis(ms));
            let deadline = machine.into_iter().chain(self.seconds.next_deadline()).min();
            tokio::select! {
                () = cancel.cancelled() => return Err(ExchangeError::Cancelled),
                Some(input) = self.inputs.recv() => self.input(input, orders).await?,
                () = tokio::time::sleep_until(deadline.unwrap_or(self.started)), if deadline.is_some() => {
                    self.handle(Event::Tick, orders).await?;
                }
            }
            for joining in self.seconds.decided(&self.links) {
                self.join_again(joining, orders).await?;
            }
        }
        Ok(())
    }

    /// After the last round: the members hang up by themselves. What one still sends is refused as too late.
    async fn see_off(&mut self) {
        let deadline = Instant::now() + GOODBYE;
        self.seconds
            .refuse_all(|node| self.machine.may_join(node).err().unwrap_or_default());
        loop {
            let outs: Vec<mpsc::Sender<Outgoing>> = self.links.values().map(|link| link.out.clone()).collect();
            let closed = async {
                for out in &outs {
                    out.closed().await;
                }
            };
            tokio::select! {
                () = closed => break,
                () = tokio::time::sleep_until(deadline) => break,
                Some(input) = self.inputs.recv() => self.too_late(input),
            }
        }
        // Whoever is still there is cut off.
        self.links.clear();
    }

    fn too_late(&mut self, input: Input) {
        match input {
            Input::Join(Joining { node, answer, .. }) => {
                // A member that hung up meanwhile needs no answer.
                let _ = answer.send(self.machine.may_join(&node).map_err(JoinRefused::Rules));
            }
            Input::Said { node, connection, said } => {
                if self.links.get(&node).is_none_or(|link| link.connection != connection) {
                    return;
                }
                if matches!(said, Said::Left { .. } | Said::Lost { .. }) {
                    self.links.remove(&node);
                } else {
                    let refusal = UpdateRefusal::AfterEnd { node: node.clone() };
                    self.drop_node(&node, DropReason::Refused(refusal));
                }
            }
            Input::Folded { .. } | Input::Aggregated { .. } => {}
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn input(&mut self, input: Input, orders: &mpsc::UnboundedSender<Order>) -> Result<(), ExchangeError> {
        let event = match input {
            Input::Join(joining) => match self.join(joining) {
                Some(event) => event,
                None => return Ok(()),
            },
            Input::Said { node, connection, said } => {
                // A connection that was replaced or dropped has nothing to say any more.
                if self.links.get(&node).is_none_or(|link| link.connection != connection) {
                    return Ok(());
                }
                match self.said(node, said) {
                    Some(event) => event,
                    None => return Ok(()),
                }
            }
            Input::Folded { round, attempt, node } => {
                if self.running(round, attempt).is_none() {
                    return Ok(());
                }
                Event::Folded { node }
            }
            Input::Aggregated { round, attempt, result } => {
                let Some(running) = self.running(round, attempt) else {
                    return Ok(());
                };
                match result {
                    Ok(result) => {
                        running.result = Some(result);
                        Event::Aggregated { round, attempt }
                    }
                    Err(cause) => Event::AggregateFailed { round, attempt, cause },
                }
            }
        };
        self.handle(event, orders).await
    }

    /// A node that joins, unless it may not, or another session of it has to be looked at first.
    fn join(&mut self, joining: Joining) -> Option<Event> {
        let verdict = self.machine.may_join(&joining.node);
        if verdict.is_ok()
            && let Some(first) = self.links.get(&joining.node)
        {
            self.seconds.wait(joining, first);
            return None;
        }
        let Joining {
            node,
            nonce,
            link,
            answer,
        } = joining;
        let refused = verdict.is_err();
        if answer.send(verdict.map_err(JoinRefused::Rules)).is_err() || refused {
            return None;
        }
        self.shows(Happening::Verified {
            node: node.clone(),
            role: "worker".to_owned(),
            measurement: link.measurement.clone(),
            simulated: link.simulated,
        });
        self.shows(Happening::Joined { node: node.clone() });
        self.links.insert(node.clone(), link);
        Some(Event::Joined { node, nonce })
    }

    /// A node whose first session has ended, or showed no life.
    async fn join_again(
        &mut self,
        joining: Joining,
        orders: &mpsc::UnboundedSender<Order>,
    ) -> Result<(), ExchangeError> {
        if self.links.contains_key(&joining.node) {
            let cause = "its session showed no life, and the same node opened a new one".to_owned();
            let node = joining.node.clone();
            self.handle(Event::Lost { node, cause }, orders).await?;
        }
        match self.join(joining) {
            Some(event) => self.handle(event, orders).await,
            None => Ok(()),
        }
    }

    fn running(&mut self, round: u64, attempt: u32) -> Option<&mut Running> {
        self.round
            .as_mut()
            .filter(|running| (running.info.round, running.info.attempt) == (round, attempt))
    }

    fn said(&mut self, node: String, said: Said) -> Option<Event> {
        Some(match said {
            Said::Evidence(evidence) => self.member_evidence(node, evidence),
            Said::Accepted { epoch, digest } => Event::Accepted { node, epoch, digest },
            Said::RefusesMember { node: refused, rules } => Event::RefusesMember { node, refused, rules },
            Said::Ready {
                round,
                attempt,
                rows,
                digest,
                metrics,
                train_s,
            } => {
                if let Some(running) = self.running(round, attempt) {
                    running.train_s = running.train_s.max(train_s);
                }
                for (name, value) in metrics {
                    tracing::debug!(node, round, name, value, "a worker's metric");
                }
                Event::Ready {
                    node,
                    round,
                    attempt,
                    rows,
                    digest,
                }
            }
            Said::Received {
                round,
                attempt,
                tensors,
            } => {
                self.running(round, attempt)?.received.insert(node.clone(), tensors);
                Event::Received { node, round, attempt }
            }
            Said::Refused(refusal) => Event::Refused { node, refusal },
            Said::ModuleFailed {
                round,
                attempt,
                code,
                module,
            } => Event::ModuleFailed {
                node,
                round,
                attempt,
                code,
                module,
            },
            Said::Left { reason } => Event::Left { node, reason },
            Said::Lost { cause } => Event::Lost { node, cause },
        })
    }

    /// The aggregator verifies what it relays: a member that shows bad evidence goes, not those who would refuse it.
    fn member_evidence(&mut self, node: String, evidence: wire::RosterEvidence) -> Event {
        let expected = Expected {
            role: Some(Role::Worker),
            node: Some(node.clone()),
            ..Expected::default()
        };
        let appraiser = Appraiser::new(Arc::clone(&self.options.policy)).expecting(expected);
        let now = (self.options.clock)();
        let named = evidence.node == node;
        let verified = roster::verify(&evidence, &self.challenge, &self.options.verifier, &appraiser, now);
        match verified {
            Ok(verified) => {
                let entry = roster::entry(&verified);
                if !named || self.links.get(&node).is_none_or(|link| link.entry != entry) {
                    let seen = format!("roster evidence of {}", convert::tame(&evidence.node));
                    let wanted = "the evidence of its own session".to_owned();
                    return Event::Refused {
                        refusal: UpdateRefusal::OutOfTurn {
                            node: node.clone(),
                            seen,
                            wanted,
                        },
                        node,
                    };
                }
                let epoch = evidence.epoch;
                self.evidence.insert(node.clone(), evidence);
                Event::Evidence { node, epoch, entry }
            }
            Err(refusal) => Event::EvidenceRefused {
                node,
                rules: convert::rules_seen(&refusal),
            },
        }
    }

    async fn handle(&mut self, event: Event, orders: &mpsc::UnboundedSender<Order>) -> Result<(), ExchangeError> {
        let now_ms = self.now_ms();
        for action in self.machine.handle(now_ms, event) {
            self.act(action, orders).await?;
        }
        Ok(())
    }

    async fn act(&mut self, action: Action, orders: &mpsc::UnboundedSender<Order>) -> Result<(), ExchangeError> {
        match action {
            Action::Wait(waiting) => {
                let why = waiting.to_string();
                for node in waiting.present {
                    self.send(&node, Body::Waiting(wire::Waiting { reason: why.clone() }));
                }
                self.shows(Happening::Waiting { why });
            }
            Action::Challenge {
                epoch,
                nonces,
                challenge,
            } => {
                self.challenge = challenge;
                self.evidence.clear();
                let list: Vec<wire::RosterNonce> = nonces
                    .iter()
                    .map(|(node, nonce)| wire::RosterNonce {
                        node: node.clone(),
                        nonce: bytes::Bytes::copy_from_slice(nonce),
                    })
                    .collect();
                for (node, _) in &nonces {
                    let body = wire::RosterChallenge {
                        epoch,
                        nonces: list.clone(),
                    };
                    self.send(node, Body::RosterChallenge(body));
                }
            }
            Action::Relay { epoch, members, .. } => {
                let evidence: Vec<wire::RosterEvidence> = members
                    .iter()
                    .filter_map(|node| self.evidence.get(node).cloned())
                    .collect();
                for node in &members {
                    self.send(
                        node,
                        Body::Roster(wire::Roster {
                            epoch,
                            members: evidence.clone(),
                        }),
                    );
                }
            }
            Action::StartRound {
                round,
                attempt,
                participants,
                roster_digest,
            } => {
                self.start_round(round, attempt, &participants, roster_digest, orders);
            }
            Action::Grant { node, round, attempt } => {
                if let Some(link) = self.links.get(&node) {
                    link.set_slot(Slot {
                        round,
                        attempt,
                        live: true,
                    });
                }
                self.send(&node, Body::Grant(wire::Grant { round, attempt }));
            }
            Action::Fold { node, rows } => {
                if let Some(running) = &mut self.round
                    && let Some(tensors) = running.received.remove(&node)
                {
                    // An aggregation that ended early says so by its result.
                    let _ = running
                        .updates
                        .send(FoldMessage::Update(Box::new(WorkerUpdate { node, rows, tensors })));
                }
            }
            Action::Close { .. } => {
                if let Some(running) = &mut self.round {
                    running.folded_s = running.started.elapsed().as_secs_f64();
                    let _ = running.updates.send(FoldMessage::End);
                }
            }
            Action::Abort { round, reason, .. } => {
                self.round = None;
                self.links.values().for_each(Link::give_up);
                self.shows(Happening::RoundAborted { round, reason });
            }
            Action::RoundDone(summary) => self.round_done(summary, orders).await?,
            Action::Drop { node, reason } => self.drop_node(&node, reason),
            Action::Finish => {
                let rounds = u64::from(self.options.policy.rounds.count);
                let finish = wire::Finish {
                    rounds,
                    model_digest: convert::digest_bytes(&self.model_digest),
                    receipt: self.previous.as_ref().map(convert::digest_bytes).unwrap_or_default(),
                };
                let nodes: Vec<String> = self.links.keys().cloned().collect();
                nodes
                    .iter()
                    .for_each(|node| self.send(node, Body::Finish(finish.clone())));
                self.shows(Happening::Finished { rounds });
            }
            Action::TooFew {
                round,
                barred,
                strikes,
                needed,
            } => {
                return Err(ExchangeError::TooFew {
                    round,
                    barred: barred.join(", "),
                    strikes,
                    needed,
                });
            }
            Action::Fail { round, failures, cause } => {
                return Err(ExchangeError::Aggregation { round, failures, cause });
            }
        }
        Ok(())
    }

    fn drop_node(&mut self, node: &str, reason: DropReason) {
        let goodbye = wire::Dropped {
            code: reason.code().to_owned(),
            reason: convert::tame(&reason.to_string()),
            // A module may fail once; what no honest host sends is not sent twice.
            may_rejoin: (!reason.misbehaved() || matches!(reason, DropReason::ModuleFailed { .. }))
                && self.machine.may_join(node).is_ok(),
        };
        self.send(node, Body::Dropped(goodbye));
        self.links.remove(node);
        self.shows(Happening::Dropped {
            node: node.to_owned(),
            reason,
        });
    }

    pub(super) fn send(&self, node: &str, body: Body) {
        self.queue(node, Outgoing::Message(body));
    }

    /// A full queue is a member that does not read; its deadline ends it.
    pub(super) fn queue(&self, node: &str, outgoing: Outgoing) {
        if let Some(link) = self.links.get(node)
            && link.out.try_send(outgoing).is_err()
        {
            tracing::debug!(node, "the member does not take its messages");
        }
    }

    pub(super) fn shows(&self, happening: Happening) {
        self.options.progress.happened(&happening);
    }

    /// Last words, then time for the members to hang up by themselves.
    async fn say_goodbye(&mut self, goodbye: Option<wire::Dropped>) {
        let nodes: Vec<String> = self.links.keys().cloned().collect();
        if let Some(goodbye) = goodbye {
            nodes
                .iter()
                .for_each(|node| self.send(node, Body::Dropped(goodbye.clone())));
        }
        let outs: Vec<mpsc::Sender<Outgoing>> = self.links.drain().map(|(_, link)| link.out).collect();
        // Each member closes its end once it has read the last message; its queue's receiver goes with that.
        let closed = async {
            for out in &outs {
                out.closed().await;
            }
        };
        // A member that does not hang up is cut off.
        let _ = tokio::time::timeout(GOODBYE, closed).await;
    }
}
