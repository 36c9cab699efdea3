//! A quote looked at for people: every rule that fails, and whatever could be read of it even so.

use super::{
    CollateralDates, Platform, Tcb, VerifiedQuote, Verifier, check_report_data, parse, platform::Chain, rules, set_for,
};
use crate::quote::{Body, Quote, TdReport};
use crate::refusal::{FailedRule, Refusal};

/// A verdict and what stands behind it. Beside an accepted verdict the other fields repeat what it says; beside a refusal
/// they show what the quote claims, which nothing may be decided by.
#[derive(Clone, Debug)]
pub struct Examination {
    /// What verified, or every rule that failed.
    pub verdict: Result<VerifiedQuote, Refusal>,
    /// Quote format: 4 or 5.
    pub quote_version: Option<u16>,
    /// Which report the quote carries.
    pub body: Option<Body>,
    /// Zero bytes behind the quote.
    pub padding_bytes: usize,
    /// What is reported of the TD.
    pub td: Option<TdReport>,
    /// Where the TD runs, from its platform's certificate.
    pub platform: Option<Platform>,
    /// Key id of the root that the quote's chain ends with.
    pub chain_root_key_id: Option<[u8; 48]>,
    /// How new the platform is: only if signatures and certificates verified, whatever else did not.
    pub tcb: Option<Tcb>,
    /// Dates and numbers of the collateral that was used.
    pub collateral: Option<CollateralDates>,
}

impl Verifier {
    /// Looks at a quote: applies every rule, and goes on where one fails. No session uses it: it spends as much on a bad
    /// quote as on a good one. Without `report_data` the quote may be over any.
    pub fn examine(&self, bytes: &[u8], report_data: Option<&[u8; 64]>, now_unix_s: u64) -> Examination {
        let quote = match parse(bytes) {
            Ok(quote) => quote,
            Err(refusal) => return unsound(bytes, refusal),
        };
        let mut failed = Vec::new();
        if let Some(wanted) = report_data {
            check_report_data(&quote, wanted, &mut failed);
        }
        rules::check(&quote.report, self, &mut failed);
        let mut seen = Examination {
            verdict: Err(Refusal { failed: Vec::new() }),
            quote_version: Some(quote.version),
            body: Some(quote.body),
            padding_bytes: quote.padding,
            td: Some(quote.report.clone()),
            platform: None,
            chain_root_key_id: None,
            tcb: None,
            collateral: None,
        };
        match Chain::read(quote.pck_chain) {
            Ok(chain) => self.examine_chain(&quote, &chain, now_unix_s, &mut failed, &mut seen),
            Err(rule) => failed.push(rule),
        }
        // `examine_chain` leaves what verified; a rule that failed takes it away.
        if !failed.is_empty() {
            seen.verdict = Err(Refusal { failed });
        }
        seen
    }

    fn examine_chain(
        &self,
        quote: &Quote<'_>,
        chain: &Chain,
        now: u64,
        failed: &mut Vec<FailedRule>,
        seen: &mut Examination,
    ) {
        failed.extend(chain.check_root(&self.root));
        chain.check_dates(now, failed);
        seen.platform = Some(chain.platform());
        seen.chain_root_key_id = chain.root_key_id;
        let collateral = self.collateral();
        let Some(set) = set_for(&collateral, chain, failed) else {
            return;
        };
        set.check_dates(now, failed);
        seen.collateral = Some(set.dates.clone());
        // A debug TD is let through to the rest, so that the rest is told, too; its rule has failed already.
        match self.verify_signatures(quote, set, true, now) {
            Ok(claims) => {
                let verified = self.verified(quote, set, &claims);
                seen.platform = Some(verified.platform().clone());
                seen.tcb = Some(verified.tcb().clone());
                seen.verdict = Ok(verified);
            }
            Err(rule) if rules::told(&rule.seen, failed) => {}
            Err(rule) => failed.push(rule),
        }
    }
}

fn unsound(bytes: &[u8], refusal: Refusal) -> Examination {
    let glimpse = Quote::glimpse(bytes);
    Examination {
        verdict: Err(refusal),
        quote_version: glimpse.version,
        body: None,
        padding_bytes: 0,
        td: glimpse.report,
        platform: None,
        chain_root_key_id: None,
        tcb: None,
        collateral: None,
    }
}
