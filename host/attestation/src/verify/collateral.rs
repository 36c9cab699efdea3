//! Collateral: what Intel (or a simulated authority) publishes about platforms, and quotes are judged by.
//!
//! A file is JSON as dcap-qvl has it: one set or an array of sets, one a platform family (FMSPC): `tcb_info`,
//! `qe_identity` and their signatures and issuer chains, `root_ca_crl`, `pck_crl`; byte strings in hexadecimal. A
//! `pck_certificate_chain` in it is thrown away: it would take the place of the chain that comes with each quote.

use std::path::Path;

use dcap_qvl::QuoteCollateralV3;

use crate::time;

/// Longest collateral file, in bytes.
const MAX_BYTES: u64 = 8 * 1024 * 1024;
/// Most sets in a file.
const MAX_SETS: usize = 64;

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

/// One platform family's.
#[derive(Clone, Debug)]
pub(crate) struct Set {
    pub(crate) collateral: QuoteCollateralV3,
    pub(crate) fmspc: String,
    pub(crate) pce_id: String,
    pub(crate) next_update: String,
    /// Older of the issue dates of TCB info and QE identity.
    pub(crate) issued_unix_s: u64,
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
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct QeIdentityHead {
    issue_date: String,
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

    /// Oldest issue date of TCB info and QE identity in it, seconds since 1970.
    pub fn issued_unix_s(&self) -> u64 {
        self.sets.iter().map(|set| set.issued_unix_s).min().unwrap_or(0)
    }

    /// The set for a family; with one set, that one: the verification then says which family was missing.
    pub(crate) fn for_family(&self, fmspc: &str) -> Option<&Set> {
        self.sets
            .iter()
            .find(|set| set.fmspc == fmspc)
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
    let date = |text: &str| time::parse(text).ok_or_else(|| malformed(format!("issue date {text:?}")));
    let issued_unix_s = date(&tcb.issue_date)?.min(date(&qe.issue_date)?);
    let TcbInfoHead {
        fmspc,
        pce_id,
        next_update,
        ..
    } = tcb;
    Ok(Set {
        collateral,
        fmspc: fmspc.to_lowercase(),
        pce_id: pce_id.to_lowercase(),
        next_update,
        issued_unix_s,
    })
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
