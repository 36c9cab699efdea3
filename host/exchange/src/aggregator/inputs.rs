//! What comes in: members that join, what they say, and what the labour gave; each as an event of the machine.

use std::sync::Arc;

use cloister_attestation::identity::Role;
use cloister_policy::{Appraiser, Expected};
use cloister_rounds::{Event, UpdateRefusal};
use cloister_wire::federation as wire;
use tokio::sync::mpsc;

use crate::convert;
use crate::error::ExchangeError;
use crate::progress::Happening;
use crate::roster;

use super::driver::Driver;
use super::labour::{Aggregated, Order};
use super::member::{Input, Said};
use super::running::{Running, loss_of};
use super::second::{JoinRefused, Joining};

impl Driver {
    pub(super) async fn input(
        &mut self,
        input: Input,
        orders: &mpsc::UnboundedSender<Order>,
    ) -> Result<(), ExchangeError> {
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
                let Some(place) = self.awaited(round, attempt) else {
                    return Ok(());
                };
                match result {
                    Ok(result) => {
                        *place = Some(result);
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
    pub(super) async fn join_again(
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

    /// Where the result of this aggregation belongs, if it is still awaited.
    fn awaited(&mut self, round: u64, attempt: u32) -> Option<&mut Option<Aggregated>> {
        if self.steps.applies(round, attempt) {
            return Some(&mut self.steps.result);
        }
        self.running(round, attempt).map(|running| &mut running.result)
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
                let loss = loss_of(&metrics);
                match self.running(round, attempt) {
                    Some(running) => running.announced(&node, loss, train_s),
                    None => self.steps.announced(&node, loss),
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
                let received = if self.alone() {
                    &mut self.steps.received
                } else {
                    &mut self.running(round, attempt)?.received
                };
                received.insert(node.clone(), tensors);
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
}
