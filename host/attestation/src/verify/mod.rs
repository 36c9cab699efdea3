//! Quotes verified: structure and report data first, then signatures, certificates, revocation and TCB by dcap-qvl.
//!
//! What dcap-qvl leaves open and is closed here: bytes behind a quote; the types of its certification data; a PCK chain
//! in shared collateral; the PCE id; one root at a time; and all 64 bytes of report data, compared in constant time.
//! What dcap-qvl always refuses: revoked TCBs, migratable TDs, bound service TDs, reserved attribute bits, TDs without
//! SEPT_VE_DISABLE, and (unless allowed) debug and profiling. Everything else of a [`VerifiedQuote`] is for the policy
//! to judge: MRTD, RTMRs, MRSEAM, attributes, XFAM, TCB status, advisories, dates.

mod collateral;
pub(crate) mod crypto;
mod root;

use dcap_qvl::policy::PckCertFlag;
use dcap_qvl::verify::QuoteVerifier;
use dcap_qvl::{QuoteClaims, QuotePolicy};
use subtle::ConstantTimeEq as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

pub use collateral::{Collateral, CollateralError};
pub use root::{RootError, TrustRoot};

use crate::encoding::{from_hex_vec, hex};
use crate::quote::{Quote, TdReport};
use crate::refusal::{FailedRule, Refusal};
use crypto::AwsLcConfig;

/// Most certificates read of a quote's chain.
const MAX_CHAIN: usize = 5;

/// Where a TD runs, from its platform's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// Provisioning id of the platform: 16 bytes.
    pub ppid: Vec<u8>,
    /// Platform family.
    pub fmspc: [u8; 6],
    /// Id of the provisioning enclave.
    pub pce_id: Vec<u8>,
    /// Instance id of a multi-package platform.
    pub instance_id: Option<[u8; 16]>,
    /// Packages may be added; `None` where the certificate does not say.
    pub dynamic_platform: Option<bool>,
    /// Platform keys are cached by Intel; `None` where the certificate does not say.
    pub cached_keys: Option<bool>,
    /// Simultaneous multithreading is on; `None` where the certificate does not say.
    pub smt_enabled: Option<bool>,
}

/// How new a platform's trusted computing base is, and the collateral that says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tcb {
    /// Status over platform, TDX module and quoting enclave, as Intel names it: `UpToDate`, `SWHardeningNeeded`,
    /// `ConfigurationNeeded`, `ConfigurationAndSWHardeningNeeded`, `OutOfDate`, `OutOfDateConfigurationNeeded`,
    /// `TDRelaunchAdvised`, `TDRelaunchAdvisedConfigurationNeeded`. `Revoked` never gets here.
    pub status: String,
    /// Advisories that apply (`INTEL-SA-...`).
    pub advisory_ids: Vec<String>,
    /// Lower of the evaluation numbers of TCB info and QE identity.
    pub eval_data_number: u32,
    /// Date of the TCB level, seconds since 1970.
    pub tcb_date_unix_s: u64,
    /// Older of the issue dates of TCB info and QE identity, seconds since 1970: what the collateral's age is told by.
    pub collateral_issued_unix_s: u64,
    /// Newest issue date in collateral and certificates, seconds since 1970: no honest clock is before it.
    pub latest_issue_unix_s: u64,
    /// First expiry in the collateral, seconds since 1970.
    pub collateral_expires_unix_s: u64,
    /// Number of the PCK revocation list.
    pub pck_crl_number: u32,
    /// Number of the root's revocation list.
    pub root_crl_number: u32,
}

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

/// Verifies quotes under one root with one collateral.
#[derive(Clone, Debug)]
pub struct Verifier {
    root: TrustRoot,
    collateral: Collateral,
    allow_debug: bool,
}

impl Verifier {
    /// A verifier that refuses debug TDs.
    pub fn new(root: TrustRoot, collateral: Collateral) -> Self {
        Self {
            root,
            collateral,
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

    /// Verifies a quote over exactly these 64 bytes of report data, at a time in seconds since 1970.
    ///
    /// # Errors
    /// [`Refusal`] with every rule that failed.
    pub fn verify(&self, quote: &[u8], report_data: &[u8; 64], now_unix_s: u64) -> Result<VerifiedQuote, Refusal> {
        let quote = self.parse(quote)?;
        // The cheap rules first: a refused quote costs as much as a good one.
        let mut failed = Vec::new();
        if !bool::from(quote.report.report_data.ct_eq(report_data)) {
            let seen = hex(&quote.report.report_data);
            failed.push(FailedRule::new("quote.report_data", seen, hex(report_data)));
        }
        self.check_debug(&quote, &mut failed);
        Refusal::unless_empty(failed)?;
        self.verify_parsed(&quote, now_unix_s)
    }

    /// Verifies a quote whatever its report data: for looking at quotes (`cloister quote verify`). No session uses it.
    ///
    /// # Errors
    /// [`Refusal`] with every rule that failed.
    pub fn inspect(&self, quote: &[u8], now_unix_s: u64) -> Result<VerifiedQuote, Refusal> {
        let quote = self.parse(quote)?;
        let mut failed = Vec::new();
        self.check_debug(&quote, &mut failed);
        Refusal::unless_empty(failed)?;
        self.verify_parsed(&quote, now_unix_s)
    }

    fn parse<'a>(&self, quote: &'a [u8]) -> Result<Quote<'a>, Refusal> {
        Quote::parse(quote).map_err(|error| Refusal::one("quote", error, "a TDX quote of version 4 or 5"))
    }

    fn check_debug(&self, quote: &Quote<'_>, failed: &mut Vec<FailedRule>) {
        if quote.report.debug() && !self.allow_debug {
            let seen = format!("Debug mode is enabled (attributes {})", hex(&quote.report.attributes));
            failed.push(FailedRule::new(
                "attestation.debug",
                seen,
                "a TD that its host cannot read",
            ));
        }
    }

    fn verify_parsed(&self, quote: &Quote<'_>, now: u64) -> Result<VerifiedQuote, Refusal> {
        let wanted = || format!("a quote that verifies under {} at {now} s since 1970", self.root);
        let refused = |seen: String| {
            let hint = match (seen.to_lowercase().contains("expired"), self.root.simulated()) {
                (false, _) => "",
                (true, false) => "; get newer collateral",
                (true, true) => "; `cloister quote authority DIR` re-issues simulated collateral",
            };
            Refusal::one("quote.verification", seen, format!("{}{hint}", wanted()))
        };
        let chain = self.check_chain(quote)?;
        let leaf = chain.first().ok_or_else(|| refused("no platform certificate".into()))?;
        let pck = dcap_qvl::intel::parse_pck_extension_with::<AwsLcConfig>(leaf)
            .map_err(|error| refused(format!("{error:#}")))?;
        let fmspc = hex(&pck.fmspc);
        let Some(set) = self.collateral.for_family(&fmspc) else {
            let known: Vec<_> = self.collateral.families().map(|(family, _)| family).collect();
            return Err(Refusal::one(
                "attestation.collateral",
                format!("a platform of FMSPC {fmspc}"),
                known.join(", "),
            ));
        };
        let claims = QuoteVerifier::<AwsLcConfig>::new_with_config(self.root.der().to_vec())
            .allow_debug(self.allow_debug)
            .verify_with_policy(quote.bytes, &set.collateral, now, &QuotePolicy::claims_only(now))
            .map_err(|error| refused(format!("{error:#}")))?;
        if from_hex_vec(&set.pce_id).as_deref() != Some(&claims.platform.pck.pce_id) {
            let seen = format!("PCE id {}", hex(&claims.platform.pck.pce_id));
            return Err(Refusal::one(
                "attestation.pce_id",
                seen,
                format!("{}, as the TCB info says", set.pce_id),
            ));
        }
        if claims.platform.root_key_id != self.root.key_id() {
            return Err(refused(format!(
                "a root with key id {}",
                hex(&claims.platform.root_key_id)
            )));
        }
        Ok(VerifiedQuote {
            td: quote.report.clone(),
            platform: platform(&claims),
            tcb: tcb(&claims, set.issued_unix_s),
            root_key_id: *self.root.key_id(),
            simulated: self.root.simulated(),
        })
    }

    /// Reads the PCK chain and compares the root that it brings along: says early and in plain words when somebody
    /// shows a simulated quote where Intel's are wanted. What decides is the verification behind it.
    fn check_chain(&self, quote: &Quote<'_>) -> Result<Vec<Vec<u8>>, Refusal> {
        let refused = |seen: String| Refusal::one("quote.chain", seen, "a PCK chain: 1 to 5 certificates in PEM");
        let mut chain = Vec::new();
        // The chain in real quotes ends with a NUL.
        let pem = quote.pck_chain.strip_suffix(&[0]).unwrap_or(quote.pck_chain);
        for block in x509_parser::pem::Pem::iter_from_buffer(pem) {
            if chain.len() == MAX_CHAIN {
                return Err(refused(format!("more than {MAX_CHAIN} certificates")));
            }
            chain.push(block.map_err(|error| refused(error.to_string()))?.contents);
        }
        let Some(last) = chain.last() else {
            return Err(refused("none".into()));
        };
        let (_, last) = X509Certificate::from_der(last).map_err(|error| refused(error.to_string()))?;
        let brings_root = last.subject() == last.issuer();
        if brings_root && root::key_id(&last) != *self.root.key_id() {
            let seen = format!("a quote under {} ({})", hex(&root::key_id(&last)), last.subject());
            return Err(Refusal::one("attestation.root_key_id", seen, &self.root));
        }
        Ok(chain)
    }
}

fn platform(claims: &QuoteClaims) -> Platform {
    let flag = |flag: PckCertFlag| match flag {
        PckCertFlag::True => Some(true),
        PckCertFlag::False => Some(false),
        PckCertFlag::Undefined => None,
    };
    let pck = &claims.platform.pck;
    Platform {
        ppid: pck.ppid.clone(),
        fmspc: pck.fmspc,
        pce_id: pck.pce_id.clone(),
        instance_id: pck.platform_instance_id,
        dynamic_platform: flag(pck.dynamic_platform),
        cached_keys: flag(pck.cached_keys),
        smt_enabled: flag(pck.smt_enabled),
    }
}

fn tcb(claims: &QuoteClaims, collateral_issued_unix_s: u64) -> Tcb {
    Tcb {
        status: claims.tcb.status.to_string(),
        advisory_ids: claims.tcb.advisory_ids.clone(),
        eval_data_number: claims.tcb.eval_data_number,
        tcb_date_unix_s: claims.platform.tcb_date_tag,
        collateral_issued_unix_s,
        latest_issue_unix_s: claims.latest_issue_date,
        collateral_expires_unix_s: claims.earliest_expiration_date,
        pck_crl_number: claims.platform.pck_crl_num,
        root_crl_number: claims.platform.root_ca_crl_num,
    }
}
