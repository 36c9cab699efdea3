//! HTTPS in front of a [`Pccs`](crate::pccs::Pccs): an authority of its own, and certificates that are good or that are not.

use std::net::SocketAddr;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256,
    date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// Which certificate a front shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// In force, for `localhost` and 127.0.0.1.
    Good,
    /// For another host.
    OtherHost,
    /// Over for years.
    Expired,
    /// Not issued by the authority, but by itself.
    SelfSigned,
    /// None: it talks HTTP where TLS is due.
    NoTls,
}

/// An authority that one may trust.
pub struct HttpsAuthority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate, PEM.
    pub pem: String,
}

impl HttpsAuthority {
    /// A new one of that name.
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    fn certificate(&self, shown: Shown) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let names: &[&str] = match shown {
            Shown::OtherHost => &["pccs.example.org"],
            _ => &["localhost", "127.0.0.1"],
        };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::new(names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>()).unwrap();
        if shown == Shown::Expired {
            (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        }
        let certificate = match shown {
            Shown::SelfSigned => params.self_signed(&key),
            _ => params.signed_by(&key, &self.issuer),
        };
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        (certificate.unwrap().der().clone(), key.into())
    }
}

/// A front that ends TLS and passes what comes on; it ends when dropped.
pub struct Front {
    port: u16,
    task: JoinHandle<()>,
}

impl Front {
    /// Listens, in front of a server at an `http://` address.
    pub async fn start(behind: &str, authority: &HttpsAuthority, shown: Shown) -> Self {
        let behind: SocketAddr = behind.trim_start_matches("http://").parse().unwrap();
        let (certificate, key) = authority.certificate(shown);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    // Whoever refuses the certificate closes the connection.
                    if shown == Shown::NoTls {
                        let mut inner = TcpStream::connect(behind).await.unwrap();
                        let _ = tokio::io::copy_bidirectional(&mut stream, &mut inner).await;
                    } else if let Ok(mut stream) = acceptor.accept(stream).await {
                        let mut inner = TcpStream::connect(behind).await.unwrap();
                        let _ = tokio::io::copy_bidirectional(&mut stream, &mut inner).await;
                    }
                });
            }
        });
        Self { port, task }
    }

    /// Its address by the name `localhost`.
    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    /// Its address by number.
    pub fn url_by_number(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.task.abort();
    }
}
