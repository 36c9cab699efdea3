//! What a simulated authority says of its platform: up to date and in good standing, or not.

use rcgen::{RevokedCertParams, SerialNumber};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// What collateral says of the authority's platform when it is issued. The default is a platform in good standing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The family that the TCB info is for. All simulated platforms are of [`FMSPC`](super::FMSPC).
    pub fmspc: [u8; 6],
    /// TCB status of a platform with today's security versions, as Intel names it. Older ones are `OutOfDate` in any case.
    pub tcb_status: String,
    /// Certificates that were taken back.
    pub revoked: Vec<Revocable>,
    /// Number of both revocation lists. Without one it is made of their date, and goes up by itself; Intel's lists have
    /// number 1.
    pub crl_number: Option<u32>,
}

impl Default for Standing {
    fn default() -> Self {
        Self {
            fmspc: super::FMSPC,
            tcb_status: "UpToDate".into(),
            revoked: Vec::new(),
            crl_number: None,
        }
    }
}

/// A certificate of the authority that it can take back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revocable {
    /// The platform's (PCK); its list is that of the platforms' authority.
    Platform,
    /// The platforms' authority's; its list is the root's, as the next one's.
    PlatformAuthority,
    /// That of the signer of TCB info and QE identity.
    TcbSigner,
}

impl Revocable {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Platform, Self::PlatformAuthority, Self::TcbSigner];

    /// The file whose first certificate it is.
    pub(super) fn chain(self) -> &'static str {
        match self {
            Self::Platform => "pck-chain.pem",
            Self::PlatformAuthority => "platform-ca-chain.pem",
            Self::TcbSigner => "tcb-signing-chain.pem",
        }
    }

    /// Whether the root issued it.
    pub(super) fn is_of_root(self) -> bool {
        self != Self::Platform
    }
}

/// The entry of a revocation list for the first certificate of a chain; `None` if the chain holds none.
pub(super) fn entry(chain: &str, revoked_unix_s: std::time::Duration) -> Option<RevokedCertParams> {
    let first = x509_parser::pem::Pem::iter_from_buffer(chain.as_bytes()).next()?.ok()?;
    let (_, certificate) = X509Certificate::from_der(&first.contents).ok()?;
    Some(RevokedCertParams {
        serial_number: SerialNumber::from_slice(certificate.raw_serial()),
        revocation_time: rcgen::date_time_ymd(1970, 1, 1) + revoked_unix_s,
        reason_code: None,
        invalidity_date: None,
    })
}
