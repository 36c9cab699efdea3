//! What a successor changes, in words, and what of it deserves a second thought before anybody signs.

mod attestation;
mod work;

use std::fmt::Display;

use crate::agreement::{Agreement, Compute, Limits, Precision, Release, RoundMode, Rounds};
use crate::policy::Policy;

/// What a change is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// How many sign, and whether a successor may follow.
    Agreement,
    /// Organisations and their keys.
    Participants,
    /// Nodes.
    Nodes,
    /// The model that training starts from.
    Model,
    /// WebAssembly modules and what each may do.
    Code,
    /// ONNX graphs.
    Graphs,
    /// Datasets.
    Data,
    /// How rounds go.
    Rounds,
    /// How graphs are computed.
    Compute,
    /// What modules and messages may use up.
    Limits,
    /// Which TDs are let in.
    Attestation,
    /// Who gets the model.
    Release,
}

impl Area {
    /// The area's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agreement => "agreement",
            Self::Participants => "participants",
            Self::Nodes => "nodes",
            Self::Model => "model",
            Self::Code => "code",
            Self::Graphs => "graphs",
            Self::Data => "data",
            Self::Rounds => "rounds",
            Self::Compute => "compute",
            Self::Limits => "limits",
            Self::Attestation => "attestation",
            Self::Release => "release",
        }
    }
}

/// One thing that a successor changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What it is about.
    pub area: Area,
    /// What changes, in words.
    pub text: String,
    /// Why it deserves a second thought, if it does.
    pub concern: Option<&'static str>,
}

/// Collects the changes.
#[derive(Default)]
struct Changes {
    found: Vec<Change>,
}

impl Changes {
    fn say(&mut self, area: Area, text: String) {
        self.add(area, text, None);
    }

    fn add(&mut self, area: Area, text: String, concern: Option<&'static str>) {
        self.found.push(Change { area, text, concern });
    }

    /// A value that changed.
    fn value<T: PartialEq + Display>(
        &mut self,
        area: Area,
        what: &str,
        (old, new): (&T, &T),
        concern: Option<&'static str>,
    ) {
        if old != new {
            self.add(area, format!("{what}: {old} becomes {new}"), concern);
        }
    }
}

/// What stands in one list and not in the other, by `key`: (gone, new, in both as (old, new)).
type Sorted<'a, T> = (Vec<&'a T>, Vec<&'a T>, Vec<(&'a T, &'a T)>);

fn sorted<'a, T, K: PartialEq>(old: &'a [T], new: &'a [T], key: impl Fn(&'a T) -> K) -> Sorted<'a, T> {
    let has = |list: &'a [T], wanted: &K| list.iter().find(|one| key(one) == *wanted);
    let gone = old.iter().filter(|one| has(new, &key(one)).is_none()).collect();
    let fresh = new.iter().filter(|one| has(old, &key(one)).is_none()).collect();
    let both = old.iter().filter_map(|one| Some((one, has(new, &key(one))?))).collect();
    (gone, fresh, both)
}

fn names<T: AsRef<str>>(names: &[T]) -> String {
    if names.is_empty() {
        return "nobody".to_owned();
    }
    names.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", ")
}

/// What changes from `old` to `new`, in the order of the file. Version and predecessor, which always change, are not among
/// it: [`crate::broken_rules`] says whether they fit.
pub fn diff(old: &Policy, new: &Policy) -> Vec<Change> {
    let mut out = Changes::default();
    // Taken apart whole, so that a new section can't be forgotten here.
    let Agreement {
        name: _,
        version: _,
        predecessor: _,
        consent,
        participants: _,
        nodes: _,
        model,
        modules,
        graphs,
        datasets,
        rounds,
        compute,
        limits,
        attestation,
        release,
    } = new.agreement();
    let threshold = (&old.consent.threshold, &consent.threshold);
    let fewer = (threshold.1 < threshold.0).then_some("fewer have to agree to what comes next");
    out.value(Area::Agreement, "participants who have to sign", threshold, fewer);
    let shares = (&old.consent.recovery_shares, &consent.recovery_shares);
    let fewer = (shares.1 < shares.0).then_some("fewer together can open the manager's state");
    out.value(
        Area::Agreement,
        "recovery shares that open the manager's state",
        shares,
        fewer,
    );
    if old.consent.immutable != consent.immutable {
        let (text, concern) = if consent.immutable {
            (
                "no successor may follow it",
                Some("a mistake in it can't be mended but by a new federation"),
            )
        } else {
            ("successors may follow it", None)
        };
        out.add(Area::Agreement, text.to_owned(), concern);
    }
    parties(&mut out, old, new);
    out.value(Area::Model, "name", (&old.model.name, &model.name), None);
    if old.model.weights != model.weights {
        let text = format!(
            "training starts from the weights {} instead of {}",
            model.weights.short(),
            old.model.weights.short()
        );
        out.add(
            Area::Model,
            text,
            Some("what was trained so far is not what it goes on from, unless these are its weights"),
        );
    }
    work::modules(&mut out, &old.modules, modules);
    work::graphs(&mut out, &old.graphs, graphs);
    work::datasets(&mut out, &old.datasets, datasets);
    self::rounds(&mut out, &old.rounds, rounds);
    self::compute(&mut out, old.compute, *compute);
    self::limits(&mut out, &old.limits, limits);
    attestation::diff(&mut out, &old.attestation, attestation);
    self::release(&mut out, &old.release, release);
    out.found
}

fn parties(out: &mut Changes, old: &Agreement, new: &Agreement) {
    let (gone, fresh, both) = sorted(&old.participants, &new.participants, |one| one.name.as_str());
    for one in gone {
        out.say(
            Area::Participants,
            format!("{} leaves: it signs no more for this federation", one.name),
        );
    }
    for one in fresh {
        let text = format!("{} joins with the key {}", one.name, one.public_key);
        out.add(
            Area::Participants,
            text,
            Some("ask it for that key yourself: whoever has it signs as this participant"),
        );
    }
    for (before, after) in both.into_iter().filter(|(a, b)| a.public_key != b.public_key) {
        let text = format!(
            "the key of {} changes from {} to {}",
            after.name, before.public_key, after.public_key
        );
        out.add(
            Area::Participants,
            text,
            Some("ask it for the new key yourself: whoever has it signs as this participant"),
        );
    }
    let (gone, fresh, both) = sorted(&old.nodes, &new.nodes, |one| one.name.as_str());
    for one in gone {
        out.say(Area::Nodes, format!("the {} {:?} is gone", one.role, one.name));
    }
    for one in fresh {
        let text = format!("{} gets a new {} {:?}", one.participant, one.role, one.name);
        out.say(Area::Nodes, text);
    }
    for (before, after) in both.into_iter().filter(|(a, b)| a != b) {
        let text = format!(
            "{:?} was the {} of {} and becomes the {} of {}",
            after.name, before.role, before.participant, after.role, after.participant
        );
        out.add(
            Area::Nodes,
            text,
            Some("what was sent to the node of that name goes to another one now"),
        );
    }
}

fn rounds(out: &mut Changes, old: &Rounds, new: &Rounds) {
    let Rounds {
        mode,
        count,
        quorum,
        deadline_s,
        min_workers_per_aggregate,
        seed,
        checkpoint_every,
        evaluate_every,
        max_staleness,
    } = new;
    let other = match (old.mode, mode) {
        (RoundMode::Averaging, RoundMode::Synchronous | RoundMode::Asynchronous) => {
            Some("workers send gradients, which tell more of single rows than the models of many steps do")
        }
        (RoundMode::Synchronous, RoundMode::Asynchronous) => Some("each worker's gradient is applied alone"),
        _ => None,
    };
    out.value(Area::Rounds, "mode", (&old.mode.as_str(), &mode.as_str()), other);
    out.value(Area::Rounds, "rounds", (&old.count, count), None);
    let fewer = (*quorum < old.quorum).then_some("a round counts with fewer workers in it");
    out.value(Area::Rounds, "workers that make a round", (&old.quorum, quorum), fewer);
    let deadline = (&old.deadline_s, deadline_s);
    out.value(Area::Rounds, "seconds that a round waits for a worker", deadline, None);
    let least = (&old.min_workers_per_aggregate, min_workers_per_aggregate);
    let fewer = (least.1 < least.0).then_some("an aggregate of fewer hides less of each worker's update");
    out.value(Area::Rounds, "fewest workers in an aggregate", least, fewer);
    out.value(Area::Rounds, "seed", (&old.seed, seed), None);
    let every = (&old.checkpoint_every, checkpoint_every);
    let rarer = (every.1 > every.0).then_some("whoever can end the aggregator can undo more rounds");
    out.value(Area::Rounds, "rounds from one that is sealed to the next", every, rarer);
    let every = (&old.evaluate_every, evaluate_every);
    out.value(Area::Rounds, "rounds from one evaluation to the next", every, None);
    let staleness = (&old.max_staleness, max_staleness);
    out.value(Area::Rounds, "steps that an update may be behind", staleness, None);
}

fn compute(out: &mut Changes, old: Compute, new: Compute) {
    let Compute { precision } = new;
    let coarser = (precision == Precision::Bf16).then_some(
        "updates and evaluations are of coarser numbers, and nodes whose processor or engine has no bf16 do not start",
    );
    let precision = (&old.precision.as_str(), &precision.as_str());
    out.value(Area::Compute, "precision", precision, coarser);
}

fn limits(out: &mut Changes, old: &Limits, new: &Limits) {
    let Limits {
        guest_memory_mib,
        tensor_memory_mib,
        call_s,
        round_s,
        instances,
        log_bytes,
        update_mib,
        content_mib,
    } = new;
    let more_log = (*log_bytes > old.log_bytes).then_some("a module may write more of what it saw into its node's log");
    for (what, old, new, concern) in [
        (
            "MiB of memory of a module",
            old.guest_memory_mib,
            *guest_memory_mib,
            None,
        ),
        (
            "MiB of tensors of a module",
            old.tensor_memory_mib,
            *tensor_memory_mib,
            None,
        ),
        ("seconds of a call", old.call_s, *call_s, None),
        ("seconds of a module in a round", old.round_s, *round_s, None),
        (
            "instances of a module",
            u64::from(old.instances),
            u64::from(*instances),
            None,
        ),
        ("bytes of log in a round", old.log_bytes, *log_bytes, more_log),
        ("MiB of an update", old.update_mib, *update_mib, None),
        ("MiB of a submitted file", old.content_mib, *content_mib, None),
    ] {
        out.value(Area::Limits, what, (&old, &new), concern);
    }
}

fn release(out: &mut Changes, old: &Release, new: &Release) {
    let Release { model, recipients } = new;
    let which = (&old.model.as_str(), &model.as_str());
    out.value(Area::Release, "model that is released", which, None);
    let (gone, fresh, _) = sorted(&old.recipients, recipients, String::as_str);
    if !fresh.is_empty() {
        let text = format!("the model goes to {}, who did not get it before", names(&fresh));
        out.add(
            Area::Release,
            text,
            Some("what a model tells of the rows it was trained on, it tells them too"),
        );
    }
    if !gone.is_empty() {
        let text = format!(
            "{} get the model no more; recipients: {}",
            names(&gone),
            names(recipients)
        );
        out.say(Area::Release, text);
    }
}
