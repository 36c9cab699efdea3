//! Which registers of a TD pass by the policy's lists, or by a reference in force together with them.

use cloister_attestation::encoding::hex;
use cloister_attestation::{FailedRule, TdReport, time};

use super::{REFERENCE_REGISTERS, Reference, SignedReferences};
use crate::agreement::{AttestationRules, Register};
use crate::reader::date_before;

/// The registers of a report that references speak of, in their order.
fn reference_registers(td: &TdReport) -> [&Register; 6] {
    [
        &td.mrtd,
        &td.rtmr[0],
        &td.rtmr[1],
        &td.rtmr[2],
        &td.mrseam,
        &td.mrconfigid,
    ]
}

fn lists(rules: &AttestationRules) -> [&Vec<Register>; 6] {
    [
        &rules.mrtd,
        &rules.rtmr0,
        &rules.rtmr1,
        &rules.rtmr2,
        &rules.mrseam,
        &rules.mrconfigid,
    ]
}

/// The registers that fail: none if the policy's own lists take them, or a reference that is in force together with those
/// lists. Else what the closest of them wants.
pub(crate) fn check_registers(
    rules: &AttestationRules,
    references: Option<&SignedReferences>,
    td: &TdReport,
    now_unix_s: u64,
) -> Vec<FailedRule> {
    let own = check_against(rules, None, td);
    if own.is_empty() {
        return own;
    }
    let mut closest = own;
    for reference in references.iter().flat_map(|signed| &signed.values().references) {
        let mut failed = check_against(rules, Some(reference), td);
        if now_unix_s >= reference.until_unix_s {
            failed.push(FailedRule::new(
                "attestation.references",
                format!(
                    "{:?}, which ended with {}",
                    reference.name,
                    date_before(reference.until_unix_s)
                ),
                format!("a reference that is in force at {}", time::format(now_unix_s)),
            ));
        }
        if failed.is_empty() {
            return failed;
        }
        if failed.len() < closest.len() {
            closest = failed;
        }
    }
    closest
}

fn check_against(rules: &AttestationRules, reference: Option<&Reference>, td: &TdReport) -> Vec<FailedRule> {
    const EMPTY: &Vec<Register> = &Vec::new();
    let added = reference.map_or([EMPTY; 6], |reference| reference.registers.each_ref());
    let effective: Vec<_> = lists(rules)
        .into_iter()
        .zip(added)
        .map(|(own, added)| if added.is_empty() { own } else { added })
        .collect();
    // A policy without references can't leave a register open that has to be closed: its parser sees to that. With
    // references, a register that neither names is not open but closed, unless the other one of the two anchors is named.
    let anchored =
        effective.get(3).is_some_and(|list| !list.is_empty()) || effective.get(5).is_some_and(|list| !list.is_empty());
    let mut failed = Vec::new();
    for (index, ((name, seen), accepted)) in REFERENCE_REGISTERS
        .into_iter()
        .zip(reference_registers(td))
        .zip(effective)
        .enumerate()
    {
        let open = rules.references.is_none() || rules.simulated || (anchored && matches!(index, 3 | 5));
        if accepted.contains(seen) || (accepted.is_empty() && open) {
            continue;
        }
        let wanted: Vec<_> = accepted.iter().map(|register| hex(register)).collect();
        let by = reference.map_or_else(String::new, |reference| format!(" (reference {:?})", reference.name));
        let wanted = if wanted.is_empty() {
            "a value that policy or reference values name".to_owned()
        } else {
            format!("{}{by}", wanted.join(" or "))
        };
        failed.push(FailedRule::new(format!("attestation.{name}"), hex(seen), wanted));
    }
    failed
}
