//! A round's result at a worker: the receipt checked, written down and shown.

use std::sync::Arc;

use cloister_policy::agreement::RoundMode;
use cloister_rounds::Receipt;
use cloister_wire::federation as wire;

use crate::convert;
use crate::error::ExchangeError;
use crate::progress::{Happening, RoundLine, StepLine};
use crate::work::{RoundRecord, WorkError};

use super::session::{Running, Session, out_of_place};

impl Session<'_> {
    /// Takes a result; also while this member trains, where each update makes a round.
    pub(super) async fn result(&mut self, result: wire::RoundResult) -> Result<(), ExchangeError> {
        let receipt = result
            .receipt
            .ok_or_else(|| out_of_place("a result", "it has no receipt"))?;
        let receipt = convert::receipt(receipt)?;
        if !self.aggregator_key.verify(&receipt.signed_bytes(), &result.signature) {
            return Err(out_of_place("a receipt", "the aggregator's node key did not sign it"));
        }
        let signature: [u8; 64] = result
            .signature
            .as_ref()
            .try_into()
            .map_err(|_| out_of_place("a receipt", "its signature is cut"))?;
        self.machine.result(&receipt)?;
        let own = &self.node.identity.node.node;
        if receipt.updates.iter().any(|update| update.node == *own)
            && let Some(running) = self.running.take()
        {
            let exchange_s = if result.exchange_s.is_finite() {
                result.exchange_s
            } else {
                0.0
            };
            self.show(&receipt, &running, exchange_s);
        }
        let (ledger, record) = (Arc::clone(&self.ledger), RoundRecord { receipt, signature });
        let keeping = tokio::task::spawn_blocking(move || ledger.round_done(&record));
        let kept = keeping
            .await
            .map_err(|_| WorkError::new("keeping a receipt", "its thread panicked"))?;
        Ok(kept?)
    }

    fn show(&self, receipt: &Receipt, running: &Running, exchange_s: f64) {
        let drops = receipt.drops.iter();
        let drops = drops
            .map(|drop| (convert::tame(&drop.node), convert::word(&drop.code)))
            .collect();
        let seconds = running.started.elapsed().as_secs_f64();
        self.shows(match self.options.local.policy.rounds.mode {
            RoundMode::Averaging => Happening::RoundDone(RoundLine {
                round: receipt.round,
                rounds: running.info.rounds,
                metrics: receipt.metrics.clone(),
                train_s: running.train_s,
                exchange_s,
                aggregate_s: (seconds - running.train_s).max(0.0),
                updates: receipt.updates.len(),
                drops,
            }),
            RoundMode::Synchronous | RoundMode::Asynchronous => Happening::StepDone(StepLine {
                round: receipt.round,
                rounds: running.info.rounds,
                loss: running.loss,
                seconds,
                workers: receipt
                    .updates
                    .iter()
                    .map(|update| convert::tame(&update.node))
                    .collect(),
                staleness: receipt.round.saturating_sub(running.info.round),
                metrics: receipt.metrics.clone(),
                drops,
            }),
        });
    }
}
