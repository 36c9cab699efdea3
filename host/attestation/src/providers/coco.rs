//! Quotes of a pod of Confidential Containers: its API server (guest-components, `api-server-rest`), which listens on the
//! pod's loopback interface and asks the attestation agent of the guest.
//!
//! `GET /aa/evidence?runtime_data=...&encoding=base64` gives `{"quote": base64, "cc_eventlog": base64}`, the log in the form of
//! the CCEL with the agent's own events behind. `POST /aa/aael` with `{"domain", "operation", "content"}` extends RTMR3 and that log;
//! writing to the register beside it would leave the agent's log unable to explain it.

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::Deserialize;

use super::device::Device;
use super::{QUOTE_WAIT, checked, http};
use crate::event_log::{EventLog, RuntimeEvent};
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
    #[serde(default)]
    cc_eventlog: Option<String>,
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
        self.device.ask(NAME, wait, move || {
            let evidence = evidence(server, &data, wait)?;
            let quote = decoded(server, "its quote", &evidence.quote)?;
            checked(NAME, quote, &data)
        })
    }

    fn extend(&self, event: &RuntimeEvent) -> Result<(), ProviderError> {
        let (server, wait) = (self.server, self.wait);
        let body = serde_json::json!({
            "domain": event.domain(), "operation": event.operation(), "content": event.content(),
        })
        .to_string();
        let cannot = |cause: String| ProviderError::CannotExtend { provider: NAME, cause };
        self.device.ask(NAME, wait, move || {
            let asked = http::ask(server, "POST /aa/aael", Some(&body), MAX_ANSWER_BYTES, wait);
            let answer = asked.map_err(|error| failed(server, &error))?;
            match answer.status {
                200..=299 => Ok(()),
                status => Err(cannot(format!(
                    "{server}: status {status} {}; the guest's agent needs `enable_eventlog` and a kernel that extends RTMR3",
                    answer.words()
                ))),
            }
        })
    }

    fn event_log(&self) -> Result<Option<EventLog>, ProviderError> {
        let (server, wait) = (self.server, self.wait);
        self.device.ask(NAME, wait, move || {
            // The log comes with a quote only.
            let Some(log) = evidence(server, &[0; 64], wait)?.cc_eventlog else {
                return Ok(None);
            };
            let log = EventLog::parse(&decoded(server, "its log", &log)?);
            log.map(Some).map_err(|error| failed(server, &error.to_string()))
        })
    }
}

fn evidence(server: SocketAddr, report_data: &[u8; 64], wait: Duration) -> Result<Evidence, ProviderError> {
    let request = format!(
        "GET /aa/evidence?runtime_data={}&encoding=base64",
        URL_SAFE_NO_PAD.encode(report_data)
    );
    let body = ask(server, &request, wait)?;
    serde_json::from_slice(&body).map_err(|error| failed(server, &format!("its evidence is not that of a TD: {error}")))
}

fn decoded(server: SocketAddr, what: &str, text: &str) -> Result<Vec<u8>, ProviderError> {
    STANDARD
        .decode(text.trim())
        .map_err(|error| failed(server, &format!("{what} is not base64: {error}")))
}

/// The body of an answer of success.
fn ask(server: SocketAddr, request: &str, wait: Duration) -> Result<Vec<u8>, ProviderError> {
    let answer = http::ask(server, request, None, MAX_ANSWER_BYTES, wait).map_err(|error| failed(server, &error))?;
    let advice = match answer.status {
        200..=299 => return Ok(answer.body),
        403 => ": it serves the pod's own loopback interface alone",
        404 => {
            ": it serves no evidence; start it with the feature `attestation` or `all` (agent.guest_components_rest_api)"
        }
        _ => "",
    };
    Err(failed(
        server,
        &format!("status {}{advice} {}", answer.status, answer.words()),
    ))
}

fn failed(server: SocketAddr, cause: &str) -> ProviderError {
    ProviderError::Failed {
        provider: NAME,
        cause: format!("{server}: {}", cause.trim_end()),
    }
}
