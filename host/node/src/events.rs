//! What a running node tells: lines for people, or one JSON object a line with `-o json` (then for programs to follow).

use serde::{Deserialize, Serialize};

use cloister_attestation::RaTlsIdentity;

use crate::keeper::Keeper;
use crate::ui::Ui;

/// Most rules that a refusal lists in an event.
pub const MAX_REASONS: usize = 16;

/// A rule that a peer's evidence failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// Its name, as in the policy where it stands there.
    pub rule: String,
    /// What the evidence showed.
    pub seen: String,
    /// What would have been accepted.
    pub wanted: String,
}

/// Something that happened at a node. The JSON form carries the name in `event`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The node's processes run.
    Started {
        /// The node's name in the policy.
        node: String,
        /// Its role.
        role: String,
        /// Whether the trust root is a simulated one.
        simulated: bool,
        /// The engine that computes, with its version.
        engine: String,
        /// Digest of the policy.
        policy: String,
    },
    /// The aggregator can be dialled.
    Listening {
        /// Its address.
        address: String,
    },
    /// A policy took effect, or is known to be in force.
    InForce {
        /// Its digest.
        policy: String,
        /// Its version.
        version: u64,
    },
    /// A model was delivered to this TD, and opened.
    Received {
        /// The round that it came out of.
        round: u64,
        /// Its digest.
        model: String,
        /// Its files.
        files: Vec<String>,
    },
    /// The node waits for something that others must do.
    Waiting {
        /// For what, and why.
        what: String,
    },
    /// The node is measured (again), and has a new certificate.
    Measured {
        /// `bootstrap` or `member`.
        state: String,
        /// Root of the measurement, hexadecimal.
        measurement: String,
    },
    /// Evidence of a peer was accepted or refused. Of a refused peer the fields say what it claims to be.
    Peer {
        /// The peer's node name; its address, where it was refused before it claimed one.
        name: String,
        /// Its role; empty where it claims none.
        role: String,
        /// `accepted` or `refused`.
        verdict: String,
        /// Root of its measurement, hexadecimal; empty where it claims none.
        measurement: String,
        /// Whether the peer's TD, or where it was refused this node's root of trust, is a simulated one.
        simulated: bool,
        /// Why it was refused, rule by rule: at most [`MAX_REASONS`].
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        reasons: Vec<Reason>,
    },
    /// An aggregator that was started again goes on behind the last round that its vault holds.
    Resumed {
        /// The round that comes next.
        round: u64,
        /// Of how many.
        rounds: u64,
        /// Digest of the model that it starts from.
        model: String,
    },
    /// A round ended.
    Round {
        /// Which, from 1.
        round: u64,
        /// Of how many.
        rounds: u64,
        /// Mean loss over the held-out rows.
        loss: Option<f64>,
        /// Share of the held-out rows that the model names right; none where the loss has no classes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        accuracy: Option<f64>,
        /// The slowest worker's training time.
        train_s: f64,
        /// What moving the model and the updates took beyond that.
        exchange_s: f64,
        /// Folding the last update, evaluating, sealing.
        aggregate_s: f64,
        /// How many updates went in.
        workers: usize,
        /// Who was dropped, and why.
        dropped: Vec<String>,
    },
    /// A step is done, in a mode of which a round is one.
    Step {
        /// Which, from 0, as training loops count.
        step: u64,
        /// Of how many.
        steps: u64,
        /// Mean loss that the trainers report for the batches behind it; at a worker its own.
        loss: Option<f64>,
        /// Time since the step before.
        iter_s: f64,
        /// Whose gradients it went by.
        workers: Vec<String>,
        /// How many steps lay between the model that these were computed on and this one, at most.
        staleness: u64,
        /// Whose gradient was left out, and why; who was dropped.
        dropped: Vec<String>,
    },
    /// The model was evaluated, in a mode by steps.
    Evaluated {
        /// After which step, counted from 1.
        round: u64,
        /// Of how many.
        rounds: u64,
        /// Mean loss over the held-out rows.
        loss: Option<f64>,
        /// Share of the held-out rows that the model names right; none where the loss has no classes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        accuracy: Option<f64>,
    },
    /// A node no longer takes part.
    Dropped {
        /// Which.
        node: String,
        /// Why.
        reason: String,
    },
    /// A worker's own module, or what runs it, failed in a round.
    ModuleFailed {
        /// The module's name in the policy.
        module: String,
        /// The word for it that the aggregator gets.
        code: String,
        /// What happened; it stays on this node.
        reason: String,
    },
    /// A worker's rows can't be trained on.
    DatasetFailed {
        /// The dataset's name in the policy.
        dataset: String,
        /// Which row, what was seen and what was wanted; it stays on this node.
        reason: String,
    },
    /// A worker no longer takes part.
    Ended {
        /// Whether the federation has come to its end.
        finished: bool,
        /// Rounds that it has seen.
        rounds: u64,
    },
    /// All rounds are done and the model is sealed.
    Finished {
        /// How many rounds.
        rounds: u64,
        /// Digest of the model, as the last receipt names it.
        model: String,
        /// Final loss over the held-out rows.
        loss: Option<f64>,
        /// Final accuracy over the held-out rows; none where the loss has no classes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        accuracy: Option<f64>,
    },
}

impl Event {
    /// The node's processes run, with this engine.
    pub fn started(keeper: &Keeper, engine: &str) -> Self {
        let fields = &keeper.identity.credential.fields;
        Self::Started {
            node: fields.node.clone(),
            role: fields.role.to_string(),
            simulated: keeper.quotes.simulated(),
            engine: engine.to_owned(),
            policy: keeper.policy.digest().to_string(),
        }
    }

    /// The node is measured and has a certificate.
    pub fn measured(state: &str, certificate: &RaTlsIdentity) -> Self {
        Self::Measured {
            state: state.to_owned(),
            measurement: certificate.node.measurement.root().to_string(),
        }
    }
}

/// Tells events on stdout.
#[derive(Clone, Copy, Debug)]
pub struct Teller {
    json: bool,
}

impl Teller {
    /// A teller for people, or for programs.
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Tells one event.
    pub fn tell(&self, event: &Event) {
        let mut out = Ui::default();
        if self.json {
            if let Ok(line) = serde_json::to_string(event) {
                out.data(line);
            }
        } else {
            out.data(words(event));
        }
    }
}

/// The event in words.
pub fn words(event: &Event) -> String {
    match event {
        Event::Started {
            node,
            role,
            simulated,
            engine,
            policy,
        } => format!(
            "{node} ({role}) runs on {engine}, policy {}{}",
            first(policy, 12),
            if *simulated {
                "\nSIMULATED: the trust root is a simulator's; nothing here is protected by hardware"
            } else {
                ""
            }
        ),
        Event::Listening { address } => format!("listening at {address}"),
        Event::InForce { policy, version } => {
            format!("in force: version {version} of the policy, {}", first(policy, 12))
        }
        Event::Waiting { what } => format!("waiting for {}", what.strip_prefix("waiting for ").unwrap_or(what)),
        Event::Measured { state, measurement } => format!("{state}, measurement {}", first(measurement, 16)),
        Event::Peer {
            name,
            role,
            verdict,
            measurement,
            simulated,
            reasons,
        } => {
            let simulated = if *simulated { " SIMULATED" } else { "" };
            let role = if role.is_empty() { "of no claimed role" } else { role };
            let mut line = match measurement.is_empty() {
                true => format!("{verdict} {name} ({role}){simulated}"),
                false => format!(
                    "{verdict} {name} ({role}), measurement {}{simulated}",
                    first(measurement, 16)
                ),
            };
            for Reason { rule, seen, wanted } in reasons {
                line.push_str(&format!("\n  {rule}: seen {seen}; wanted {wanted}"));
            }
            line
        }
        Event::Resumed { round, rounds, model } => format!(
            "goes on with round {round}/{rounds}, from the sealed model {}",
            first(model, 12)
        ),
        Event::Round {
            round,
            rounds,
            loss,
            accuracy,
            train_s,
            exchange_s,
            dropped,
            ..
        } => {
            let mut line = format!("round {round}/{rounds}");
            if let Some(loss) = loss {
                line.push_str(&format!("  loss {loss:.3}"));
            }
            if let Some(accuracy) = accuracy {
                line.push_str(&format!("  accuracy {accuracy:.3}"));
            }
            line.push_str(&format!("  train {train_s:.2} s  exchange {exchange_s:.2} s"));
            for reason in dropped {
                line.push_str(&format!("\n  dropped {reason}"));
            }
            line
        }
        Event::Step {
            step,
            loss,
            iter_s,
            dropped,
            ..
        } => {
            let loss = loss.map_or(String::new(), |loss| format!(", loss: {loss:.6}"));
            let mut line = format!("step: {step}{loss}, iter time: {iter_s:.4}");
            for reason in dropped {
                line.push_str(&format!("\n  without {reason}"));
            }
            line
        }
        Event::Evaluated {
            round,
            rounds,
            loss,
            accuracy,
        } => {
            let loss = loss.map_or(String::new(), |loss| format!("  loss {loss:.3}"));
            let accuracy = accuracy.map_or(String::new(), |accuracy| format!("  accuracy {accuracy:.3}"));
            format!("after {round}/{rounds} steps{loss}{accuracy}")
        }
        Event::Received { round, model, files } => format!(
            "received the model of round {round} ({}): {}",
            first(model, 12),
            files.join(", ")
        ),
        Event::ModuleFailed { module, code, reason } => format!("module {module} failed ({code}): {reason}"),
        Event::DatasetFailed { dataset, reason } => format!("dataset {dataset} cannot be trained on: {reason}"),
        Event::Ended { finished, rounds } => {
            let how = if *finished {
                "the federation has come to its end"
            } else {
                "left"
            };
            format!("{how} after {rounds} rounds")
        }
        Event::Dropped { node, reason } => format!("dropped {node}: {reason}"),
        Event::Finished {
            rounds,
            model,
            accuracy,
            ..
        } => {
            let accuracy = accuracy.map_or(String::new(), |accuracy| format!(", accuracy {accuracy:.4}"));
            format!("finished after {rounds} rounds{accuracy}: model {}", first(model, 12))
        }
    }
}

fn first(text: &str, count: usize) -> &str {
    text.get(..count).unwrap_or(text)
}
