//! dstack's form: JSON, a list of events or a report with one in its field `event_log` (as a list, or as text that is one).
//! Its runtime events have the type 0x08000001, and SHA-384(type, little endian | ":" | name | ":" | payload) is extended.

use serde::Deserialize;
use sha2::{Digest as _, Sha384};

use super::{EV_NO_ACTION, Event, EventLog, EventLogError, MAX_EVENT_LOG_BYTES, REGISTERS, runtime};
use crate::encoding::{from_hex, from_hex_vec, hex};

const RUNTIME: u32 = 0x0800_0001;

#[derive(Deserialize)]
struct Raw {
    imr: usize,
    event_type: u32,
    digest: String,
    #[serde(default)]
    event: String,
    #[serde(default)]
    event_payload: String,
}

#[derive(Deserialize)]
struct Report {
    event_log: Events,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Events {
    Text(String),
    List(Vec<Raw>),
}

pub(super) fn parse(bytes: &[u8]) -> Result<EventLog, EventLogError> {
    let wrong = |cause: String| EventLogError::Json { cause };
    let json = |error: serde_json::Error| wrong(error.to_string());
    if bytes.len() > MAX_EVENT_LOG_BYTES {
        return Err(EventLogError::TooLong {
            seen: bytes.len(),
            most: MAX_EVENT_LOG_BYTES,
        });
    }
    let raw: Vec<Raw> = if bytes.trim_ascii_start().starts_with(b"{") {
        match serde_json::from_slice::<Report>(bytes).map_err(json)?.event_log {
            Events::List(list) => list,
            Events::Text(text) => serde_json::from_str(&text).map_err(json)?,
        }
    } else {
        serde_json::from_slice(bytes).map_err(json)?
    };
    let mut log = EventLog::default();
    for (index, raw) in raw.into_iter().enumerate() {
        if raw.event_type == EV_NO_ACTION {
            // Tells something, and was not extended.
            continue;
        }
        let event = event(raw).map_err(|cause| wrong(format!("event {index}: {cause}")))?;
        log.push(event)?;
    }
    Ok(log)
}

fn event(raw: Raw) -> Result<Event, &'static str> {
    if raw.imr >= REGISTERS {
        return Err("`imr` is 0 to 3");
    }
    let digest: [u8; 48] = from_hex(&raw.digest).ok_or("`digest` is 48 bytes in hexadecimal")?;
    let data = from_hex_vec(&raw.event_payload).ok_or("`event_payload` is hexadecimal")?;
    let made = Sha384::new()
        .chain_update(raw.event_type.to_le_bytes())
        .chain_update(b":")
        .chain_update(&raw.event)
        .chain_update(b":")
        .chain_update(&data)
        .finalize();
    let told = raw.event_type == RUNTIME && made[..] == digest[..];
    Ok(Event {
        register: raw.imr,
        kind: raw.event_type,
        digest,
        text: if told {
            runtime::shown(format!("{} {}", raw.event, hex(&data)).trim_end())
        } else {
            None
        },
        data,
    })
}
