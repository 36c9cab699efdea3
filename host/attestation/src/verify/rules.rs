//! What a TD report is refused for whatever a policy says: the rules that need no cryptography.

use super::Verifier;
use crate::encoding::hex;
use crate::quote::TdReport;
use crate::refusal::FailedRule;

/// Every such rule that the report fails. Debug and profiling only if they aren't allowed.
pub(super) fn check(td: &TdReport, verifier: &Verifier, failed: &mut Vec<FailedRule>) {
    let mut unless = |holds: bool, rule: &str, words: &str, wanted: &str| {
        if !holds {
            let seen = format!("{words} (attributes {})", hex(&td.attributes));
            failed.push(FailedRule::new(rule, seen, wanted));
        }
    };
    let allow = verifier.allow_debug;
    unless(
        allow || !td.debug(),
        "attestation.debug",
        "Debug mode is enabled",
        "a TD that its host cannot read",
    );
    unless(
        allow || !td.profiled(),
        "attestation.profiling",
        "TD profiling is enabled",
        "a TD that its host cannot profile",
    );
    unless(
        !td.reserved_attributes(),
        "attestation.reserved_attributes",
        "Reserved bits in TD attributes are set",
        "attributes that have a meaning",
    );
    unless(
        !td.migratable(),
        "attestation.migration",
        "TD migration is enabled",
        "a TD that stays where it is",
    );
    unless(
        td.sept_ve_disabled(),
        "attestation.sept_ve_disable",
        "SEPT_VE_DISABLE is not enabled",
        "a TD that its host cannot make handle missing pages",
    );
    let service_tds = if td.attributes[2] & 2 != 0 {
        "SERVTD_EXT is enabled"
    } else {
        "Invalid MR service TD: a service TD is bound"
    };
    unless(
        !td.service_tds(),
        "attestation.service_td",
        service_tds,
        "a TD to which no service TD is bound",
    );
}

/// Words that dcap-qvl (or webpki below it) and our own rules have in common: what both say is listed once.
const SHARED: [&str; 16] = [
    "Debug mode is enabled",
    "TD profiling is enabled",
    "Reserved bits in TD attributes are set",
    "TD migration is enabled",
    "SEPT_VE_DISABLE is not enabled",
    "SERVTD_EXT is enabled",
    "Invalid MR service TD",
    "TCBInfo issue date is in the future",
    "TCBInfo expired",
    "QE Identity issue date is in the future",
    "QE Identity expired",
    "CrlExpired",
    "CertNotValidYet",
    "CertExpired",
    "Fmspc mismatch",
    "root key id",
];

/// Whether one of the rules that failed says already what dcap-qvl's error says.
pub(super) fn told(error: &str, failed: &[FailedRule]) -> bool {
    SHARED
        .iter()
        .any(|words| error.contains(words) && failed.iter().any(|rule| rule.seen.contains(words)))
}
