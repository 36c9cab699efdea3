//! Collateral verified by itself, before any quote: signatures, chains, revocation lists and dates, and numbers that never
//! go down.
//!
//! Every quote's verification looks at all of this again. What is verified here decides which collateral a node works with
//! at all: nothing that a provisioning service sends, or a disk gives back, is taken otherwise.

use std::collections::BTreeMap;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::revocation_list::CertificateRevocationList;

use super::collateral::{Collateral, Set};
use super::{TrustRoot, dates};
use crate::encoding::hex;
use crate::refusal::{FailedRule, Refusal};

/// Most platform families and authorities whose numbers are kept.
const MAX_MARKS: usize = 1024;
/// Longest file of watermarks, in bytes.
pub const MAX_WATERMARK_BYTES: u64 = 256 * 1024;

/// Collateral that verified under a root at a time. Only [`Collateral::verify`] makes one.
#[derive(Clone, Debug)]
pub struct VerifiedCollateral {
    collateral: Collateral,
    root_key_id: [u8; 48],
    latest_issue_unix_s: u64,
    numbers: Vec<Numbers>,
}

/// The numbers of one set.
#[derive(Clone, Debug)]
struct Numbers {
    fmspc: String,
    evaluation: u32,
    authority: String,
    pck_crl: u64,
    root_crl: u64,
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
        pck_crl: crl_number(set, &pck_crl, "the platforms' revocation list")?,
        root_crl: crl_number(set, &root_crl, "the root's revocation list")?,
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
fn crl_number(set: &Set, crl: &CertificateRevocationList<'_>, what: &str) -> Result<u64, FailedRule> {
    let digits = crl.crl_number().map(|number| number.to_bytes_be()).unwrap_or_default();
    let number = (!digits.is_empty() && digits.len() <= 8).then(|| {
        digits
            .iter()
            .fold(0u64, |number, &byte| (number << 8) | u64::from(byte))
    });
    number.ok_or_else(|| refused(set, what, "no number, or one beyond 64 bits"))
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

/// The highest numbers and the newest date seen in collateral that verified. They never go down: whoever brings back an
/// older list, with which a platform was not revoked or not out of date yet, is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watermarks {
    /// Key id of the root, hexadecimal; empty before the first collateral.
    root_key_id: String,
    /// Newest issue date, seconds since 1970.
    latest_issue_unix_s: u64,
    /// Highest number of the root's revocation list.
    root_crl: u64,
    /// Highest TCB evaluation number by platform family.
    evaluation: BTreeMap<String, u32>,
    /// Highest number of the platforms' revocation list by authority.
    pck_crl: BTreeMap<String, u64>,
    /// Highest version of a document of reference values by federation.
    #[serde(default)]
    references: BTreeMap<String, u64>,
}

impl Watermarks {
    /// Reads what [`Watermarks::to_json`] wrote.
    ///
    /// # Errors
    /// What the parser said.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        if json.len() as u64 > MAX_WATERMARK_BYTES {
            return Err(format!("{} bytes, wanted at most {MAX_WATERMARK_BYTES}", json.len()));
        }
        let marks: Self = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        if marks
            .evaluation
            .len()
            .max(marks.pck_crl.len())
            .max(marks.references.len())
            > MAX_MARKS
        {
            return Err(format!("more than {MAX_MARKS} entries"));
        }
        Ok(marks)
    }

    /// Their text.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// Newest issue date seen, seconds since 1970: no honest clock is before it.
    pub fn floor_unix_s(&self) -> u64 {
        self.latest_issue_unix_s
    }

    /// Takes collateral in and raises the marks. Says whether that changed any.
    ///
    /// # Errors
    /// [`Refusal`] with every number that went down; the marks stay as they were.
    pub fn admit(&mut self, collateral: &VerifiedCollateral) -> Result<bool, Refusal> {
        let before = self.clone();
        let mut failed = Vec::new();
        let root = hex(&collateral.root_key_id);
        if !self.root_key_id.is_empty() && self.root_key_id != root {
            return Err(Refusal::one("collateral.root_key_id", root, &self.root_key_id));
        }
        self.root_key_id = root;
        self.latest_issue_unix_s = self.latest_issue_unix_s.max(collateral.latest_issue_unix_s);
        let mut raise = |mark: &mut u64, seen: u64, rule: &str, what: String| {
            if seen < *mark {
                failed.push(FailedRule::new(
                    rule,
                    format!("{seen} {what}"),
                    format!("at least {mark}, which was seen before"),
                ));
            }
            *mark = seen.max(*mark);
        };
        for set in &collateral.numbers {
            let known = self.evaluation.entry(set.fmspc.clone()).or_default();
            let mut mark = u64::from(*known);
            let what = format!("for the family {}", set.fmspc);
            raise(&mut mark, set.evaluation.into(), "collateral.evaluation_number", what);
            *known = set.evaluation.max(*known);
            let mark = self.pck_crl.entry(set.authority.clone()).or_default();
            raise(
                mark,
                set.pck_crl,
                "collateral.pck_crl_number",
                format!("of {}", set.authority),
            );
            raise(
                &mut self.root_crl,
                set.root_crl,
                "collateral.root_crl_number",
                "of the root".into(),
            );
        }
        if self.evaluation.len().max(self.pck_crl.len()) > MAX_MARKS {
            failed.push(FailedRule::new(
                "collateral.families",
                "too many",
                format!("at most {MAX_MARKS}"),
            ));
        }
        if failed.is_empty() {
            return Ok(*self != before);
        }
        *self = before;
        Err(Refusal { failed })
    }

    /// Takes a version of a document of reference values in. Says whether that raised the mark.
    ///
    /// # Errors
    /// [`Refusal`] if a higher version was seen before.
    pub fn admit_references(&mut self, federation: &str, version: u64) -> Result<bool, Refusal> {
        let mark = self.references.get(federation).copied().unwrap_or(0);
        if version < mark {
            let wanted = format!("at least {mark}, which was seen before");
            return Err(Refusal::one("references.version", version, wanted));
        }
        self.references.insert(federation.to_owned(), version);
        Ok(version > mark)
    }
}
