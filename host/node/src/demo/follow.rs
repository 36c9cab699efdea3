//! What the nodes of an example tell while they train.

use std::collections::BTreeMap;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::plan::Plan;
use super::processes::{ProcessError, Processes};
use crate::events::{Event, words};
use crate::ui::Ui;

/// A node that was verified.
#[derive(Serialize)]
pub struct PeerSummary {
    name: String,
    role: String,
    verdict: String,
    measurement: String,
    verified_by: Vec<String>,
}

/// What the nodes told.
#[derive(Default)]
pub struct Seen {
    /// Who was verified.
    pub peers: BTreeMap<String, PeerSummary>,
    /// The last round.
    pub rounds: u64,
    /// Of the last evaluation; none where the loss has no classes.
    pub accuracy: Option<f64>,
    /// Of the last evaluation.
    pub loss: f64,
    /// Digest of the final model.
    pub model: String,
}

impl Seen {
    /// What the aggregator told of a round, a step or an evaluation.
    fn take(&mut self, event: &Event) {
        let (round, judged) = match event {
            Event::Round {
                round, loss, accuracy, ..
            }
            | Event::Evaluated {
                round, loss, accuracy, ..
            } => (*round, Some((*loss, *accuracy))),
            Event::Step { step, .. } => (step + 1, None),
            _ => return,
        };
        self.rounds = round;
        if let Some((loss, accuracy)) = judged {
            self.loss = loss.unwrap_or(f64::NAN);
            self.accuracy = accuracy;
        }
    }
}

/// Listens to the nodes until the last round is done.
pub fn follow(plan: &Plan, processes: &mut Processes, out: &mut Ui) -> Result<Seen, ProcessError> {
    let aggregator = plan.aggregator().map(|node| node.name.clone()).unwrap_or_default();
    let mut seen = Seen::default();
    let bar = ProgressBar::with_draw_target(Some(plan.rounds.count.into()), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("   {wide_bar} {msg}") {
        bar.set_style(style);
    }
    let mut started = false;
    loop {
        let (node, event) = processes.next("the next round", plan.patience())?;
        match event {
            Event::Peer {
                name,
                role,
                verdict,
                measurement,
                ..
            } if verdict == "accepted" => {
                let peer = seen.peers.entry(name.clone()).or_insert_with(|| PeerSummary {
                    name,
                    role,
                    verdict: verdict.clone(),
                    measurement: measurement.clone(),
                    verified_by: Vec::new(),
                });
                peer.verdict = verdict;
                peer.measurement = measurement;
                if !peer.verified_by.contains(&node) {
                    peer.verified_by.push(node);
                    peer.verified_by.sort();
                }
            }
            Event::Round { .. } | Event::Step { .. } | Event::Evaluated { .. } if node == aggregator => {
                if !started {
                    started = true;
                    tell_peers(&seen, out);
                }
                seen.take(&event);
                bar.println(format!("   {}", words(&event)));
                if bar.is_hidden() {
                    out.note(format!("   {}", words(&event)));
                }
                bar.set_position(seen.rounds);
                let judged = match seen.accuracy {
                    Some(accuracy) => format!("accuracy {accuracy:.3}"),
                    None => format!("loss {:.3}", seen.loss),
                };
                bar.set_message(format!("{}/{} {judged}", seen.rounds, plan.rounds.count));
            }
            Event::Resumed { .. } if node == aggregator => out.note(format!("   {}", words(&event))),
            Event::Dropped { .. } if node == aggregator => out.note(format!("   {}", words(&event))),
            Event::Finished { model, .. } if node == aggregator => {
                bar.finish_and_clear();
                seen.model = model;
                return Ok(seen);
            }
            _ => {}
        }
    }
}

fn tell_peers(seen: &Seen, out: &mut Ui) {
    out.note("4  verified each other, two by two (SIMULATED evidence):");
    for peer in seen.peers.values() {
        let measurement = peer.measurement.get(..16).unwrap_or_default();
        out.note(format!(
            "     {} ({}) {measurement}… {} by {}",
            peer.name,
            peer.role,
            peer.verdict,
            peer.verified_by.join(", ")
        ));
    }
}
