//! Dialling a node: TCP (or a proxy), TLS, attestation, all within ten seconds.

use std::sync::Arc;
use std::time::Duration;

use cloister_attestation::claims::NodeClaims;
use cloister_attestation::identity::Role;
use cloister_attestation::session::{EXPORTER_LABEL, Side};
use cloister_attestation::{Appraise, PeerEvidence};
use cloister_policy::{Appraiser, Expected, Permit};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, TlsStream};

use crate::HANDSHAKE_S;
use crate::connection::{Admission, AttestedConnection, Peer};
use crate::error::SessionError;
use crate::handshake::{Admit, Channel, attest};
use crate::lease;
use crate::local::{Local, SelfSide};
use crate::proxy::Proxy;
use crate::tls;

/// Label of the exporter that names a connection in its permit.
const CONNECTION_LABEL: &[u8] = b"EXPERIMENTAL-cloister-connection-v1";

/// Whom to dial and how.
#[derive(Clone, Debug)]
pub struct DialOptions {
    /// `HOST:PORT`.
    pub address: String,
    /// Out through this proxy.
    pub proxy: Option<Proxy>,
    /// Take nobody but a node of this role.
    pub role: Option<Role>,
}

/// Dials, attests both ways, and gives the connection if both policies permit it. A node's connection is attested anew as
/// long as it lives, before its permit ends; a visitor's ends with its permit.
pub async fn connect(local: &Local, options: &DialOptions) -> Result<AttestedConnection, SessionError> {
    let connection = connect_once(local, options).await?;
    if matches!(local.own, SelfSide::Node(_)) {
        lease::keep(local, options, connection.peer());
    }
    Ok(connection)
}

/// One session, for as long as its permit.
pub(crate) async fn connect_once(local: &Local, options: &DialOptions) -> Result<AttestedConnection, SessionError> {
    let address = &options.address;
    let attempt = async {
        let stream = tcp(options).await?;
        let expected = Expected {
            role: options.role,
            ..Expected::default()
        };
        let appraiser = Appraiser::new(Arc::clone(&local.policy)).expecting(expected);
        dial_over(local, stream, Arc::new(appraiser), address).await
    };
    tokio::time::timeout(Duration::from_secs(HANDSHAKE_S), attempt)
        .await
        .map_err(|_| SessionError::TooSlow {
            address: address.clone(),
            seconds: HANDSHAKE_S,
        })?
}

/// A TCP stream to the node, by the proxy if there is one.
pub(crate) async fn tcp(options: &DialOptions) -> Result<TcpStream, SessionError> {
    let address = &options.address;
    match &options.proxy {
        Some(proxy) => Ok(proxy.connect(address).await?),
        None => TcpStream::connect(address)
            .await
            .map_err(|source| SessionError::Unreachable {
                address: address.clone(),
                source,
            }),
    }
}

async fn dial_over(
    local: &Local,
    stream: TcpStream,
    appraiser: Arc<dyn Appraise>,
    address: &str,
) -> Result<AttestedConnection, SessionError> {
    let own = |error: rustls::Error| SessionError::Own {
        cause: error.to_string(),
    };
    let no_tls = |cause: String| SessionError::Tls {
        address: address.to_owned(),
        cause,
    };
    stream.set_nodelay(true).map_err(|error| no_tls(error.to_string()))?;
    let (certificate, key) = local.tls_identity();
    let config = tls::client_config(certificate, key).map_err(own)?;
    // Certificates name no hosts here: who may answer is the policy's to say, so this name is never compared.
    let name = ServerName::try_from("cloister.invalid").map_err(|error| no_tls(error.to_string()))?;
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .map_err(|error| tls::failed(address, &error))?;
    let admit = |_: &PeerEvidence| Ok(());
    finish(local, stream.into(), Side::Client, appraiser, (address, &admit)).await
}

/// What both ends do once TLS is up.
pub(crate) async fn finish(
    local: &Local,
    mut stream: TlsStream<TcpStream>,
    side: Side,
    appraiser: Arc<dyn Appraise>,
    (address, admit): (&str, Admit<'_>),
) -> Result<AttestedConnection, SessionError> {
    let no_tls = |cause: &str| SessionError::Tls {
        address: address.to_owned(),
        cause: cause.to_owned(),
    };
    let (exporter, connection, certificate) = {
        let (_, tls) = stream.get_ref();
        if tls.alpn_protocol() != Some(tls::ALPN) {
            return Err(no_tls("the peer did not choose the protocol cloister/1"));
        }
        let export = |label| {
            let exported = match &stream {
                TlsStream::Client(stream) => stream.get_ref().1.export_keying_material([0; 32], label, Some(&[])),
                TlsStream::Server(stream) => stream.get_ref().1.export_keying_material([0; 32], label, Some(&[])),
            };
            exported.map_err(|error| no_tls(&error.to_string()))
        };
        let certificate = tls.peer_certificates().and_then(|chain| chain.first()).cloned();
        let certificate = certificate.ok_or_else(|| no_tls("the peer showed no certificate"))?;
        (export(EXPORTER_LABEL)?, export(CONNECTION_LABEL)?, certificate)
    };
    let peer_address = stream
        .get_ref()
        .0
        .peer_addr()
        .map_err(|error| no_tls(&error.to_string()))?;
    let channel = Channel {
        side,
        exporter,
        peer_certificate: &certificate,
        address,
        admit,
    };
    let evidence = attest(&mut stream, local, appraiser, channel).await?;
    let now = (local.clock)();
    let admission = match &evidence {
        PeerEvidence::Td(td) => local.policy.permit(td, connection, now).map(Admission::Node),
        PeerEvidence::Visitor(visitor) => local.policy.visit(visitor).map(Admission::Visitor),
    };
    let admission = admission.map_err(|refusal| SessionError::RefusedPeer {
        address: address.to_owned(),
        who: who(&evidence),
        claimed: claimed(&evidence),
        refusal,
    })?;
    tracing::debug!(peer = who(&evidence).trim(), address, "attested");
    let until_unix_s = match &admission {
        Admission::Node(permit) => Permit::expiry_unix_s(permit),
        Admission::Visitor(_) => now.saturating_add(local.policy.attestation.permit_max_s),
    };
    let peer = Peer::new(evidence, admission, (peer_address, connection), until_unix_s);
    Ok(AttestedConnection::new(stream, peer, Arc::clone(&local.clock)))
}

fn who(evidence: &PeerEvidence) -> String {
    match evidence {
        PeerEvidence::Td(td) => format!(" ({} {} of {})", td.role(), td.node(), td.participant()),
        PeerEvidence::Visitor(visitor) => format!(" (visitor of {})", visitor.participant().unwrap_or("nobody")),
    }
}

fn claimed(evidence: &PeerEvidence) -> Option<Box<NodeClaims>> {
    match evidence {
        PeerEvidence::Td(td) => Some(Box::new(td.claims().clone())),
        PeerEvidence::Visitor(_) => None,
    }
}
