//! TLS with any certificate, certificates with any evidence, and relays that terminate TLS.

use std::sync::Arc;

use ciborium::Value;
use cloister_attestation::ratls::VisitorIdentity;
use cloister_session::tls;
use cloister_wire::{FrameReader, encode_frame};
use rcgen::{BasicConstraints, CertificateParams, CustomExtension, DnType, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};

/// Dials with this certificate and key, and stops after TLS.
pub async fn tls_dial(address: &str, cert_der: &[u8], key_pkcs8: &[u8]) -> std::io::Result<TlsStream<TcpStream>> {
    let config = tls::client_config(cert_der, key_pkcs8).map_err(std::io::Error::other)?;
    let stream = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(config))
        .connect(ServerName::try_from("any.invalid").unwrap(), stream)
        .await
}

/// An ordinary TLS client: no certificate, no ALPN, trusts anybody.
pub async fn plain_tls(address: &str) -> std::io::Result<Vec<u8>> {
    let identity = VisitorIdentity::new(None, crate::world::NOW).unwrap();
    let mut config = tls::client_config(&identity.cert_der, &identity.key_pkcs8).map_err(std::io::Error::other)?;
    config.alpn_protocols.clear();
    config.client_auth_cert_resolver = Arc::new(NoCertificate);
    let stream = TcpStream::connect(address).await?;
    let mut stream = TlsConnector::from(Arc::new(config))
        .connect(ServerName::try_from("any.invalid").unwrap(), stream)
        .await?;
    // In TLS 1.3 the server's refusal of the client comes after the client's handshake is over.
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer)
}

#[derive(Debug)]
struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        _sigschemes: &[rustls::SignatureScheme],
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

/// Sends a message as a frame.
pub async fn send_frame<S: AsyncWrite + Unpin>(stream: &mut S, message: &impl prost::Message) {
    let _ = stream.write_all(&encode_frame(message).unwrap()).await;
    let _ = stream.flush().await;
}

/// Reads a frame's body; `None` at the end.
pub async fn read_frame<S: AsyncRead + Unpin>(stream: &mut S) -> Option<bytes::Bytes> {
    let mut frames = FrameReader::new();
    loop {
        if let Some(frame) = frames.next_frame().unwrap() {
            return Some(frame);
        }
        let mut piece = vec![0; frames.missing().unwrap()];
        match stream.read(&mut piece).await {
            Ok(read @ 1..) => frames.feed(&piece[..read]),
            _ => return None,
        }
    }
}

/// Listens with one certificate, dials `target` with another, and copies what comes in the clear between the two TLS
/// sessions: what a relay of evidence amounts to. Both certificates' keys are the attacker's.
pub async fn relay(target: String, cert_der: Vec<u8>, key_pkcs8: Vec<u8>) -> (String, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let task = tokio::spawn(async move {
        let config = Arc::new(tls::server_config(&cert_der, &key_pkcs8).unwrap());
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut near) = TlsAcceptor::from(Arc::clone(&config)).accept(stream).await else {
                continue;
            };
            let Ok(mut far) = tls_dial(&target, &cert_der, &key_pkcs8).await else {
                continue;
            };
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        }
    });
    (address, task)
}

/// A certificate over a key made just now, with this evidence in it: DER, and the key in PKCS#8.
pub fn certificate(quote: &[u8], claims: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let key = KeyPair::generate().unwrap().serialize_der();
    (certificate_with(&key, quote, claims), key)
}

/// A certificate over this key (PKCS#8), with this evidence in it.
pub fn certificate_with(key_pkcs8: &[u8], quote: &[u8], claims: &[u8]) -> Vec<u8> {
    let key = KeyPair::try_from(key_pkcs8).unwrap();
    let pair = Value::Array(vec![Value::Bytes(quote.to_vec()), Value::Bytes(claims.to_vec())]);
    let mut evidence = Vec::new();
    // IANA's tag of Intel TEE quotes, in the extension of TCG DICE.
    ciborium::into_writer(&Value::Tag(60000, Box::new(pair)), &mut evidence).unwrap();
    let mut params = CertificateParams::default();
    let extension = CustomExtension::from_oid_content(&[2, 23, 133, 5, 4, 9], evidence);
    params.custom_extensions.push(extension);
    params.self_signed(&key).unwrap().der().to_vec()
}

/// A company's TLS proxy before `target`: it ends TLS with a certificate of the company's own authority, chain behind it or
/// not, and passes on in the clear what comes.
pub async fn tls_proxy(target: String, whole_chain: bool) -> (String, tokio::task::JoinHandle<()>) {
    let (ca_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut ca = CertificateParams::default();
    ca.distinguished_name
        .push(DnType::CommonName, "Example Corp Inspection CA");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = ca.self_signed(&ca_key).unwrap();
    let mut leaf = CertificateParams::new(vec!["aggregator.example".to_owned()]).unwrap();
    leaf.distinguished_name.push(DnType::CommonName, "aggregator.example");
    let leaf = leaf.signed_by(&key, &Issuer::from_params(&ca, &ca_key)).unwrap();
    let mut chain = vec![leaf.der().clone()];
    if whole_chain {
        chain.push(authority.der().clone());
    }
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    // Like an ordinary server it wants no certificate of who dials.
    let config = ServerConfig::builder_with_provider(tls::crypto())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut near) = acceptor.accept(stream).await else {
                continue;
            };
            let Ok(mut far) = TcpStream::connect(&target).await else {
                continue;
            };
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        }
    });
    (address, task)
}
