//! The little of HTTP/1.0 (RFC 1945) that a server on the loopback interface is asked with: one request, one answer, the
//! connection closed. Every size and every wait is bounded.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

const CONNECT_WAIT: Duration = Duration::from_secs(2);
const MAX_HEAD_BYTES: usize = 8 * 1024;

/// An answer of any status.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

impl Answer {
    /// The body of an answer of failure, cut and freed of control characters.
    pub(super) fn words(&self) -> String {
        let words: String = String::from_utf8_lossy(&self.body)
            .chars()
            .map(|symbol| if symbol.is_control() { ' ' } else { symbol })
            .take(200)
            .collect();
        words.trim().to_owned()
    }
}

/// Whether anything listens there.
pub(super) fn listens(server: SocketAddr) -> bool {
    TcpStream::connect_timeout(&server, CONNECT_WAIT).is_ok()
}

/// Sends a request (`GET /path`, or `POST /path` with JSON) and takes an answer of at most `limit` bytes of body.
pub(super) fn ask(
    server: SocketAddr,
    request: &str,
    body: Option<&str>,
    limit: usize,
    wait: Duration,
) -> Result<Answer, String> {
    let deadline = Instant::now() + wait;
    let told = |error: std::io::Error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => format!("no answer in {:.0} s", wait.as_secs_f64()),
        _ => error.to_string(),
    };
    let mut stream = TcpStream::connect_timeout(&server, CONNECT_WAIT).map_err(told)?;
    stream.set_write_timeout(Some(wait)).map_err(told)?;
    let mut head = format!("{request} HTTP/1.0\r\nHost: {server}\r\nAccept: */*\r\nConnection: close\r\n");
    if let Some(body) = body {
        head.push_str(&format!(
            "Content-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        ));
    }
    head.push_str("\r\n");
    head.push_str(body.unwrap_or_default());
    stream.write_all(head.as_bytes()).map_err(told)?;
    let most = MAX_HEAD_BYTES + limit;
    let mut received = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(told(ErrorKind::TimedOut.into()));
        }
        stream.set_read_timeout(Some(left)).map_err(told)?;
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => received.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(told(error)),
        }
        if received.len() > most {
            return Err(format!("an answer of more than {limit} bytes"));
        }
        if complete(&received) {
            break;
        }
    }
    parse(&received, limit)
}

/// Head and body, split at the empty line.
fn split(received: &[u8]) -> Option<(&str, &[u8])> {
    let end = received.windows(4).position(|window| window == b"\r\n\r\n")?;
    Some((str::from_utf8(&received[..end]).ok()?, &received[end + 4..]))
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    lines
        .find(|(key, _)| key.trim().eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}

/// Whether as much has come as the head says; without a length, the end of the connection says it.
fn complete(received: &[u8]) -> bool {
    split(received).is_some_and(|(head, body)| {
        header(head, "content-length")
            .and_then(|length| length.parse::<usize>().ok())
            .is_some_and(|length| body.len() >= length)
    })
}

fn parse(received: &[u8], limit: usize) -> Result<Answer, String> {
    let (head, body) = split(received).ok_or("an answer that ends within its head, or is no HTTP")?;
    let mut words = head.lines().next().unwrap_or_default().split_whitespace();
    let version = words.next().unwrap_or_default();
    let status = words.next().and_then(|status| status.parse::<u16>().ok());
    let (true, Some(status)) = (version.starts_with("HTTP/1."), status) else {
        return Err("an answer that is no HTTP".into());
    };
    if header(head, "transfer-encoding").is_some() {
        return Err("an answer in chunks, which HTTP/1.0 does not have".into());
    }
    if let Some(length) = header(head, "content-length") {
        let length: usize = length
            .parse()
            .map_err(|_| "an answer with a length that is no number")?;
        if length != body.len() {
            return Err(format!("an answer of {} bytes, {length} were announced", body.len()));
        }
    }
    if body.len() > limit {
        return Err(format!("an answer of {} bytes, at most {limit} are taken", body.len()));
    }
    Ok(Answer {
        status,
        body: body.to_vec(),
    })
}
