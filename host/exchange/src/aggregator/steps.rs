//! What members work on and what they sent, where each update is applied alone.
//!
//! Each member gets the newest model with each of its tasks, and the receipt of every update, its own or another's. A version of the model
//! stays in memory while a member takes it: at most one a member beside the newest.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use cloister_rounds::DropReason;
use cloister_rounds::aggregator::RoundSummary;
use cloister_tensor::{Digest, TensorMap};
use cloister_wire::federation::aggregator_message::Body;
use tokio::sync::mpsc;

use crate::error::ExchangeError;
use crate::progress::Happening;
use crate::work::{RoundInfo, UpdateStream, WorkerUpdate};

use super::driver::Driver;
use super::labour::{Aggregated, Order};
use super::member::Outgoing;

/// What belongs to the steps that members are at.
#[derive(Default)]
pub(super) struct Steps {
    /// The roster under which the tasks are.
    roster_digest: Option<Digest>,
    /// Updates that are here whole and wait to be applied.
    pub(super) received: HashMap<String, TensorMap>,
    /// The loss that each member reported last.
    losses: HashMap<String, f64>,
    /// The update that is being applied.
    applying: Option<RoundInfo>,
    /// What that gave.
    pub(super) result: Option<Aggregated>,
    /// Members that have had a task since they joined: they get every receipt.
    pub(super) told: HashSet<String>,
}

impl Steps {
    /// Whether this is the update that is being applied.
    pub(super) fn applies(&self, round: u64, attempt: u32) -> bool {
        let info = self.applying.as_ref();
        info.is_some_and(|info| (info.round, info.attempt) == (round, attempt))
    }

    /// A member's update is computed, with this loss of its training.
    pub(super) fn announced(&mut self, node: &str, loss: Option<f64>) {
        match loss {
            Some(loss) => self.losses.insert(node.to_owned(), loss),
            None => self.losses.remove(node),
        };
    }
}

impl Driver {
    /// Sends the newest model to a member, to work on.
    pub(super) fn start_task(&mut self, node: &str, round: u64, attempt: u32, roster_digest: Digest) {
        let info = self.round_info(round, attempt);
        let start = self.round_start(&info, &roster_digest);
        let model = Arc::clone(&self.model);
        self.steps.roster_digest = Some(roster_digest);
        self.steps.told.insert(node.to_owned());
        self.queue(node, Outgoing::Round(Box::new(start), model));
    }

    /// Has one update applied.
    pub(super) fn apply(
        &mut self,
        node: String,
        rows: u64,
        (round, attempt): (u64, u32),
        orders: &mpsc::UnboundedSender<Order>,
    ) {
        // What the machine applies was received.
        let tensors = self.steps.received.remove(&node).unwrap_or_default();
        let info = self.round_info(round, attempt);
        self.steps.applying = Some(info);
        // The thread lives as long as this driver; its end shows when it is joined.
        let _ = orders.send(Order::Aggregate {
            info,
            model: Arc::clone(&self.model),
            updates: Box::new(UpdateStream::of(vec![WorkerUpdate { node, rows, tensors }])),
        });
    }

    /// Forgets a member's update.
    pub(super) fn leave_out(&mut self, node: String, reason: DropReason) {
        self.steps.received.remove(&node);
        self.shows(Happening::LeftOut { node, reason });
    }

    /// An update is applied: everybody gets its receipt.
    pub(super) async fn step_done(
        &mut self,
        summary: RoundSummary,
        orders: &mpsc::UnboundedSender<Order>,
    ) -> Result<(), ExchangeError> {
        let (Some(info), Some(result), Some(roster_digest)) = (
            self.steps.applying.take(),
            self.steps.result.take(),
            self.steps.roster_digest,
        ) else {
            return Ok(());
        };
        let receipt = self.keep_round(&info, roster_digest, result, summary, orders).await?;
        if let Some(body) = self.result_message(0.0) {
            let told: Vec<String> = self.steps.told.iter().cloned().collect();
            for node in told {
                self.send(&node, Body::RoundResult(body.clone()));
            }
        }
        let losses = std::mem::take(&mut self.steps.losses);
        self.show_step(&info, &receipt, &losses);
        self.steps.losses = losses;
        Ok(())
    }
}
