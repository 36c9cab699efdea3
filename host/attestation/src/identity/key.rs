//! Ed25519 keys (RFC 8032): secret ones as PKCS#8 PEM (RFC 5958, RFC 7468), public ones as base64 or hexadecimal.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::encoding::AsBigEndian as _;
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::encoding::{from_hex, hex};

const BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const END: &str = "-----END PRIVATE KEY-----";
/// Longest PEM text read as a key, in bytes: an Ed25519 one takes about 200.
const MAX_PEM_BYTES: usize = 4096;

/// Why a key could not be read or made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text is no PEM private key.
    #[error("the key file is no PKCS#8 PEM file, wanted {BEGIN} and base64; make one with `cloister identity new`")]
    Pem,
    /// The PEM holds something else than an Ed25519 key.
    #[error("the key file holds no Ed25519 key ({cause}); make one with `cloister identity new`")]
    Kind {
        /// What the parser said.
        cause: String,
    },
    /// The text is no public key. It is not quoted: who mixes files up may have given a secret.
    #[error(
        "{length} bytes that are no public key, wanted an Ed25519 key: 32 bytes as base64 or 64 hexadecimal digits"
    )]
    Public {
        /// Length of the text in bytes.
        length: usize,
    },
    /// A secret key stands where a public one is wanted.
    #[error(
        "this is the secret key, which nobody else may see; give the public one (`cloister identity new` wrote it beside, as .pub)"
    )]
    SecretForPublic,
    /// The system gave no randomness.
    #[error("the system gave no randomness for a new key")]
    Random,
}

/// A secret Ed25519 key: a participant's or a node's. It is never printed; `Debug` shows the public half.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    pkcs8: Zeroizing<Vec<u8>>,
}

impl SigningKey {
    /// Makes a new key.
    ///
    /// # Errors
    /// [`KeyError::Random`] if the system gives no randomness.
    pub fn generate() -> Result<Self, KeyError> {
        let document = Ed25519KeyPair::generate_pkcs8(&aws_lc_rs::rand::SystemRandom::new());
        let pkcs8 = Zeroizing::new(document.map_err(|_| KeyError::Random)?.as_ref().to_vec());
        Self::from_pkcs8(pkcs8)
    }

    /// Reads a PKCS#8 PEM file's text; `openssl genpkey -algorithm ed25519` writes one, too.
    ///
    /// # Errors
    /// [`KeyError::Pem`] if it is no PEM, [`KeyError::Kind`] if the key is of another kind.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        if text.len() > MAX_PEM_BYTES {
            return Err(KeyError::Pem);
        }
        let body = text
            .split_once(BEGIN)
            .and_then(|(_, rest)| rest.split_once(END))
            .ok_or(KeyError::Pem)?
            .0;
        let body: Zeroizing<String> = Zeroizing::new(body.split_ascii_whitespace().collect());
        let pkcs8 = STANDARD.decode(body.as_bytes()).map_err(|_| KeyError::Pem)?;
        Self::from_pkcs8(Zeroizing::new(pkcs8))
    }

    fn from_pkcs8(pkcs8: Zeroizing<Vec<u8>>) -> Result<Self, KeyError> {
        // Version 1 files (openssl's) come without the public half.
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&pkcs8);
        let pair = pair.map_err(|error| KeyError::Kind {
            cause: error.to_string(),
        })?;
        Ok(Self { pair, pkcs8 })
    }

    /// The key as a PKCS#8 PEM file's text. Write it with mode 0600.
    pub fn to_pem(&self) -> Zeroizing<String> {
        let body = Zeroizing::new(STANDARD.encode(&*self.pkcs8));
        let mut text = Zeroizing::new(String::with_capacity(body.len() + 128));
        text.push_str(BEGIN);
        for (i, character) in body.chars().enumerate() {
            if i % 64 == 0 {
                text.push('\n');
            }
            text.push(character);
        }
        text.push('\n');
        text.push_str(END);
        text.push('\n');
        text
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.pair.public_key().as_ref());
        PublicKey(bytes)
    }

    /// A secret for another use than signing, derived from this one: HKDF-SHA-256 (RFC 5869) of the key's 32 bytes (RFC 8032),
    /// `cloister/derived-secret/v1` as salt and the use as info. Who has the key has all of them; none tells of the others.
    ///
    /// # Errors
    /// [`KeyError::Kind`] if the key can't be had out of the library that keeps it.
    pub fn derive(&self, usage: &str) -> Result<Zeroizing<[u8; 32]>, KeyError> {
        let kind = |what: &str| KeyError::Kind { cause: what.to_owned() };
        let seed = self.pair.seed().and_then(|seed| seed.as_be_bytes());
        let seed = seed.map_err(|_| kind("its secret half cannot be read"))?;
        let prk = Salt::new(HKDF_SHA256, b"cloister/derived-secret/v1").extract(seed.as_ref());
        let mut secret = Zeroizing::new([0; 32]);
        prk.expand(&[usage.as_bytes()], HKDF_SHA256)
            .and_then(|okm| okm.fill(secret.as_mut()))
            .map_err(|_| kind("nothing can be derived from it"))?;
        Ok(secret)
    }

    /// Signs a message. What is signed here always begins with a domain (`cloister/.../v1`).
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes.copy_from_slice(self.pair.sign(message).as_ref());
        bytes
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey(public {})", self.public())
    }
}

/// A public Ed25519 key. As text: base64 with padding; 64 hexadecimal digits are read, too.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// A key out of its 32 bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key as 64 hexadecimal digits.
    pub fn to_hex(&self) -> String {
        hex(&self.0)
    }

    /// Whether the signature over the message is this key's.
    #[must_use]
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.0)
            .verify(message, signature)
            .is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let text = text.trim();
        if text.contains("PRIVATE KEY") {
            return Err(KeyError::SecretForPublic);
        }
        let bytes = from_hex::<32>(text).or_else(|| STANDARD.decode(text).ok()?.try_into().ok());
        bytes.map(Self).ok_or(KeyError::Public { length: text.len() })
    }
}

impl serde::Serialize for PublicKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for PublicKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_pem_and_text() {
        let key = SigningKey::generate().unwrap();
        let back = SigningKey::from_pem(&key.to_pem()).unwrap();
        assert_eq!(key.public(), back.public());
        assert_eq!(key.public().to_string().parse::<PublicKey>().unwrap(), key.public());
        assert_eq!(key.public().to_hex().parse::<PublicKey>().unwrap(), key.public());
        let signature = key.sign(b"message");
        assert!(back.public().verify(b"message", &signature));
        assert!(!back.public().verify(b"messagf", &signature));
        assert!(!back.public().verify(b"message", &signature[..63]));
    }

    // RFC 8410, section 10.3: the private key alone, as openssl writes it.
    #[test]
    fn a_version_1_file_is_read() {
        let pem = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
        let key = SigningKey::from_pem(pem).unwrap();
        // The public key of section 10.1.
        assert_eq!(
            key.public().to_hex(),
            "19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1"
        );
    }

    #[test]
    fn each_use_has_a_secret_of_its_own_that_follows_from_the_key() {
        let key = SigningKey::generate().unwrap();
        let again = SigningKey::from_pem(&key.to_pem()).unwrap();
        assert_eq!(key.derive("one").unwrap(), again.derive("one").unwrap());
        assert_ne!(key.derive("one").unwrap(), key.derive("two").unwrap());
        assert_ne!(
            key.derive("one").unwrap(),
            SigningKey::generate().unwrap().derive("one").unwrap()
        );
    }

    #[test]
    fn secrets_do_not_show() {
        let key = SigningKey::generate().unwrap();
        let shown = format!("{key:?}");
        assert!(shown.contains(&key.public().to_string()) && shown.len() < 80);
    }

    #[test]
    fn a_text_that_is_no_public_key_is_never_quoted() {
        let key = SigningKey::generate().unwrap();
        let pem = key.to_pem();
        assert_eq!(pem.parse::<PublicKey>(), Err(KeyError::SecretForPublic));
        let body: String = pem.lines().filter(|line| !line.starts_with("---")).collect();
        for text in [pem.as_str(), &body, &pem[..80]] {
            let error = text.parse::<PublicKey>().unwrap_err();
            for shown in [error.to_string(), format!("{error:?}")] {
                assert!(!shown.contains(&body[..12]), "{shown}");
            }
        }
    }

    #[test]
    fn broken_texts_are_refused() {
        for text in [
            "",
            "-----BEGIN PRIVATE KEY-----",
            "-----BEGIN PRIVATE KEY-----\n!!\n-----END PRIVATE KEY-----",
        ] {
            assert_eq!(SigningKey::from_pem(text).unwrap_err(), KeyError::Pem);
        }
        let short = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----";
        assert!(matches!(SigningKey::from_pem(short), Err(KeyError::Kind { .. })));
        assert!("AAAA".parse::<PublicKey>().is_err());
    }
}
