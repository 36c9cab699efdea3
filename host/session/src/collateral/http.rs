//! One question over HTTP/1.1, with and without TLS, within bounds.
//!
//! Collateral is signed: TLS keeps others from seeing and from spoiling it, and decides nothing about what it says.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::FetchError;
use crate::proxy::Proxy;

/// Longest body, in bytes: revocation lists and TCB info take some 10 to 100 KiB.
const MAX_BODY_BYTES: usize = 4 * 1024 * 1024;
/// Longest head of an answer, in bytes: it carries a certificate chain.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Where systems keep the authorities that they trust for HTTPS.
const SYSTEM_AUTHORITIES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// What is asked.
pub(crate) struct Question<'a> {
    url: &'a str,
    /// JSON that is posted; without it the page is got.
    body: Option<Bytes>,
    cookie: Option<&'a str>,
}

impl<'a> Question<'a> {
    /// Gets a page.
    pub(crate) fn get(url: &'a str) -> Self {
        let (body, cookie) = (None, None);
        Self { url, body, cookie }
    }

    /// Posts JSON.
    pub(crate) fn post(url: &'a str, body: &serde_json::Value) -> Self {
        let (body, cookie) = (Some(body.to_string().into()), None);
        Self { url, body, cookie }
    }

    /// In a session that a cookie names.
    pub(crate) fn with_cookie(self, cookie: &'a str) -> Self {
        let cookie = Some(cookie);
        Self { cookie, ..self }
    }
}

/// Dials and asks. Clones share the TLS configuration.
#[derive(Clone, Debug)]
pub(crate) struct Http {
    tls: Option<Arc<rustls::ClientConfig>>,
    proxy: Option<Proxy>,
    timeout: Duration,
}

impl Http {
    /// Trusts the authorities in a PEM file, or the system's.
    pub(crate) fn new(
        authorities: Option<&std::path::Path>,
        proxy: Option<Proxy>,
        timeout: Duration,
    ) -> Result<Self, FetchError> {
        let unreadable = |path: &std::path::Path, cause: String| FetchError::Authorities {
            path: path.display().to_string(),
            cause,
        };
        let system = SYSTEM_AUTHORITIES.map(std::path::Path::new);
        let file = authorities.or_else(|| system.into_iter().find(|path| path.exists()));
        let tls = match file {
            None => None,
            Some(path) => {
                let mut roots = rustls::RootCertStore::empty();
                let certificates =
                    CertificateDer::pem_file_iter(path).map_err(|error| unreadable(path, error.to_string()))?;
                roots.add_parsable_certificates(certificates.flatten());
                if roots.is_empty() {
                    return Err(unreadable(path, "no certificate in it".into()));
                }
                let config = rustls::ClientConfig::builder_with_provider(Arc::new(
                    rustls::crypto::aws_lc_rs::default_provider(),
                ))
                .with_safe_default_protocol_versions()
                .map_err(|error| unreadable(path, error.to_string()))?
                .with_root_certificates(roots)
                .with_no_client_auth();
                Some(Arc::new(config))
            }
        };
        Ok(Self { tls, proxy, timeout })
    }

    /// Asks for one page.
    pub(super) async fn get(&self, url: &str) -> Result<Answer, FetchError> {
        self.ask_within(&Question::get(url)).await
    }

    /// Asks, and waits for as long as an answer may take.
    pub(crate) async fn ask_within(&self, question: &Question<'_>) -> Result<Answer, FetchError> {
        let url = question.url;
        let failed = |cause: String| FetchError::Transport {
            url: url.to_owned(),
            cause,
        };
        tokio::time::timeout(self.timeout, self.ask(question))
            .await
            .map_err(|_| failed(format!("no whole answer within {} s", self.timeout.as_secs())))?
    }

    async fn ask(&self, question: &Question<'_>) -> Result<Answer, FetchError> {
        let url = question.url;
        let failed = |cause: String| FetchError::Transport {
            url: url.to_owned(),
            cause,
        };
        let uri: Uri = url
            .parse()
            .map_err(|error: http::uri::InvalidUri| failed(error.to_string()))?;
        let host = uri.host().ok_or_else(|| failed("no host in it".into()))?;
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(failed("http:// or https:// is wanted".into())),
        };
        let target = format!("{host}:{}", uri.port_u16().unwrap_or(if https { 443 } else { 80 }));
        let stream = match &self.proxy {
            Some(proxy) => proxy
                .connect(&target)
                .await
                .map_err(|error| failed(error.to_string()))?,
            None => TcpStream::connect(&target)
                .await
                .map_err(|error| failed(error.to_string()))?,
        };
        if !https {
            return exchange(stream, (&uri, host), question)
                .await
                .map_err(|error| error.at(url));
        }
        let tls = self.tls.clone().ok_or_else(|| {
            failed("this system has no file of trusted authorities; name one as `authorities`".into())
        })?;
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
            .map_err(|error| failed(error.to_string()))?;
        let stream = tokio_rustls::TlsConnector::from(tls)
            .connect(name, stream)
            .await
            .map_err(|error| {
                let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
                match tls {
                    Some(rustls::Error::InvalidCertificate(cause)) => FetchError::Certificate {
                        url: url.to_owned(),
                        cause: cause.to_string(),
                    },
                    _ => failed(error.to_string()),
                }
            })?;
        exchange(stream, (&uri, host), question)
            .await
            .map_err(|error| error.at(url))
    }
}

/// What went wrong, before the URL is put to it.
enum Trouble {
    Transport(String),
    Status { status: u16, retry_after_s: Option<u64> },
}

impl Trouble {
    fn at(self, url: &str) -> FetchError {
        let url = url.to_owned();
        match self {
            Self::Transport(cause) => FetchError::Transport { url, cause },
            Self::Status { status, retry_after_s } => FetchError::Status {
                url,
                status,
                retry_after_s,
            },
        }
    }
}

async fn exchange<S>(stream: S, (uri, host): (&Uri, &str), question: &Question<'_>) -> Result<Answer, Trouble>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let transport = |error: &dyn std::error::Error| Trouble::Transport(error.to_string());
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(MAX_HEAD_BYTES)
        .handshake::<_, Full<Bytes>>(TokioIo::new(stream))
        .await
        .map_err(|error| transport(&error))?;
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let request = match question.body {
        Some(_) => Request::post(path).header(http::header::CONTENT_TYPE, "application/json"),
        None => Request::get(path),
    };
    let request = match question.cookie {
        Some(cookie) => request.header(http::header::COOKIE, cookie),
        None => request,
    };
    let request = request
        .header(
            http::header::HOST,
            uri.port_u16()
                .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")),
        )
        .header(
            http::header::USER_AGENT,
            concat!("cloister/", env!("CARGO_PKG_VERSION")),
        )
        .body(Full::new(question.body.clone().unwrap_or_default()))
        .map_err(|error| transport(&error))?;
    let asked = async {
        let answer = sender.send_request(request).await.map_err(|error| transport(&error))?;
        let (head, body) = answer.into_parts();
        if head.status != http::StatusCode::OK {
            let after = head.headers.get(http::header::RETRY_AFTER);
            return Err(Trouble::Status {
                status: head.status.as_u16(),
                retry_after_s: after.and_then(|value| value.to_str().ok()?.trim().parse().ok()),
            });
        }
        let body = Limited::new(body, MAX_BODY_BYTES).collect().await;
        let body = body.map_err(|error| Trouble::Transport(error.to_string()))?.to_bytes();
        Ok(Answer {
            headers: head.headers,
            body,
        })
    };
    // The connection is driven as long as the answer is waited for, and dropped with it.
    tokio::pin!(asked);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        answer = &mut asked => answer,
        ended = &mut connection => match ended {
            Ok(()) => asked.await,
            Err(error) => Err(transport(&error)),
        },
    }
}
