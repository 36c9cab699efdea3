//! HTTP CONNECT: out through the one proxy that a firewall lets dial. The proxy sees TLS and nothing else.

use std::str::FromStr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::error::ProxyError;

/// Longest answer head of a proxy, in bytes.
const MAX_ANSWER_BYTES: usize = 8 * 1024;

/// An HTTP proxy: `http://HOST:PORT` or `HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    authority: String,
}

impl FromStr for Proxy {
    type Err = ProxyError;

    fn from_str(text: &str) -> Result<Self, ProxyError> {
        let authority = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
        let wrong = || ProxyError::Address { text: text.to_owned() };
        let (host, port) = authority.rsplit_once(':').ok_or_else(wrong)?;
        if host.is_empty() || host.contains(['/', '@', ' ']) || port.parse::<u16>().is_err() {
            return Err(wrong());
        }
        Ok(Self {
            authority: authority.to_owned(),
        })
    }
}

impl Proxy {
    /// Dials the proxy and has it dial `target` (`HOST:PORT`).
    pub(crate) async fn connect(&self, target: &str) -> Result<TcpStream, ProxyError> {
        let at = |source| ProxyError::Io {
            proxy: self.authority.clone(),
            source,
        };
        if target.bytes().any(|byte| byte.is_ascii_control() || byte == b' ') {
            return Err(ProxyError::Address {
                text: target.to_owned(),
            });
        }
        let mut stream = TcpStream::connect(&self.authority).await.map_err(at)?;
        let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.map_err(at)?;
        let mut answer = Vec::new();
        // Byte by byte: nothing behind the answer's head may be taken from the stream.
        while !answer.ends_with(b"\r\n\r\n") {
            if answer.len() >= MAX_ANSWER_BYTES {
                return Err(ProxyError::Answer {
                    proxy: self.authority.clone(),
                    answer: "a head without end".into(),
                });
            }
            answer.push(stream.read_u8().await.map_err(at)?);
        }
        let text = String::from_utf8_lossy(&answer);
        let status = text.lines().next().unwrap_or_default();
        let mut words = status.split(' ');
        let http = words.next().is_some_and(|version| version.starts_with("HTTP/1."));
        let success = words
            .next()
            .is_some_and(|code| code.len() == 3 && code.starts_with('2'));
        if !http || !success {
            let answer = status
                .chars()
                .filter(|character| !character.is_control())
                .take(120)
                .collect();
            return Err(ProxyError::Answer {
                proxy: self.authority.clone(),
                answer,
            });
        }
        Ok(stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    async fn ask(answer: &'static [u8]) -> Result<Vec<u8>, ProxyError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy: Proxy = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 200];
            let read = stream.read(&mut request).await.unwrap();
            assert!(request[..read].starts_with(b"CONNECT host:1 HTTP/1.1\r\nHost: host:1\r\n"));
            stream.write_all(answer).await.unwrap();
        });
        let result = proxy.connect("host:1").await;
        server.await.unwrap();
        let mut rest = Vec::new();
        result?.read_to_end(&mut rest).await.unwrap();
        Ok(rest)
    }

    #[tokio::test]
    async fn the_bytes_behind_the_answer_are_the_peers() {
        assert_eq!(ask(b"HTTP/1.1 200 OK\r\nX: y\r\n\r\nhello").await.unwrap(), b"hello");
    }

    #[tokio::test]
    async fn refusals_and_garbage_are_errors() {
        let error = ask(b"HTTP/1.1 403 Forbidden\r\n\r\n").await.unwrap_err();
        assert!(error.to_string().contains("403 Forbidden"), "{error}");
        assert!(ask(b"SSH-2.0-x\r\n\r\n").await.is_err());
        assert!(ask(b"HTTP/1.1 200 OK\r\n").await.is_err());
    }

    #[test]
    fn addresses() {
        for text in [
            "",
            "host",
            "http://",
            "https://a:1",
            "a:b",
            "user@a:1",
            "a:70000",
            "http://a:1/path",
        ] {
            assert!(text.parse::<Proxy>().is_err(), "{text}");
        }
        assert!("http://proxy.example:3128/".parse::<Proxy>().is_ok());
        assert!("[::1]:3128".parse::<Proxy>().is_ok());
    }
}
