//! TLS as sessions use it. Both configurations are made here and nowhere else.
//!
//! The verifiers do what is cheap and what only TLS can: the certificate is one that can carry evidence, in bounds, and
//! the peer holds its key. The quote in it (layer 1) is verified right after, together with layer 2, before anything is
//! sent or believed: a refusal then reaches the peer as a verdict with every rule that failed, not as a bare TLS alert.

use std::sync::Arc;

use cloister_attestation::Refusal;
use cloister_attestation::ratls::{CertificateNames, PeerCertificate};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerIncompatible,
    ServerConfig, SignatureScheme,
};

use crate::error::SessionError;

/// The one application protocol of a session.
pub const ALPN: &[u8] = b"cloister/1";

/// Algorithms: aws-lc-rs, TLS 1.3 suites, X25519MLKEM768 first (post-quantum hybrid), X25519 behind it.
pub fn crypto() -> Arc<CryptoProvider> {
    let kx_groups = vec![aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519];
    let cipher_suites = vec![
        aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
        aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(CryptoProvider {
        kx_groups,
        cipher_suites,
        ..aws_lc_rs::default_provider()
    })
}

/// The configuration of the end that dials.
pub fn client_config(cert_der: &[u8], key_pkcs8: &[u8]) -> Result<ClientConfig, Error> {
    let crypto = crypto();
    let verifier = Arc::new(CheapVerifier {
        crypto: Arc::clone(&crypto),
    });
    let mut config = ClientConfig::builder_with_provider(crypto)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(chain(cert_der), key(key_pkcs8))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    Ok(config)
}

/// The configuration of the end that listens.
pub fn server_config(cert_der: &[u8], key_pkcs8: &[u8]) -> Result<ServerConfig, Error> {
    let crypto = crypto();
    let verifier = Arc::new(CheapVerifier {
        crypto: Arc::clone(&crypto),
    });
    let mut config = ServerConfig::builder_with_provider(crypto)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain(cert_der), key(key_pkcs8))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

fn chain(cert_der: &[u8]) -> Vec<CertificateDer<'static>> {
    vec![CertificateDer::from(cert_der.to_vec())]
}

fn key(key_pkcs8: &[u8]) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key_pkcs8.to_vec()))
}

/// Takes any certificate that is in bounds; what it says is judged right after the TLS handshake.
#[derive(Debug)]
struct CheapVerifier {
    crypto: Arc<CryptoProvider>,
}

impl CheapVerifier {
    fn check(certificate: &CertificateDer<'_>, behind: &[CertificateDer<'_>]) -> Result<PeerCertificate, Error> {
        if !behind.is_empty() {
            return Err(Interception::by(certificate));
        }
        PeerCertificate::parse(certificate)
            .map_err(|error| Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error)))))
    }

    fn signed(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.crypto.signature_verification_algorithms,
        )
    }
}

/// A certificate that no node has: one with a chain behind it, or a listener's without evidence. Companies' TLS proxies, and
/// ordinary servers, show such.
#[derive(Debug, thiserror::Error)]
#[error("a certificate of {}, issued by {}, where a node's own was due", .0.subject, .0.issuer)]
struct Interception(CertificateNames);

impl Interception {
    fn by(certificate: &CertificateDer<'_>) -> Error {
        let interception = Arc::new(Self(CertificateNames::read(certificate)));
        Error::InvalidCertificate(CertificateError::Other(OtherError(interception)))
    }
}

/// What a TLS handshake that failed means.
pub(crate) fn failed(address: &str, error: &std::io::Error) -> SessionError {
    let address = address.to_owned();
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    let intercepted = match tls {
        Some(Error::InvalidCertificate(CertificateError::Other(OtherError(inner)))) => {
            inner.downcast_ref::<Interception>()
        }
        _ => None,
    };
    if let Some(Interception(names)) = intercepted {
        let seen = format!("a certificate of {}, issued by {}", names.subject, names.issuer);
        return SessionError::Intercepted {
            address,
            names: names.clone(),
            refusal: Refusal::one("certificate.evidence", seen, "a node's own certificate with evidence"),
        };
    }
    let hint = match tls {
        Some(Error::NoCertificatesPresented) => " (no node dials without one: a TLS proxy in between, or a stranger)",
        Some(Error::PeerIncompatible(_)) => " (a node speaks nothing older: a TLS proxy in between, or another server)",
        _ => "",
    };
    SessionError::Tls {
        address,
        cause: format!("{error}{hint}"),
    }
}

fn not_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::PeerIncompatible(PeerIncompatible::ServerDoesNotSupportTls12Or13))
}

impl ServerCertVerifier for CheapVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = Self::check(end_entity, intermediates)?;
        if !certificate.has_evidence() {
            // A listener is a node; only diallers may be visitors.
            return Err(Interception::by(end_entity));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        not_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.crypto.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for CheapVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Self::check(end_entity, intermediates).map(|_| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        not_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.crypto.signature_verification_algorithms.supported_schemes()
    }
}
