//! Numbers and dates of collateral that never go back.

use std::collections::BTreeMap;

use super::VerifiedCollateral;
use super::authentic::List;
use crate::encoding::hex;
use crate::refusal::{FailedRule, Refusal};
use crate::time;

/// Most platform families and authorities whose marks are kept.
const MAX_MARKS: usize = 1024;
/// Longest file of watermarks, in bytes.
pub const MAX_WATERMARK_BYTES: u64 = 256 * 1024;

/// The highest numbers and the newest dates seen in collateral that verified. They never go back: whoever brings back an
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
    /// Newest date of the root's revocation list, seconds since 1970; files of older versions have none.
    #[serde(default)]
    root_crl_issued: u64,
    /// Newest date of the platforms' revocation list by authority, seconds since 1970.
    #[serde(default)]
    pck_crl_issued: BTreeMap<String, u64>,
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
            .max(marks.pck_crl_issued.len())
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
        for set in &collateral.numbers {
            // By what was seen before all of it: sets of one delivery differ in age, and their order says nothing.
            let mark = before.evaluation.get(&set.fmspc).copied().unwrap_or_default();
            let known = self.evaluation.entry(set.fmspc.clone()).or_default();
            if set.evaluation < mark {
                failed.push(FailedRule::new(
                    "collateral.evaluation_number",
                    format!("{} for the family {}", set.evaluation, set.fmspc),
                    format!("at least {mark}, which was seen before"),
                ));
            }
            *known = set.evaluation.max(*known);
            let of = |marks: &BTreeMap<String, u64>| marks.get(&set.authority).copied().unwrap_or_default();
            let marks = (of(&before.pck_crl), of(&before.pck_crl_issued));
            compare("pck_crl", &set.authority, set.pck_crl, marks, &mut failed);
            let number = self.pck_crl.entry(set.authority.clone()).or_default();
            *number = set.pck_crl.number.max(*number);
            let issued = self.pck_crl_issued.entry(set.authority.clone()).or_default();
            *issued = set.pck_crl.issued_unix_s.max(*issued);
            let marks = (before.root_crl, before.root_crl_issued);
            compare("root_crl", "the root", set.root_crl, marks, &mut failed);
            self.root_crl = set.root_crl.number.max(self.root_crl);
            self.root_crl_issued = set.root_crl.issued_unix_s.max(self.root_crl_issued);
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

/// Compares a revocation list with the marks of its issuer: by number and, since Intel's have one number for all, by date.
fn compare(what: &str, issuer: &str, seen: List, (number, issued): (u64, u64), failed: &mut Vec<FailedRule>) {
    if seen.number < number {
        failed.push(FailedRule::new(
            format!("collateral.{what}_number"),
            format!("{} of {issuer}", seen.number),
            format!("at least {number}, which was seen before"),
        ));
    }
    if seen.issued_unix_s < issued {
        failed.push(FailedRule::new(
            format!("collateral.{what}_date"),
            format!("a list of {issuer} of {}", time::format(seen.issued_unix_s)),
            format!("one of {} or later, which was seen before", time::format(issued)),
        ));
    }
}
