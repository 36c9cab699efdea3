//! A server that answers as the API server of Confidential Containers does, and in ways that it should not.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use cloister_attestation::simulated::SimulatedTd;
use sha2::{Digest as _, Sha384};

/// How it answers.
#[derive(Clone, Debug)]
pub enum Manner {
    /// As it should.
    Honest,
    /// As versions that know no `encoding`: the text itself is the data.
    WithoutEncoding,
    /// As it should, with an agent that keeps no log: events are taken, and nothing is extended.
    WithoutLog,
    /// As it should, but this log.
    Log(&'static str),
    /// As it should; events are answered with this status and these words.
    Extends(u16, &'static str),
    /// This status, these words.
    Status(u16, &'static str),
    /// This body, with its right length.
    Body(Vec<u8>),
    /// These bytes, and the end of the connection.
    Raw(Vec<u8>),
    /// Half an answer, then nothing for this long.
    Stalls(Duration),
    /// A byte at a time, without end.
    Drips,
}

/// Serves until the process ends; gives its address and the request lines that it saw.
pub fn serve(manner: Manner) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let requests = Arc::clone(&seen);
    let mut guest = Guest {
        td: crate::device::td(),
        log: header(),
    };
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // The client may hang up at any time: that is what is tested.
            let _ = answer(stream, &manner, &mut guest, &requests);
        }
    });
    (address, seen)
}

/// The guest's agent: its TD, and the log that it keeps.
struct Guest {
    td: Arc<SimulatedTd>,
    log: Vec<u8>,
}

/// What the agent begins a log with where firmware left none: an event without action and without a signature.
fn header() -> Vec<u8> {
    let mut header = vec![0, 0, 0, 0, 3, 0, 0, 0];
    header.extend([0; 20]);
    header.extend(33u32.to_le_bytes());
    header.extend([0; 24]);
    header.extend([1, 0, 0, 0, 0x0c, 0, 0x30, 0, 0]);
    header
}

impl Guest {
    /// As `extend_runtime_measurement` of the agent does: a tagged event over `DOMAIN OPERATION CONTENT`.
    fn extend(&mut self, event: &Event) {
        let text = format!("{} {} {}", event.domain, event.operation, event.content);
        let mut data = 0x4141_454c_u32.to_le_bytes().to_vec();
        data.extend(u32::try_from(text.len()).unwrap().to_le_bytes());
        data.extend(text.as_bytes());
        let digest: [u8; 48] = Sha384::digest(&data).into();
        self.td.extend_rtmr3(&digest);
        // RTMR3, EV_EVENT_TAG, one digest, SHA-384.
        for number in [4u32, 6, 1] {
            self.log.extend(number.to_le_bytes());
        }
        self.log.extend(0x0c_u16.to_le_bytes());
        self.log.extend(digest);
        self.log.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
        self.log.extend(data);
    }

    fn log(&self) -> String {
        STANDARD.encode([&self.log[..], &[0xff; 8]].concat())
    }
}

#[derive(serde::Deserialize)]
struct Event {
    domain: String,
    operation: String,
    content: String,
}

fn answer(mut stream: TcpStream, manner: &Manner, guest: &mut Guest, seen: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?).take(64 << 10);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    if request.is_empty() {
        return Ok(());
    }
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        if let Some((_, value)) = line
            .split_once(':')
            .filter(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    seen.lock().unwrap().push(request.trim().to_owned());
    if request.starts_with("POST /aa/aael ") {
        match (manner, serde_json::from_slice::<Event>(&body)) {
            (Manner::Extends(status, words), _) => return send(&mut stream, *status, words.as_bytes()),
            (Manner::Honest, Ok(event)) => guest.extend(&event),
            (Manner::Honest, Err(error)) => return send(&mut stream, 500, error.to_string().as_bytes()),
            _ => {}
        }
        return send(&mut stream, 200, b"");
    }
    let td = &guest.td;
    match manner {
        Manner::Honest | Manner::WithoutEncoding | Manner::WithoutLog | Manner::Log(_) | Manner::Extends(..) => {
            let query = request.split(['?', ' ']).nth(2).unwrap_or_default();
            let value = |key: &str| {
                let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
                pairs.find(|(name, _)| *name == key).map(|(_, value)| value.to_owned())
            };
            let data = value("runtime_data").unwrap_or_default();
            let data = match (manner, value("encoding").as_deref()) {
                (Manner::WithoutEncoding, _) | (_, None) => data.into_bytes().into_iter().take(64).collect(),
                _ => URL_SAFE_NO_PAD.decode(data).unwrap(),
            };
            let log = match manner {
                Manner::Honest | Manner::Extends(..) => Some(guest.log()),
                Manner::Log(text) => Some((*text).to_owned()),
                _ => None,
            };
            let quote = STANDARD.encode(crate::device::quote(td, &data));
            let evidence = serde_json::json!({ "cc_eventlog": log, "quote": quote });
            send(&mut stream, 200, evidence.to_string().as_bytes())
        }
        Manner::Status(status, words) => send(&mut stream, *status, words.as_bytes()),
        Manner::Body(body) => send(&mut stream, 200, body),
        Manner::Raw(bytes) => stream.write_all(bytes),
        Manner::Stalls(time) => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"quote\":")?;
            std::thread::sleep(*time);
            Ok(())
        }
        Manner::Drips => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
            loop {
                stream.write_all(b" ")?;
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

fn send(stream: &mut TcpStream, status: u16, body: &[u8]) -> std::io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status} Status\r\ncontent-type: application/octet-stream\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)
}
