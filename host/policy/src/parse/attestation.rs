//! The section `[attestation]`: which TDs are let in.

use cloister_attestation::TrustRoot;
use cloister_attestation::encoding::hex;

use crate::agreement::{
    AttestationRules, HOST_BINARY, HostFile, Masked, Participant, ReferenceRules, ReferenceSigner, Register, TcbStatus,
};
use crate::anchor::{Anchor, Workload};
use crate::reader::{Fields, Node, Problem, all};

pub(super) const MAX_VALUES: usize = 64;

/// TCB statuses, as Intel names them. `Revoked` is never taken.
const TCB_STATUSES: [&str; 8] = [
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "TDRelaunchAdvised",
    "TDRelaunchAdvisedConfigurationNeeded",
];

const KEYS: [&str; 29] = [
    "anchor",
    "simulated",
    "root_key_id",
    "mrtd",
    "rtmr0",
    "rtmr1",
    "rtmr2",
    "rtmr3",
    "rtmr3_events",
    "mrseam",
    "mrconfigid",
    "mrowner",
    "mrownerconfig",
    "attributes",
    "xfam",
    "tcb_statuses",
    "advisories_denied",
    "min_tcb_eval_data_number",
    "collateral_max_age_s",
    "max_clock_skew_s",
    "permit_max_s",
    "fmspc",
    "ppid",
    "allow_dynamic_platform",
    "allow_cached_keys",
    "allow_smt",
    "references",
    "crl_max_age_s",
    "hosts",
];

pub(super) fn read(top: &Fields<'_>, participants: &[Participant]) -> Result<AttestationRules, Vec<Problem>> {
    let section = top.required("attestation")?;
    let fields = section.fields(&KEYS)?;
    let simulated = fields.required("simulated")?.boolean()?;
    let default = AttestationRules::with_root(simulated, root_key_id(&fields, simulated)?);
    let shown = anchor_tables(&fields)?;
    let hashes: Vec<Register> = shown.iter().map(Anchor::mrconfigid).collect();
    let listed = registers(&fields, "mrconfigid")?;
    let rules = AttestationRules {
        mrconfigid: if listed.is_empty() { hashes } else { listed },
        anchors: shown,
        mrtd: registers(&fields, "mrtd")?,
        rtmr0: registers(&fields, "rtmr0")?,
        rtmr1: registers(&fields, "rtmr1")?,
        rtmr2: registers(&fields, "rtmr2")?,
        rtmr3: super::rtmr3::read(&fields)?,
        mrseam: registers(&fields, "mrseam")?,
        mrowner: registers(&fields, "mrowner")?,
        mrownerconfig: registers(&fields, "mrownerconfig")?,
        attributes: attributes(&fields, default.attributes)?,
        xfam: masked(&fields, "xfam", default.xfam)?,
        tcb_statuses: tcb_statuses(&fields, default.tcb_statuses)?,
        advisories_denied: advisories(&fields)?,
        min_tcb_eval_data_number: match fields.optional("min_tcb_eval_data_number") {
            Some(node) => node.integer_u32(0..=u64::from(u32::MAX))?,
            None => default.min_tcb_eval_data_number,
        },
        collateral_max_age_s: fields.integer(
            "collateral_max_age_s",
            60..=366 * 86_400,
            default.collateral_max_age_s,
        )?,
        max_clock_skew_s: fields.integer("max_clock_skew_s", 0..=86_400, default.max_clock_skew_s)?,
        permit_max_s: fields.integer("permit_max_s", 60..=31 * 86_400, default.permit_max_s)?,
        fmspc: values(&fields, "fmspc")?,
        ppid: values(&fields, "ppid")?,
        allow_dynamic_platform: flag(&fields, "allow_dynamic_platform", default.allow_dynamic_platform)?,
        allow_cached_keys: flag(&fields, "allow_cached_keys", default.allow_cached_keys)?,
        allow_smt: flag(&fields, "allow_smt", default.allow_smt)?,
        references: references(&fields, participants)?,
        crl_max_age_s: fields.integer("crl_max_age_s", 60..=366 * 86_400, default.crl_max_age_s)?,
        hosts: hosts(&fields)?,
        ..default
    };
    let mut problems = explained(&section, &rules);
    if !simulated {
        problems.extend(anchors(&section, &rules));
    }
    if problems.is_empty() { Ok(rules) } else { Err(problems) }
}

/// Each accepted MRCONFIGID has to be the hash of an anchor that the policy shows, and the other way round: a hash alone does
/// not say whether other containers may start beside the host. In simulation hashes may stand alone, since nothing is proven.
fn explained(section: &Node<'_>, rules: &AttestationRules) -> Vec<Problem> {
    if rules.simulated && rules.anchors.is_empty() {
        return Vec::new();
    }
    let hashes: Vec<Register> = rules.anchors.iter().map(Anchor::mrconfigid).collect();
    let bare = rules.mrconfigid.iter().filter(|value| !hashes.contains(value));
    let bare = bare.map(|value| {
        section.problem(format_args!(
            "lists the `mrconfigid` {}, but no [[attestation.anchor]] whose initdata has this hash: whether other containers may \
             start beside the host is left open; `cloister policy from-image` prints the anchor",
            hex(value)
        ))
    });
    let idle = hashes.iter().filter(|hash| !rules.mrconfigid.contains(hash));
    let idle = idle.map(|hash| {
        section.problem(format_args!(
            "has an `anchor` whose initdata has the hash {}, which `mrconfigid` does not list; leave `mrconfigid` out, or add it",
            hex(hash)
        ))
    });
    bare.chain(idle).collect()
}

/// The tables `anchor` of a policy's section, or of a document of reference values.
pub(crate) fn anchor_tables(fields: &Fields<'_>) -> Result<Vec<Anchor>, Vec<Problem>> {
    all(fields.list("anchor", MAX_VALUES)?.iter().map(|node| {
        let table = node.fields(&["image", "arguments", "environment", "aa", "cdh"])?;
        let texts = |key: &str| -> Result<Vec<String>, Problem> {
            let nodes = table.list(key, 256)?;
            nodes.iter().map(|node| Ok(node.text(4096)?.to_owned())).collect()
        };
        let lines = |key: &str| -> Result<String, Problem> {
            let text = table
                .optional(key)
                .map(|node| node.document(64 * 1024).map(str::to_owned));
            text.transpose().map(Option::unwrap_or_default)
        };
        let image = table.required("image")?.text(4096)?.to_owned();
        let (aa, cdh) = (lines("aa")?, lines("cdh")?);
        let workload = Workload::new(image, texts("arguments")?, texts("environment")?);
        let anchor = workload.and_then(|workload| Anchor::new(workload, aa, cdh));
        anchor.map_err(|error| node.problem(format_args!("is no anchor: {error}")))
    }))
}

/// Outside simulation nothing may be left open, and something has to fix which host runs: the root file system in RTMR2 alone,
/// or together with the initdata in MRCONFIGID. MRCONFIGID is no anchor by itself: the guest's agent that obeys the initdata is
/// in the root file system, and whoever boots the kernel chooses that by its command line.
fn anchors(section: &Node<'_>, rules: &AttestationRules) -> Vec<Problem> {
    let mut problems = Vec::new();
    let needed = [
        ("mrtd", &rules.mrtd),
        ("rtmr0", &rules.rtmr0),
        ("rtmr1", &rules.rtmr1),
        ("mrseam", &rules.mrseam),
    ];
    for (name, values) in needed {
        if values.is_empty() && rules.references.is_none() {
            problems.push(section.problem(format_args!(
                "lists no `{name}`; under Intel's root it has to name the accepted values"
            )));
        }
    }
    if rules.rtmr2.is_empty() && rules.references.is_none() {
        problems.push(section.problem(
            "lists no `rtmr2`, so it anchors the host nowhere: whoever runs the machine may boot the listed kernel with another \
             command line (another root file system, init= or debug console), set any MRCONFIGID, and claim any measurement. List \
             the RTMR2 of the guest as it is started: `cloister policy from-quote` takes it from a quote of such a TD",
        ));
    }
    if rules.hosts.is_empty() {
        problems.push(section.problem(
            "lists no `hosts`; under Intel's root it has to name the binary, { name = \"cloister\", sha256 = ... }",
        ));
    }
    problems
}

fn root_key_id(fields: &Fields<'_>, simulated: bool) -> Result<Register, Problem> {
    let intel = TrustRoot::intel().map_err(|error| fields.problem(error))?;
    let Some(node) = fields.optional("root_key_id") else {
        if simulated {
            return Err(fields.problem(
                "has no `root_key_id`; a simulated federation names its own root (`cloister quote authority` prints it)",
            ));
        }
        return Ok(*intel.key_id());
    };
    let key_id: Register = node.bytes()?;
    match (simulated, &key_id == intel.key_id()) {
        (true, true) => Err(node
            .problem("is Intel's root, but `simulated = true`: a policy names one root, a simulated one or Intel's")),
        (false, false) => Err(node.problem(format_args!(
            "is not Intel's root ({}), but `simulated = false`: a policy names one root, a simulated one or Intel's",
            hex(intel.key_id())
        ))),
        _ => Ok(key_id),
    }
}

fn values<const N: usize>(fields: &Fields<'_>, key: &str) -> Result<Vec<[u8; N]>, Vec<Problem>> {
    let Some(node) = fields.optional(key) else {
        return Ok(Vec::new());
    };
    if !node.is_list() {
        return Ok(vec![node.bytes()?]);
    }
    let values = all(node.list(MAX_VALUES)?.iter().map(Node::bytes))?;
    if values.is_empty() {
        return Err(node
            .problem("is an empty list, which nothing fits; leave it out, or name a value")
            .into());
    }
    Ok(values)
}

fn registers(fields: &Fields<'_>, key: &str) -> Result<Vec<Register>, Vec<Problem>> {
    values(fields, key)
}

fn masked(fields: &Fields<'_>, key: &str, default: Masked) -> Result<Masked, Problem> {
    let Some(node) = fields.optional(key) else {
        return Ok(default);
    };
    let parts = node.fields(&["mask", "value"])?;
    let masked = Masked {
        mask: parts.required("mask")?.bytes()?,
        value: parts.required("value")?.bytes()?,
    };
    if masked
        .value
        .iter()
        .zip(&masked.mask)
        .any(|(value, mask)| value & !mask != 0)
    {
        return Err(node.problem("wants bits that its mask leaves out, which nothing fits"));
    }
    Ok(masked)
}

fn attributes(fields: &Fields<'_>, default: Masked) -> Result<Masked, Problem> {
    let masked = masked(fields, "attributes", default)?;
    if masked.mask[0] & 1 == 0 || masked.value[0] & 1 != 0 {
        let node = fields.required("attributes")?;
        return Err(
            node.problem("lets debug TDs in (bit 0 of the first byte), which any operator can read; fix that bit to 0")
        );
    }
    Ok(masked)
}

fn tcb_statuses(fields: &Fields<'_>, default: Vec<TcbStatus>) -> Result<Vec<TcbStatus>, Vec<Problem>> {
    let Some(node) = fields.optional("tcb_statuses") else {
        return Ok(default);
    };
    let known = |node: &Node<'_>| node.one_of(&TCB_STATUSES, |status| status).map(str::to_owned);
    let statuses = all(node.list(TCB_STATUSES.len())?.iter().map(|node| {
        if !node.is_table() {
            return Ok(TcbStatus {
                status: known(node)?,
                until_unix_s: None,
            });
        }
        let fields = node.fields(&["status", "until"])?;
        let until_unix_s = Some(fields.required("until")?.end_of_day_unix_s()?);
        Ok(TcbStatus {
            status: known(&fields.required("status")?)?,
            until_unix_s,
        })
    }))?;
    if statuses.is_empty() {
        return Err(node
            .problem("is an empty list, so no TD is let in; name at least \"UpToDate\"")
            .into());
    }
    Ok(statuses)
}

fn advisories(fields: &Fields<'_>) -> Result<Vec<String>, Vec<Problem>> {
    all(fields.list("advisories_denied", 1024)?.iter().map(|node| {
        let id = node.text(64)?;
        if id.starts_with("INTEL-SA-") {
            return Ok(id.to_owned());
        }
        Err(node.problem(format_args!("is {id:?}; Intel's advisories are named INTEL-SA-00000")))
    }))
}

fn references(fields: &Fields<'_>, participants: &[Participant]) -> Result<Option<ReferenceRules>, Vec<Problem>> {
    let Some(node) = fields.optional("references") else {
        return Ok(None);
    };
    let fields = node.fields(&["signers", "threshold"])?;
    let list = fields.required("signers")?;
    let mut seen: Vec<ReferenceSigner> = Vec::new();
    let signers = all(list.list(MAX_VALUES)?.iter().map(|node| {
        let signer = reference_signer(node, participants)?;
        let twice = |other: &&ReferenceSigner| other.name == signer.name || other.public_key == signer.public_key;
        if let Some(other) = seen.iter().find(twice) {
            return Err(node.problem(format_args!(
                "is the signer {:?} a second time, by name or key",
                other.name
            )));
        }
        seen.push(signer.clone());
        Ok(signer)
    }))?;
    if signers.is_empty() {
        return Err(list.problem("is empty; name who may sign reference values").into());
    }
    let threshold = fields.required("threshold")?.integer_u32(1..=signers.len() as u64)?;
    Ok(Some(ReferenceRules { signers, threshold }))
}

/// A participant's name, or a name and a key.
fn reference_signer(node: &Node<'_>, participants: &[Participant]) -> Result<ReferenceSigner, Problem> {
    if node.is_table() {
        let fields = node.fields(&["name", "public_key"])?;
        let (name, key) = (fields.required("name")?, fields.required("public_key")?);
        let signer = ReferenceSigner {
            name: name.party_name()?,
            public_key: key
                .text(128)?
                .parse()
                .map_err(|error| key.problem(format_args!("is no key: {error}")))?,
        };
        if participants.iter().any(|participant| participant.name == signer.name) {
            return Err(name.problem("is a participant, who has a key already; give the name alone"));
        }
        return Ok(signer);
    }
    let name = node.party_name()?;
    let participant = participants.iter().find(|participant| participant.name == name);
    let participant = participant.ok_or_else(|| {
        node.problem(format_args!(
            "is {name:?}, but the policy has no such participant; others are given as {{ name, public_key }}"
        ))
    })?;
    Ok(ReferenceSigner {
        public_key: participant.public_key,
        name,
    })
}

fn flag(fields: &Fields<'_>, key: &str, default: bool) -> Result<bool, Problem> {
    fields.optional(key).map_or(Ok(default), |node| node.boolean())
}

fn hosts(fields: &Fields<'_>) -> Result<Vec<HostFile>, Vec<Problem>> {
    let Some(node) = fields.optional("hosts") else {
        return Ok(Vec::new());
    };
    let hosts = all(node.list(MAX_VALUES)?.iter().map(|node| {
        let fields = node.fields(&["name", "sha256"])?;
        Ok(HostFile {
            name: fields.required("name")?.name()?,
            sha256: fields.required("sha256")?.digest()?,
        })
    }))?;
    if hosts.iter().any(|host| host.name == HOST_BINARY) {
        return Ok(hosts);
    }
    Err(node
        .problem(format_args!(
            "names no {HOST_BINARY:?}, the binary that every node measures"
        ))
        .into())
}
