//! Collateral verified by itself, before any quote: signatures, chains, revocation lists and dates.
//!
//! Every quote's verification looks at all of this again. What is verified here decides which collateral a node works with
//! at all: nothing that a provisioning service sends, or a disk gives back, is taken otherwise.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::revocation_list::CertificateRevocationList;

use super::collateral::{Collateral, Set};
use super::{TrustRoot, dates};
use crate::encoding::hex;
use crate::refusal::{FailedRule, Refusal};

/// Collateral that verified under a root at a time. Only [`Collateral::verify`] makes one.
#[derive(Clone, Debug)]
pub struct VerifiedCollateral {
    collateral: Collateral,
    pub(super) root_key_id: [u8; 48],
    pub(super) latest_issue_unix_s: u64,
    pub(super) numbers: Vec<Numbers>,
}

/// What never goes down in one set.
#[derive(Clone, Debug)]
pub(super) struct Numbers {
    pub(super) fmspc: String,
    pub(super) evaluation: u32,
    pub(super) authority: String,
    pub(super) pck_crl: List,
    pub(super) root_crl: List,
}

/// What orders revocation lists of one issuer. Intel's have all number 1: there the date alone tells which one is newer.
#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    pub(super) number: u64,
    pub(super) issued_unix_s: u64,
}

impl VerifiedCollateral {
    /// The collateral.
    pub fn collateral(&self) -> &Collateral {
        &self.collateral
    }

    /// Several in one, all of which verified; `None` out of none, or of too many.
    pub fn together(all: &[Self]) -> Option<Self> {
        let root_key_id = all.first()?.root_key_id;
        if all.iter().any(|one| one.root_key_id != root_key_id) {
            return None;
        }
        Some(Self {
            collateral: Collateral::together(all.iter().map(|one| one.collateral.clone())).ok()?,
            root_key_id,
            latest_issue_unix_s: all.iter().map(|one| one.latest_issue_unix_s).max()?,
            numbers: all.iter().flat_map(|one| one.numbers.clone()).collect(),
        })
    }

    /// Newest issue date in it, seconds since 1970: no honest clock is before it.
    pub fn latest_issue_unix_s(&self) -> u64 {
        self.latest_issue_unix_s
    }
}

impl Collateral {
    /// Verifies every set: chains and revocation lists under the root, signatures of TCB info and QE identity, all dates.
    ///
    /// # Errors
    /// [`Refusal`] with every rule that failed.
    pub fn verify(&self, root: &TrustRoot, now_unix_s: u64) -> Result<VerifiedCollateral, Refusal> {
        let mut failed = Vec::new();
        let mut numbers = Vec::new();
        let mut latest_issue_unix_s = 0;
        for set in self.sets() {
            set.check_dates(now_unix_s, &mut failed);
            latest_issue_unix_s = set
                .dated
                .iter()
                .map(|dated| dated.from_unix_s)
                .fold(latest_issue_unix_s, u64::max);
            match check_set(set, root, now_unix_s) {
                Ok(found) => numbers.push(found),
                Err(rule) => failed.push(rule),
            }
        }
        Refusal::unless_empty(failed)?;
        Ok(VerifiedCollateral {
            collateral: self.clone(),
            root_key_id: *root.key_id(),
            latest_issue_unix_s,
            numbers,
        })
    }
}

fn refused(set: &Set, what: &str, seen: &str) -> FailedRule {
    let seen = format!("{what} of the family {}: {seen}", set.fmspc);
    FailedRule::new("collateral.signature", seen, "one that verifies under the root")
}

fn check_set(set: &Set, root: &TrustRoot, now: u64) -> Result<Numbers, FailedRule> {
    let collateral = &set.collateral;
    let (_, root_certificate) =
        X509Certificate::from_der(root.der()).map_err(|error| refused(set, "the root", &error.to_string()))?;
    let root_crl = read_crl(
        set,
        &collateral.root_ca_crl,
        "the root's revocation list",
        &root_certificate,
    )?;
    let issued = |pem: &str, what: &str| certificate_by_root(set, pem, what, &root_certificate, &root_crl, now);
    let authority = issued(&collateral.pck_crl_issuer_chain, "the platforms' authority")?;
    let (_, authority) = X509Certificate::from_der(&authority)
        .map_err(|error| refused(set, "the platforms' authority", &error.to_string()))?;
    if !authority.is_ca() {
        return Err(refused(set, "the platforms' authority", "not a certificate authority"));
    }
    let pck_crl = read_crl(set, &collateral.pck_crl, "the platforms' revocation list", &authority)?;
    for (what, pem, text, signature) in [
        (
            "the TCB info",
            &collateral.tcb_info_issuer_chain,
            &collateral.tcb_info,
            &collateral.tcb_info_signature,
        ),
        (
            "the QE identity",
            &collateral.qe_identity_issuer_chain,
            &collateral.qe_identity,
            &collateral.qe_identity_signature,
        ),
    ] {
        let signer = issued(pem, what)?;
        let (_, signer) = X509Certificate::from_der(&signer).map_err(|error| refused(set, what, &error.to_string()))?;
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point(&signer));
        if key.verify(text.as_bytes(), signature).is_err() {
            return Err(refused(set, what, "a signature that is not its signer's"));
        }
    }
    Ok(Numbers {
        fmspc: set.fmspc.clone(),
        evaluation: set.dates.eval_data_number,
        authority: authority.subject().to_string(),
        pck_crl: list(set, &pck_crl, "the platforms' revocation list")?,
        root_crl: list(set, &root_crl, "the root's revocation list")?,
    })
}

fn point<'a>(certificate: &'a X509Certificate<'_>) -> &'a [u8] {
    &certificate.public_key().subject_public_key.data
}

fn signed(by: &X509Certificate<'_>, message: &[u8], signature: &[u8]) -> bool {
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point(by));
    key.verify(message, signature).is_ok()
}

fn read_crl<'a>(
    set: &Set,
    der: &'a [u8],
    what: &str,
    issuer: &X509Certificate<'_>,
) -> Result<CertificateRevocationList<'a>, FailedRule> {
    let (rest, crl) =
        CertificateRevocationList::from_der(der).map_err(|error| refused(set, what, &error.to_string()))?;
    let sound = rest.is_empty() && crl.issuer() == issuer.subject();
    if sound && signed(issuer, crl.tbs_cert_list.as_ref(), &crl.signature_value.data) {
        return Ok(crl);
    }
    Err(refused(set, what, "not signed by its issuer"))
}

/// Numbers that never go down have to be there.
fn list(set: &Set, crl: &CertificateRevocationList<'_>, what: &str) -> Result<List, FailedRule> {
    let digits = crl.crl_number().map(|number| number.to_bytes_be()).unwrap_or_default();
    let number = (!digits.is_empty() && digits.len() <= 8).then(|| {
        digits
            .iter()
            .fold(0u64, |number, &byte| (number << 8) | u64::from(byte))
    });
    let number = number.ok_or_else(|| refused(set, what, "no number, or one beyond 64 bits"))?;
    Ok(List {
        number,
        issued_unix_s: dates::unix_s(crl.last_update()),
    })
}

/// The first certificate of a chain, DER: issued by the root, in force and not revoked.
fn certificate_by_root(
    set: &Set,
    pem: &str,
    what: &str,
    root: &X509Certificate<'_>,
    root_crl: &CertificateRevocationList<'_>,
    now: u64,
) -> Result<Vec<u8>, FailedRule> {
    let block = x509_parser::pem::Pem::iter_from_buffer(pem.as_bytes()).next();
    let der = match block {
        Some(Ok(block)) => block.contents,
        Some(Err(error)) => return Err(refused(set, what, &error.to_string())),
        None => return Err(refused(set, what, "no certificate")),
    };
    let (rest, certificate) =
        X509Certificate::from_der(&der).map_err(|error| refused(set, what, &error.to_string()))?;
    let issued = rest.is_empty()
        && certificate.issuer() == root.subject()
        && signed(
            root,
            certificate.tbs_certificate.as_ref(),
            &certificate.signature_value.data,
        );
    if !issued {
        return Err(refused(set, what, "a certificate that the root did not issue"));
    }
    let serial = certificate.raw_serial();
    if root_crl
        .iter_revoked_certificates()
        .any(|revoked| revoked.raw_serial() == serial)
    {
        return Err(refused(set, what, &format!("a revoked certificate ({})", hex(serial))));
    }
    match dates::of_certificate(&der, "a certificate of the collateral").and_then(|dated| dated.check(now)) {
        Some(rule) => Err(rule),
        None => Ok(der),
    }
}
