//! What a provisioning certification service is asked, and how its answers are read.
//!
//! Source: Intel, *SGX and TDX provisioning certification service*, API version 4; PCCS has the same paths, gives the
//! platforms' revocation list in hexadecimal and the root's as `rootcacrl`.

use std::path::PathBuf;
use std::time::Duration;

use cloister_attestation::encoding::{from_hex_vec, hex};
use cloister_attestation::{Collateral, CollateralParts};
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject as _;

use super::FetchError;
use super::family::PlatformFamily;
use super::http::{Answer, Http};
use crate::proxy::Proxy;

/// Intel's own service, which has the root's revocation list at another place.
const INTEL: &str = "https://api.trustedservices.intel.com";
const INTEL_ROOT_CRL: &str = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der";
/// How often one question is asked at most, and the longest wait between, in seconds.
const ATTEMPTS: u32 = 3;
const MAX_WAIT_S: u64 = 30;
/// How long one answer may take, in seconds.
const TIMEOUT_S: u64 = 20;

/// Where collateral comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// A PCCS (`https://pccs.example:8081`) or Intel's PCS (`https://api.trustedservices.intel.com`).
    pub url: String,
    /// Authorities for HTTPS, PEM; the system's, if not given.
    pub authorities: Option<PathBuf>,
    /// The way out.
    pub proxy: Option<Proxy>,
}

/// Asks one service.
#[derive(Clone, Debug)]
pub struct Client {
    base: String,
    http: Http,
    longest_wait: Duration,
}

impl Client {
    /// A client of that service.
    ///
    /// # Errors
    /// [`FetchError::Authorities`] if the file of authorities can't be used.
    pub fn new(source: &Source) -> Result<Self, FetchError> {
        let timeout = Duration::from_secs(TIMEOUT_S);
        let mut base = source.url.trim_end_matches('/');
        for suffix in ["/sgx/certification/v4", "/tdx/certification/v4"] {
            base = base.strip_suffix(suffix).unwrap_or(base);
        }
        Ok(Self {
            base: base.to_owned(),
            http: Http::new(source.authorities.as_deref(), source.proxy.clone(), timeout)?,
            longest_wait: Duration::from_secs(MAX_WAIT_S),
        })
    }

    /// Waits no longer than this between attempts, and for an answer no longer than five times that: for tests of failures.
    #[must_use]
    pub fn with_patience(mut self, longest_wait: Duration, source: &Source) -> Self {
        self.longest_wait = longest_wait;
        if let Ok(http) = Http::new(source.authorities.as_deref(), source.proxy.clone(), longest_wait * 5) {
            self.http = http;
        }
        self
    }

    /// The service.
    pub fn url(&self) -> &str {
        &self.base
    }

    /// The collateral of one family of platforms, read and not verified.
    ///
    /// # Errors
    /// [`FetchError`] of the question that failed last.
    pub async fn fetch(&self, wanted: PlatformFamily) -> Result<Collateral, FetchError> {
        let family = hex(&wanted.fmspc);
        let tcb_url = format!("{}/tdx/certification/v4/tcb?fmspc={}", self.base, family.to_uppercase());
        let tcb = self.get(&tcb_url).await?;
        let (tcb_info, tcb_info_signature) = signed_json(&tcb.body, "tcbInfo").ok_or_else(|| unread(&tcb_url))?;
        let qe_url = format!("{}/tdx/certification/v4/qe/identity", self.base);
        let qe = self.get(&qe_url).await?;
        let (qe_identity, qe_identity_signature) =
            signed_json(&qe.body, "enclaveIdentity").ok_or_else(|| unread(&qe_url))?;
        let crl_url = format!(
            "{}/sgx/certification/v4/pckcrl?ca={}&encoding=der",
            self.base,
            wanted.authority.as_str()
        );
        let crl = self.get(&crl_url).await?;
        let root_url = if self.base == INTEL {
            INTEL_ROOT_CRL.to_owned()
        } else {
            format!("{}/sgx/certification/v4/rootcacrl", self.base)
        };
        let root_crl = self.get(&root_url).await?;
        let parts = CollateralParts {
            tcb_info,
            tcb_info_signature,
            tcb_info_issuer_chain: chain(&tcb, &["TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain"], &tcb_url)?,
            qe_identity,
            qe_identity_signature,
            qe_identity_issuer_chain: chain(&qe, &["SGX-Enclave-Identity-Issuer-Chain"], &qe_url)?,
            pck_crl: list(&crl.body).ok_or_else(|| unread(&crl_url))?,
            pck_crl_issuer_chain: chain(&crl, &["SGX-PCK-CRL-Issuer-Chain"], &crl_url)?,
            root_crl: list(&root_crl.body).ok_or_else(|| unread(&root_url))?,
        };
        let collateral = Collateral::assemble(parts).map_err(|error| FetchError::Answer {
            url: tcb_url.clone(),
            cause: error.to_string(),
        })?;
        let seen = collateral.families().next().map(|(seen, _)| seen.to_owned());
        if seen.as_deref() == Some(&family) {
            return Ok(collateral);
        }
        Err(FetchError::Answer {
            url: tcb_url,
            cause: format!(
                "TCB info of the family {}, wanted {family}",
                seen.unwrap_or_else(|| "none".into())
            ),
        })
    }

    /// Asks, and asks again where that may help.
    async fn get(&self, url: &str) -> Result<Answer, FetchError> {
        let mut attempt = 1;
        loop {
            let error = match self.http.get(url).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let Some(wait_s) = error.retry_after_s().filter(|_| attempt < ATTEMPTS) else {
                return Err(error);
            };
            let wait = Duration::from_secs(wait_s.saturating_mul(attempt.into())).min(self.longest_wait);
            tracing::info!("{error}; asking again in {} ms", wait.as_millis());
            tokio::time::sleep(wait).await;
            attempt += 1;
        }
    }
}

fn unread(url: &str) -> FetchError {
    FetchError::Answer {
        url: url.to_owned(),
        cause: "an answer that is not what the API promises (cut off?)".into(),
    }
}

/// Takes `{"KEY": {...}, "signature": "..."}` apart. What was signed are the bytes of the value as they stand.
fn signed_json(body: &[u8], key: &str) -> Option<(String, Vec<u8>)> {
    #[derive(serde::Deserialize)]
    struct Signed {
        signature: String,
    }
    let text = str::from_utf8(body).ok()?;
    let signed: Signed = serde_json::from_str(text).ok()?;
    let key = format!("\"{key}\"");
    let behind = text.get(text.find(&key)? + key.len()..)?;
    let behind = behind.trim_start().strip_prefix(':')?.trim_start();
    let mut values = serde_json::Deserializer::from_str(behind).into_iter::<serde::de::IgnoredAny>();
    values.next()?.ok()?;
    let value = behind.get(..values.byte_offset())?;
    Some((value.to_owned(), from_hex_vec(&signed.signature)?))
}

/// A revocation list in DER, PEM or hexadecimal; in DER.
fn list(body: &[u8]) -> Option<Vec<u8>> {
    if body.first() == Some(&0x30) && body.get(1).is_some_and(|byte| *byte >= 0x80) {
        return Some(body.to_vec());
    }
    let text = str::from_utf8(body).ok()?.trim().trim_matches('"');
    if text.starts_with("-----BEGIN") {
        let list = CertificateRevocationListDer::from_pem_slice(text.as_bytes()).ok()?;
        return Some(list.to_vec());
    }
    from_hex_vec(text).filter(|der| !der.is_empty())
}

/// A chain out of a header: PEM, percent-encoded.
fn chain(answer: &Answer, names: &[&str], url: &str) -> Result<String, FetchError> {
    let missing = || FetchError::Answer {
        url: url.to_owned(),
        cause: format!("no readable header {}", names.join(" or ")),
    };
    let value = names
        .iter()
        .find_map(|name| answer.headers.get(*name))
        .ok_or_else(missing)?;
    percent_decoded(value.as_bytes()).ok_or_else(missing)
}

fn percent_decoded(text: &[u8]) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, behind @ ..] = rest {
        if *first == b'%' {
            let digits = str::from_utf8(behind.get(..2)?).ok()?;
            bytes.extend(from_hex_vec(digits)?);
            rest = behind.get(2..)?;
        } else {
            bytes.push(*first);
            rest = behind;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_signed_stands_byte_for_byte() {
        let body = br#"{ "tcbInfo" : {"a":1, "b":[ "}" ] } ,"signature":"00ff"}"#;
        let (text, signature) = signed_json(body, "tcbInfo").unwrap();
        assert_eq!(
            (text.as_str(), signature.as_slice()),
            (r#"{"a":1, "b":[ "}" ] }"#, &[0, 0xff][..])
        );
        for cut in 0..body.len() - 1 {
            assert!(signed_json(&body[..cut], "tcbInfo").is_none());
        }
        assert!(signed_json(br#"{"signature":"00"}"#, "tcbInfo").is_none());
    }

    #[test]
    fn lists_come_in_three_forms() {
        let der = vec![0x30, 0x82, 0, 0];
        assert_eq!(list(&der), Some(der.clone()));
        assert_eq!(list(b"30820000\n"), Some(der.clone()));
        assert_eq!(
            list(b"-----BEGIN X509 CRL-----\nMIIAAA==\n-----END X509 CRL-----\n"),
            Some(der)
        );
        assert_eq!(list(b""), None);
        assert_eq!(list(b"<html>"), None);
    }

    #[test]
    fn percent_encoding_is_strict() {
        assert_eq!(percent_decoded(b"a%0Ab%20c").as_deref(), Some("a\nb c"));
        for bad in [&b"%"[..], b"%2", b"%zz", b"%ff"] {
            assert_eq!(percent_decoded(bad), None);
        }
    }
}
