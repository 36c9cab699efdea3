//! Changes of which TDs are let in: whatever lets in more is a concern.

use cloister_attestation::encoding::hex;

use super::{Area, Changes, sorted};
use crate::agreement::{AttestationRules, Masked, ReferenceRules, Rtmr3, TcbStatus};
use crate::anchor::Anchor;

const MORE: &str = "TDs are let in that were refused before: find out what they are";
const LONGER: &str = "what Intel revoked, or a machine that fell behind, is let in for longer";

pub(super) fn diff(out: &mut Changes, old: &AttestationRules, new: &AttestationRules) {
    // Every rule is named, so that the compiler asks for a new one to be told of here.
    let AttestationRules {
        simulated: _,
        root_key_id: _,
        mrtd: _,
        rtmr0: _,
        rtmr1: _,
        rtmr2: _,
        rtmr3,
        mrseam: _,
        mrconfigid: _,
        anchors,
        mrowner: _,
        mrownerconfig: _,
        attributes: _,
        xfam: _,
        tcb_statuses: _,
        advisories_denied: _,
        min_tcb_eval_data_number: _,
        collateral_max_age_s: _,
        max_clock_skew_s: _,
        permit_max_s: _,
        fmspc: _,
        ppid: _,
        allow_dynamic_platform: _,
        allow_cached_keys: _,
        allow_smt: _,
        references,
        crl_max_age_s: _,
        hosts: _,
    } = new;
    let say = |out: &mut Changes, text: &str, concern| out.add(Area::Attestation, text.to_owned(), concern);
    match (old.simulated, new.simulated) {
        (false, true) => say(
            out,
            "TDs are SIMULATED from now on",
            Some("nothing is proven any more: whoever has the authority's keys can make up any TD"),
        ),
        (true, false) => say(out, "TDs have to be real ones, under Intel's root", None),
        _ if old.root_key_id != new.root_key_id => {
            let text = format!(
                "another root: {}… becomes {}…",
                hex(&old.root_key_id[..6]),
                hex(&new.root_key_id[..6])
            );
            out.add(
                Area::Attestation,
                text,
                Some("whoever holds that root's keys vouches for every TD"),
            );
        }
        _ => {}
    }
    registers(out, old, new);
    for (what, old, new) in [
        ("attributes", old.attributes, new.attributes),
        ("XFAM", old.xfam, new.xfam),
    ] {
        masked(out, what, old, new);
    }
    for (what, old, new) in [
        (
            "packages may be added to the platform",
            old.allow_dynamic_platform,
            new.allow_dynamic_platform,
        ),
        (
            "Intel may have the platform's keys cached",
            old.allow_cached_keys,
            new.allow_cached_keys,
        ),
        ("multithreading may be on", old.allow_smt, new.allow_smt),
    ] {
        match (old, new) {
            (false, true) => out.add(Area::Attestation, format!("{what}, which it might not"), Some(MORE)),
            (true, false) => out.say(Area::Attestation, format!("no more: {what}")),
            _ => {}
        }
    }
    runtime(out, &old.rtmr3, rtmr3);
    pods(out, &old.anchors, anchors);
    statuses(out, &old.tcb_statuses, &new.tcb_statuses);
    let (gone, fresh, _) = sorted(&old.advisories_denied, &new.advisories_denied, String::as_str);
    for advisory in gone {
        let concern = Some("machines that it applies to are let in");
        out.add(Area::Attestation, format!("{advisory} may apply"), concern);
    }
    for advisory in fresh {
        out.say(Area::Attestation, format!("{advisory} must not apply"));
    }
    let least = (&old.min_tcb_eval_data_number, &new.min_tcb_eval_data_number);
    out.value(
        Area::Attestation,
        "lowest evaluation number of collateral",
        least,
        (least.1 < least.0).then_some(LONGER),
    );
    for (what, old, new) in [
        (
            "oldest collateral, in seconds",
            old.collateral_max_age_s,
            new.collateral_max_age_s,
        ),
        (
            "seconds that clocks may be apart",
            old.max_clock_skew_s,
            new.max_clock_skew_s,
        ),
        (
            "seconds until a session attests again",
            old.permit_max_s,
            new.permit_max_s,
        ),
    ] {
        let concern = (new > old).then_some(LONGER);
        out.value(Area::Attestation, what, (&old, &new), concern);
    }
    reference_signers(out, old.references.as_ref(), references.as_ref());
    let hosts = |rules: &AttestationRules| -> Vec<String> {
        let hosts = rules.hosts.iter();
        hosts
            .map(|host| format!("{} {}", host.name, host.sha256.short()))
            .collect()
    };
    listed(out, "host file", &hosts(old), &hosts(new));
}

/// What RTMR3 has to hold. Zeros, and what a log explains, leave nothing open.
fn runtime(out: &mut Changes, old: &Rtmr3, new: &Rtmr3) {
    match (old, new) {
        (Rtmr3::Any, Rtmr3::Any) | (Rtmr3::Zero, Rtmr3::Zero) => {}
        (_, Rtmr3::Any) => out.add(
            Area::Attestation,
            "RTMR3 may have any value, which it might not".to_owned(),
            Some(MORE),
        ),
        (old, Rtmr3::Zero) => {
            let text = "RTMR3 has to be zero: nodes extend nothing".to_owned();
            let concern = matches!(old, Rtmr3::Log { .. })
                .then_some("the register shows no longer what ran in a TD before it was attested");
            out.add(Area::Attestation, text, concern);
        }
        (_, Rtmr3::Log { others }) => {
            let before = match old {
                Rtmr3::Log { others } => others.as_slice(),
                _ => {
                    let text = "an event log has to explain RTMR3: nodes extend it by what they run";
                    out.say(Area::Attestation, text.to_owned());
                    &[]
                }
            };
            let (gone, fresh, _) = sorted(before, others, String::as_str);
            for text in fresh {
                out.add(
                    Area::Attestation,
                    format!("the event {text:?} may be in the log"),
                    Some(MORE),
                );
            }
            for text in gone {
                out.say(Area::Attestation, format!("the event {text:?} is refused from now on"));
            }
        }
    }
}

/// Who may add to the accepted registers by a document of its own.
fn reference_signers(out: &mut Changes, old: Option<&ReferenceRules>, new: Option<&ReferenceRules>) {
    const VOUCH: &str =
        "whoever may sign reference values lets in the TDs that they name: ask them for their keys yourself";
    let signers = |rules: &ReferenceRules| {
        let signers: Vec<_> = rules.signers.iter().map(|signer| signer.name.as_str()).collect();
        format!("{} of {}", rules.threshold, signers.join(", "))
    };
    match (old, new) {
        (None, None) => {}
        (Some(_), None) => out.say(Area::Attestation, "reference values are taken from nobody".to_owned()),
        (None, Some(new)) => {
            let text = format!("reference values are taken that {} signed", signers(new));
            out.add(Area::Attestation, text, Some(VOUCH));
        }
        (Some(old), Some(new)) if old != new => {
            let (before, after) = (signers(old), signers(new));
            let text = if before == after {
                format!("the keys change of those who sign reference values ({after})")
            } else {
                format!("reference values are taken that {after} signed, not {before}")
            };
            out.add(Area::Attestation, text, Some(VOUCH));
        }
        (Some(_), Some(_)) => {}
    }
}

fn registers(out: &mut Changes, old: &AttestationRules, new: &AttestationRules) {
    let all = |rules: &AttestationRules| {
        [
            ("MRTD", shown(&rules.mrtd)),
            ("RTMR0", shown(&rules.rtmr0)),
            ("RTMR1", shown(&rules.rtmr1)),
            ("RTMR2", shown(&rules.rtmr2)),
            ("MRSEAM", shown(&rules.mrseam)),
            ("MRCONFIGID", shown(&rules.mrconfigid)),
            ("FMSPC", shown(&rules.fmspc)),
            ("PPID", shown(&rules.ppid)),
        ]
    };
    for ((what, before), (_, after)) in all(old).iter().zip(&all(new)) {
        listed(out, what, before, after);
    }
    // Here an empty list takes zero alone.
    for (what, before, after) in [
        ("MROWNER", &old.mrowner, &new.mrowner),
        ("MROWNERCONFIG", &old.mrownerconfig, &new.mrownerconfig),
    ] {
        let zero = |values: &[[u8; 48]]| {
            if values.is_empty() {
                shown(&[[0; 48]])
            } else {
                shown(values)
            }
        };
        listed(out, what, &zero(before), &zero(after));
    }
}

fn shown<const N: usize>(values: &[[u8; N]]) -> Vec<String> {
    values.iter().map(|value| hex(value)).collect()
}

/// A list of accepted values, of which an empty one takes any.
fn listed(out: &mut Changes, what: &str, old: &[String], new: &[String]) {
    match (old.is_empty(), new.is_empty()) {
        (false, true) => return out.add(Area::Attestation, format!("any {what} is accepted"), Some(MORE)),
        (true, false) => {
            let text = format!("{what} is no longer accepted whatever it is, but as {}", new.join(", "));
            return out.say(Area::Attestation, text);
        }
        _ => {}
    }
    let (gone, fresh, _) = sorted(old, new, String::as_str);
    for value in fresh {
        out.add(Area::Attestation, format!("{what} {value} is accepted too"), Some(MORE));
    }
    for value in gone {
        out.say(Area::Attestation, format!("{what} {value} is refused from now on"));
    }
}

fn masked(out: &mut Changes, what: &str, old: Masked, new: Masked) {
    if old == new {
        return;
    }
    let text = format!(
        "{what}: {} under the mask {} becomes {} under {}",
        hex(&old.value),
        hex(&old.mask),
        hex(&new.value),
        hex(&new.mask)
    );
    // Stricter is only what fixes the same bits the same way, and more of them.
    let stricter = old.mask.iter().zip(&new.mask).all(|(old, new)| old & new == *old)
        && old
            .mask
            .iter()
            .zip(old.value.iter().zip(&new.value))
            .all(|(mask, (old, new))| old & mask == new & mask);
    out.add(Area::Attestation, text, (!stricter).then_some(MORE));
}

fn statuses(out: &mut Changes, old: &[TcbStatus], new: &[TcbStatus]) {
    let (gone, fresh, both) = sorted(old, new, |one| one.status.as_str());
    let until = |status: &TcbStatus| {
        let date = status.until_unix_s.map(crate::reader::date_before);
        date.map_or_else(|| "for good".to_owned(), |date| format!("until {date}"))
    };
    let weaker = Some("known holes may be open on such platforms");
    for one in fresh {
        let text = format!("platforms with the TCB status {} are let in {}", one.status, until(one));
        out.add(Area::Attestation, text, weaker.filter(|_| one.status != "UpToDate"));
    }
    for one in gone {
        let text = format!("platforms with the TCB status {} are let in no more", one.status);
        out.say(Area::Attestation, text);
    }
    for (before, after) in both.into_iter().filter(|(a, b)| a.until_unix_s != b.until_unix_s) {
        let text = format!(
            "platforms with the TCB status {} are let in {}, not {}",
            after.status,
            until(after),
            until(before)
        );
        let longer = match (before.until_unix_s, after.until_unix_s) {
            (Some(before), Some(after)) => after > before,
            (_, after) => after.is_none(),
        };
        let concern = weaker.filter(|_| longer && after.status != "UpToDate");
        out.add(Area::Attestation, text, concern);
    }
}

/// What pods run, in words: the change of their MRCONFIGID alone says nothing to a reader.
fn pods(out: &mut Changes, old: &[Anchor], new: &[Anchor]) {
    let shown = |anchor: &Anchor| {
        let workload = anchor.workload();
        format!("{} with the words {:?}", workload.image(), workload.arguments())
    };
    for anchor in old.iter().filter(|anchor| !new.contains(anchor)) {
        out.say(Area::Attestation, format!("no more: pods run {}", shown(anchor)));
    }
    for anchor in new.iter().filter(|anchor| !old.contains(anchor)) {
        let concern = Some("another program speaks for nodes: find out who built it, and from what");
        out.add(Area::Attestation, format!("pods may run {}", shown(anchor)), concern);
    }
}
