//! The attempt at a round that runs, where all members make one together: its start, and its record at the end.

use std::collections::HashMap;
use std::sync::Arc;

use cloister_policy::agreement::RoundMode;
use cloister_rounds::Receipt;
use cloister_rounds::aggregator::RoundSummary;
use cloister_rounds::receipt::{ReceiptDrop, ReceiptUpdate};
use cloister_tensor::{Digest, TensorMap};
use cloister_wire::federation::{self as wire, aggregator_message::Body};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::convert;
use crate::error::ExchangeError;
use crate::progress::{Happening, RoundLine, StepLine};
use crate::work::{FoldMessage, RoundInfo, RoundRecord, UpdateStream, WorkError};

use super::driver::Driver;
use super::labour::{Aggregated, Order};
use super::member::{Input, Outgoing};

/// Most metrics of a receipt.
const MAX_METRICS: usize = 64;

/// What belongs to the attempt that runs.
pub(super) struct Running {
    pub(super) info: RoundInfo,
    roster_digest: Digest,
    pub(super) updates: mpsc::UnboundedSender<FoldMessage>,
    pub(super) received: HashMap<String, TensorMap>,
    pub(super) result: Option<Aggregated>,
    pub(super) started: Instant,
    losses: HashMap<String, f64>,
    train_s: f64,
    pub(super) folded_s: f64,
}

impl Running {
    /// A member's update is computed, with this loss of its training.
    pub(super) fn announced(&mut self, node: &str, loss: Option<f64>, train_s: f64) {
        self.train_s = self.train_s.max(train_s);
        self.losses.extend(loss.map(|loss| (node.to_owned(), loss)));
    }
}

/// The loss among metrics that a trainer reports.
pub(crate) fn loss_of(metrics: &[(String, f64)]) -> Option<f64> {
    let loss = metrics.iter().find(|(name, _)| name == "loss");
    loss.map(|(_, value)| *value)
}

impl Driver {
    /// Whether each update is applied alone.
    pub(super) fn alone(&self) -> bool {
        self.options.policy.rounds.mode == RoundMode::Asynchronous
    }

    /// What a round is computed with at the aggregator.
    pub(super) fn round_info(&self, round: u64, attempt: u32) -> RoundInfo {
        let rounds = &self.options.policy.rounds;
        RoundInfo {
            round,
            rounds: u64::from(rounds.count),
            attempt,
            seed: round_seed(rounds.seed, round),
            step: round.saturating_sub(1),
        }
    }

    /// What a member is told as a round, or its task, starts.
    pub(super) fn round_start(&mut self, info: &RoundInfo, roster_digest: &Digest) -> wire::RoundStart {
        self.since.get_or_insert_with(Instant::now);
        // The layout was taken from this model when the driver was made.
        let manifest = cloister_rounds::Layout::of(&self.model)
            .map(|layout| convert::manifest(&layout))
            .ok();
        wire::RoundStart {
            round: info.round,
            rounds: info.rounds,
            attempt: info.attempt,
            seed: info.seed,
            roster_digest: convert::digest_bytes(roster_digest),
            manifest,
            model_digest: convert::digest_bytes(&self.model_digest),
            previous_receipt: self.previous.as_ref().map(convert::digest_bytes).unwrap_or_default(),
            deadline_s: self.options.policy.rounds.deadline_s as f64,
        }
    }

    pub(super) fn start_round(
        &mut self,
        round: u64,
        attempt: u32,
        participants: &[String],
        roster_digest: Digest,
        orders: &mpsc::UnboundedSender<Order>,
    ) {
        let info = self.round_info(round, attempt);
        let start = self.round_start(&info, &roster_digest);
        let (updates, queue) = mpsc::unbounded_channel();
        let inputs = self.sender.clone();
        let folded = Box::new(move |node| {
            // A driver that is gone needs to hear nothing.
            let _ = inputs.blocking_send(Input::Folded { round, attempt, node });
        });
        let stream = Box::new(UpdateStream::new(queue, folded));
        // The thread lives as long as this driver; its end shows when it is joined.
        let _ = orders.send(Order::Aggregate {
            info,
            model: Arc::clone(&self.model),
            updates: stream,
        });
        for node in participants {
            self.queue(node, Outgoing::Round(Box::new(start.clone()), Arc::clone(&self.model)));
        }
        self.round = Some(Running {
            info,
            roster_digest,
            updates,
            received: HashMap::new(),
            result: None,
            started: Instant::now(),
            losses: HashMap::new(),
            train_s: 0.0,
            folded_s: 0.0,
        });
        // A step shows by its end alone.
        if !self.options.policy.rounds.mode.by_steps() {
            self.shows(Happening::RoundStarted {
                round,
                rounds: info.rounds,
                attempt,
                participants: participants.len(),
            });
        }
    }

    pub(super) async fn round_done(
        &mut self,
        summary: RoundSummary,
        orders: &mpsc::UnboundedSender<Order>,
    ) -> Result<(), ExchangeError> {
        let Some(Running {
            info,
            roster_digest,
            result: Some(result),
            started,
            losses,
            train_s,
            folded_s,
            ..
        }) = self.round.take()
        else {
            return Ok(());
        };
        let receipt = self.keep_round(&info, roster_digest, result, summary, orders).await?;
        let exchange_s = (folded_s - train_s).max(0.0);
        let body = self.result_message(exchange_s);
        if let Some(body) = body {
            for update in &receipt.updates {
                self.send(&update.node, Body::RoundResult(body.clone()));
            }
        }
        if self.options.policy.rounds.mode.by_steps() {
            self.show_step(&info, &receipt, &losses);
            return Ok(());
        }
        self.shows(Happening::RoundDone(RoundLine {
            round: info.round,
            rounds: info.rounds,
            metrics: receipt.metrics,
            train_s,
            exchange_s,
            aggregate_s: started.elapsed().as_secs_f64() - folded_s,
            updates: receipt.updates.len(),
            drops: drops(&receipt.drops),
        }));
        Ok(())
    }

    /// Signs the round's receipt and has it kept with the model: from here on both are the newest.
    pub(super) async fn keep_round(
        &mut self,
        info: &RoundInfo,
        roster_digest: Digest,
        mut result: Aggregated,
        summary: RoundSummary,
        orders: &mpsc::UnboundedSender<Order>,
    ) -> Result<Receipt, ExchangeError> {
        result.metrics.retain(|(_, value)| value.is_finite());
        result.metrics.truncate(MAX_METRICS);
        let drops = summary.drops.iter().map(|(node, reason)| ReceiptDrop {
            node: node.clone(),
            code: reason.code().to_owned(),
        });
        let receipt = Receipt {
            federation: self.options.policy.name.clone(),
            policy_digest: self.options.policy.digest(),
            round: info.round,
            attempt: info.attempt,
            roster_digest,
            previous: self.previous,
            model_before: self.model_digest,
            model_after: result.digest,
            state: result.state,
            drops: drops.collect(),
            updates: summary.updates,
            metrics: result.metrics,
        };
        let signature = self.options.identity.key.sign(&receipt.signed_bytes());
        let record = RoundRecord {
            receipt: receipt.clone(),
            signature,
        };
        let model = Arc::new(result.model);
        // Kept first, told after: what was to be sealed and a member has a receipt of is never forgotten.
        let (kept, keeping) = oneshot::channel();
        let order = Order::Keep {
            record: Box::new(record.clone()),
            model: Arc::clone(&model),
            kept,
        };
        let gone = || WorkError::new("keeping the round", "the thread that keeps has ended");
        orders.send(order).map_err(|_| gone())?;
        keeping.await.map_err(|_| gone())??;
        self.model = model;
        self.model_digest = result.digest;
        self.previous = Some(receipt.digest());
        self.last = Some(record);
        Ok(receipt)
    }

    /// The last round's record as members get it.
    pub(super) fn result_message(&self, exchange_s: f64) -> Option<wire::RoundResult> {
        let record = self.last.as_ref()?;
        Some(wire::RoundResult {
            receipt: Some(convert::receipt_message(&record.receipt)),
            signature: bytes::Bytes::copy_from_slice(&record.signature),
            exchange_s,
        })
    }

    /// Shows a round that is a step; `losses` are those that its workers reported.
    pub(super) fn show_step(&mut self, info: &RoundInfo, receipt: &Receipt, losses: &HashMap<String, f64>) {
        let now = Instant::now();
        let since = self.since.replace(now).unwrap_or(now);
        let behind = |update: &ReceiptUpdate| receipt.round.saturating_sub(1).saturating_sub(update.base);
        self.shows(Happening::StepDone(StepLine {
            round: info.round,
            rounds: info.rounds,
            loss: mean_loss(&receipt.updates, losses),
            seconds: now.duration_since(since).as_secs_f64(),
            workers: receipt.updates.iter().map(|update| update.node.clone()).collect(),
            staleness: receipt.updates.iter().map(behind).max().unwrap_or_default(),
            metrics: receipt.metrics.clone(),
            drops: drops(&receipt.drops),
        }));
    }
}

fn drops(drops: &[ReceiptDrop]) -> Vec<(String, String)> {
    let drops = drops.iter();
    drops.map(|drop| (drop.node.clone(), drop.code.clone())).collect()
}

/// Mean of the workers' losses by rows; none where one says nothing.
fn mean_loss(updates: &[ReceiptUpdate], losses: &HashMap<String, f64>) -> Option<f64> {
    let (mut sum, mut rows) = (0.0, 0.0);
    for update in updates {
        sum += losses.get(&update.node)? * update.rows as f64;
        rows += update.rows as f64;
    }
    (rows > 0.0).then(|| sum / rows)
}

/// The seed of a round: the first 8 bytes, big-endian, of SHA-256("cloister/round-seed/v1" | seed | round).
fn round_seed(seed: u64, round: u64) -> u64 {
    let mut message = b"cloister/round-seed/v1".to_vec();
    message.extend_from_slice(&seed.to_be_bytes());
    message.extend_from_slice(&round.to_be_bytes());
    let digest = Digest::of(&message);
    digest
        .as_bytes()
        .iter()
        .take(8)
        .fold(0, |seed, &byte| seed << 8 | u64::from(byte))
}
