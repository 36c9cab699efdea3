//! A policy in plain words.

use cloister_attestation::encoding::hex;
use cloister_attestation::identity::Role;

use crate::agreement::{Agreement, AttestationRules, Module, ModuleRole, Precision, RoundMode, Rtmr3, TensorAccess};
use crate::dataset::{Damaged, DatasetSpec};
use crate::policy::Policy;

/// The policy in plain words, a statement a line.
pub fn explain(policy: &Policy) -> Vec<String> {
    let mut lines = vec![format!(
        "Federation {:?}, version {}, SHA-256 {}{}.",
        policy.name,
        policy.version,
        policy.digest(),
        policy
            .predecessor
            .map_or_else(String::new, |before| format!(", after {}", before.short()))
    )];
    lines.push(format!(
        "It takes effect when {} of {} participants have signed it; {}.",
        policy.consent.threshold,
        policy.participants.len(),
        if policy.consent.immutable {
            "no other may follow it"
        } else {
            "as many of them have to sign what follows it"
        }
    ));
    if policy.nodes.iter().any(|node| node.role == Role::Manager) {
        lines.push(format!(
            "When its manager starts again, {} of {} participants together open its state.",
            policy.consent.recovery_shares,
            policy.participants.len()
        ));
    }
    for participant in &policy.participants {
        let nodes = policy.nodes.iter().filter(|node| node.participant == participant.name);
        let nodes: Vec<_> = nodes.map(|node| format!("{} {}", node.role, node.name)).collect();
        let nodes = if nodes.is_empty() {
            "no node".to_owned()
        } else {
            nodes.join(", ")
        };
        lines.push(format!(
            "{} runs {nodes}; its key is {}.",
            participant.name, participant.public_key
        ));
    }
    lines.push(format!(
        "Training starts from the weights {} of the model {:?}.",
        policy.model.weights.short(),
        policy.model.name
    ));
    lines.extend(policy.modules.iter().map(|module| module_in_words(policy, module)));
    for graph in &policy.graphs {
        let on = names_running(policy, |node| policy.graphs_for(node).contains(&graph));
        lines.push(format!(
            "Graph {:?} ({}) takes {} rows at a time, on {on}.",
            graph.name,
            graph.sha256.short(),
            graph.batch
        ));
    }
    for dataset in &policy.datasets {
        let rows = dataset.rows.map_or_else(
            || "rows that nobody counts aloud".to_owned(),
            |rows| format!("{rows} rows"),
        );
        let inputs = dataset
            .spec
            .inputs
            .iter()
            .map(|(name, input)| format!("{name} ({} of {} columns)", input.dtype.name(), input.columns.len()));
        lines.push(format!(
            "Dataset {:?} of {}: {rows}, commitment {}, feeds {}{}.",
            dataset.name(),
            dataset.node,
            dataset.commitment.short(),
            inputs.collect::<Vec<_>>().join(", "),
            form_in_words(&dataset.spec)
        ));
    }
    lines.extend(rounds_in_words(policy));
    lines.extend(attestation_in_words(&policy.attestation));
    lines.push(match policy.release.recipients.as_slice() {
        [] => "The model is released to nobody: it stays in the vaults.".to_owned(),
        recipients => format!(
            "The {} model is released to {}: to the key of each, and to TDs of theirs with the role server.",
            policy.release.model.as_str(),
            recipients.join(", ")
        ),
    });
    lines
}

/// What becomes of the rows before graphs see them.
fn form_in_words(spec: &DatasetSpec) -> String {
    let mut words = spec
        .slice
        .map(|slice| format!("; they are the rows {slice} of a file"))
        .unwrap_or_default();
    if let Some(transform) = &spec.transform {
        let makes = transform.makes.iter();
        let makes: Vec<_> = makes
            .map(|(name, made)| format!("{name} ({} of shape {:?})", made.dtype.name(), made.shape))
            .collect();
        words += &format!(
            "; the transform {:?} makes {} of it",
            transform.module,
            makes.join(", ")
        );
    }
    if spec.damaged == Damaged::Skip {
        words.push_str("; rows that can't be read are left out");
    }
    words
}

fn module_in_words(policy: &Policy, module: &Module) -> String {
    let on = names_running(policy, |node| policy.modules_for(node).contains(&module));
    let access = match (module.role, module.tensor_access) {
        (ModuleRole::Aggregator, _) => "reads the workers' updates and writes the next model".to_owned(),
        (ModuleRole::Predictor, _) => "reads requests and writes answers".to_owned(),
        (ModuleRole::Transform, _) => {
            "READS the rows and makes what graphs see of them, and reaches nothing else".to_owned()
        }
        (_, TensorAccess::Handles) => "passes tensors on without seeing inside".to_owned(),
        (_, TensorAccess::Read) => "READS the values of tensors".to_owned(),
        (_, TensorAccess::Write) => "MAKES tensors of its own".to_owned(),
        (_, TensorAccess::ReadWrite) => "READS AND MAKES the values of tensors".to_owned(),
    };
    let mut line = format!(
        "The {} {:?} ({}) on {on} {access}",
        module.role.as_str(),
        module.name,
        module.sha256.short()
    );
    if !module.scalars.is_empty() {
        let ranges = module
            .scalars
            .iter()
            .map(|(name, range)| format!("{name} from {:?} to {:?}", range.min, range.max));
        line.push_str(&format!("; may set {}", ranges.collect::<Vec<_>>().join(", ")));
    }
    if !module.reads.is_empty() {
        line.push_str(&format!("; may read {}", module.reads.join(", ")));
    }
    if !module.settings.is_empty() {
        let settings = module.settings.iter().map(|(name, value)| format!("{name} = {value}"));
        line.push_str(&format!("; settings {}", settings.collect::<Vec<_>>().join(", ")));
    }
    line.push('.');
    line
}

fn names_running(policy: &Agreement, runs: impl Fn(&str) -> bool) -> String {
    let names: Vec<_> = policy
        .nodes
        .iter()
        .filter(|node| runs(&node.name))
        .map(|node| node.name.as_str())
        .collect();
    if names.is_empty() {
        "no node".to_owned()
    } else {
        names.join(", ")
    }
}

fn rounds_in_words(policy: &Agreement) -> Vec<String> {
    let (rounds, limits) = (&policy.rounds, &policy.limits);
    let workers = policy.nodes_with(Role::Worker).count();
    let (count, quorum, late) = (rounds.count, rounds.quorum, rounds.deadline_s);
    let course = match rounds.mode {
        RoundMode::Averaging => format!(
            "{count} rounds of averaging with at least {quorum} of {workers} workers: each trains on its own, then the models are averaged"
        ),
        RoundMode::Synchronous => format!(
            "{count} synchronous steps with at least {quorum} of {workers} workers: each sends one gradient, then the aggregator steps by all"
        ),
        RoundMode::Asynchronous => format!(
            "{count} asynchronous steps while at least {quorum} of {workers} workers take part: the aggregator steps by each gradient as \
             it comes, ALONE, unless it is more than {} steps behind",
            rounds.max_staleness
        ),
    };
    let aggregates = match rounds.mode {
        RoundMode::Asynchronous => String::new(),
        _ => format!(
            "; nobody sees an aggregate of fewer than {}",
            rounds.min_workers_per_aggregate
        ),
    };
    let every = |every: u32| match every {
        1 => "after each".to_owned(),
        every => format!("after every {every}th, and the last"),
    };
    vec![
        format!("{course}; a worker later than {late} s is left out{aggregates}."),
        format!(
            "The model is sealed {} and evaluated {}.",
            every(rounds.checkpoint_every),
            every(rounds.evaluate_every)
        ),
        match policy.compute.precision {
            Precision::F32 => "Graphs compute in f32.".to_owned(),
            Precision::Bf16 => {
                "Graphs compute in bf16, steps and evaluations alike: gradients are off by 3e-3 to 0.3 of their length. A node \
                 whose engine or processor has no bf16 does not start."
                    .to_owned()
            }
        },
        format!(
            "A module gets {} MiB of memory, {} MiB of tensors, {} s a call and {} s a round; an update at most {} MiB.",
            limits.guest_memory_mib, limits.tensor_memory_mib, limits.call_s, limits.round_s, limits.update_mib
        ),
    ]
}

fn allowed(flag: bool) -> &'static str {
    if flag { "allowed" } else { "refused" }
}

fn attestation_in_words(rules: &AttestationRules) -> Vec<String> {
    let root = if rules.simulated {
        "SIMULATED TDs under the root"
    } else {
        "Intel TDX TDs under Intel's root"
    };
    let statuses: Vec<_> = rules.tcb_statuses.iter().map(|status| status.status.as_str()).collect();
    let mut lines = vec![format!(
        "Nodes are {root} {}…, never in debug mode, with the TCB status {}, by collateral of at most {} days.",
        hex(&rules.root_key_id[..6]),
        statuses.join(" or "),
        rules.collateral_max_age_s / 86_400
    )];
    let pinned = [
        ("MRTD", rules.mrtd.len()),
        ("RTMR0", rules.rtmr0.len()),
        ("RTMR1", rules.rtmr1.len()),
        ("RTMR2", rules.rtmr2.len()),
        ("MRSEAM", rules.mrseam.len()),
        ("MRCONFIGID", rules.mrconfigid.len()),
        ("host files", rules.hosts.len()),
    ];
    let pinned: Vec<_> = pinned
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| format!("{name} ({count})"))
        .collect();
    if !pinned.is_empty() {
        lines.push(format!("Accepted values are listed for {}.", pinned.join(", ")));
    }
    if !rules.simulated && rules.anchors.is_empty() && rules.mrconfigid.is_empty() && rules.references.is_none() {
        lines.push(
            "MRCONFIGID has to be zero: the host is in the root file system that RTMR2 stands for, and no initdata says what \
             starts."
                .to_owned(),
        );
    }
    lines.extend(rules.anchors.iter().map(crate::anchor::Anchor::in_words));
    if !rules.anchors.is_empty() && !rules.rtmr2.is_empty() {
        lines.push(
            "The agent that keeps to this is in the guest's root file system, which RTMR2 stands for with the kernel's command \
             line."
                .to_owned(),
        );
    }
    for status in &rules.tcb_statuses {
        if let Some(until) = status.until_unix_s {
            let until = crate::reader::date_before(until);
            lines.push(format!("The TCB status {} is taken until {until}.", status.status));
        }
    }
    if !rules.advisories_denied.is_empty() {
        let denied = rules.advisories_denied.join(", ");
        lines.push(format!(
            "Platforms to which {denied} applies are refused, whatever their status."
        ));
    }
    let platforms = match (rules.fmspc.len(), rules.ppid.len()) {
        (0, 0) => "Any machine may take part".to_owned(),
        (families, 0) => format!("Any machine of {families} platform families may take part"),
        (_, machines) => format!("{machines} machines may take part, by their PPID"),
    };
    lines.push(format!(
        "{platforms}; multithreading {}, dynamic platforms {}, cached keys {}.",
        allowed(rules.allow_smt),
        allowed(rules.allow_dynamic_platform),
        allowed(rules.allow_cached_keys)
    ));
    lines.push(format!(
        "Attributes have to be {} under {} and XFAM {} under {}; debug, profiling, migration and service TDs are refused \
         whatever a policy says.",
        hex(&rules.attributes.value),
        hex(&rules.attributes.mask),
        hex(&rules.xfam.value),
        hex(&rules.xfam.mask)
    ));
    lines.push(match &rules.rtmr3 {
        Rtmr3::Zero => "Nothing may have been extended into RTMR3 at run time, and nodes extend nothing.".to_owned(),
        Rtmr3::Any => "RTMR3 may have any value; nodes that can extend it by what they run.".to_owned(),
        Rtmr3::Log { others } => format!(
            "RTMR3 has to be what an event log explains completely: this policy and each module and graph, extended before it \
             runs{}.",
            match others.as_slice() {
                [] => ", and nothing else".to_owned(),
                others => format!(", and {}", others.join(", ")),
            }
        ),
    });
    if let Some(references) = &rules.references {
        let names: Vec<_> = references.signers.iter().map(|signer| signer.name.as_str()).collect();
        lines.push(format!(
            "Further registers are let in that a document of reference values names, signed by {} of {}, until the dates in it.",
            references.threshold,
            names.join(", ")
        ));
    }
    lines
}
