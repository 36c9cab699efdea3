//! The simulated authority: root, platform CA, platform, and signer of the collateral.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::time::Duration;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CustomExtension, DistinguishedName, DnType,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, RevokedCertParams, SerialNumber,
};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::der::{PckFields, SGX_EXTENSION, pck_extension};
use super::standing::{self, Standing};
use super::{CPU_SVN, FMSPC, PCE_ID, PCE_SVN, collateral};
use crate::encoding::hex;
use crate::files;
use crate::verify::{Collateral, CollateralError, RootError, TrustRoot};

/// How long re-issued collateral holds, in days.
pub const COLLATERAL_DAYS: u64 = 30;
const DAY: u64 = 86_400;
/// How long certificates hold, in days: the authority's life.
const CERTIFICATE_DAYS: u64 = 3650;
const MAX_KEY_BYTES: u64 = 4096;
const MAX_CHAIN_BYTES: u64 = 32 * 1024;

const ROOT: &str = "SIMULATED Cloister Root CA";
const PLATFORM_CA: &str = "SIMULATED Cloister PCK Platform CA";
const PCK: &str = "SIMULATED Cloister PCK Certificate";
const TCB_SIGNER: &str = "SIMULATED Cloister TCB Signing";

/// Why an authority can't be made or used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file can't be read or written.
    #[error(
        "{what} {path}: {source}; `cloister quote authority DIR` makes an authority once for a whole federation: another node's \
         folder is copied, for a new one would be another root"
    )]
    Io {
        /// What was done.
        what: &'static str,
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// A key or certificate can't be made or read.
    #[error("the simulated authority's certificates: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A key file does not hold a key of the right kind.
    #[error("the simulated authority's key {path} is no ECDSA P-256 key: {cause}")]
    Key {
        /// The file.
        path: String,
        /// What the library said.
        cause: String,
    },
    /// A certificate that is to be revoked can't be read.
    #[error(
        "{path} does not begin with a certificate; it is as `cloister quote authority` wrote it, or the folder is damaged"
    )]
    Chain {
        /// The file.
        path: String,
    },
    /// Signing failed.
    #[error("the simulated authority could not sign")]
    Sign,
    /// The root is no certificate.
    #[error(transparent)]
    Root(#[from] RootError),
    /// The collateral in the folder can't be read.
    #[error(transparent)]
    Collateral(#[from] CollateralError),
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> AuthorityError {
    let path = path.display().to_string();
    move |source| AuthorityError::Io { what, path, source }
}

fn date(unix_s: u64) -> Duration {
    Duration::from_secs(unix_s.min(253_402_300_799))
}

fn params(name: &str, now_unix_s: u64, is_ca: bool) -> CertificateParams {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
        .distinguished_name
        .push(DnType::OrganizationName, "SIMULATED, no hardware behind it");
    params.not_before = epoch + date(now_unix_s.saturating_sub(DAY));
    params.not_after = epoch + date(now_unix_s.saturating_add(CERTIFICATE_DAYS * DAY));
    params.use_authority_key_identifier_extension = true;
    if is_ca {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    } else {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    }
    params
}

fn new_key(dir: &Path, name: &str) -> Result<KeyPair, AuthorityError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let path = dir.join("keys").join(name);
    let pem = zeroize::Zeroizing::new(key.serialize_pem());
    files::write_secret(&path, pem.as_bytes()).map_err(io_error("writing", &path))?;
    Ok(key)
}

fn read_key(dir: &Path, name: &str) -> Result<KeyPair, AuthorityError> {
    let path = dir.join("keys").join(name);
    let pem = files::read_text(&path, MAX_KEY_BYTES).map_err(io_error("reading", &path))?;
    let pem = zeroize::Zeroizing::new(pem);
    Ok(KeyPair::from_pem_and_sign_algo(&pem, &PKCS_ECDSA_P256_SHA256)?)
}

/// Makes a new authority in a folder that has none: keys, certificates and collateral.
///
/// # Errors
/// [`AuthorityError`]; an authority that is there already is one, and nothing of it is changed.
pub fn create_authority(dir: &Path, now_unix_s: u64) -> Result<(), AuthorityError> {
    fs::create_dir_all(dir).map_err(io_error("making", dir))?;
    let keys = dir.join("keys");
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&keys)
        .map_err(io_error("making", &keys))?;
    let root_key = new_key(dir, "root.pem")?;
    let ca_key = new_key(dir, "platform-ca.pem")?;
    let pck_key = new_key(dir, "pck.pem")?;
    let signer_key = new_key(dir, "tcb-signing.pem")?;

    let root_params = params(ROOT, now_unix_s, true);
    let root = root_params.self_signed(&root_key)?;
    let root_issuer = Issuer::from_params(&root_params, &root_key);
    let ca_params = params(PLATFORM_CA, now_unix_s, true);
    let ca = ca_params.signed_by(&ca_key, &root_issuer)?;
    let mut pck_params = params(PCK, now_unix_s, false);
    // The platform's ids come out of its key: two authorities are two platforms.
    let id: [u8; 32] = Sha256::digest(pck_key.public_key_raw()).into();
    let (ppid, instance_id) = (first16(&id), first16(&id[16..]));
    let fields = PckFields {
        ppid,
        cpu_svn: CPU_SVN,
        pce_svn: PCE_SVN,
        pce_id: PCE_ID,
        fmspc: FMSPC,
        instance_id,
    };
    pck_params.custom_extensions.push(CustomExtension::from_oid_content(
        &SGX_EXTENSION,
        pck_extension(&fields),
    ));
    let pck = pck_params.signed_by(&pck_key, &Issuer::from_params(&ca_params, &ca_key))?;
    let signer = params(TCB_SIGNER, now_unix_s, false).signed_by(&signer_key, &root_issuer)?;

    let chain = [pck.pem(), ca.pem(), root.pem()].concat();
    for (name, content) in [
        ("pck-chain.pem", chain.as_bytes()),
        ("platform-ca-chain.pem", [ca.pem(), root.pem()].concat().as_bytes()),
        ("tcb-signing-chain.pem", [signer.pem(), root.pem()].concat().as_bytes()),
        ("root.der", root.der().as_ref()),
    ] {
        let path = dir.join(name);
        files::replace(&path, content).map_err(io_error("writing", &path))?;
    }
    reissue_collateral(dir, now_unix_s)
}

fn first16(bytes: &[u8]) -> [u8; 16] {
    let mut out = [0; 16];
    out.iter_mut().zip(bytes).for_each(|(out, byte)| *out = *byte);
    out
}

/// Writes new collateral, issued now and good for [`COLLATERAL_DAYS`], for a platform in good standing. Needs the keys.
///
/// # Errors
/// [`AuthorityError`] if the keys are not there or the file can't be written.
pub fn reissue_collateral(dir: &Path, now_unix_s: u64) -> Result<(), AuthorityError> {
    issue_collateral(dir, now_unix_s, &Standing::default())
}

/// Writes new collateral as [`reissue_collateral`] does, which says this of the platform.
///
/// # Errors
/// [`AuthorityError`] if the keys are not there or the file can't be written.
pub fn issue_collateral(dir: &Path, now_unix_s: u64, standing: &Standing) -> Result<(), AuthorityError> {
    let root_key = read_key(dir, "root.pem")?;
    let ca_key = read_key(dir, "platform-ca.pem")?;
    let signer = read_key(dir, "tcb-signing.pem")?;
    let chain = |name: &str| {
        let path = dir.join(name);
        files::read_text(&path, MAX_CHAIN_BYTES).map_err(io_error("reading", &path))
    };
    let signer_chain = chain("tcb-signing-chain.pem")?;
    // A minute back, for clocks that differ a little.
    let (issued, next) = (
        now_unix_s.saturating_sub(60),
        now_unix_s.saturating_add(COLLATERAL_DAYS * DAY),
    );
    let tcb_info = collateral::tcb_info(issued, next, standing).to_string();
    let qe_identity = collateral::qe_identity(issued, next).to_string();
    let revoked = |by_root: bool| {
        let of_list = standing.revoked.iter().filter(|one| one.is_of_root() == by_root);
        let entries = of_list.map(|one| {
            standing::entry(&chain(one.chain())?, date(issued)).ok_or_else(|| AuthorityError::Chain {
                path: dir.join(one.chain()).display().to_string(),
            })
        });
        entries.collect::<Result<Vec<_>, AuthorityError>>()
    };
    let list = |issuer: &str, key: &KeyPair, by_root: bool| {
        // Their date, where no number is wanted: it goes up by itself.
        let by_date = u32::try_from(issued).unwrap_or(u32::MAX >> 1);
        let number = standing.crl_number.unwrap_or(by_date);
        crl(issuer, key, (issued, next), number, revoked(by_root)?)
    };
    let json = json!({
        "pck_crl_issuer_chain": chain("platform-ca-chain.pem")?,
        "root_ca_crl": hex(&list(ROOT, &root_key, true)?),
        "pck_crl": hex(&list(PLATFORM_CA, &ca_key, false)?),
        "tcb_info_issuer_chain": signer_chain,
        "tcb_info_signature": hex(&sign(&signer, tcb_info.as_bytes())?),
        "tcb_info": tcb_info,
        "qe_identity_issuer_chain": signer_chain,
        "qe_identity_signature": hex(&sign(&signer, qe_identity.as_bytes())?),
        "qe_identity": qe_identity,
    });
    let path = dir.join("collateral.json");
    files::replace(&path, format!("{json:#}\n").as_bytes()).map_err(io_error("writing", &path))
}

/// Re-issues the collateral if half of its time is over and the keys are there. Says whether it did.
///
/// # Errors
/// [`AuthorityError`] if the folder holds no authority.
pub fn reissue_if_stale(dir: &Path, now_unix_s: u64) -> Result<bool, AuthorityError> {
    let collateral = Collateral::from_file(dir)?;
    let issued = collateral.issued_unix_s();
    let fresh = (issued..issued.saturating_add(COLLATERAL_DAYS * DAY / 2)).contains(&now_unix_s);
    if fresh || !dir.join("keys").join("root.pem").exists() {
        return Ok(false);
    }
    reissue_collateral(dir, now_unix_s).map(|()| true)
}

fn crl(
    issuer: &str,
    key: &KeyPair,
    (issued, next): (u64, u64),
    number: u32,
    revoked_certs: Vec<RevokedCertParams>,
) -> Result<Vec<u8>, AuthorityError> {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let issuer_params = params(issuer, issued, true);
    let crl = CertificateRevocationListParams {
        this_update: epoch + date(issued),
        next_update: epoch + date(next),
        crl_number: SerialNumber::from(u64::from(number)),
        issuing_distribution_point: None,
        revoked_certs,
        key_identifier_method: KeyIdMethod::Sha256,
    };
    Ok(crl.signed_by(&Issuer::from_params(&issuer_params, key))?.der().to_vec())
}

/// ECDSA as in quotes and collateral: r | s, 64 bytes.
fn sign(key: &KeyPair, message: &[u8]) -> Result<Vec<u8>, AuthorityError> {
    let pkcs8 = zeroize::Zeroizing::new(key.serialize_der());
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8).map_err(|_| AuthorityError::Sign)?;
    let signature = pair
        .sign(&aws_lc_rs::rand::SystemRandom::new(), message)
        .map_err(|_| AuthorityError::Sign)?;
    Ok(signature.as_ref().to_vec())
}

/// What a simulated TD needs of an authority: the platform's key and certificates.
pub struct SimulatedAuthority {
    pub(super) pck_key: EcdsaKeyPair,
    pub(super) pck_chain: Vec<u8>,
    root: TrustRoot,
}

impl SimulatedAuthority {
    /// Reads an authority's folder with its keys.
    ///
    /// # Errors
    /// [`AuthorityError`] if it is none, or has no keys.
    pub fn load(dir: &Path) -> Result<Self, AuthorityError> {
        let root = TrustRoot::from_file(dir)?;
        let path = dir.join("pck-chain.pem");
        let pck_chain = files::read(&path, MAX_CHAIN_BYTES).map_err(io_error("reading", &path))?;
        let key = read_key(dir, "pck.pem")?;
        let pkcs8 = zeroize::Zeroizing::new(key.serialize_der());
        let pck_key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8);
        let path = dir.join("keys/pck.pem").display().to_string();
        let pck_key = pck_key.map_err(|error| AuthorityError::Key {
            path,
            cause: error.to_string(),
        })?;
        Ok(Self {
            pck_key,
            pck_chain,
            root,
        })
    }

    /// Its root: what verifiers trust.
    pub fn root(&self) -> &TrustRoot {
        &self.root
    }
}

impl std::fmt::Debug for SimulatedAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SimulatedAuthority({})", self.root)
    }
}
