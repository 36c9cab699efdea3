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
    let all = || references.iter().flat_map(|signed| &signed.values().references);
    // Where nobody speaks of MRCONFIGID, TDs are started without initdata, and it is zero as other registers of the owner.
    let initdata = !rules.mrconfigid.is_empty() || all().any(|reference| !reference.registers[5].is_empty());
    let own = check_against(rules, None, initdata, td);
    if own.is_empty() {
        return own;
    }
    let mut closest = own;
    for reference in all() {
        let mut failed = check_against(rules, Some(reference), initdata, td);
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

fn check_against(
    rules: &AttestationRules,
    reference: Option<&Reference>,
    initdata: bool,
    td: &TdReport,
) -> Vec<FailedRule> {
    const EMPTY: &Vec<Register> = &Vec::new();
    let added = reference.map_or([EMPTY; 6], |reference| reference.registers.each_ref());
    let effective: Vec<_> = lists(rules)
        .into_iter()
        .zip(added)
        .map(|(own, added)| if added.is_empty() { own } else { added })
        .collect();
    let mut failed = Vec::new();
    for ((name, seen), accepted) in REFERENCE_REGISTERS
        .into_iter()
        .zip(reference_registers(td))
        .zip(effective)
    {
        // In simulation a register that nobody names is open; elsewhere it is closed.
        let without_initdata = name == "mrconfigid" && !initdata;
        let unlisted = accepted.is_empty() && (rules.simulated || (without_initdata && *seen == [0; 48]));
        if accepted.contains(seen) || unlisted {
            continue;
        }
        let wanted: Vec<_> = accepted.iter().map(|register| hex(register)).collect();
        let by = reference.map_or_else(String::new, |reference| format!(" (reference {:?})", reference.name));
        let wanted = if wanted.is_empty() && without_initdata {
            "zeros, since neither policy nor reference values list one: a TD started without initdata".to_owned()
        } else if wanted.is_empty() {
            "a value that policy or reference values name".to_owned()
        } else {
            format!("{}{by}", wanted.join(" or "))
        };
        failed.push(FailedRule::new(format!("attestation.{name}"), hex(seen), wanted));
    }
    failed
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use cloister_attestation::simulated::{SimulatedAuthority, SimulatedTd, TdValues, create_authority};
    use cloister_attestation::{Quote, QuoteProvider as _};

    use super::*;

    const NOW: u64 = 1_795_132_800;

    #[test]
    fn outside_simulation_what_nobody_lists_is_closed_and_an_unlisted_mrconfigid_is_zeros() {
        let dir = tempfile::tempdir().unwrap();
        create_authority(&dir.path().join("sim"), NOW).unwrap();
        let authority = SimulatedAuthority::load(&dir.path().join("sim")).unwrap();
        let quote = SimulatedTd::new(&authority, TdValues::default())
            .unwrap()
            .quote(&[0; 64]);
        let mut td = Quote::parse(&quote.unwrap()).unwrap().report;
        let mut rules = AttestationRules::with_root(false, [1; 48]);
        (rules.mrtd, rules.mrseam) = (vec![td.mrtd], vec![td.mrseam]);
        (rules.rtmr0, rules.rtmr1, rules.rtmr2) = (vec![td.rtmr[0]], vec![td.rtmr[1]], vec![td.rtmr[2]]);
        let failed = |rules: &AttestationRules, td: &TdReport| check_registers(rules, None, td, NOW);
        assert!(failed(&rules, &td).is_empty());

        let open = AttestationRules {
            rtmr2: Vec::new(),
            ..rules.clone()
        };
        assert_eq!(failed(&open, &td)[0].rule, "attestation.rtmr2");
        // Whoever sets an MRCONFIGID starts the TD with initdata of its own.
        td.mrconfigid[47] = 1;
        let refused = failed(&rules, &td);
        assert!(
            refused.len() == 1 && refused[0].rule == "attestation.mrconfigid",
            "{refused:?}"
        );
        assert!(refused[0].wanted.contains("zeros"), "{refused:?}");
        rules.mrconfigid = vec![td.mrconfigid];
        assert!(failed(&rules, &td).is_empty());
        // And where initdata is listed, a TD without any starts what it likes.
        td.mrconfigid = [0; 48];
        assert_eq!(failed(&rules, &td)[0].rule, "attestation.mrconfigid");
    }
}
