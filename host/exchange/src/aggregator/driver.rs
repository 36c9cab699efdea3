//! The loop around the rounds' state machine: events in from members, the clock and the work; actions out.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use cloister_policy::agreement::RoundMode;
use cloister_rounds::{Aggregator, DropReason, Event, UpdateRefusal};
use cloister_tensor::{Digest, TensorMap};
use cloister_wire::federation::{self as wire, aggregator_message::Body};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::convert;
use crate::error::ExchangeError;
use crate::progress::Happening;
use crate::work::{AggregatorWork, RoundRecord, WorkError};

use super::labour::{self, Order};
use super::member::{Input, Link, Outgoing, Said};
use super::running::Running;
use super::second::{JoinRefused, Joining, Seconds};
use super::steps::Steps;
use super::{AggregatorOptions, rounds_config};

/// How long members get to hang up by themselves after the last message.
const GOODBYE: Duration = Duration::from_secs(5);

/// How the rounds ended.
#[derive(Clone, Debug)]
pub struct AggregatorEnd {
    /// The final model.
    pub model: TensorMap,
    /// The record of the last round, if one was run.
    pub last: Option<RoundRecord>,
}

/// Runs the rounds.
pub struct Driver {
    pub(super) options: AggregatorOptions,
    pub(super) machine: Aggregator,
    inputs: mpsc::Receiver<Input>,
    pub(super) sender: mpsc::Sender<Input>,
    started: Instant,
    pub(super) links: HashMap<String, Link>,
    pub(super) seconds: Seconds,
    pub(super) challenge: [u8; 32],
    pub(super) evidence: BTreeMap<String, wire::RosterEvidence>,
    pub(super) model: Arc<TensorMap>,
    pub(super) model_digest: Digest,
    pub(super) previous: Option<Digest>,
    /// The round that runs, where all members make one together.
    pub(super) round: Option<Running>,
    /// What the members are at, where each update is applied alone.
    pub(super) steps: Steps,
    /// When the last round was done, or the first one began.
    pub(super) since: Option<Instant>,
    pub(super) last: Option<RoundRecord>,
    /// Members whose queue is full.
    pub(super) clogged: Vec<String>,
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
            steps: Steps::default(),
            since: None,
            last: None,
            clogged: Vec::new(),
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
        Ok(AggregatorEnd { model, last: self.last })
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
        let rounds = &self.options.policy.rounds;
        let deadline = Instant::now()
            + match rounds.mode {
                RoundMode::Averaging | RoundMode::Synchronous => GOODBYE,
                // Members may still take the model of a task.
                RoundMode::Asynchronous => GOODBYE.max(Duration::from_secs(rounds.deadline_s)),
            };
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
                // Where each works at its own pace, one answers while the end is on its way to it.
                let crossed = matches!(
                    said,
                    Said::Ready { .. } | Said::Received { .. } | Said::ModuleFailed { .. }
                );
                if matches!(said, Said::Left { .. } | Said::Lost { .. }) {
                    self.links.remove(&node);
                } else if !(crossed && self.alone()) {
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

    pub(super) async fn handle(
        &mut self,
        event: Event,
        orders: &mpsc::UnboundedSender<Order>,
    ) -> Result<(), ExchangeError> {
        let now_ms = self.now_ms();
        let mut actions = self.machine.handle(now_ms, event);
        loop {
            for action in actions {
                self.act(action, orders).await?;
            }
            let Some(node) = self.clogged.pop() else {
                return Ok(());
            };
            let cause = "it does not take its messages".to_owned();
            actions = self.machine.handle(now_ms, Event::Lost { node, cause });
        }
    }

    pub(super) fn send(&mut self, node: &str, body: Body) {
        self.queue(node, Outgoing::Message(body));
    }

    /// A full queue is a member that does not read, and can't follow any more: it is dropped.
    pub(super) fn queue(&mut self, node: &str, outgoing: Outgoing) {
        if let Some(link) = self.links.get(node)
            && let Err(mpsc::error::TrySendError::Full(_)) = link.out.try_send(outgoing)
        {
            self.clogged.push(node.to_owned());
        }
    }

    pub(super) fn shows(&self, happening: Happening) {
        self.options.progress.happened(&happening);
    }

    /// Last words, then time for the members to hang up by themselves.
    async fn say_goodbye(&mut self, goodbye: Option<wire::Dropped>) {
        let nodes: Vec<String> = self.links.keys().cloned().collect();
        if let Some(goodbye) = goodbye {
            for node in &nodes {
                self.send(node, Body::Dropped(goodbye.clone()));
            }
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
