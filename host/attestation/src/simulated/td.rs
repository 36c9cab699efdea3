//! A simulated TD: its values, and quotes over them in the real format: version 4, or 5 with what TDX 1.5 reports.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use sha2::{Digest as _, Sha256, Sha384};

use super::authority::{AuthorityError, SimulatedAuthority};
use super::{CPU_SVN, QE_ISV_SVN, TEE_TCB_SVN, collateral};
use crate::event_log::{EventLog, RuntimeEvent, extended};
use crate::provider::{ProviderError, QuoteProvider};

/// Vendor id of Intel's quoting enclaves.
const QE_VENDOR: [u8; 16] = [
    0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07,
];
/// SEPT_VE_DISABLE, as every TD has it.
const ATTRIBUTES: [u8; 8] = [0, 0, 0, 0x10, 0, 0, 0, 0];
/// x87, SSE, AVX, AVX-512, PKRU, AMX.
const XFAM: [u8; 8] = [0xe7, 0x02, 0x06, 0, 0, 0, 0, 0];

/// What a simulated TD reports. The default is an ordinary TD, the same on every machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TdValues {
    /// Measurement of the TD's first contents.
    pub mrtd: [u8; 48],
    /// Run-time measurement registers; RTMR3 as it is when the TD starts.
    pub rtmr: [[u8; 48]; 4],
    /// Measurement of the TDX module.
    pub mrseam: [u8; 48],
    /// TD attributes; set bit 0 of byte 0 for a debug TD.
    pub attributes: [u8; 8],
    /// CPU features.
    pub xfam: [u8; 8],
    /// What the owner configured.
    pub mrconfigid: [u8; 48],
    /// Owner.
    pub mrowner: [u8; 48],
    /// What the owner set.
    pub mrownerconfig: [u8; 48],
    /// Security versions of the TDX module; lower ones make the platform `OutOfDate`.
    pub tee_tcb_svn: [u8; 16],
    /// What TDX 1.5 reports besides; with it quotes are of version 5, without it of version 4.
    pub td15: Option<TdOf15>,
}

/// What a TD report 1.5 says beyond 1.0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TdOf15 {
    /// Security versions of the TDX module that runs now; `tee_tcb_svn` are those of the one that started the TD. With newer
    /// ones than those the status is `TDRelaunchAdvised`.
    pub tee_tcb_svn2: [u8; 16],
    /// Measurement of the service TDs that are bound; zeros for none.
    pub mrservicetd: [u8; 48],
}

impl Default for TdOf15 {
    fn default() -> Self {
        Self {
            tee_tcb_svn2: TEE_TCB_SVN,
            mrservicetd: [0; 48],
        }
    }
}

impl Default for TdValues {
    fn default() -> Self {
        let named = |name: &str| -> [u8; 48] { Sha384::digest(format!("SIMULATED {name}")).into() };
        Self {
            mrtd: named("mrtd"),
            rtmr: [named("rtmr0"), named("rtmr1"), named("rtmr2"), [0; 48]],
            mrseam: named("mrseam"),
            attributes: ATTRIBUTES,
            xfam: XFAM,
            mrconfigid: [0; 48],
            mrowner: [0; 48],
            mrownerconfig: [0; 48],
            tee_tcb_svn: TEE_TCB_SVN,
            td15: None,
        }
    }
}

/// A simulated TD on the authority's platform. Quotes are taken one at a time, as from a real one.
pub struct SimulatedTd {
    values: TdValues,
    latency: Duration,
    attestation_key: EcdsaKeyPair,
    /// QE report, its signature, authentication data and PCK chain: the same in every quote.
    qe_certification: Vec<u8>,
    one_at_a_time: Mutex<()>,
    runtime: Mutex<Runtime>,
}

/// What was extended since the TD started.
#[derive(Debug)]
struct Runtime {
    rtmr3: [u8; 48],
    log: EventLog,
}

impl SimulatedTd {
    /// A TD with these values.
    ///
    /// # Errors
    /// [`AuthorityError::Sign`] if the system gives no randomness or the platform's key does not sign.
    pub fn new(authority: &SimulatedAuthority, values: TdValues) -> Result<Self, AuthorityError> {
        let attestation_key =
            EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(|_| AuthorityError::Sign)?;
        let qe_certification = qe_certification(authority, raw_public(&attestation_key))?;
        let runtime = Runtime {
            rtmr3: values.rtmr[3],
            log: EventLog::default(),
        };
        Ok(Self {
            runtime: Mutex::new(runtime),
            values,
            latency: Duration::ZERO,
            attestation_key,
            qe_certification,
            one_at_a_time: Mutex::new(()),
        })
    }

    /// Makes each quote take this long, in milliseconds: a real one takes up to a second or so.
    #[must_use]
    pub fn with_latency_ms(mut self, quote_latency_ms: u64) -> Self {
        self.latency = Duration::from_millis(quote_latency_ms);
        self
    }

    /// What RTMR3 holds.
    pub fn rtmr3(&self) -> [u8; 48] {
        self.runtime().rtmr3
    }

    /// Extends RTMR3 as any program inside a TD can, whatever a log says.
    pub fn extend_rtmr3(&self, digest: &[u8; 48]) {
        let mut runtime = self.runtime();
        runtime.rtmr3 = extended(&runtime.rtmr3, digest);
    }

    fn runtime(&self) -> MutexGuard<'_, Runtime> {
        // Nothing panics between the register's change and the log's.
        self.runtime.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signed_part(&self, report_data: &[u8; 64]) -> Vec<u8> {
        let mut out = Vec::with_capacity(702);
        let values = &self.values;
        let version = if values.td15.is_some() { 5 } else { 4 };
        // Version, ECDSA P-256, TDX, versions of QE and PCE, vendor, user data.
        out.extend_from_slice(&[version, 0, 2, 0, 0x81, 0, 0, 0, 0, 0, 0, 0]);
        out.extend_from_slice(&QE_VENDOR);
        out.extend_from_slice(b"SIMULATED\0\0\0\0\0\0\0\0\0\0\0");
        if values.td15.is_some() {
            // Kind and length of the report: TD report 1.5.
            out.extend_from_slice(&3u16.to_le_bytes());
            out.extend_from_slice(&648u32.to_le_bytes());
        }
        out.extend_from_slice(&values.tee_tcb_svn);
        out.extend_from_slice(&values.mrseam);
        out.extend_from_slice(&[0; 48 + 8]); // signer and attributes of the TDX module: Intel's
        out.extend_from_slice(&values.attributes);
        out.extend_from_slice(&values.xfam);
        for register in [&values.mrtd, &values.mrconfigid, &values.mrowner, &values.mrownerconfig] {
            out.extend_from_slice(register);
        }
        let [rtmr0, rtmr1, rtmr2, _] = &values.rtmr;
        for register in [rtmr0, rtmr1, rtmr2, &self.rtmr3()] {
            out.extend_from_slice(register);
        }
        out.extend_from_slice(report_data);
        if let Some(td15) = &values.td15 {
            out.extend_from_slice(&td15.tee_tcb_svn2);
            out.extend_from_slice(&td15.mrservicetd);
        }
        out
    }
}

impl std::fmt::Debug for SimulatedTd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SimulatedTd({:?})", self.values)
    }
}

/// The public key's point, x | y.
fn raw_public(key: &EcdsaKeyPair) -> &[u8] {
    key.public_key().as_ref().strip_prefix(&[4]).unwrap_or_default()
}

fn sign(key: &EcdsaKeyPair, message: &[u8]) -> Option<Vec<u8>> {
    Some(key.sign(&SystemRandom::new(), message).ok()?.as_ref().to_vec())
}

fn qe_certification(authority: &SimulatedAuthority, attestation_key: &[u8]) -> Result<Vec<u8>, AuthorityError> {
    let auth_data = *b"SIMULATED QE authentication data";
    let key_hash = Sha256::new()
        .chain_update(attestation_key)
        .chain_update(auth_data)
        .finalize();
    // Report of an SGX enclave, 384 bytes: Intel SDM 3D, table "REPORT".
    let mut report = [0; 384];
    let mut put = |at: usize, value: &[u8]| report[at..at + value.len()].copy_from_slice(value);
    put(0, &CPU_SVN);
    put(48, &[0x11]);
    put(64, &Sha256::digest(b"SIMULATED quoting enclave"));
    put(128, &collateral::qe_signer());
    put(256, &2u16.to_le_bytes());
    put(258, &QE_ISV_SVN.to_le_bytes());
    put(320, &key_hash);
    let mut out = report.to_vec();
    out.extend(sign(&authority.pck_key, &report).ok_or(AuthorityError::Sign)?);
    out.extend_from_slice(&32u16.to_le_bytes());
    out.extend_from_slice(&auth_data);
    out.extend_from_slice(&5u16.to_le_bytes());
    out.extend_from_slice(&length(&authority.pck_chain));
    out.extend_from_slice(&authority.pck_chain);
    Ok(out)
}

fn length(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes()
}

impl QuoteProvider for SimulatedTd {
    fn name(&self) -> &'static str {
        "simulated"
    }

    fn simulated(&self) -> bool {
        true
    }

    fn quote(&self, report_data: &[u8; 64]) -> Result<Vec<u8>, ProviderError> {
        // A poisoned lock guards nothing: there is no state behind it.
        let _turn = self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        std::thread::sleep(self.latency);
        let mut out = self.signed_part(report_data);
        let failed = || ProviderError::Failed {
            provider: "simulated",
            cause: "signing failed".into(),
        };
        let mut data = sign(&self.attestation_key, &out).ok_or_else(failed)?;
        data.extend_from_slice(raw_public(&self.attestation_key));
        data.extend_from_slice(&6u16.to_le_bytes());
        data.extend_from_slice(&length(&self.qe_certification));
        data.extend_from_slice(&self.qe_certification);
        out.extend_from_slice(&length(&data));
        out.extend_from_slice(&data);
        Ok(out)
    }

    fn extend(&self, event: &RuntimeEvent) -> Result<(), ProviderError> {
        let mut runtime = self.runtime();
        let pushed = runtime.log.push(event.to_event());
        pushed.map_err(|error| ProviderError::Failed {
            provider: "simulated",
            cause: error.to_string(),
        })?;
        runtime.rtmr3 = extended(&runtime.rtmr3, &event.digest());
        Ok(())
    }

    fn event_log(&self) -> Result<Option<EventLog>, ProviderError> {
        Ok(Some(self.runtime().log.clone()))
    }
}
