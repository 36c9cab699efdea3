//! The section `[rounds]`.

use cloister_attestation::identity::Role;

use crate::agreement::{Node, RoundMode, Rounds};
use crate::reader::{self, Fields, Problem};

const LEAST: &str = "min_workers_per_aggregate";

pub(super) fn rounds(top: &Fields<'_>, nodes: &[Node]) -> Result<Rounds, Vec<Problem>> {
    let section = top.required("rounds")?;
    let fields = section.fields(&[
        "mode",
        "count",
        "quorum",
        "deadline_s",
        LEAST,
        "seed",
        "checkpoint_every",
        "evaluate_every",
        "max_staleness",
    ])?;
    let workers = nodes.iter().filter(|node| node.role == Role::Worker).count() as u64;
    if workers < 2 {
        let message = format!("lead nowhere with {workers} workers: an aggregate of one worker is its own update");
        return Err(section.problem(message).into());
    }
    let mode = fields.optional("mode");
    let mode = mode
        .map(|node| node.one_of(&RoundMode::ALL, RoundMode::as_str))
        .transpose()?;
    let mode = mode.unwrap_or_default();
    let least = least(&section, &fields, mode)?;
    let quorum_node = fields.optional("quorum");
    let quorum = match &quorum_node {
        Some(node) => node.integer_u32(1..=1024)?,
        None => u32::try_from(workers).unwrap_or(u32::MAX),
    };
    let place = quorum_node.as_ref().unwrap_or(&section);
    if u64::from(quorum) > workers {
        return Err(place
            .problem(format_args!("is {quorum}, but the policy has {workers} workers"))
            .into());
    }
    if quorum < least {
        let message = format!(
            "is {quorum}, below {LEAST} = {least}: the host refuses to aggregate so few. Have more workers, or set {LEAST} (at least 2; \
             with two, each can subtract its own part)"
        );
        return Err(place.problem(message).into());
    }
    let every = |key| match fields.optional(key) {
        Some(node) => node.integer_u32(1..=1_000_000),
        None => Ok(Rounds::EVERY),
    };
    Ok(Rounds {
        mode,
        count: fields.required("count")?.integer_u32(1..=1_000_000)?,
        quorum,
        deadline_s: fields.integer("deadline_s", 1..=7 * 86_400, 60)?,
        min_workers_per_aggregate: least,
        seed: fields.integer("seed", 0..=i64::MAX as u64, 0)?,
        checkpoint_every: every("checkpoint_every")?,
        evaluate_every: every("evaluate_every")?,
        max_staleness: match fields.optional("max_staleness") {
            Some(node) if mode != RoundMode::Asynchronous => {
                let message = format!(
                    "has no meaning where mode = {:?}: no update is stale there; leave it out",
                    mode.as_str()
                );
                return Err(node.problem(message).into());
            }
            Some(node) => node.integer_u32(0..=1_000_000)?,
            None => Rounds::MAX_STALENESS,
        },
    })
}

/// Fewest workers in an aggregate. One that is applied alone hides nothing, so a policy has to say that it means it.
fn least(section: &reader::Node<'_>, fields: &Fields<'_>, mode: RoundMode) -> Result<u32, Problem> {
    let node = fields.optional(LEAST);
    match (mode, &node) {
        (RoundMode::Asynchronous, node) => {
            let seen = node.as_ref().map(|node| node.integer_u32(1..=1024)).transpose()?;
            if seen == Some(1) {
                return Ok(1);
            }
            Err(node.as_ref().unwrap_or(section).problem(format_args!(
                "{}; in the mode \"asynchronous\" each worker's update is applied alone, and a policy says so: {LEAST} = 1",
                seen.map_or_else(|| format!("leave {LEAST} out"), |seen| format!("is {seen}"))
            )))
        }
        (_, Some(node)) => node.integer_u32(2..=1024),
        (_, None) => Ok(3),
    }
}
