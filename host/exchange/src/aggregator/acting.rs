//! What the machine decides, done.

use cloister_rounds::{Action, DropReason};
use cloister_wire::federation::{self as wire, aggregator_message::Body};
use tokio::sync::mpsc;

use crate::convert;
use crate::error::ExchangeError;
use crate::progress::Happening;
use crate::work::{FoldMessage, WorkerUpdate};

use super::driver::Driver;
use super::labour::Order;
use super::member::{Link, Slot};

impl Driver {
    pub(super) async fn act(
        &mut self,
        action: Action,
        orders: &mpsc::UnboundedSender<Order>,
    ) -> Result<(), ExchangeError> {
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
            Action::StartTask {
                node,
                round,
                attempt,
                roster_digest,
            } => self.start_task(&node, round, attempt, roster_digest),
            Action::Apply {
                node,
                rows,
                round,
                attempt,
            } => self.apply(node, rows, (round, attempt), orders),
            Action::LeaveOut { node, reason, .. } => self.leave_out(node, reason),
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
            Action::RoundDone(summary) if self.alone() => self.step_done(summary, orders).await?,
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
                for node in &nodes {
                    self.send(node, Body::Finish(finish.clone()));
                }
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

    pub(super) fn drop_node(&mut self, node: &str, reason: DropReason) {
        let goodbye = wire::Dropped {
            code: reason.code().to_owned(),
            reason: convert::tame(&reason.to_string()),
            // A module may fail once; what no honest host sends is not sent twice.
            may_rejoin: (!reason.misbehaved() || matches!(reason, DropReason::ModuleFailed { .. }))
                && self.machine.may_join(node).is_ok(),
        };
        self.send(node, Body::Dropped(goodbye));
        self.links.remove(node);
        self.steps.told.remove(node);
        self.shows(Happening::Dropped {
            node: node.to_owned(),
            reason,
        });
    }
}
