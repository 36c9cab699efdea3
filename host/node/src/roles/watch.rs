//! What the exchange tells, as the node's events and log lines.

use cloister_exchange::progress::{Happening, Progress};

use crate::events::{Event, Teller};

/// Turns happenings into events.
#[derive(Clone, Copy, Debug)]
pub struct Watch(pub Teller);

impl Progress for Watch {
    fn happened(&self, happening: &Happening) {
        tracing::info!("{happening}");
        match happening {
            Happening::Waiting { why } => self.0.tell(&Event::Waiting { what: why.clone() }),
            Happening::Verified {
                node,
                role,
                measurement,
                simulated,
            } => self.0.tell(&Event::Peer {
                name: node.clone(),
                role: role.clone(),
                verdict: "accepted".into(),
                measurement: measurement.clone(),
                simulated: *simulated,
            }),
            Happening::RoundDone(line) => {
                let metric = |wanted: &str| {
                    line.metrics
                        .iter()
                        .find(|(name, _)| name == wanted)
                        .map(|(_, value)| *value)
                };
                self.0.tell(&Event::Round {
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
            Happening::Dropped { node, reason } => {
                self.0.tell(&Event::Dropped {
                    node: node.clone(),
                    reason: reason.to_string(),
                });
            }
            Happening::Joined { .. }
            | Happening::RoundStarted { .. }
            | Happening::RoundAborted { .. }
            | Happening::Finished { .. }
            | Happening::Reconnecting { .. } => {}
        }
    }
}
