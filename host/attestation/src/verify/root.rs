//! The one root that quotes are trusted under: Intel's, or a simulated one. Never both.

use std::fmt;
use std::path::Path;

use sha2::{Digest as _, Sha384};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::encoding::hex;

/// Intel SGX Root CA, from certificates.trustedservices.intel.com (Intel_SGX_Provisioning_Certification_RootCA.cer):
/// SHA-256 44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3.
const INTEL_ROOT_DER: &[u8] = include_bytes!("../intel_sgx_root_ca.der");
/// Longest root certificate read, in bytes.
const MAX_ROOT_BYTES: u64 = 16 * 1024;

/// Why a file is no trust root.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// It can't be read.
    #[error("reading the trust root {path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is no certificate.
    #[error("the trust root is no X.509 certificate in DER: {cause}; `cloister quote authority DIR` writes root.der")]
    Certificate {
        /// What the parser said.
        cause: String,
    },
}

/// The root certificate that a quote has to lead to.
#[derive(Clone, PartialEq, Eq)]
pub struct TrustRoot {
    der: Vec<u8>,
    key_id: [u8; 48],
    name: String,
}

impl TrustRoot {
    /// Intel's: the root of every genuine TDX quote.
    ///
    /// # Errors
    /// None: the certificate is part of this program.
    pub fn intel() -> Result<Self, RootError> {
        Self::from_der(INTEL_ROOT_DER)
    }

    /// Reads a root certificate, DER. Any but Intel's is simulated.
    ///
    /// # Errors
    /// [`RootError::Certificate`] if it is none.
    pub fn from_der(der: &[u8]) -> Result<Self, RootError> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|error| RootError::Certificate {
            cause: error.to_string(),
        })?;
        if !rest.is_empty() {
            return Err(RootError::Certificate {
                cause: "bytes behind the certificate".into(),
            });
        }
        let key_id = key_id(&certificate);
        Ok(Self {
            der: der.to_vec(),
            key_id,
            name: certificate.subject().to_string(),
        })
    }

    /// Reads a root certificate's file, DER; for a folder of `cloister quote authority`, its `root.der`.
    ///
    /// # Errors
    /// [`RootError`] if it can't be read or is none.
    pub fn from_file(path: &Path) -> Result<Self, RootError> {
        let path = if path.is_dir() { &path.join("root.der") } else { path };
        let der = crate::files::read(path, MAX_ROOT_BYTES).map_err(|source| RootError::Io {
            path: path.display().to_string(),
            source,
        })?;
        Self::from_der(&der)
    }

    /// Whether quotes under this root come from no hardware: every root but Intel's.
    pub fn simulated(&self) -> bool {
        self.der != INTEL_ROOT_DER
    }

    /// SHA-384 of the root's public key (the uncompressed point): what policies pin and verdicts show; Intel's
    /// verification library calls it `root_key_id`.
    pub fn key_id(&self) -> &[u8; 48] {
        &self.key_id
    }

    /// The certificate, DER.
    pub fn der(&self) -> &[u8] {
        &self.der
    }
}

impl fmt::Display for TrustRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.simulated() {
            "the SIMULATED root"
        } else {
            "Intel's root"
        };
        write!(f, "{kind} {} ({})", hex(&self.key_id), self.name)
    }
}

impl fmt::Debug for TrustRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Key id of a certificate, as [`TrustRoot::key_id`] has it.
pub(crate) fn key_id(certificate: &X509Certificate<'_>) -> [u8; 48] {
    Sha384::digest(&certificate.public_key().subject_public_key.data).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intels_root_is_not_simulated() {
        let root = TrustRoot::intel().unwrap();
        assert!(!root.simulated());
        assert!(root.to_string().contains("Intel SGX Root CA"));
        let digest = cloister_tensor::Digest::of(root.der()).to_string();
        assert_eq!(
            digest,
            "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
        );
    }

    #[test]
    fn anything_else_is_refused_or_simulated() {
        assert!(TrustRoot::from_der(b"-----BEGIN").is_err());
        assert!(TrustRoot::from_file(Path::new("/nonexistent/root.der")).is_err());
        let mut longer = INTEL_ROOT_DER.to_vec();
        longer.push(0);
        assert!(TrustRoot::from_der(&longer).is_err());
    }
}
