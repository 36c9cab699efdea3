//! What the exchange tells, as the node's events and log lines.

use cloister_exchange::progress::{Happening, Progress};
use cloister_rounds::DropReason;
use serde_json::json;

use crate::events::{Event, Teller};
use crate::keeper::Keeper;
use crate::keeper::audit::Audit;
use crate::ui::root_in_words;

/// Turns happenings into events.
#[derive(Clone)]
pub struct Watch {
    teller: Teller,
    audit: Audit,
    simulated: bool,
}

impl Watch {
    /// Tells what happens at this node.
    pub fn new(teller: Teller, keeper: &Keeper) -> Self {
        Self {
            teller,
            audit: keeper.audit.clone(),
            simulated: keeper.quotes.simulated(),
        }
    }
}

impl Progress for Watch {
    fn happened(&self, happening: &Happening) {
        tracing::info!("{happening}");
        match happening {
            Happening::Waiting { why } => self.teller.tell(&Event::Waiting { what: why.clone() }),
            Happening::Verified {
                node,
                role,
                measurement,
                simulated,
            } => {
                let what = json!({ "node": node, "role": role, "measurement": measurement, "simulated": simulated });
                self.audit.note("attested", what);
                self.teller.tell(&Event::Peer {
                    name: node.clone(),
                    role: role.clone(),
                    verdict: "accepted".into(),
                    measurement: measurement.clone(),
                    simulated: *simulated,
                });
            }
            Happening::RoundDone(line) => {
                let metric = |wanted: &str| {
                    line.metrics
                        .iter()
                        .find(|(name, _)| name == wanted)
                        .map(|(_, value)| *value)
                };
                self.teller.tell(&Event::Round {
                    round: line.round,
                    rounds: line.rounds,
                    loss: metric("loss"),
                    accuracy: metric("accuracy"),
                    train_s: line.train_s,
                    exchange_s: line.exchange_s,
                    aggregate_s: line.aggregate_s,
                    workers: line.updates,
                    dropped: line.drops.iter().map(|(node, why)| format!("{node}: {why}")).collect(),
                });
            }
            Happening::StepDone(line) => {
                let metric = |wanted: &str| {
                    let found = line.metrics.iter().find(|(name, _)| name == wanted);
                    found.map(|(_, value)| *value)
                };
                self.teller.tell(&Event::Step {
                    step: line.round.saturating_sub(1),
                    steps: line.rounds,
                    loss: line.loss,
                    iter_s: line.seconds,
                    workers: line.workers.clone(),
                    staleness: line.staleness,
                    dropped: line.drops.iter().map(|(node, why)| format!("{node}: {why}")).collect(),
                });
                let (loss, accuracy) = (metric("loss"), metric("accuracy"));
                if loss.is_some() || accuracy.is_some() {
                    self.teller.tell(&Event::Evaluated {
                        round: line.round,
                        rounds: line.rounds,
                        loss,
                        accuracy,
                    });
                }
            }
            Happening::Dropped { node, reason } => {
                let what = json!({ "node": node, "code": reason.code(), "reason": reason.to_string() });
                self.audit.note("dropped", what);
                self.teller.tell(&Event::Dropped {
                    node: node.clone(),
                    reason: match reason {
                        DropReason::Evidence { .. } | DropReason::RefusesMember { .. } => {
                            format!("{reason}{}", root_in_words(self.simulated))
                        }
                        _ => reason.to_string(),
                    },
                });
            }
            Happening::Joined { .. }
            | Happening::LeftOut { .. }
            | Happening::RoundStarted { .. }
            | Happening::RoundAborted { .. }
            | Happening::Finished { .. }
            | Happening::Reconnecting { .. } => {}
        }
    }
}
