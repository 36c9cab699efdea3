//! Writes an agreement down as a policy file: commented, every default shown, and parsed again before anybody gets it.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};

use cloister_attestation::VerifiedQuote;
use cloister_attestation::encoding::hex;
use toml_edit::Value;

use crate::agreement::{
    Agreement, AttestationRules, Masked, Participant, ReferenceRules, Register, RoundMode, Rtmr3, TcbStatus,
};
use crate::dataset::{DatasetSpec, InputSpec, TransformSpec};
use crate::policy::Policy;
use crate::reader::{PolicyError, Scalar};

/// The text of a policy file that says `agreement`.
///
/// # Errors
/// [`PolicyError`] if the agreement is none that [`Policy::parse`] takes. Line and column point into the text that it would have
/// been, which nobody has: tell people by [`crate::Problem::path`] what it is about.
pub fn draft(agreement: &Agreement) -> Result<String, PolicyError> {
    let text = render(agreement);
    Policy::parse(text.as_bytes(), "the draft")?;
    Ok(text)
}

fn render(agreement: &Agreement) -> String {
    let mut out = Out::default();
    out.comment(
        "The agreement of a federation. Every participant reads it (`cloister policy check FILE`) and signs it",
    );
    out.comment("(`cloister policy sign`). Its digest is measured by every node: one byte more is another policy.");
    out.key("format", crate::FORMAT);
    out.key("name", quoted(&agreement.name));
    out.key("version", agreement.version);
    if let Some(predecessor) = agreement.predecessor {
        out.key("predecessor", quoted(predecessor));
    }
    let consent = agreement.consent;
    out.section("When it takes effect, and what may follow it.", "[agreement]");
    out.explained(
        "threshold",
        consent.threshold,
        "participants who have to sign it, and its successor",
    );
    out.explained("immutable", consent.immutable, "true: no successor may follow it");
    out.explained(
        "recovery_shares",
        consent.recovery_shares,
        "participants who together open a manager's state when it starts again",
    );
    parties(&mut out, agreement);
    work(&mut out, agreement);
    data(&mut out, agreement);
    rounds(&mut out, agreement);
    attestation(&mut out, &agreement.attestation, &agreement.participants);
    out.section(
        "Who gets the model, and which one. Nobody else sees it outside the federation's TDs.",
        "[release]",
    );
    out.key("model", quoted(agreement.release.model.as_str()));
    out.key("recipients", list(agreement.release.recipients.iter().map(quoted)));
    out.text
}

#[derive(Default)]
struct Out {
    text: String,
}

impl Out {
    fn line(&mut self, line: impl Display) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "{line}");
    }

    fn comment(&mut self, text: &str) {
        self.line(format_args!("# {text}"));
    }

    fn section(&mut self, comment: &str, head: &str) {
        self.line("");
        self.comment(comment);
        self.line(head);
    }

    fn key(&mut self, key: &str, value: impl Display) {
        self.line(format_args!("{key} = {value}"));
    }

    fn explained(&mut self, key: &str, value: impl Display, comment: &str) {
        self.line(format_args!("{:<44} # {comment}", format!("{key} = {value}")));
    }
}

fn quoted(text: impl Display) -> String {
    Value::from(text.to_string()).to_string()
}

fn list(values: impl IntoIterator<Item = String>) -> String {
    let values: Vec<_> = values.into_iter().collect();
    format!("[{}]", values.join(", "))
}

fn table(entries: impl IntoIterator<Item = (String, String)>) -> String {
    let entries: Vec<_> = entries
        .into_iter()
        .map(|(key, value)| format!("{} = {value}", key_text(&key)))
        .collect();
    if entries.is_empty() {
        "{}".to_owned()
    } else {
        format!("{{ {} }}", entries.join(", "))
    }
}

fn key_text(key: &str) -> String {
    let bare = key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
    if bare { key.to_owned() } else { quoted(key) }
}

fn parties(out: &mut Out, agreement: &Agreement) {
    for (index, participant) in agreement.participants.iter().enumerate() {
        match index {
            0 => out.section(
                "The organisations and the keys with which they sign.",
                "[[participant]]",
            ),
            _ => out.line("\n[[participant]]"),
        }
        out.key("name", quoted(&participant.name));
        out.key("public_key", quoted(participant.public_key));
    }
    for (index, node) in agreement.nodes.iter().enumerate() {
        match index {
            0 => out.section(
                "Their nodes. Roles: worker, aggregator, manager, server, auditor.",
                "[[node]]",
            ),
            _ => out.line("\n[[node]]"),
        }
        out.key("name", quoted(&node.name));
        out.key("role", quoted(node.role));
        out.key("participant", quoted(&node.participant));
    }
}

fn work(out: &mut Out, agreement: &Agreement) {
    out.section(
        "The model; `weights` is the SHA-256 of the safetensors file that training starts from.",
        "[model]",
    );
    out.key("name", quoted(&agreement.model.name));
    out.key("weights", quoted(agreement.model.weights));
    for (index, module) in agreement.modules.iter().enumerate() {
        match index {
            0 => out.section(
                "WebAssembly components: SHA-256 of the file, and what each may do.",
                "[[module]]",
            ),
            _ => out.line("\n[[module]]"),
        }
        out.key("name", quoted(&module.name));
        out.key("role", quoted(module.role.as_str()));
        out.key("sha256", quoted(module.sha256));
        out.explained(
            "tensor_access",
            quoted(module.tensor_access.as_str()),
            "\"handles\": it can't see or make values; \"read\", \"write\", \"read-write\"",
        );
        out.key("settings", settings(&module.settings));
        let ranges = module.scalars.iter().map(|(name, range)| {
            (
                name.clone(),
                format!("{{ min = {:?}, max = {:?} }}", range.min, range.max),
            )
        });
        out.explained("scalars", table(ranges), "scalar inputs that it may set, and the range");
        out.explained(
            "reads",
            list(module.reads.iter().map(quoted)),
            "scalar outputs that it may read",
        );
        nodes(out, module.nodes.as_deref());
    }
    for (index, graph) in agreement.graphs.iter().enumerate() {
        match index {
            0 => out.section(
                "Graphs: train* run on workers, evaluate* on the aggregator. NAME@ROWS is for a last, smaller batch.",
                "[[graph]]",
            ),
            _ => out.line("\n[[graph]]"),
        }
        out.key("name", quoted(&graph.name));
        out.key("sha256", quoted(graph.sha256));
        out.key("batch", graph.batch);
        nodes(out, graph.nodes.as_deref());
    }
}

fn nodes(out: &mut Out, nodes: Option<&[String]>) {
    if let Some(nodes) = nodes {
        out.key("nodes", list(nodes.iter().map(quoted)));
    }
}

fn settings(settings: &BTreeMap<String, Scalar>) -> String {
    table(settings.iter().map(|(name, value)| (name.clone(), value.to_string())))
}

fn data(out: &mut Out, agreement: &Agreement) {
    for (index, dataset) in agreement.datasets.iter().enumerate() {
        match index {
            0 => out.section(
                "Datasets: a salted commitment to the rows (`cloister data commit`), and which columns feed which input.\n\
                 # A value enters the graph as raw * scale + offset.",
                "[[dataset]]",
            ),
            _ => out.line("\n[[dataset]]"),
        }
        out.key("name", quoted(dataset.name()));
        out.key("node", quoted(&dataset.node));
        out.key("commitment", quoted(dataset.commitment));
        if let Some(rows) = dataset.rows {
            out.key("rows", rows);
        }
        out.key("inputs", inputs(&dataset.spec));
        if let Some(slice) = dataset.spec.slice {
            out.explained(
                "slice",
                quoted(slice),
                "the rows of the file, counted from 0, without the last",
            );
        }
        if let Some(transform) = &dataset.spec.transform {
            out.explained(
                "transform",
                quoted(&transform.module),
                "makes rows out of these before graphs see them",
            );
            out.explained("makes", makes(transform), "the inputs that it makes; others pass by it");
        }
        out.explained(
            "damaged",
            quoted(dataset.spec.damaged.as_str()),
            "a row that can't be read: \"stop\", or \"skip\" and say so",
        );
    }
}

fn makes(transform: &TransformSpec) -> String {
    table(transform.makes.iter().map(|(name, made)| {
        let entries = [
            ("shape".to_owned(), list(made.shape.iter().map(usize::to_string))),
            ("dtype".to_owned(), quoted(made.dtype.name())),
        ];
        (name.clone(), table(entries))
    }))
}

fn inputs(spec: &DatasetSpec) -> String {
    table(
        spec.inputs
            .iter()
            .map(|(name, input)| (name.clone(), input_text(input))),
    )
}

fn input_text(input: &InputSpec) -> String {
    let mut entries = Vec::new();
    match input.columns.as_slice() {
        [column] if input.shape.is_empty() => entries.push(("column".to_owned(), quoted(column))),
        columns => {
            entries.push(("columns".to_owned(), columns_text(columns)));
            entries.push(("shape".to_owned(), list(input.shape.iter().map(usize::to_string))));
        }
    }
    entries.push(("dtype".to_owned(), quoted(input.dtype.name())));
    if input.dtype == crate::InputType::F32 {
        entries.push(("scale".to_owned(), per_column(&input.scale)));
        entries.push(("offset".to_owned(), per_column(&input.offset)));
    }
    table(entries)
}

fn per_column(numbers: &[f64]) -> String {
    match numbers {
        [first, rest @ ..] if rest.iter().all(|number| number == first) => format!("{first:?}"),
        _ => list(numbers.iter().map(|number| format!("{number:?}"))),
    }
}

/// Columns as short as they go: runs of numbered names become ranges.
fn columns_text(columns: &[String]) -> String {
    let mut parts = Vec::new();
    let mut rest = columns;
    while let [first, ..] = rest {
        let run = run_length(rest);
        match rest.get(run - 1) {
            Some(last) if run > 2 => parts.push(quoted(format_args!("{first}..{last}"))),
            _ => parts.extend(rest[..run].iter().map(quoted)),
        }
        rest = &rest[run..];
    }
    match parts.as_slice() {
        [one] => one.clone(),
        _ => list(parts),
    }
}

fn run_length(columns: &[String]) -> usize {
    let Some((prefix, start)) = columns.first().and_then(|first| crate::dataset::split_number(first)) else {
        return 1;
    };
    let numbered = columns.iter().zip(u64::from(start)..);
    numbered
        .take_while(|(column, number)| **column == format!("{prefix}{number}"))
        .count()
        .max(1)
}

fn rounds(out: &mut Out, agreement: &Agreement) {
    let rounds = &agreement.rounds;
    out.section("How rounds go.", "[rounds]");
    out.explained(
        "mode",
        quoted(rounds.mode.as_str()),
        "\"averaging\" of models; by steps: \"synchronous\", \"asynchronous\"",
    );
    out.key("count", rounds.count);
    out.explained("quorum", rounds.quorum, "fewest workers whose updates make a round");
    out.explained(
        "deadline_s",
        rounds.deadline_s,
        "a worker later than this is left out of the round",
    );
    out.explained(
        "min_workers_per_aggregate",
        rounds.min_workers_per_aggregate,
        match rounds.mode {
            RoundMode::Asynchronous => "each update is applied alone",
            _ => "with two, each can subtract its own part; 3 or more hides it",
        },
    );
    out.explained("seed", rounds.seed, "seeds of rounds and shuffling are derived from it");
    out.explained(
        "checkpoint_every",
        rounds.checkpoint_every,
        "rounds from one whose model is sealed to the next; the last is",
    );
    out.explained(
        "evaluate_every",
        rounds.evaluate_every,
        "rounds from one evaluation to the next; the last is evaluated",
    );
    if rounds.mode == RoundMode::Asynchronous {
        out.explained(
            "max_staleness",
            rounds.max_staleness,
            "an update more steps behind is left out",
        );
    }
    out.section("How graphs are computed, on every node.", "[compute]");
    out.explained(
        "precision",
        quoted(agreement.compute.precision.as_str()),
        "\"bf16\" is faster where processors have it; gradients are off by 3e-3 to 0.3",
    );
    let limits = &agreement.limits;
    out.section("What modules and messages may use up.", "[limits]");
    out.explained("guest_memory_mib", limits.guest_memory_mib, "linear memory of a module");
    out.explained(
        "tensor_memory_mib",
        limits.tensor_memory_mib,
        "tensors that a module keeps on the host",
    );
    out.explained("call_s", limits.call_s, "one call of a module");
    out.explained("round_s", limits.round_s, "all calls of a round");
    out.explained("instances", limits.instances, "core instances of a component");
    out.explained("log_bytes", limits.log_bytes, "log of a module in a round");
    out.explained("update_mib", limits.update_mib, "one worker's update");
    out.explained("content_mib", limits.content_mib, "a module, graph or weights file");
}

/// The text of a section `[attestation]` that takes the TD of a quote that verified, and none that differs from it: registers,
/// attributes and features as they are, its platform family, its TCB status, collateral of at least its evaluation number.
/// What no quote says (which host files may run) is left for its writer to fill in.
pub fn attestation_from_quote(quote: &VerifiedQuote) -> String {
    let (td, platform, tcb) = (quote.td(), quote.platform(), quote.tcb());
    let unless_zero = |register: &Register| {
        if *register == [0; 48] {
            Vec::new()
        } else {
            vec![*register]
        }
    };
    let exact = |value: [u8; 8]| Masked { mask: [0xff; 8], value };
    let rules = AttestationRules {
        mrtd: vec![td.mrtd],
        rtmr0: vec![td.rtmr[0]],
        rtmr1: vec![td.rtmr[1]],
        rtmr2: vec![td.rtmr[2]],
        rtmr3: if td.rtmr[3] == [0; 48] { Rtmr3::Zero } else { Rtmr3::Any },
        mrseam: vec![td.mrseam],
        // Under Intel's root none is zeros alone; in simulation that has to be said.
        mrconfigid: if quote.simulated() {
            vec![td.mrconfigid]
        } else {
            unless_zero(&td.mrconfigid)
        },
        mrowner: unless_zero(&td.mrowner),
        mrownerconfig: unless_zero(&td.mrownerconfig),
        attributes: exact(td.attributes),
        xfam: exact(td.xfam),
        tcb_statuses: vec![TcbStatus {
            status: tcb.status.clone(),
            until_unix_s: None,
        }],
        min_tcb_eval_data_number: tcb.eval_data_number,
        fmspc: vec![platform.fmspc],
        ppid: <[u8; 16]>::try_from(platform.ppid.as_slice()).into_iter().collect(),
        allow_dynamic_platform: platform.dynamic_platform == Some(true),
        allow_cached_keys: platform.cached_keys == Some(true),
        allow_smt: platform.smt_enabled != Some(false),
        ..AttestationRules::with_root(quote.simulated(), *quote.root_key_id())
    };
    let mut out = Out::default();
    attestation(&mut out, &rules, &[]);
    out.text
}

fn reference_rules(rules: &ReferenceRules, participants: &[Participant]) -> String {
    let signers = rules.signers.iter().map(|signer| {
        if participants.iter().any(|participant| participant.name == signer.name) {
            return quoted(&signer.name);
        }
        table([
            ("name".to_owned(), quoted(&signer.name)),
            ("public_key".to_owned(), quoted(signer.public_key)),
        ])
    });
    table([
        ("signers".to_owned(), list(signers)),
        ("threshold".to_owned(), rules.threshold.to_string()),
    ])
}

fn attestation(out: &mut Out, rules: &AttestationRules, participants: &[Participant]) {
    let head = if rules.simulated {
        "Which TDs are let in. SIMULATED: quotes under this root come from no hardware and prove nothing."
    } else {
        "Which TDs are let in. Values are hexadecimal, as in the quote; each list names all that are accepted."
    };
    out.section(head, "[attestation]");
    out.key("simulated", rules.simulated);
    out.key("root_key_id", quoted(hex(&rules.root_key_id)));
    let registers = [
        ("mrtd", &rules.mrtd, "first contents of the TD (firmware)"),
        ("rtmr0", &rules.rtmr0, "configuration of the virtual machine"),
        ("rtmr1", &rules.rtmr1, "boot loader and kernel"),
        (
            "rtmr2",
            &rules.rtmr2,
            "kernel command line, initial RAM disk, root file system",
        ),
        ("mrseam", &rules.mrseam, "the TDX module"),
        (
            "mrconfigid",
            &rules.mrconfigid,
            "Confidential Containers: hash of the initdata",
        ),
    ];
    for (key, values, comment) in registers {
        let zero_alone = key == "mrconfigid" && !rules.simulated;
        let otherwise = if zero_alone { "zero alone" } else { "any value" };
        registers_line(out, key, values, comment, otherwise);
    }
    registers_line(out, "mrowner", &rules.mrowner, "the owner", "zero alone");
    registers_line(
        out,
        "mrownerconfig",
        &rules.mrownerconfig,
        "what the owner set",
        "zero alone",
    );
    out.explained(
        "rtmr3",
        quoted(rules.rtmr3.as_str()),
        "\"zero\": nothing extended it; \"log\": an event log explains it; or \"any\"",
    );
    if let Rtmr3::Log { others } = &rules.rtmr3
        && !others.is_empty()
    {
        let others = list(others.iter().map(quoted));
        out.explained("rtmr3_events", others, "further events that may be in the log");
    }
    out.explained("attributes", masked(rules.attributes), "seen & mask == value");
    out.explained("xfam", masked(rules.xfam), "CPU features");
    out.key("tcb_statuses", list(rules.tcb_statuses.iter().map(tcb_status)));
    out.key("advisories_denied", list(rules.advisories_denied.iter().map(quoted)));
    out.key("min_tcb_eval_data_number", rules.min_tcb_eval_data_number);
    out.key("collateral_max_age_s", rules.collateral_max_age_s);
    out.key("max_clock_skew_s", rules.max_clock_skew_s);
    out.explained(
        "permit_max_s",
        rules.permit_max_s,
        "a session ends after this and attests again",
    );
    values_line(
        out,
        "fmspc",
        rules.fmspc.iter().map(|value| hex(value)).collect(),
        "platform families",
        "any value",
    );
    values_line(
        out,
        "ppid",
        rules.ppid.iter().map(|value| hex(value)).collect(),
        "single platforms",
        "any value",
    );
    out.key("allow_dynamic_platform", rules.allow_dynamic_platform);
    out.key("allow_cached_keys", rules.allow_cached_keys);
    out.key("allow_smt", rules.allow_smt);
    out.explained(
        "crl_max_age_s",
        rules.crl_max_age_s,
        "of the platforms' revocation list",
    );
    match &rules.references {
        None => out.comment("references = { signers = [], threshold = 1 }   left out: nobody adds reference values"),
        Some(references) => out.explained(
            "references",
            reference_rules(references, participants),
            "who may add values",
        ),
    }
    if rules.hosts.is_empty() {
        out.comment("hosts = [{ name = \"cloister\", sha256 = \"...\" }]   left out: any host binary");
    } else {
        let hosts = rules.hosts.iter().map(|host| {
            table([
                ("name".to_owned(), quoted(&host.name)),
                ("sha256".to_owned(), quoted(host.sha256)),
            ])
        });
        out.key(
            "hosts",
            format_args!("[\n    {},\n]", hosts.collect::<Vec<_>>().join(",\n    ")),
        );
    }
    for anchor in &rules.anchors {
        out.line("");
        out.line(anchor.to_toml("attestation.anchor").trim_end());
    }
}

fn registers_line(out: &mut Out, key: &str, values: &[[u8; 48]], comment: &str, otherwise: &str) {
    values_line(
        out,
        key,
        values.iter().map(|value| hex(value)).collect(),
        comment,
        otherwise,
    );
}

fn values_line(out: &mut Out, key: &str, values: Vec<String>, comment: &str, otherwise: &str) {
    if values.is_empty() {
        out.comment(&format!("{key} = []   {comment}; left out: {otherwise}"));
    } else {
        out.explained(key, list(values.iter().map(quoted)), comment);
    }
}

fn masked(masked: Masked) -> String {
    table([
        ("mask".to_owned(), quoted(hex(&masked.mask))),
        ("value".to_owned(), quoted(hex(&masked.value))),
    ])
}

fn tcb_status(status: &TcbStatus) -> String {
    match status.until_unix_s {
        None => quoted(&status.status),
        Some(until) => {
            let until = crate::reader::date_before(until);
            table([
                ("status".to_owned(), quoted(&status.status)),
                ("until".to_owned(), until),
            ])
        }
    }
}
