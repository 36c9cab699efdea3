//! Which argument of `cloister policy draft` is at fault where the policy would be unsound: the text that a problem's line and column
//! point into is one that nobody has.

use cloister_policy::agreement::Agreement;
use cloister_policy::{PolicyError, Problem};

use super::policy_draft::DraftArgs;
use crate::ui::{self, Exit};

/// The problems, each with the argument that it comes from.
pub(super) fn unsound(args: &DraftArgs, agreement: &Agreement, error: &PolicyError) -> miette::Report {
    let told = error
        .problems()
        .iter()
        .map(|Problem { path, message, .. }| match argument(args, agreement, path) {
            Some(argument) => format!("{argument}: {message}"),
            None => message.clone(),
        });
    let told: Vec<_> = told.collect();
    let text = format!("these arguments make no sound policy\n  {}", told.join("\n  "));
    ui::failed(Exit::Usage, text, None)
}

/// The argument behind the value of a policy at `path`, such as `rounds.quorum` or `node[1].role`, as it was given.
fn argument(args: &DraftArgs, agreement: &Agreement, path: &str) -> Option<String> {
    let (head, below) = path.split_once('.').unwrap_or((path, ""));
    let (section, index) = indexed(head);
    let field = indexed(below.split('.').next().unwrap_or_default());
    let given = |flag: &str, list: &[String], index: Option<usize>| match index.and_then(|index| list.get(index)) {
        Some(text) => format!("{flag} {text}"),
        None => flag.to_owned(),
    };
    Some(match section {
        "name" => format!("--name {}", args.name),
        "version" | "predecessor" => "--predecessor".to_owned(),
        "agreement" => "--threshold".to_owned(),
        "participant" => given("--participant", &args.participants, index),
        "node" => given("--node", &args.nodes, index),
        "model" if field.0 == "weights" => "--weights".to_owned(),
        "model" => format!("--model {}", args.model),
        "module" => {
            let (flag, list) = match field.0 {
                "settings" => ("--setting", &args.settings),
                "scalars" => ("--scalar", &args.scalars),
                "reads" => ("--reads", &args.reads),
                "tensor_access" => ("--tensor-access", &args.tensor_access),
                _ => return Some(given("--module", &args.modules, index)),
            };
            let module = index.and_then(|index| agreement.modules.get(index));
            let key = match (field, below.rsplit('.').next()) {
                (("reads", Some(at)), _) => module.and_then(|module| module.reads.get(at)).map(String::as_str),
                (("settings" | "scalars", _), key) => below.split('.').nth(1).and(key),
                _ => None,
            };
            let wanted = module.map(|module| match key {
                Some(key) => format!("{}.{key}", module.name),
                None => module.name.clone(),
            });
            let at = wanted.and_then(|wanted| list.iter().position(|text| text.starts_with(&wanted)));
            given(flag, list, at)
        }
        "graph" => args.graphs.argument(index),
        "dataset" => match index.and_then(|index| args.datasets.get(index)) {
            Some(file) => format!("--dataset {}", file.display()),
            None => "--dataset".to_owned(),
        },
        "rounds" => match field.0 {
            "count" => format!("--rounds {}", args.rounds),
            "quorum" => args.quorum.map_or_else(
                || "--quorum (by default all workers)".to_owned(),
                |quorum| format!("--quorum {quorum}"),
            ),
            "deadline_s" => format!("--deadline-s {}", args.deadline_s),
            "min_workers_per_aggregate" => format!("--min-workers {}", args.min_workers()),
            "mode" => format!("--mode {}", args.mode().as_str()),
            "checkpoint_every" => format!("--checkpoint-every {}", args.checkpoint_every),
            "evaluate_every" => format!("--evaluate-every {}", args.evaluate_every),
            "max_staleness" => "--max-staleness".to_owned(),
            "seed" => format!("--seed {}", args.seed),
            _ => "--node and --min-workers".to_owned(),
        },
        "attestation" => match field.0 {
            "host" => given("--host", &args.attestation.hosts, field.1),
            "root_key_id" | "simulated" | "" => "--root".to_owned(),
            "anchor" => given("--anchor", &args.attestation.anchors, field.1),
            register => {
                let begin = format!("{register}=");
                let of_register = args.attestation.accept.iter().filter(|text| text.starts_with(&begin));
                let of_register: Vec<_> = of_register.cloned().collect();
                given("--accept", &of_register, field.1)
            }
        },
        "release" => given("--recipient", &args.recipients, field.1),
        _ => return None,
    })
}

/// `node[1]` as `node` and 1.
fn indexed(text: &str) -> (&str, Option<usize>) {
    match text.split_once('[') {
        Some((name, rest)) => (name, rest.trim_end_matches(']').parse().ok()),
        None => (text, None),
    }
}
