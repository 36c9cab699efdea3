//! Quotes of a pod of Confidential Containers: its API server (guest-components, `api-server-rest`), which listens on the
//! pod's loopback interface and asks the attestation agent of the guest.
//!
//! `GET /aa/evidence?runtime_data=...&encoding=base64` gives `{"quote": base64, "cc_eventlog": base64}`.

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::Deserialize;

use super::device::Device;
use super::{QUOTE_WAIT, checked, http};
use crate::provider::{ProviderError, QuoteProvider};

const NAME: &str = "coco";
/// Bytes of an answer: a quote, and a log of everything since the firmware, in base64.
const MAX_ANSWER_BYTES: usize = 2 << 20;

/// The API server as a provider of quotes.
#[derive(Debug)]
pub struct Coco {
    server: SocketAddr,
    device: Device,
    wait: Duration,
}

/// What `/aa/evidence` gives for TDX; other fields are of no interest here.
#[derive(Deserialize)]
struct Evidence {
    quote: String,
}

impl Coco {
    /// The server, usually `127.0.0.1:8006`.
    pub fn new(server: SocketAddr) -> Self {
        Self {
            server,
            device: Device::default(),
            wait: QUOTE_WAIT,
        }
    }

    /// Waits this long for a quote, instead of [`QUOTE_WAIT`].
    #[must_use]
    pub fn with_wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// Whether a server listens there.
    pub fn answers(server: SocketAddr) -> bool {
        http::listens(server)
    }
}

impl QuoteProvider for Coco {
    fn name(&self) -> &'static str {
        NAME
    }

    fn simulated(&self) -> bool {
        false
    }

    fn quote(&self, report_data: &[u8; 64]) -> Result<Vec<u8>, ProviderError> {
        let (server, wait, data) = (self.server, self.wait, *report_data);
        self.device.ask(NAME, wait, move || evidence(server, &data, wait))
    }
}

fn evidence(server: SocketAddr, report_data: &[u8; 64], wait: Duration) -> Result<Vec<u8>, ProviderError> {
    let request = format!(
        "GET /aa/evidence?runtime_data={}&encoding=base64",
        URL_SAFE_NO_PAD.encode(report_data)
    );
    let body = ask(server, &request, None, wait)?;
    let evidence: Evidence = serde_json::from_slice(&body)
        .map_err(|error| failed(server, &format!("its evidence is not that of a TD: {error}")))?;
    let quote = STANDARD
        .decode(evidence.quote.trim())
        .map_err(|error| failed(server, &format!("its quote is not base64: {error}")))?;
    checked(NAME, quote, report_data)
}

/// The body of an answer of success.
fn ask(server: SocketAddr, request: &str, body: Option<&str>, wait: Duration) -> Result<Vec<u8>, ProviderError> {
    let answer = http::ask(server, request, body, MAX_ANSWER_BYTES, wait).map_err(|error| failed(server, &error))?;
    let advice = match answer.status {
        200..=299 => return Ok(answer.body),
        403 => ": it serves the pod's own loopback interface alone",
        404 => {
            ": it serves no evidence; start it with the feature `attestation` or `all` (agent.guest_components_rest_api)"
        }
        _ => "",
    };
    let words: String = String::from_utf8_lossy(&answer.body)
        .chars()
        .map(|symbol| if symbol.is_control() { ' ' } else { symbol })
        .take(200)
        .collect();
    Err(failed(
        server,
        &format!("status {}{advice} {}", answer.status, words.trim()),
    ))
}

fn failed(server: SocketAddr, cause: &str) -> ProviderError {
    ProviderError::Failed {
        provider: NAME,
        cause: format!("{server}: {}", cause.trim_end()),
    }
}
