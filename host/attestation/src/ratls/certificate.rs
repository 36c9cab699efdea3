//! A peer's certificate, taken apart in bounds: it is hostile until its evidence verified.

use bytes::Bytes;
use ciborium::Value;
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{EXTENSION_OID, TAG_TEE_QUOTE};
use crate::claims::{self, MAX_CLAIMS_BYTES};
use crate::quote::MAX_QUOTE_BYTES;
use crate::refusal::tame;

/// Longest certificate read, in bytes.
pub const MAX_CERTIFICATE_BYTES: usize = 60 * 1024;

/// Why bytes are no certificate that can carry evidence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Longer than one can be.
    #[error("a TLS certificate of {seen} bytes, wanted at most {MAX_CERTIFICATE_BYTES}")]
    TooLong {
        /// Its length, in bytes.
        seen: usize,
    },
    /// Not X.509.
    #[error("the TLS certificate is not X.509: {cause}")]
    Malformed {
        /// What the parser said.
        cause: String,
    },
    /// The evidence extension is there more than once.
    #[error("the TLS certificate has {seen} evidence extensions, wanted one")]
    Twice {
        /// How many.
        seen: usize,
    },
    /// The extension does not hold evidence of a TD.
    #[error("the TLS certificate's evidence is not CBOR 60000([quote, claims]): {cause}")]
    Evidence {
        /// What is wrong.
        cause: String,
    },
}

/// Whose a certificate says that it is: for words about one that no node has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateNames {
    /// Its subject; cut, and without control characters.
    pub subject: String,
    /// Who issued it, likewise.
    pub issuer: String,
}

impl CertificateNames {
    /// Reads the names in a certificate, whatever else is in it.
    pub fn read(der: &[u8]) -> Self {
        let unreadable = || ("something unreadable".to_owned(), "nobody".to_owned());
        let certificate = der
            .get(..der.len().min(MAX_CERTIFICATE_BYTES))
            .map(X509Certificate::from_der);
        let (subject, issuer) = match certificate {
            Some(Ok((_, certificate))) => (certificate.subject().to_string(), certificate.issuer().to_string()),
            _ => unreadable(),
        };
        Self {
            subject: tame(&subject),
            issuer: tame(&issuer),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TaggedEvidence {
    pub(crate) quote: Bytes,
    pub(crate) claims: Bytes,
}

/// A peer's certificate as TLS showed it: that the peer holds its key is TLS's to check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCertificate {
    pub(crate) spki_sha256: [u8; 32],
    pub(crate) evidence: Option<TaggedEvidence>,
}

impl PeerCertificate {
    /// Takes a certificate apart.
    ///
    /// # Errors
    /// [`CertificateError`] says what is wrong. A certificate without evidence is none: visitors have such.
    pub fn parse(der: &[u8]) -> Result<Self, CertificateError> {
        if der.len() > MAX_CERTIFICATE_BYTES {
            return Err(CertificateError::TooLong { seen: der.len() });
        }
        let malformed = |cause: String| CertificateError::Malformed { cause };
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|error| malformed(error.to_string()))?;
        if !rest.is_empty() {
            return Err(malformed("bytes behind it".into()));
        }
        let ours = |oid: &x509_parser::der_parser::oid::Oid<'_>| {
            oid.iter().is_some_and(|arcs| arcs.eq(EXTENSION_OID.iter().copied()))
        };
        let found: Vec<_> = certificate
            .extensions()
            .iter()
            .filter(|extension| ours(&extension.oid))
            .collect();
        let evidence = match found[..] {
            [] => None,
            [extension] => Some(parse_evidence(extension.value)?),
            _ => return Err(CertificateError::Twice { seen: found.len() }),
        };
        Ok(Self {
            spki_sha256: Sha256::digest(certificate.public_key().raw).into(),
            evidence,
        })
    }

    /// SHA-256 of the certificate's SubjectPublicKeyInfo.
    pub fn spki_sha256(&self) -> &[u8; 32] {
        &self.spki_sha256
    }

    /// The quote and the claims that it carries, as they stand there: nothing about them is verified.
    pub fn shown(&self) -> Option<(&[u8], &[u8])> {
        self.evidence
            .as_ref()
            .map(|evidence| (&evidence.quote[..], &evidence.claims[..]))
    }

    /// Whether it carries evidence (not whether that verifies).
    pub fn has_evidence(&self) -> bool {
        self.evidence.is_some()
    }
}

fn parse_evidence(value: &[u8]) -> Result<TaggedEvidence, CertificateError> {
    let wrong = |cause: &str| CertificateError::Evidence {
        cause: cause.to_owned(),
    };
    let item = claims::decode(value).map_err(|error| wrong(&error.to_string()))?;
    let Value::Tag(TAG_TEE_QUOTE, pair) = item else {
        return Err(wrong("another tag"));
    };
    let Value::Array(pair) = *pair else {
        return Err(wrong("no array"));
    };
    let Ok([Value::Bytes(quote), Value::Bytes(claims)]) = <[Value; 2]>::try_from(pair) else {
        return Err(wrong("not two byte strings"));
    };
    if quote.len() > MAX_QUOTE_BYTES || claims.len() > MAX_CLAIMS_BYTES {
        return Err(wrong("too long"));
    }
    Ok(TaggedEvidence {
        quote: quote.into(),
        claims: claims.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, CustomExtension, KeyPair};

    fn with_extensions(contents: &[Vec<u8>]) -> Vec<u8> {
        let mut params = CertificateParams::default();
        for content in contents {
            params
                .custom_extensions
                .push(CustomExtension::from_oid_content(&EXTENSION_OID, content.clone()));
        }
        params
            .self_signed(&KeyPair::generate().unwrap())
            .unwrap()
            .der()
            .to_vec()
    }

    #[test]
    fn evidence_is_found_once() {
        let good = crate::ratls::tagged_evidence(b"quote", b"claims").unwrap();
        // CBOR tag 60000, array of two.
        assert_eq!(&good[..4], &[0xd9, 0xea, 0x60, 0x82]);
        let parsed = PeerCertificate::parse(&with_extensions(std::slice::from_ref(&good))).unwrap();
        assert_eq!(parsed.evidence.unwrap().claims.as_ref(), b"claims");
        assert!(!PeerCertificate::parse(&with_extensions(&[])).unwrap().has_evidence());
        let twice = PeerCertificate::parse(&with_extensions(&[good.clone(), good]));
        assert!(twice.is_err());
    }

    #[test]
    fn other_contents_are_refused() {
        let pair = |tag| {
            let pair = claims::array(vec![claims::bytes(b"q"), claims::bytes(b"c")]);
            claims::encode(&Value::Tag(tag, Box::new(pair))).unwrap()
        };
        for content in [
            pair(60001),
            vec![],
            vec![0xff],
            vec![0x82, 0x41, 0x00, 0x41, 0x00],
            vec![0xd9; 40],
        ] {
            let error = PeerCertificate::parse(&with_extensions(&[content])).unwrap_err();
            assert!(matches!(error, CertificateError::Evidence { .. }), "{error}");
        }
        let mut der = with_extensions(&[pair(TAG_TEE_QUOTE)]);
        der.push(0);
        assert!(matches!(
            PeerCertificate::parse(&der),
            Err(CertificateError::Malformed { .. })
        ));
        assert!(matches!(
            PeerCertificate::parse(&vec![0x30; 70_000]),
            Err(CertificateError::TooLong { .. })
        ));
    }

    proptest::proptest! {
        #[test]
        fn no_flip_makes_the_parser_panic(at in 0usize..600, byte in proptest::num::u8::ANY) {
            let good = crate::ratls::tagged_evidence(b"quote", b"claims").unwrap();
            let mut der = with_extensions(&[good]);
            let at = at % der.len();
            der[at] = byte;
            let _ = PeerCertificate::parse(&der);
            let _ = PeerCertificate::parse(&der[..at]);
        }
    }
}
