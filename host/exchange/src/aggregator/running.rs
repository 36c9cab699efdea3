//! The attempt at a round that runs: its start, and its record at the end.

use std::collections::HashMap;
use std::sync::Arc;

use cloister_rounds::Receipt;
use cloister_rounds::aggregator::RoundSummary;
use cloister_rounds::receipt::{ReceiptDrop, ReceiptUpdate};
use cloister_tensor::{Digest, TensorMap};
use cloister_wire::federation::{self as wire, aggregator_message::Body};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::convert;
use crate::error::ExchangeError;
use crate::progress::{Happening, RoundLine};
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
    pub(super) train_s: f64,
    pub(super) folded_s: f64,
}

impl Driver {
    pub(super) fn start_round(
        &mut self,
        round: u64,
        attempt: u32,
        participants: &[String],
        roster_digest: Digest,
        orders: &mpsc::UnboundedSender<Order>,
    ) {
        let policy = &self.options.policy;
        let rounds = u64::from(policy.rounds.count);
        let info = RoundInfo {
            round,
            rounds,
            attempt,
            seed: round_seed(policy.rounds.seed, round),
        };
        // The layout was taken from this model when the driver was made.
        let manifest = cloister_rounds::Layout::of(&self.model)
            .map(|layout| convert::manifest(&layout))
            .ok();
        let start = wire::RoundStart {
            round,
            rounds,
            attempt,
            seed: info.seed,
            roster_digest: convert::digest_bytes(&roster_digest),
            manifest,
            model_digest: convert::digest_bytes(&self.model_digest),
            previous_receipt: self.previous.as_ref().map(convert::digest_bytes).unwrap_or_default(),
            deadline_s: policy.rounds.deadline_s as f64,
        };
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
            train_s: 0.0,
            folded_s: 0.0,
        });
        let participants = participants.len();
        self.shows(Happening::RoundStarted {
            round,
            rounds,
            attempt,
            participants,
        });
    }

    pub(super) async fn round_done(
        &mut self,
        summary: RoundSummary,
        orders: &mpsc::UnboundedSender<Order>,
    ) -> Result<(), ExchangeError> {
        let Some(Running {
            info,
            roster_digest,
            result: Some(mut result),
            started,
            train_s,
            folded_s,
            ..
        }) = self.round.take()
        else {
            return Ok(());
        };
        result.metrics.retain(|(_, value)| value.is_finite());
        result.metrics.truncate(MAX_METRICS);
        let drops: Vec<(String, String)> = summary
            .drops
            .iter()
            .map(|(node, reason)| (node.clone(), reason.code().to_owned()))
            .collect();
        let updates = summary
            .updates
            .into_iter()
            .map(|(node, rows, digest)| ReceiptUpdate { node, rows, digest });
        let receipt = Receipt {
            federation: self.options.policy.name.clone(),
            policy_digest: self.options.policy.digest(),
            round: info.round,
            attempt: info.attempt,
            roster_digest,
            previous: self.previous,
            model_before: self.model_digest,
            model_after: result.digest,
            updates: updates.collect(),
            drops: drops
                .iter()
                .map(|(node, code)| ReceiptDrop {
                    node: node.clone(),
                    code: code.clone(),
                })
                .collect(),
            metrics: result.metrics.clone(),
        };
        let signature = self.options.identity.key.sign(&receipt.signed_bytes());
        let record = RoundRecord { receipt, signature };
        let model = Arc::new(result.model);
        // Kept first, told after: what a member has a receipt of is never forgotten.
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
        self.previous = Some(record.receipt.digest());
        let exchange_s = (folded_s - train_s).max(0.0);
        let line = RoundLine {
            round: info.round,
            rounds: info.rounds,
            metrics: result.metrics,
            train_s,
            exchange_s,
            aggregate_s: started.elapsed().as_secs_f64() - folded_s,
            updates: record.receipt.updates.len(),
            drops,
        };
        let body = wire::RoundResult {
            receipt: Some(convert::receipt_message(&record.receipt)),
            signature: bytes::Bytes::copy_from_slice(&record.signature),
            exchange_s,
        };
        for update in &record.receipt.updates {
            self.send(&update.node, Body::RoundResult(body.clone()));
        }
        self.records.push(record);
        self.shows(Happening::RoundDone(line));
        Ok(())
    }
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
