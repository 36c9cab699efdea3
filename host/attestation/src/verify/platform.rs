//! The platform of a TD: its certificate chain, and what verification says of it.

use dcap_qvl::QuoteClaims;
use dcap_qvl::policy::PckCertFlag;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::crypto::AwsLcConfig;
use super::dates::{self, Dated};
use super::{CollateralDates, TrustRoot, root};
use crate::encoding::hex;
use crate::refusal::FailedRule;

/// Most certificates of a quote's chain: platform, its authority, root.
const MAX_CHAIN: usize = 3;

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

impl Platform {
    pub(super) fn of(claims: &QuoteClaims) -> Self {
        let flag = |flag: PckCertFlag| match flag {
            PckCertFlag::True => Some(true),
            PckCertFlag::False => Some(false),
            PckCertFlag::Undefined => None,
        };
        let pck = &claims.platform.pck;
        Self {
            ppid: pck.ppid.clone(),
            fmspc: pck.fmspc,
            pce_id: pck.pce_id.clone(),
            instance_id: pck.platform_instance_id,
            dynamic_platform: flag(pck.dynamic_platform),
            cached_keys: flag(pck.cached_keys),
            smt_enabled: flag(pck.smt_enabled),
        }
    }
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
    /// When the PCK revocation list was issued, seconds since 1970.
    pub pck_crl_issued_unix_s: u64,
    /// Newest issue date in collateral and certificates, seconds since 1970: no honest clock is before it.
    pub latest_issue_unix_s: u64,
    /// First expiry in the collateral, seconds since 1970.
    pub collateral_expires_unix_s: u64,
    /// Number of the PCK revocation list.
    pub pck_crl_number: u32,
    /// Number of the root's revocation list.
    pub root_crl_number: u32,
}

impl Tcb {
    pub(super) fn of(claims: &QuoteClaims, dates: &CollateralDates) -> Self {
        Self {
            status: claims.tcb.status.to_string(),
            advisory_ids: claims.tcb.advisory_ids.clone(),
            eval_data_number: claims.tcb.eval_data_number,
            tcb_date_unix_s: claims.platform.tcb_date_tag,
            collateral_issued_unix_s: dates.issued_unix_s,
            pck_crl_issued_unix_s: dates.pck_crl_issued_unix_s,
            latest_issue_unix_s: claims.latest_issue_date,
            collateral_expires_unix_s: claims.earliest_expiration_date,
            pck_crl_number: claims.platform.pck_crl_num,
            root_crl_number: claims.platform.root_ca_crl_num,
        }
    }
}

/// A quote's certificate chain, read and not verified.
pub(super) struct Chain {
    platform: Platform,
    /// Key id of the root that the chain brings along, and its name.
    pub(super) root_key_id: Option<[u8; 48]>,
    root_name: String,
    /// Name of who issued the platform's certificate.
    pub(super) authority: String,
    root_der: Vec<u8>,
    dated: Vec<Dated>,
}

impl Chain {
    /// Reads the PEM chain of a quote.
    pub(super) fn read(pem: &[u8]) -> Result<Self, FailedRule> {
        let refused = |seen: String| {
            FailedRule::new(
                "quote.chain",
                seen,
                "a PCK chain: platform, its authority and the root, in PEM",
            )
        };
        let mut chain = Vec::new();
        // The chain in real quotes ends with a NUL.
        let pem = pem.strip_suffix(&[0]).unwrap_or(pem);
        for block in x509_parser::pem::Pem::iter_from_buffer(pem) {
            if chain.len() == MAX_CHAIN {
                return Err(refused(format!("more than {MAX_CHAIN} certificates")));
            }
            chain.push(block.map_err(|error| refused(error.to_string()))?.contents);
        }
        let (Some(leaf), Some(last)) = (chain.first(), chain.last()) else {
            return Err(refused("none".into()));
        };
        if !only_these(pem, &chain) {
            return Err(refused("certificates with something else around them".into()));
        }
        let last_der = last;
        let (_, last) = X509Certificate::from_der(last_der).map_err(|error| refused(error.to_string()))?;
        let brings_root = chain.len() == MAX_CHAIN || last.subject() == last.issuer();
        let (_, certificate) = X509Certificate::from_der(leaf).map_err(|error| refused(error.to_string()))?;
        let pck = dcap_qvl::intel::parse_pck_extension_with::<AwsLcConfig>(leaf)
            .map_err(|error| refused(format!("a platform certificate without its values: {error:#}")))?;
        let what = ["the platform certificate", "a certificate of the platform's chain"];
        let dated = chain.iter().enumerate();
        Ok(Self {
            root_key_id: brings_root.then(|| root::key_id(&last)),
            root_name: last.subject().to_string(),
            authority: certificate.issuer().to_string(),
            root_der: if brings_root { last_der.clone() } else { Vec::new() },
            dated: dated
                .filter_map(|(at, der)| dates::of_certificate(der, what[at.min(1)]))
                .collect(),
            platform: Platform {
                ppid: pck.ppid,
                fmspc: pck.fmspc,
                pce_id: pck.pce_id,
                instance_id: pck.platform_instance_id.and_then(|id| id.try_into().ok()),
                dynamic_platform: pck.dynamic_platform,
                cached_keys: pck.cached_keys,
                smt_enabled: pck.smt_enabled,
            },
        })
    }

    /// What the chain's first certificate says of the platform.
    pub(super) fn platform(&self) -> Platform {
        self.platform.clone()
    }

    pub(super) fn fmspc(&self) -> String {
        hex(&self.platform.fmspc)
    }

    pub(super) fn pce_id(&self) -> &[u8] {
        &self.platform.pce_id
    }

    /// Compares the root that the chain brings along: says early and in plain words when somebody shows a simulated quote
    /// where Intel's are wanted. What decides is the verification behind it.
    pub(super) fn check_root(&self, root: &TrustRoot) -> Option<FailedRule> {
        let key_id = self.root_key_id?;
        if key_id != *root.key_id() {
            let seen = format!("a quote under root key id {} ({})", hex(&key_id), self.root_name);
            return Some(FailedRule::new("attestation.root_key_id", seen, root));
        }
        // The verification has its own copy of the root and never looks at this one: it has to be the same.
        (self.root_der != root.der()).then(|| {
            let seen = "another certificate of the root's key than the root itself";
            FailedRule::new("quote.chain", seen, root)
        })
    }

    pub(super) fn check_dates(&self, now_unix_s: u64, failed: &mut Vec<FailedRule>) {
        failed.extend(self.dated.iter().filter_map(|dated| dated.check(now_unix_s)));
    }
}

/// Whether the text is these certificates and nothing else, white space apart: what stands between PEM blocks, or in the
/// bits that base64 does not use, is signed by nobody.
fn only_these(pem: &[u8], chain: &[Vec<u8>]) -> bool {
    use base64::Engine as _;
    let mut wanted = String::with_capacity(pem.len());
    for der in chain {
        wanted.push_str("-----BEGINCERTIFICATE-----");
        base64::engine::general_purpose::STANDARD.encode_string(der, &mut wanted);
        wanted.push_str("-----ENDCERTIFICATE-----");
    }
    let seen = pem.iter().filter(|byte| !byte.is_ascii_whitespace());
    seen.eq(wanted.as_bytes())
}
