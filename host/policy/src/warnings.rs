//! What in a policy deserves a second thought.

use std::fmt;

use cloister_tensor::Digest;

use crate::agreement::{Agreement, AttestationRules, Graph, Module, ModuleRole, Precision, Rtmr3, TensorAccess};
use crate::policy::Policy;
use crate::reader::Scalar;

/// What a warning is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WarningKind {
    /// A digest or a register of zeros: a template that nobody filled in.
    Placeholder,
    /// A last batch of a dataset that no graph takes.
    Remainder,
    /// No hardware stands behind the evidence.
    Simulated,
    /// It takes effect though some did not sign.
    NotAllSign,
    /// No successor may follow.
    Immutable,
    /// Aggregates of two workers.
    TwoWorkerAggregate,
    /// Each worker's gradient is applied alone.
    LoneUpdates,
    /// An aggregator that ends loses rounds that workers have receipts of.
    UnsealedRounds,
    /// Graphs compute in bf16.
    CoarsePrecision,
    /// A module may read or write values.
    TensorAccess,
    /// Any TD, whatever it booted.
    AnyPlatform,
    /// Any host binary.
    AnyHost,
    /// A TCB status other than `UpToDate`.
    OldTcb,
    /// RTMR3 may have any value.
    AnyRtmr3,
    /// A rule about TDs, platforms or collateral is looser than reviewers accept.
    Loose(Loose),
}

/// Rules that a policy under Intel's root can leave looser than reviewers accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loose {
    /// Attribute bits that tell on a TD are not fixed.
    Attributes,
    /// CPU features that trace a TD are not fixed.
    Xfam,
    /// Any machine of the platform family may take part.
    AnyMachine,
    /// Any platform family may take part.
    AnyFamily,
    /// Collateral of any evaluation number.
    AnyEvaluation,
    /// Old collateral or revocation lists.
    OldCollateral,
    /// A clock that is far off.
    ClockSkew,
    /// Packages may be added to a platform, or Intel keeps its keys.
    Platform,
    /// Two threads of a core share what they compute with.
    Smt,
    /// A permit lasts long.
    LongPermit,
    /// One signer alone vouches for new reference values.
    OneReferenceSigner,
}

impl Loose {
    fn as_str(self) -> &'static str {
        match self {
            Self::Attributes => "loose-attributes",
            Self::Xfam => "loose-xfam",
            Self::AnyMachine => "any-machine",
            Self::AnyFamily => "any-family",
            Self::AnyEvaluation => "any-evaluation-number",
            Self::OldCollateral => "old-collateral",
            Self::ClockSkew => "clock-skew",
            Self::Platform => "platform-flags",
            Self::Smt => "smt",
            Self::LongPermit => "long-permit",
            Self::OneReferenceSigner => "one-reference-signer",
        }
    }
}

impl WarningKind {
    /// A short name, for machines.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Placeholder => "placeholder",
            Self::Remainder => "remainder",
            Self::Simulated => "simulated",
            Self::NotAllSign => "not-all-sign",
            Self::Immutable => "immutable",
            Self::TwoWorkerAggregate => "two-worker-aggregate",
            Self::LoneUpdates => "lone-updates",
            Self::UnsealedRounds => "unsealed-rounds",
            Self::CoarsePrecision => "coarse-precision",
            Self::TensorAccess => "tensor-access",
            Self::AnyPlatform => "any-platform",
            Self::AnyHost => "any-host",
            Self::OldTcb => "old-tcb",
            Self::AnyRtmr3 => "any-rtmr3",
            Self::Loose(loose) => loose.as_str(),
        }
    }
}

/// Something in a policy that deserves a second thought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// What it is about.
    pub kind: WarningKind,
    /// What it means, in words.
    pub text: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Everything in the policy that deserves a second thought, gravest first.
pub fn warnings(policy: &Policy) -> Vec<Warning> {
    let mut found = Vec::new();
    let mut warn = |kind, text: String| found.push(Warning { kind, text });
    let rules = &policy.attestation;
    if rules.simulated {
        let text = "SIMULATED: whoever has the authority's keys can make up any TD; nothing here is proven by hardware";
        warn(WarningKind::Simulated, text.to_owned());
    }
    let participants = policy.participants.len();
    if (policy.consent.threshold as usize) < participants {
        let text = format!(
            "{} of {participants} signatures suffice, for this policy and for the one that follows it: some may be bound by what \
             they did not sign",
            policy.consent.threshold
        );
        warn(WarningKind::NotAllSign, text);
    }
    if policy.consent.immutable {
        let text = "no successor may follow: a mistake in it, or a host that turns out weak, can only be left with a new federation";
        warn(WarningKind::Immutable, text.to_owned());
    }
    match policy.rounds.min_workers_per_aggregate {
        0 | 1 => {
            let text = "each worker's gradient is applied alone: the aggregation module sees it by itself, and every worker, which gets \
                        the models before and after, can work out what another one's update did to it";
            warn(WarningKind::LoneUpdates, text.to_owned());
        }
        2 => {
            let text =
                "an aggregate may come from two workers: each of them can subtract its own part and has the other's";
            warn(WarningKind::TwoWorkerAggregate, text.to_owned());
        }
        _ => {}
    }
    let every = policy.rounds.checkpoint_every;
    if every > 1 {
        let text = format!(
            "the model is sealed every {every} rounds: an aggregator that is ended in between goes on from the last one that was sealed, so whoever \
             can end it can undo up to {} rounds of which workers have receipts",
            every.min(policy.rounds.count) - 1
        );
        warn(WarningKind::UnsealedRounds, text);
    }
    if policy.compute.precision == Precision::Bf16 {
        let text = "graphs compute in bf16: gradients are off by 3e-3 to 0.3 of their length, most where a model is badly conditioned; \
                    watch loss and accuracy beside a run in f32 before relying on it";
        warn(WarningKind::CoarsePrecision, text.to_owned());
    }
    for module in &policy.modules {
        if let Some(text) = grant_in_words(module) {
            warn(WarningKind::TensorAccess, text);
        }
    }
    let open: Vec<_> = open_registers(rules);
    if !open.is_empty() && (rules.simulated || rules.references.is_none()) {
        let text = format!(
            "any platform: nothing is asked of {}, so any TD under the root may join",
            open.join(", ")
        );
        warn(WarningKind::AnyPlatform, text);
    }
    if rules.hosts.is_empty() {
        let text = "any host binary: `hosts` names no digest, so a changed host that lies about the rest may join";
        warn(WarningKind::AnyHost, text.to_owned());
    }
    for status in rules.tcb_statuses.iter().filter(|status| status.status != "UpToDate") {
        let until = status.until_unix_s.map_or("for good".to_owned(), |until| {
            format!("until {}", crate::reader::date_before(until))
        });
        let text = format!(
            "platforms with the TCB status {} are let in {until}: known holes may be open there",
            status.status
        );
        warn(WarningKind::OldTcb, text);
    }
    for text in remainders(policy) {
        warn(WarningKind::Remainder, text);
    }
    let placeholders = placeholders(policy);
    if !placeholders.is_empty() {
        let text = format!(
            "zeros stand for {}: fill in what is meant (`cloister policy draft`)",
            placeholders.join(", ")
        );
        warn(WarningKind::Placeholder, text);
    }
    if rules.rtmr3 == Rtmr3::Any && !rules.simulated {
        let text = "RTMR3 may have any value: what was extended into it at run time goes unchecked";
        warn(WarningKind::AnyRtmr3, text.to_owned());
    }
    // Under a simulated root nothing of this means anything, and the first warning says so.
    if !rules.simulated {
        for (loose, text) in objections(rules) {
            warn(WarningKind::Loose(loose), text);
        }
    }
    found
}

/// What a reviewer objects to among the rules about TDs, platforms and collateral.
fn objections(rules: &AttestationRules) -> Vec<(Loose, String)> {
    /// Not PKS alone: whatever a host may watch or a migration may carry away.
    const ATTRIBUTES: [u8; 8] = [0xff, 0xff, 0x02, 0xe0, 0, 0, 0, 0xc0];
    /// Processor trace, supervisor state of accelerators, branch records, hardware power states.
    const XFAM: [u8; 8] = [0, 0xa5, 0x01, 0, 0, 0, 0, 0];
    const DAY: u64 = 86_400;
    let mut found = Vec::new();
    let mut object = |holds: bool, loose, text: String| {
        if holds {
            found.push((loose, text));
        }
    };
    let open = |masked: &crate::agreement::Masked, wanted: [u8; 8]| {
        let bits = masked.mask.iter().zip(masked.value).zip(wanted);
        bits.into_iter()
            .any(|((mask, value), wanted)| wanted & !mask != 0 || value & wanted != 0)
    };
    object(
        open(&rules.attributes, ATTRIBUTES),
        Loose::Attributes,
        "`attributes` lets in TDs with profiling, key locker, performance monitoring, migration or bits without a meaning"
            .into(),
    );
    object(
        open(&rules.xfam, XFAM),
        Loose::Xfam,
        "`xfam` lets in TDs with processor trace, branch records or PASID, by which others can watch them".into(),
    );
    object(
        rules.fmspc.is_empty(),
        Loose::AnyFamily,
        "any platform family: `fmspc` names none".into(),
    );
    object(
        rules.ppid.is_empty(),
        Loose::AnyMachine,
        "any machine, one in an attacker's hands and under its probes included: `ppid` names none".into(),
    );
    object(
        rules.min_tcb_eval_data_number == 0,
        Loose::AnyEvaluation,
        "`min_tcb_eval_data_number` is 0: a node without memory of its own takes collateral from before known holes, as long \
         as its dates hold"
            .into(),
    );
    let (collateral, crl) = (rules.collateral_max_age_s / DAY, rules.crl_max_age_s / DAY);
    object(
        collateral > 30 || crl > 35,
        Loose::OldCollateral,
        format!(
            "collateral of {collateral} days ago and revocation lists of {crl} are taken; Intel renews both within 30"
        ),
    );
    object(
        rules.max_clock_skew_s > 3600,
        Loose::ClockSkew,
        format!(
            "clocks may be {} s apart: as long is what has expired taken",
            rules.max_clock_skew_s
        ),
    );
    object(
        rules.allow_dynamic_platform || rules.allow_cached_keys,
        Loose::Platform,
        "platforms are let in to which packages may be added, or whose keys Intel keeps".into(),
    );
    object(
        rules.allow_smt,
        Loose::Smt,
        "platforms with simultaneous multithreading are let in: another guest may run on the same core".into(),
    );
    object(
        rules.permit_max_s > DAY,
        Loose::LongPermit,
        format!(
            "a session lasts up to {} h before it attests again",
            rules.permit_max_s / 3600
        ),
    );
    object(
        rules
            .references
            .as_ref()
            .is_some_and(|references| references.threshold < 2),
        Loose::OneReferenceSigner,
        "one signer alone can vouch for new reference values, and with them for any TD".into(),
    );
    found
}

/// What is all zeros, as templates have it: no file has such a digest, and a register of zeros was never measured into.
pub(crate) fn placeholders(policy: &Agreement) -> Vec<String> {
    let zero = |digest: &Digest| *digest.as_bytes() == [0; 32];
    let rules = &policy.attestation;
    let mut found = Vec::new();
    if policy.predecessor.as_ref().is_some_and(zero) {
        found.push("predecessor".to_owned());
    }
    if zero(&policy.model.weights) {
        found.push("model.weights".to_owned());
    }
    let modules = policy.modules.iter().filter(|module| zero(&module.sha256));
    found.extend(modules.map(|module| format!("module {}", module.name)));
    let graphs = policy.graphs.iter().filter(|graph| zero(&graph.sha256));
    found.extend(graphs.map(|graph| format!("graph {}", graph.name)));
    let datasets = policy.datasets.iter().filter(|dataset| zero(&dataset.commitment));
    found.extend(datasets.map(|dataset| format!("dataset {} of {}", dataset.name(), dataset.node)));
    let hosts = rules.hosts.iter().filter(|host| zero(&host.sha256));
    found.extend(hosts.map(|host| format!("host file {}", host.name)));
    let registers = [
        ("mrtd", &rules.mrtd),
        ("rtmr0", &rules.rtmr0),
        ("rtmr1", &rules.rtmr1),
        ("rtmr2", &rules.rtmr2),
        ("mrconfigid", &rules.mrconfigid),
    ];
    let registers = registers.iter().filter(|(_, values)| values.contains(&[0; 48]));
    // Simulated TDs may well report zeros.
    found.extend(
        registers
            .filter(|_| !rules.simulated)
            .map(|(name, _)| format!("attestation.{name}")),
    );
    found
}

/// Last batches of datasets that no graph takes, unless a module's `drop_last` leaves them out.
fn remainders(policy: &Agreement) -> Vec<String> {
    let mut found = Vec::new();
    for dataset in &policy.datasets {
        let Some(rows) = dataset.rows else { continue };
        let modules = policy.modules_for(&dataset.node);
        if modules
            .iter()
            .any(|module| module.settings.get("drop_last") == Some(&Scalar::Boolean(true)))
        {
            continue;
        }
        let graphs = policy.graphs_for(&dataset.node);
        for graph in graphs.iter().filter(|graph| !graph.name.contains('@')) {
            let rest = rows % u64::from(graph.batch);
            let taken = |other: &&&Graph| other.base_name() == graph.name && u64::from(other.batch) == rest;
            if rest != 0 && !graphs.iter().any(|other| taken(&other)) {
                found.push(format!(
                    "the {rows} rows of dataset {:?} of {} leave a last batch of {rest} that no graph takes: add {}@{rest}, or \
                     set drop_last = true",
                    dataset.name(), dataset.node, graph.name
                ));
            }
        }
    }
    found
}

fn open_registers(rules: &AttestationRules) -> Vec<&'static str> {
    let all = [
        ("MRTD", &rules.mrtd),
        ("RTMR0", &rules.rtmr0),
        ("RTMR1", &rules.rtmr1),
        ("RTMR2", &rules.rtmr2),
        ("MRSEAM", &rules.mrseam),
        ("MRCONFIGID", &rules.mrconfigid),
    ];
    all.into_iter()
        .filter(|(_, values)| values.is_empty())
        // Outside simulation it is then zero.
        .filter(|(name, _)| rules.simulated || *name != "MRCONFIGID")
        .map(|(name, _)| name)
        .collect()
}

/// What a trainer's grant, or being a transform, means. Aggregators and predictors read and make values by their nature.
fn grant_in_words(module: &Module) -> Option<String> {
    let name = &module.name;
    match module.role {
        ModuleRole::Trainer => {}
        ModuleRole::Transform => {
            return Some(format!(
                "transform {name:?} sees the rows of its nodes and chooses what graphs see in their place: it reaches nothing else, but it \
                 can make updates tell far more of single rows; read its source"
            ));
        }
        ModuleRole::Aggregator | ModuleRole::Predictor => return None,
    }
    match module.tensor_access {
        TensorAccess::Handles => None,
        TensorAccess::Read => Some(format!(
            "module {name:?} may read the rows, parameters and gradients on its worker: what it learns can reach others by the scalars it sets and the \
             metrics it reports"
        )),
        TensorAccess::Write => Some(format!(
            "module {name:?} may make tensors of its own: its updates need not come from the policy's graphs"
        )),
        TensorAccess::ReadWrite => Some(format!(
            "module {name:?} may read rows and write the update: whoever wrote it can carry rows into the model; read its source"
        )),
    }
}
