//! Quotes verified: structure, report data, attributes and dates first, then signatures, certificates, revocation and
//! TCB by dcap-qvl.
//!
//! What dcap-qvl leaves open and is closed here: bytes behind a quote and between its fields; the types of its
//! certification data; a PCK chain in shared collateral; the PCE id; service TDs of extended reports; one root at a
//! time; and all 64 bytes of report data, compared in constant time. What is refused whatever a policy says: revoked
//! TCBs, migratable TDs, bound service TDs, reserved attribute bits, TDs without SEPT_VE_DISABLE, and (unless allowed)
//! debug and profiling. Everything else of a [`VerifiedQuote`] is for the policy to judge: MRTD, RTMRs, MRSEAM,
//! attributes, XFAM, TCB status, advisories, dates.

mod authentic;
mod cache;
mod collateral;
pub(crate) mod crypto;
mod dates;
mod examine;
mod known;
mod platform;
mod root;
mod rules;
mod watermarks;

use std::sync::{Arc, PoisonError, RwLock};

use dcap_qvl::verify::QuoteVerifier;
use dcap_qvl::{QuoteClaims, QuotePolicy};
use subtle::ConstantTimeEq as _;

pub use authentic::VerifiedCollateral;
pub use cache::VerdictCache;
pub use collateral::{Collateral, CollateralDates, CollateralError, CollateralParts};
pub use examine::Examination;
pub use platform::{Platform, Tcb};
pub use root::{RootError, TrustRoot};
pub use watermarks::{MAX_WATERMARK_BYTES, Watermarks};

use crate::encoding::{from_hex_vec, hex};
use crate::quote::{Quote, TdReport};
use crate::refusal::{FailedRule, Refusal};
use collateral::Set;
use crypto::AwsLcConfig;
use known::KnownSignatures;
use platform::Chain;

/// A quote that verified. It says what is true of a TD, not whether a policy wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedQuote {
    td: TdReport,
    platform: Platform,
    tcb: Tcb,
    root_key_id: [u8; 48],
    simulated: bool,
}

impl VerifiedQuote {
    /// What the TDX module reported.
    pub fn td(&self) -> &TdReport {
        &self.td
    }

    /// Where the TD runs.
    pub fn platform(&self) -> &Platform {
        &self.platform
    }

    /// How new the platform is.
    pub fn tcb(&self) -> &Tcb {
        &self.tcb
    }

    /// Key id of the root it led to ([`TrustRoot::key_id`]).
    pub fn root_key_id(&self) -> &[u8; 48] {
        &self.root_key_id
    }

    /// Whether that root is a simulated one.
    pub fn simulated(&self) -> bool {
        self.simulated
    }
}

/// Verifies quotes under one root with one collateral. Clones share the collateral: what replaces it counts for all.
#[derive(Clone, Debug)]
pub struct Verifier {
    root: TrustRoot,
    collateral: Arc<RwLock<Arc<Collateral>>>,
    known: Arc<KnownSignatures>,
    allow_debug: bool,
}

impl Verifier {
    /// A verifier that refuses debug TDs.
    pub fn new(root: TrustRoot, collateral: Collateral) -> Self {
        Self {
            root,
            collateral: Arc::new(RwLock::new(Arc::new(collateral))),
            known: Arc::default(),
            allow_debug: false,
        }
    }

    /// Lets debug TDs in: for looking at quotes. No session uses it.
    #[must_use]
    pub fn allow_debug(mut self, allow: bool) -> Self {
        self.allow_debug = allow;
        self
    }

    /// The root.
    pub fn root(&self) -> &TrustRoot {
        &self.root
    }

    /// The collateral that quotes are judged by now.
    pub fn collateral(&self) -> Arc<Collateral> {
        // Nothing panics while it holds the lock, and what it guards is replaced whole.
        let current = self.collateral.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current)
    }

    /// Judges quotes by newer collateral from now on. The caller has let [`Watermarks::admit`] look at it.
    pub fn replace_collateral(&self, collateral: &VerifiedCollateral) {
        let new = Arc::new(collateral.collateral().clone());
        *self.collateral.write().unwrap_or_else(PoisonError::into_inner) = new;
        self.known.clear();
    }

    /// Verifies a quote over exactly these 64 bytes of report data, at a time in seconds since 1970.
    ///
    /// # Errors
    /// [`Refusal`] with every rule that failed, as far as it came: what is cheap to see is looked at first, because a
    /// refused quote would else cost as much as a good one.
    pub fn verify(&self, quote: &[u8], report_data: &[u8; 64], now_unix_s: u64) -> Result<VerifiedQuote, Refusal> {
        let quote = parse(quote)?;
        let mut failed = Vec::new();
        check_report_data(&quote, report_data, &mut failed);
        rules::check(&quote.report, self, &mut failed);
        Refusal::unless_empty(std::mem::take(&mut failed))?;
        let chain = Chain::read(quote.pck_chain).map_err(|rule| Refusal { failed: vec![rule] })?;
        failed.extend(chain.check_root(&self.root));
        Refusal::unless_empty(std::mem::take(&mut failed))?;
        let collateral = self.collateral();
        let set = set_for(&collateral, &chain, &mut failed);
        chain.check_dates(now_unix_s, &mut failed);
        if let Some(set) = set {
            set.check_dates(now_unix_s, &mut failed);
        }
        Refusal::unless_empty(failed)?;
        let set = set.ok_or_else(|| Refusal::one("attestation.collateral", "none", "collateral of the platform"))?;
        let claims = self
            .verify_signatures(&quote, set, self.allow_debug, now_unix_s)
            .map_err(|rule| Refusal { failed: vec![rule] })?;
        Ok(self.verified(&quote, set, &claims))
    }

    /// Verifies a quote whatever its report data: for looking at quotes. No session uses it.
    ///
    /// # Errors
    /// [`Refusal`] with every rule that failed.
    pub fn inspect(&self, quote: &[u8], now_unix_s: u64) -> Result<VerifiedQuote, Refusal> {
        self.examine(quote, None, now_unix_s).verdict
    }

    /// Everything that needs cryptography, and the TCB levels: dcap-qvl.
    fn verify_signatures(
        &self,
        quote: &Quote<'_>,
        set: &Set,
        allow_debug: bool,
        now: u64,
    ) -> Result<QuoteClaims, FailedRule> {
        let refused = |seen: String| {
            let wanted = format!("a quote that verifies under {} at {now} s since 1970", self.root);
            FailedRule::new("quote.verification", seen, wanted)
        };
        let verifier = QuoteVerifier::<AwsLcConfig>::new_with_config(self.root.der().to_vec()).allow_debug(allow_debug);
        let verified = self.known.during(now, || {
            verifier.verify_with_policy(quote.bytes, &set.collateral, now, &QuotePolicy::claims_only(now))
        });
        let claims = verified.map_err(|error| refused(format!("{error:#}")))?;
        // The same was asked of the chain before; what counts is the certificate that verified.
        let pck = &claims.platform.pck;
        if hex(&pck.fmspc) != set.fmspc || from_hex_vec(&set.pce_id).as_deref() != Some(&pck.pce_id) {
            let seen = format!("FMSPC {} and PCE id {}", hex(&pck.fmspc), hex(&pck.pce_id));
            let wanted = format!("{} and {}, as the TCB info says", set.fmspc, set.pce_id);
            return Err(FailedRule::new("attestation.pce_id", seen, wanted));
        }
        if claims.platform.root_key_id != self.root.key_id() {
            return Err(refused(format!("root key id {}", hex(&claims.platform.root_key_id))));
        }
        if claims.qe.report.report_data[32..] != [0; 32] {
            return Err(refused("report data of the quoting enclave beyond its hash".into()));
        }
        Ok(claims)
    }

    fn verified(&self, quote: &Quote<'_>, set: &Set, claims: &QuoteClaims) -> VerifiedQuote {
        VerifiedQuote {
            td: quote.report.clone(),
            platform: Platform::of(claims),
            tcb: Tcb::of(claims, &set.dates),
            root_key_id: *self.root.key_id(),
            simulated: self.root.simulated(),
        }
    }
}

/// The collateral of a platform; says so if there is none.
fn set_for<'a>(collateral: &'a Collateral, chain: &Chain, failed: &mut Vec<FailedRule>) -> Option<&'a Set> {
    let family = chain.fmspc();
    let set = collateral.for_platform(&family, &chain.authority);
    let known: Vec<_> = collateral.families().map(|(family, _)| family).collect();
    if set.is_none_or(|set| set.fmspc != family) {
        let seen = format!("Fmspc mismatch: a platform of the family {family}");
        let wanted = format!("one of the families that the collateral is for: {}", known.join(", "));
        failed.push(FailedRule::new("attestation.collateral", seen, wanted));
    } else if let Some(set) = set
        && set.authority != chain.authority
    {
        let seen = format!("a platform whose certificate {} issued", chain.authority);
        let wanted = format!("{}, whose revocation list the collateral has", set.authority);
        failed.push(FailedRule::new("attestation.collateral", seen, wanted));
    }
    if let Some(set) = set
        && from_hex_vec(&set.pce_id).as_deref() != Some(chain.pce_id())
    {
        let seen = format!("PCE id {}", hex(chain.pce_id()));
        let wanted = format!("{}, as the TCB info says", set.pce_id);
        failed.push(FailedRule::new("attestation.pce_id", seen, wanted));
    }
    set
}

/// What a quote's certificates say of its platform, before anything verified: which collateral to ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimedPlatform {
    /// Platform family.
    pub fmspc: [u8; 6],
    /// Name of the authority that issued the platform's certificate.
    pub authority: String,
}

/// Reads which platform a quote claims to come from. Nothing is verified.
///
/// # Errors
/// [`Refusal`] if the bytes are no quote with a certificate chain.
pub fn claimed_platform(quote: &[u8]) -> Result<ClaimedPlatform, Refusal> {
    let quote = parse(quote)?;
    let chain = Chain::read(quote.pck_chain).map_err(|rule| Refusal { failed: vec![rule] })?;
    Ok(ClaimedPlatform {
        fmspc: chain.platform().fmspc,
        authority: chain.authority,
    })
}

fn parse(quote: &[u8]) -> Result<Quote<'_>, Refusal> {
    Quote::parse(quote).map_err(|error| Refusal::one("quote", error, "a TDX quote of version 4 or 5"))
}

fn check_report_data(quote: &Quote<'_>, wanted: &[u8; 64], failed: &mut Vec<FailedRule>) {
    if !bool::from(quote.report.report_data.ct_eq(wanted)) {
        let seen = hex(&quote.report.report_data);
        failed.push(FailedRule::new("quote.report_data", seen, hex(wanted)));
    }
}
