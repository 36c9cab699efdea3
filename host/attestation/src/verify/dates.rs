//! When each part of collateral and of a certificate chain holds.
//!
//! The words are dcap-qvl's and webpki's, which decide in the end: a reader who looks one up finds it.

use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::time::ASN1Time;

use crate::refusal::FailedRule;
use crate::time;

/// What is dated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    TcbInfo,
    QeIdentity,
    Crl,
    Certificate,
}

/// Something with a beginning and an end.
#[derive(Clone, Debug)]
pub(super) struct Dated {
    pub(super) kind: Kind,
    /// For people: `the PCK CRL`.
    pub(super) what: &'static str,
    pub(super) from_unix_s: u64,
    /// Last second that it holds.
    pub(super) until_unix_s: u64,
}

impl Dated {
    /// The rule that fails at that time, if one does.
    pub(super) fn check(&self, now_unix_s: u64) -> Option<FailedRule> {
        // A revocation list counts from when it is known: at a moment before its date it says more than was known then, and
        // nothing that is false. A clock that lies is held by the date itself (`latest_issue_unix_s`).
        let too_early = self.kind != Kind::Crl && now_unix_s < self.from_unix_s;
        let too_late = now_unix_s > self.until_unix_s;
        let words = match (self.kind, too_early, too_late) {
            (_, false, false) => return None,
            (Kind::TcbInfo, true, _) => "TCBInfo issue date is in the future",
            (Kind::TcbInfo, ..) => "TCBInfo expired",
            (Kind::QeIdentity, true, _) => "QE Identity issue date is in the future",
            (Kind::QeIdentity, ..) => "QE Identity expired",
            (Kind::Crl, ..) => "CrlExpired",
            (Kind::Certificate, true, _) => "CertNotValidYet",
            (Kind::Certificate, ..) => "CertExpired",
        };
        let rule = match self.kind {
            Kind::TcbInfo => "collateral.tcb_info",
            Kind::QeIdentity => "collateral.qe_identity",
            Kind::Crl => "collateral.crl",
            Kind::Certificate => "certificate.dates",
        };
        let (from, until) = (time::format(self.from_unix_s), time::format(self.until_unix_s));
        let hint = match self.kind {
            Kind::Certificate => "",
            _ if too_late => {
                "; get newer collateral (`cloister quote collateral`); `cloister quote authority DIR` re-issues simulated \
                 collateral"
            }
            _ => "; is the clock right?",
        };
        Some(FailedRule::new(
            rule,
            format!("{words}: {} holds from {from} to {until}", self.what),
            format!("one that holds at {} ({now_unix_s}){hint}", time::format(now_unix_s)),
        ))
    }
}

/// Dates of a certificate, DER; `None` if it can't be read (which the verification says).
pub(super) fn of_certificate(der: &[u8], what: &'static str) -> Option<Dated> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let validity = certificate.validity();
    Some(Dated {
        kind: Kind::Certificate,
        what,
        from_unix_s: unix_s(validity.not_before),
        until_unix_s: unix_s(validity.not_after),
    })
}

/// Dates of a revocation list, DER.
pub(super) fn of_crl(der: &[u8], what: &'static str) -> Option<Dated> {
    let (_, crl) = CertificateRevocationList::from_der(der).ok()?;
    Some(Dated {
        kind: Kind::Crl,
        what,
        from_unix_s: unix_s(crl.last_update()),
        until_unix_s: crl.next_update().map_or(0, unix_s),
    })
}

/// Seconds since 1970; 0 for what is before.
pub(super) fn unix_s(time: ASN1Time) -> u64 {
    u64::try_from(time.timestamp()).unwrap_or(0)
}
