//! What the exchange tells, as the node's events and log lines.

use std::sync::{Arc, Mutex, PoisonError};

use cloister_attestation::Refusal;
use cloister_exchange::ExchangeError;
use cloister_exchange::progress::{Happening, Progress};
use cloister_rounds::DropReason;
use cloister_session::{Clock, SessionError};
use serde_json::json;

use crate::events::{Event, MAX_REASONS, Reason, Teller};
use crate::keeper::Keeper;
use crate::keeper::audit::{Audit, Refusals};
use crate::ui::root_in_words;

/// Turns happenings into events.
#[derive(Clone)]
pub struct Watch {
    teller: Teller,
    audit: Audit,
    simulated: bool,
    clock: Clock,
    /// Whoever can dial can be refused: events of that are told at the rate at which they are written down.
    refusals: Arc<Mutex<Refusals>>,
}

/// Whom a refusal is about, as far as it says.
#[derive(Default)]
struct Refused {
    name: String,
    role: String,
    measurement: String,
}

impl Watch {
    /// Tells what happens at this node.
    pub fn new(teller: Teller, keeper: &Keeper) -> Self {
        Self {
            teller,
            audit: keeper.audit.clone(),
            simulated: keeper.quotes.simulated(),
            clock: keeper.clock(),
            refusals: Arc::default(),
        }
    }

    /// An exchange that ended: if this node refused a peer, or another member of the roster, that is told.
    pub fn ended(&self, error: &ExchangeError) {
        match error {
            ExchangeError::Session(error) => self.session_refused(error),
            ExchangeError::RosterRefused { node, refusal } => {
                let peer = Refused {
                    name: node.clone(),
                    role: "worker".into(),
                    ..Refused::default()
                };
                self.refused(peer, reasons(refusal));
            }
            _ => {}
        }
    }

    /// A session that did not come to be: told if it was this node that refused the peer.
    pub fn session_refused(&self, error: &SessionError) {
        match error {
            SessionError::RefusedPeer {
                address,
                claimed,
                refusal,
                ..
            } => {
                let peer = match claimed {
                    Some(claims) => Refused {
                        name: claims.node.clone(),
                        role: claims.role.to_string(),
                        measurement: claims.measurement.root().to_string(),
                    },
                    None => Refused {
                        name: address.clone(),
                        ..Refused::default()
                    },
                };
                self.refused(peer, reasons(refusal));
            }
            SessionError::Intercepted { address, refusal, .. } => {
                let peer = Refused {
                    name: address.clone(),
                    ..Refused::default()
                };
                self.refused(peer, reasons(refusal));
            }
            _ => {}
        }
    }

    fn refused(&self, peer: Refused, reasons: Vec<Reason>) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if refusals.one_more((self.clock)()).is_none() {
            return;
        }
        self.teller.tell(&Event::Peer {
            name: peer.name,
            role: peer.role,
            verdict: "refused".into(),
            measurement: peer.measurement,
            simulated: self.simulated,
            reasons,
        });
    }
}

/// The rules of a refusal, cut and freed of control characters: the peer may have chosen what was seen.
fn reasons(refusal: &Refusal) -> Vec<Reason> {
    let tamed = Refusal::from_wire(&refusal.to_wire());
    let rules = tamed.failed.into_iter().take(MAX_REASONS);
    rules
        .map(|failed| Reason {
            rule: failed.rule,
            seen: failed.seen,
            wanted: failed.wanted,
        })
        .collect()
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
                    reasons: Vec::new(),
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
                if let DropReason::Evidence { rules } = reason {
                    let peer = Refused {
                        name: node.clone(),
                        role: "worker".into(),
                        ..Refused::default()
                    };
                    let rules = rules.iter().take(MAX_REASONS).map(|failed| Reason {
                        rule: failed.rule.clone(),
                        seen: failed.seen.clone(),
                        wanted: failed.wanted.clone(),
                    });
                    self.refused(peer, rules.collect());
                }
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
