//! An external key service, by the protocol of Trustee's key broker (KBS): request, challenge, attestation, response.
//!
//! Source: Confidential Containers, *KBS Attestation Protocol* (trustee, `kbs/docs/kbs_attestation_protocol.md`). The quote's report data
//! is SHA-384 over the runtime data, JSON with sorted keys, and zeros behind it. Resources come sealed to a key of this one exchange, which
//! the quote vouches for: whoever ends TLS in between reads none of them, and can put others in their place. So what is
//! fetched here has to be something that its use verifies, such as the key or the salt of a dataset with a commitment.

mod jwe;

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha384};
use zeroize::Zeroizing;

use crate::collateral::{FetchError, Http, Question, Source};
use jwe::TeeKey;

/// The version of the protocol that is spoken.
const VERSION: &str = "0.4.0";
/// The name of the cookie of a session.
const COOKIE: &str = "kbs-session-id";
/// Longest nonce and cookie, in bytes.
const MAX_WORD_BYTES: usize = 1024;
/// Longest resource, in bytes.
const MAX_RESOURCE_BYTES: usize = 64 * 1024;
/// Longest part of a resource's name, in bytes.
const MAX_NAME_BYTES: usize = 64;
/// How long one answer may take, in seconds: the service verifies a quote meanwhile.
const TIMEOUT_S: u64 = 30;

/// Why a resource was not had.
#[derive(Debug, thiserror::Error)]
pub enum KbsError {
    /// The service can't be reached or says no: 401 where it does not believe the evidence, 403 where its policy refuses, 404 where it has
    /// no such resource.
    #[error("the key service: {0}")]
    Fetch(#[from] FetchError),
    /// No quote to show.
    #[error("there is no quote to show the key service: {0}")]
    Quote(String),
    /// An answer that is not what the protocol says.
    #[error("the key service sent {what} that is none: {cause}")]
    Answer {
        /// What it should have been.
        what: &'static str,
        /// What is wrong with it.
        cause: String,
    },
    /// A name that is no resource's.
    #[error("{0:?} is no resource; wanted kbs:///REPOSITORY/TYPE/TAG, each of letters, digits and . _ -")]
    Name(String),
    /// The system's cryptography refused.
    #[error("the system's cryptography refused")]
    Cryptography,
}

/// A resource: `kbs:///repository/type/tag`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Resource {
    path: String,
}

impl FromStr for Resource {
    type Err = KbsError;

    fn from_str(text: &str) -> Result<Self, KbsError> {
        let part = |part: &str| {
            let known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            (1..=MAX_NAME_BYTES).contains(&part.len()) && part.bytes().all(known) && !part.starts_with('.')
        };
        let path = text.strip_prefix("kbs:///").unwrap_or_default();
        if path.split('/').count() == 3 && path.split('/').all(part) {
            return Ok(Self { path: path.to_owned() });
        }
        Err(KbsError::Name(text.chars().take(256).collect()))
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "kbs:///{}", self.path)
    }
}

/// A key service.
#[derive(Clone, Debug)]
pub struct Kbs {
    base: String,
    http: Http,
}

impl Kbs {
    /// The service at that address.
    ///
    /// # Errors
    /// [`KbsError::Fetch`] if the file of authorities can't be used.
    pub fn new(source: &Source) -> Result<Self, KbsError> {
        let timeout = std::time::Duration::from_secs(TIMEOUT_S);
        Ok(Self {
            base: format!("{}/kbs/v0", source.url.trim_end_matches('/')),
            http: Http::new(source.authorities.as_deref(), source.proxy.clone(), timeout)?,
        })
    }

    /// Attests this TD to the service, and fetches the resources. `quote` takes a quote over the report data, and may give an event log.
    ///
    /// # Errors
    /// [`KbsError`].
    pub async fn fetch(
        &self,
        quote: impl FnOnce(&[u8; 64]) -> Result<(Vec<u8>, Bytes), String>,
        wanted: &[Resource],
    ) -> Result<Vec<Zeroizing<Vec<u8>>>, KbsError> {
        let request = json!({ "version": VERSION, "tee": "tdx", "extra-params": {} });
        let auth = format!("{}/auth", self.base);
        let challenge = self.http.ask_within(&Question::post(&auth, &request)).await?;
        let cookie = challenge.headers.get_all(http::header::SET_COOKIE).iter();
        let cookie = cookie.filter_map(|cookie| session(cookie.to_str().ok()?)).next();
        let cookie = cookie.ok_or_else(|| wrong("a session", "there is no cookie kbs-session-id"))?;
        let challenge: Value = serde_json::from_slice(&challenge.body).map_err(|error| wrong("a challenge", error))?;
        let nonce = challenge["nonce"]
            .as_str()
            .filter(|nonce| nonce.len() <= MAX_WORD_BYTES);
        let nonce = nonce.ok_or_else(|| wrong("a challenge", "there is no nonce in it"))?;
        let hash = challenge["extra-params"]["selected-hash-algorithm"].as_str();
        if hash.is_some_and(|hash| !hash.eq_ignore_ascii_case("sha384")) {
            return Err(wrong("a challenge", "it selects another hash than sha384"));
        }

        let key = TeeKey::generate()?;
        // Keys in order, as the service hashes it: `serde_json` keeps maps sorted.
        let runtime_data = json!({ "nonce": nonce, "tee-pubkey": key.jwk() });
        let mut report_data = [0; 64];
        report_data[..48].copy_from_slice(&Sha384::digest(runtime_data.to_string()));
        let (quote, event_log) = quote(&report_data).map_err(KbsError::Quote)?;
        let log = (!event_log.is_empty()).then(|| STANDARD.encode(&event_log));
        let evidence = json!({ "quote": STANDARD.encode(quote), "cc_eventlog": log });
        let attestation = json!({
            "init-data": null,
            "runtime-data": runtime_data,
            "tee-evidence": { "primary_evidence": evidence, "additional_evidence": "" },
        });
        let attest = format!("{}/attest", self.base);
        self.http
            .ask_within(&Question::post(&attest, &attestation).with_cookie(&cookie))
            .await?;

        let mut resources = Vec::new();
        for resource in wanted {
            let url = format!("{}/resource/{}", self.base, resource.path);
            let sealed = self.http.ask_within(&Question::get(&url).with_cookie(&cookie)).await?;
            resources.push(key.open(&sealed.body, MAX_RESOURCE_BYTES)?);
        }
        Ok(resources)
    }
}

fn wrong(what: &'static str, cause: impl fmt::Display) -> KbsError {
    KbsError::Answer {
        what,
        cause: cause.to_string(),
    }
}

/// The session in a cookie, as it is to be sent back.
fn session(cookie: &str) -> Option<String> {
    let pair = cookie.split(';').next()?.trim();
    let (name, value) = pair.split_once('=')?;
    let sound = value.len() <= MAX_WORD_BYTES && value.bytes().all(|byte| byte.is_ascii_graphic());
    (name == COOKIE && sound).then(|| pair.to_owned())
}
