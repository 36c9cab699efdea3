//! The TLS certificate that carries evidence (interoperable RA-TLS): layer 1.
//!
//! A self-signed certificate, made in memory at start, with the extension 2.23.133.5.4.9 (TCG DICE conceptual message
//! wrapper, not critical) holding CBOR `60000([quote, claims])`; the quote's report data is SHA-256(claims) | 32 zero
//! bytes. Nothing here is fresh: what ties a TD to one connection is layer 2, [`crate::session`].

mod certificate;

use bytes::Bytes;
use cloister_tensor::Digest;
use cloister_wire::MAX_FRAME_BYTES;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::claims::{self, Claims, ClaimsError, NodeClaims, State};
use crate::event_log::MAX_SHOWN_LOG_BYTES;
use crate::identity::{Credential, SigningKey};
use crate::measurement::Measurement;
use crate::provider::{ProviderError, QuoteProvider};
use crate::quote::{MAX_QUOTE_BYTES, Quote, QuoteError, TdReport};
use crate::refusal::{FailedRule, Refusal};
use crate::verify::{VerifiedQuote, Verifier};

pub use certificate::{CertificateError, CertificateNames, MAX_CERTIFICATE_BYTES, PeerCertificate};

/// TCG DICE conceptual message wrapper.
pub(crate) const EXTENSION_OID: [u64; 6] = [2, 23, 133, 5, 4, 9];
/// Intel TEE quote, IANA CBOR tags.
pub(crate) const TAG_TEE_QUOTE: u64 = 60000;

/// Who a node is: its key, and the credential by which its participant endorses it.
#[derive(Debug)]
pub struct NodeIdentity {
    /// The node's secret key.
    pub key: SigningKey,
    /// The credential for its public half.
    pub credential: Credential,
}

/// Why a certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The credential is for another key.
    #[error("the credential is for the node key {credential}, but the key file holds {key}; endorse this key")]
    OtherKey {
        /// The key in the credential.
        credential: String,
        /// The key at hand.
        key: String,
    },
    /// The claims can't be written.
    #[error("writing the claims: {0}")]
    Claims(#[from] ClaimsError),
    /// No quote could be had.
    #[error("taking the quote of the TLS certificate: {0}")]
    Quote(#[from] ProviderError),
    /// What the provider gave is no quote.
    #[error("the quote of the TLS certificate is none: {0}")]
    Form(#[from] QuoteError),
    /// The certificate could not be made.
    #[error("making the TLS certificate: {0}")]
    Certificate(#[from] rcgen::Error),
}

/// What a node shows in TLS: certificate and key, and the claims in it.
pub struct RaTlsIdentity {
    /// The certificate, DER.
    pub cert_der: Vec<u8>,
    /// Its key, PKCS#8 DER (ECDSA P-256).
    pub key_pkcs8: Zeroizing<Vec<u8>>,
    /// The claims' bytes, as they are in the certificate.
    pub claims: Bytes,
    /// SHA-256 of the key's SubjectPublicKeyInfo.
    pub spki_sha256: [u8; 32],
    /// The claims, read.
    pub node: NodeClaims,
    /// The credential's text, shown in layer 2; empty without one.
    pub credential: Bytes,
    /// What the certificate's quote says of this TD.
    pub td: TdReport,
    /// The log of what was extended into RTMR3, shown in layer 2; empty without one.
    pub event_log: Bytes,
}

impl RaTlsIdentity {
    /// Makes key, claims, quote and certificate of a node. Takes one quote.
    ///
    /// # Errors
    /// [`IdentityError`] if the credential is for another key, or the quote or certificate can't be made.
    pub fn new(
        provider: &dyn QuoteProvider,
        identity: &NodeIdentity,
        state: State,
        measurement: Measurement,
        policy_digest: Digest,
        now_unix_s: u64,
    ) -> Result<Self, IdentityError> {
        let fields = &identity.credential.fields;
        let node_key = identity.key.public();
        if fields.node_key != node_key {
            let credential = fields.node_key.to_string();
            return Err(IdentityError::OtherKey {
                credential,
                key: node_key.to_string(),
            });
        }
        let node = NodeClaims {
            federation: fields.federation.clone(),
            participant: fields.participant.clone(),
            node: fields.node.clone(),
            role: fields.role,
            state,
            policy_digest,
            node_key,
            measurement,
        };
        let credential = Bytes::from(identity.credential.to_text());
        Self::from_claims(provider, &identity.key, node, credential, now_unix_s)
    }

    /// Makes the certificate for any claims and credential text: what [`RaTlsIdentity::new`] does once it has made them
    /// fit, and what a hostile node can do as well. Peers refuse what does not fit.
    ///
    /// # Errors
    /// [`IdentityError`] if the quote or the certificate can't be made.
    pub fn from_claims(
        provider: &dyn QuoteProvider,
        node_key: &SigningKey,
        node: NodeClaims,
        credential: Bytes,
        now_unix_s: u64,
    ) -> Result<Self, IdentityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let spki_sha256 = Sha256::digest(rcgen::PublicKeyData::subject_public_key_info(&key)).into();
        let claims = claims::make(node_key, &spki_sha256, &node)?;
        let quote = provider.quote(&layer1_report_data(&Digest::of(&claims)))?;
        let td = Quote::parse(&quote)?.report;
        let evidence = tagged_evidence(&quote, &claims)?;
        let cert_der = self_signed(&key, &node.node, Some(evidence), now_unix_s)?;
        let key_pkcs8 = Zeroizing::new(key.serialize_der());
        Ok(Self {
            cert_der,
            key_pkcs8,
            claims: claims.into(),
            spki_sha256,
            node,
            credential,
            td,
            event_log: Bytes::new(),
        })
    }

    /// How long a log may be, in bytes, so that it has a place in a frame beside quote, claims and credential.
    pub fn room_for_log(&self) -> usize {
        /// A session's place in a batch, and the lengths of the fields.
        const REST_BYTES: usize = 1024;
        let beside = MAX_QUOTE_BYTES + self.claims.len() + self.credential.len() + REST_BYTES;
        MAX_SHOWN_LOG_BYTES.min(MAX_FRAME_BYTES.saturating_sub(beside))
    }

    /// Shows a log of what was extended into RTMR3 beside the quotes, which are of one TD in one state.
    #[must_use]
    pub fn with_event_log(mut self, log: Bytes) -> Self {
        self.event_log = log;
        self
    }
}

impl std::fmt::Debug for RaTlsIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "RaTlsIdentity({} {} of {})",
            self.node.role, self.node.node, self.node.participant
        )
    }
}

/// A certificate without evidence, for a command line that dials in as a visitor.
pub struct VisitorIdentity {
    /// The certificate, DER.
    pub cert_der: Vec<u8>,
    /// Its key, PKCS#8 DER (ECDSA P-256).
    pub key_pkcs8: Zeroizing<Vec<u8>>,
    /// SHA-256 of the key's SubjectPublicKeyInfo.
    pub spki_sha256: [u8; 32],
    /// The participant that signs the connection, and its key; without one the visitor may only look.
    pub signer: Option<(String, SigningKey)>,
}

impl VisitorIdentity {
    /// Makes key and certificate of a visitor.
    ///
    /// # Errors
    /// [`IdentityError::Certificate`] if it can't be made.
    pub fn new(signer: Option<(String, SigningKey)>, now_unix_s: u64) -> Result<Self, IdentityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let spki_sha256 = Sha256::digest(rcgen::PublicKeyData::subject_public_key_info(&key)).into();
        let cert_der = self_signed(&key, "visitor", None, now_unix_s)?;
        Ok(Self {
            cert_der,
            key_pkcs8: Zeroizing::new(key.serialize_der()),
            spki_sha256,
            signer,
        })
    }
}

impl std::fmt::Debug for VisitorIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.signer.as_ref().map_or("nobody", |(name, _)| name);
        write!(f, "VisitorIdentity({name})")
    }
}

/// Report data of the certificate's quote: SHA-256(claims) | 32 zero bytes.
pub fn layer1_report_data(claims_digest: &Digest) -> [u8; 64] {
    let mut out = [0; 64];
    out[..32].copy_from_slice(claims_digest.as_bytes());
    out
}

pub(crate) fn tagged_evidence(quote: &[u8], claims: &[u8]) -> Result<Vec<u8>, ClaimsError> {
    let pair = claims::array(vec![claims::bytes(quote), claims::bytes(claims)]);
    claims::encode(&ciborium::Value::Tag(TAG_TEE_QUOTE, Box::new(pair)))
}

pub(crate) fn self_signed(
    key: &KeyPair,
    name: &str,
    evidence: Option<Vec<u8>>,
    now_unix_s: u64,
) -> Result<Vec<u8>, rcgen::Error> {
    const DAY: u64 = 86_400;
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    // The certificate lives as long as the process; what is fresh is layer 2, what expires is the credential.
    params.not_before = epoch + std::time::Duration::from_secs(now_unix_s.saturating_sub(DAY));
    params.not_after =
        epoch + std::time::Duration::from_secs(now_unix_s.saturating_add(3650 * DAY).min(253_402_300_799));
    if let Some(evidence) = evidence {
        params
            .custom_extensions
            .push(CustomExtension::from_oid_content(&EXTENSION_OID, evidence));
    }
    Ok(params.self_signed(key)?.der().to_vec())
}

/// A certificate whose parts belong together: its claims name its key, and its quote is over its claims. Whether the quote
/// is one remains to be verified.
#[derive(Clone, Debug)]
pub(crate) struct CoherentCertificate {
    pub(crate) claims: Claims,
    pub(crate) claims_bytes: Bytes,
    pub(crate) quote: Bytes,
    /// What the quote says of its TD.
    pub(crate) report: TdReport,
}

impl CoherentCertificate {
    /// What the quote has to be over.
    pub(crate) fn report_data(&self) -> [u8; 64] {
        layer1_report_data(&self.claims.digest())
    }
}

impl PeerCertificate {
    /// Verifies layer 1 of a peer's certificate: what a certificate alone can show, which is not enough for a session.
    ///
    /// # Errors
    /// [`Refusal`] with every rule that failed.
    pub fn verify(&self, verifier: &Verifier, now_unix_s: u64) -> Result<(NodeClaims, VerifiedQuote), Refusal> {
        let coherent = self.check()?;
        let quote = verifier.verify(&coherent.quote, &coherent.report_data(), now_unix_s)?;
        Ok((coherent.claims.node, quote))
    }

    /// The claims in it, unverified: whom the peer says it is, for words about a refusal.
    pub fn claimed(&self) -> Option<NodeClaims> {
        let evidence = self.evidence.as_ref()?;
        Claims::parse(&evidence.claims).ok().map(|claims| claims.node)
    }

    /// Checks what needs no signature: size and form, the key, and that the quote is over the claims.
    ///
    /// # Errors
    /// [`Refusal`] with every rule that failed.
    pub(crate) fn check(&self) -> Result<CoherentCertificate, Refusal> {
        let Some(evidence) = &self.evidence else {
            return Err(Refusal::one(
                "certificate.evidence",
                "a TLS certificate without evidence",
                "an RA-TLS certificate",
            ));
        };
        let claims = Claims::parse(&evidence.claims)
            .map_err(|error| Refusal::one("claims", error, "claims of a Cloister node"))?;
        let mut failed = Vec::new();
        if claims.spki_sha256 != self.spki_sha256 {
            failed.push(FailedRule::new(
                "certificate.pubkey_hash",
                crate::encoding::hex(&claims.spki_sha256),
                format!(
                    "{}, the key of this TLS certificate; if the evidence is a node's, a TLS proxy stands between it and \
                     this end",
                    crate::encoding::hex(&self.spki_sha256)
                ),
            ));
        }
        let quote = Quote::parse(&evidence.quote)
            .map_err(|error| Refusal::one("quote", error, "a TDX quote of version 4 or 5"))?;
        let wanted = layer1_report_data(&claims.digest());
        if !bool::from(quote.report.report_data.ct_eq(&wanted)) {
            let seen = crate::encoding::hex(&quote.report.report_data);
            let wanted = format!("{}, the claims in this TLS certificate", crate::encoding::hex(&wanted));
            failed.push(FailedRule::new("quote.report_data", seen, wanted));
        }
        Refusal::unless_empty(failed)?;
        Ok(CoherentCertificate {
            claims,
            claims_bytes: evidence.claims.clone(),
            quote: evidence.quote.clone(),
            report: quote.report,
        })
    }
}
