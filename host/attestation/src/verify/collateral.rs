//! Collateral: what Intel (or a simulated authority) publishes about platforms, and quotes are judged by.
//!
//! A file is JSON as dcap-qvl has it: one set or an array of sets, one a platform family (FMSPC) and authority: `tcb_info`,
//! `qe_identity` and their signatures and issuer chains, `root_ca_crl`, `pck_crl`; byte strings in hexadecimal. A
//! `pck_certificate_chain` in it is thrown away: it would take the place of the chain that comes with each quote.

use std::path::Path;

use dcap_qvl::QuoteCollateralV3;
use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;

use super::dates::{self, Dated, Kind};
use crate::encoding::hex;
use crate::refusal::FailedRule;
use crate::time;

/// Longest collateral file, in bytes.
const MAX_BYTES: u64 = 8 * 1024 * 1024;
/// Most sets in a file.
const MAX_SETS: usize = 64;
/// Most certificates of an issuer chain whose dates are looked at.
const MAX_ISSUERS: usize = 5;

/// Why a file is no collateral.
#[derive(Debug, thiserror::Error)]
pub enum CollateralError {
    /// It can't be read.
    #[error("reading the collateral {path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not the JSON of collateral.
    #[error("the collateral is not the JSON that was wanted: {cause}")]
    Malformed {
        /// What the parser said.
        cause: String,
    },
    /// None, or too many sets.
    #[error("the collateral has {seen} sets, wanted 1 to {MAX_SETS}")]
    Count {
        /// How many.
        seen: usize,
    },
}

/// What a set of collateral says of itself. Nothing of it is verified before a quote is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CollateralDates {
    /// Platform family (FMSPC), lower-case hexadecimal.
    pub fmspc: String,
    /// Older of the issue dates of TCB info and QE identity, seconds since 1970.
    pub issued_unix_s: u64,
    /// First of the dates at which TCB info, QE identity and revocation lists have to be renewed, seconds since 1970.
    pub next_update_unix_s: u64,
    /// When the PCK revocation list was issued, seconds since 1970; 0 if it can't be read.
    pub pck_crl_issued_unix_s: u64,
    /// Lower of the evaluation numbers of TCB info and QE identity.
    pub eval_data_number: u32,
    /// Number of the PCK revocation list, hexadecimal; empty if it can't be read.
    pub pck_crl_number: String,
    /// Number of the root's revocation list, hexadecimal; empty if it can't be read.
    pub root_crl_number: String,
}

/// One platform family's.
#[derive(Clone, Debug)]
pub(crate) struct Set {
    pub(crate) collateral: QuoteCollateralV3,
    pub(crate) fmspc: String,
    /// Name of the authority whose revocation list it has; empty if that can't be read, which the verification says.
    pub(crate) authority: String,
    pub(crate) pce_id: String,
    pub(crate) next_update: String,
    pub(crate) dates: CollateralDates,
    pub(super) dated: Vec<Dated>,
}

impl Set {
    /// Every part that does not hold at that time.
    pub(super) fn check_dates(&self, now_unix_s: u64, failed: &mut Vec<FailedRule>) {
        failed.extend(self.dated.iter().filter_map(|dated| dated.check(now_unix_s)));
    }
}

/// What a provisioning service answers about one platform family: texts as signed, byte for byte; lists in DER; chains in PEM.
#[derive(Clone, Debug, Default)]
pub struct CollateralParts {
    /// TCB info, JSON as signed.
    pub tcb_info: String,
    /// Its signature: r | s, 64 bytes.
    pub tcb_info_signature: Vec<u8>,
    /// Chain of its signer, PEM.
    pub tcb_info_issuer_chain: String,
    /// QE identity, JSON as signed.
    pub qe_identity: String,
    /// Its signature: r | s, 64 bytes.
    pub qe_identity_signature: Vec<u8>,
    /// Chain of its signer, PEM.
    pub qe_identity_issuer_chain: String,
    /// Revocation list of the platforms' authority, DER.
    pub pck_crl: Vec<u8>,
    /// Chain of that authority, PEM.
    pub pck_crl_issuer_chain: String,
    /// Revocation list of the root, DER.
    pub root_crl: Vec<u8>,
}

/// The collateral that a verifier works with. Signatures in it are looked at with each quote.
#[derive(Clone, Debug)]
pub struct Collateral {
    sets: Vec<Set>,
}

#[derive(serde::Deserialize)]
#[serde(untagged)]
enum File {
    One(Box<QuoteCollateralV3>),
    Many(Vec<QuoteCollateralV3>),
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct TcbInfoHead {
    fmspc: String,
    pce_id: String,
    next_update: String,
    issue_date: String,
    tcb_evaluation_data_number: u32,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct QeIdentityHead {
    next_update: String,
    issue_date: String,
    tcb_evaluation_data_number: u32,
}

impl Collateral {
    /// Reads collateral's JSON.
    ///
    /// # Errors
    /// [`CollateralError`] says what is wrong.
    pub fn parse(json: &[u8]) -> Result<Self, CollateralError> {
        if json.len() as u64 > MAX_BYTES {
            return Err(malformed(format!("{} bytes, wanted at most {MAX_BYTES}", json.len())));
        }
        let sets = match serde_json::from_slice(json).map_err(|error| malformed(error.to_string()))? {
            File::One(set) => vec![*set],
            File::Many(sets) => sets,
        };
        if sets.is_empty() || sets.len() > MAX_SETS {
            return Err(CollateralError::Count { seen: sets.len() });
        }
        Ok(Self {
            sets: sets.into_iter().map(read_set).collect::<Result<_, _>>()?,
        })
    }

    /// Reads a collateral file; for a folder of `cloister quote authority`, its `collateral.json`.
    ///
    /// # Errors
    /// [`CollateralError`] if it can't be read or is none.
    pub fn from_file(path: &Path) -> Result<Self, CollateralError> {
        let path = if path.is_dir() {
            &path.join("collateral.json")
        } else {
            path
        };
        let json = crate::files::read(path, MAX_BYTES).map_err(|source| CollateralError::Io {
            path: path.display().to_string(),
            source,
        })?;
        Self::parse(&json)
    }

    /// The platform families that it speaks of (FMSPC, hexadecimal) and until when each set holds.
    pub fn families(&self) -> impl Iterator<Item = (&str, &str)> {
        self.sets
            .iter()
            .map(|set| (set.fmspc.as_str(), set.next_update.as_str()))
    }

    pub(super) fn sets(&self) -> &[Set] {
        &self.sets
    }

    /// A set put together out of what a provisioning service answered.
    ///
    /// # Errors
    /// [`CollateralError`] if TCB info or QE identity are not the JSON that was wanted.
    pub fn assemble(parts: CollateralParts) -> Result<Self, CollateralError> {
        let set = read_set(QuoteCollateralV3 {
            pck_crl_issuer_chain: parts.pck_crl_issuer_chain,
            root_ca_crl: parts.root_crl,
            pck_crl: parts.pck_crl,
            tcb_info_issuer_chain: parts.tcb_info_issuer_chain,
            tcb_info: parts.tcb_info,
            tcb_info_signature: parts.tcb_info_signature,
            qe_identity_issuer_chain: parts.qe_identity_issuer_chain,
            qe_identity: parts.qe_identity,
            qe_identity_signature: parts.qe_identity_signature,
            pck_certificate_chain: None,
        })?;
        Ok(Self { sets: vec![set] })
    }

    /// All sets of several collaterals; of two for one family and authority the later one counts.
    ///
    /// # Errors
    /// [`CollateralError::Count`] if there are none or too many.
    pub fn together(all: impl IntoIterator<Item = Self>) -> Result<Self, CollateralError> {
        let mut sets: Vec<Set> = Vec::new();
        for set in all.into_iter().flat_map(|collateral| collateral.sets) {
            sets.retain(|other| (&other.fmspc, &other.authority) != (&set.fmspc, &set.authority));
            sets.push(set);
        }
        if sets.is_empty() || sets.len() > MAX_SETS {
            return Err(CollateralError::Count { seen: sets.len() });
        }
        Ok(Self { sets })
    }

    /// The file that [`Collateral::parse`] reads.
    pub fn to_json(&self) -> String {
        let text = match &self.sets[..] {
            [only] => serde_json::to_string_pretty(&only.collateral),
            all => serde_json::to_string_pretty(&all.iter().map(|set| &set.collateral).collect::<Vec<_>>()),
        };
        text.unwrap_or_default()
    }

    /// Dates and numbers of each set.
    pub fn dates(&self) -> impl Iterator<Item = &CollateralDates> {
        self.sets.iter().map(|set| &set.dates)
    }

    /// Oldest issue date of TCB info and QE identity in it, seconds since 1970.
    pub fn issued_unix_s(&self) -> u64 {
        self.sets.iter().map(|set| set.dates.issued_unix_s).min().unwrap_or(0)
    }

    /// The set for a family under an authority. Where there is none, one of the family, then the only one: the verification
    /// then says what was missing.
    pub(crate) fn for_platform(&self, fmspc: &str, authority: &str) -> Option<&Set> {
        let of_family = || self.sets.iter().filter(|set| set.fmspc == fmspc);
        of_family()
            .find(|set| set.authority == authority)
            .or_else(|| of_family().next())
            .or(match &self.sets[..] {
                [only] => Some(only),
                _ => None,
            })
    }
}

fn malformed(cause: String) -> CollateralError {
    CollateralError::Malformed { cause }
}

fn read_set(mut collateral: QuoteCollateralV3) -> Result<Set, CollateralError> {
    collateral.pck_certificate_chain = None;
    let tcb: TcbInfoHead =
        serde_json::from_str(&collateral.tcb_info).map_err(|error| malformed(format!("in tcb_info: {error}")))?;
    let qe: QeIdentityHead =
        serde_json::from_str(&collateral.qe_identity).map_err(|error| malformed(format!("in qe_identity: {error}")))?;
    let date = |text: &str| time::parse(text).ok_or_else(|| malformed(format!("the date {text:?}")));
    let json = |kind, what, from: &str, until: &str| {
        Ok::<_, CollateralError>(Dated {
            kind,
            what,
            from_unix_s: date(from)?,
            until_unix_s: date(until)?,
        })
    };
    let mut dated = vec![
        json(Kind::TcbInfo, "the TCB info", &tcb.issue_date, &tcb.next_update)?,
        json(Kind::QeIdentity, "the QE identity", &qe.issue_date, &qe.next_update)?,
    ];
    let issued_unix_s = dated.iter().map(|dated| dated.from_unix_s).min().unwrap_or(0);
    // What can't be read here has no dates here; the verification refuses it.
    let root_crl = dates::of_crl(&collateral.root_ca_crl, "the root's revocation list");
    let pck_crl = dates::of_crl(&collateral.pck_crl, "the platforms' revocation list");
    let pck_crl_issued_unix_s = pck_crl.as_ref().map_or(0, |crl| crl.from_unix_s);
    dated.extend(root_crl.into_iter().chain(pck_crl));
    let next_update_unix_s = dated.iter().map(|dated| dated.until_unix_s).min().unwrap_or(0);
    let chains = [
        (
            &collateral.tcb_info_issuer_chain,
            "a certificate of the TCB info's signer",
        ),
        (
            &collateral.qe_identity_issuer_chain,
            "a certificate of the QE identity's signer",
        ),
    ];
    // Intel signs both with one certificate.
    let different = if chains[0].0 == chains[1].0 { 1 } else { 2 };
    for (pem, what) in chains.into_iter().take(different) {
        let blocks = x509_parser::pem::Pem::iter_from_buffer(pem.as_bytes()).take(MAX_ISSUERS);
        dated.extend(
            blocks
                .flatten()
                .filter_map(|block| dates::of_certificate(&block.contents, what)),
        );
    }
    let fmspc = tcb.fmspc.to_lowercase();
    let authority = CertificateRevocationList::from_der(&collateral.pck_crl)
        .map(|(_, crl)| crl.issuer().to_string())
        .unwrap_or_default();
    Ok(Set {
        dates: CollateralDates {
            fmspc: fmspc.clone(),
            issued_unix_s,
            next_update_unix_s,
            pck_crl_issued_unix_s,
            eval_data_number: tcb.tcb_evaluation_data_number.min(qe.tcb_evaluation_data_number),
            pck_crl_number: crl_number(&collateral.pck_crl),
            root_crl_number: crl_number(&collateral.root_ca_crl),
        },
        collateral,
        fmspc,
        authority,
        pce_id: tcb.pce_id.to_lowercase(),
        next_update: tcb.next_update,
        dated,
    })
}

fn crl_number(der: &[u8]) -> String {
    let crl = CertificateRevocationList::from_der(der).ok();
    let number = crl.and_then(|(_, crl)| crl.crl_number().map(|number| number.to_bytes_be()));
    number.map(|number| hex(&number)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_files_say_what_is_wrong() {
        for json in ["", "{", "{}", "7", "[{}]", r#"{"tcb_info": 1}"#] {
            assert!(
                matches!(
                    Collateral::parse(json.as_bytes()),
                    Err(CollateralError::Malformed { .. })
                ),
                "{json}"
            );
        }
        assert!(matches!(
            Collateral::parse(b"[]"),
            Err(CollateralError::Count { seen: 0 })
        ));
        assert!(Collateral::from_file(Path::new("/nonexistent")).is_err());
    }
}
