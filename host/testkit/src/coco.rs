//! A server that answers as the API server of Confidential Containers does, and in ways that it should not.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use cloister_attestation::simulated::SimulatedTd;

/// How it answers.
#[derive(Clone, Debug)]
pub enum Manner {
    /// As it should.
    Honest,
    /// As versions that know no `encoding`: the text itself is the data.
    WithoutEncoding,
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
    let td = crate::device::td();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // The client may hang up at any time: that is what is tested.
            let _ = answer(stream, &manner, &td, &requests);
        }
    });
    (address, seen)
}

fn answer(mut stream: TcpStream, manner: &Manner, td: &SimulatedTd, seen: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?).take(64 << 10);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    if request.is_empty() {
        return Ok(());
    }
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
    }
    seen.lock().unwrap().push(request.trim().to_owned());
    match manner {
        Manner::Honest | Manner::WithoutEncoding => {
            let query = request.split(['?', ' ']).nth(2).unwrap_or_default();
            let value = |key: &str| {
                let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
                pairs.find(|(name, _)| *name == key).map(|(_, value)| value.to_owned())
            };
            let data = value("runtime_data").unwrap_or_default();
            let data = match (manner, value("encoding").as_deref()) {
                (Manner::Honest, Some("base64")) => URL_SAFE_NO_PAD.decode(data).unwrap(),
                _ => data.into_bytes().into_iter().take(64).collect(),
            };
            let evidence = format!(
                "{{\"cc_eventlog\":null,\"quote\":\"{}\"}}",
                STANDARD.encode(crate::device::quote(td, &data))
            );
            send(&mut stream, 200, evidence.as_bytes())
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
