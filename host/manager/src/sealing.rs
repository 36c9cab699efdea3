//! Sealing to a public key: HPKE (RFC 9180), base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM.
//!
//! The implementation is rustls's over aws-lc-rs, which the sessions stand on already. The key of a participant is derived from
//! the Ed25519 key that the policy names, so that nobody has to keep a second one; it says so in a signed [`Recipient`].

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::agreement::{PrivateKey, X25519};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cloister_attestation::encoding::Layout;
use cloister_attestation::identity::{PublicKey, SigningKey};
use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256 as SUITE;
use rustls::crypto::hpke::{EncapsulatedSecret, Hpke as _, HpkePrivateKey, HpkePublicKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// Bytes of an encapsulated X25519 key.
const ENC_BYTES: usize = 32;
/// Bytes of the authentication tag behind a ciphertext.
const TAG_BYTES: usize = 16;
/// Most bytes that are sealed in one box: a release of the most keys that one request may ask for.
pub const MAX_SEALED_BYTES: usize = 4 << 20;
/// What a participant's key is derived for ([`SigningKey::derive`]).
const DERIVED_FOR: &str = "cloister/sealing-key/v1";

/// Why something was not sealed or not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealingError {
    /// The system gave no randomness, or the library refused.
    #[error("it cannot be sealed: the system's cryptography refused")]
    Refused,
    /// The text or the bytes are no X25519 public key.
    #[error("this is no sealing key: 32 bytes as base64 are wanted")]
    NoKey,
    /// The bytes are no sealed box.
    #[error("{bytes} bytes that are no sealed box; at least {} and at most {MAX_SEALED_BYTES} are wanted", ENC_BYTES + TAG_BYTES)]
    NoBox {
        /// How many there are.
        bytes: usize,
    },
    /// Sealed to another key, for another purpose or context, or changed.
    #[error("it does not open: it was sealed to another key or for another purpose, or it was changed")]
    NotOpened,
}

/// What a box is for: a box for one purpose does not open for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A share of the recovery key, to its holder.
    RecoveryShare,
    /// A share of the recovery key, from its holder to a manager that starts.
    Recovery,
    /// Keys, to the TD that was granted them.
    Release,
    /// A model's key, to a participant that gets the model.
    Export,
    /// The state's key, to another manager of the federation.
    Replica,
}

impl Purpose {
    fn info(self, context: &[u8]) -> Vec<u8> {
        let name = match self {
            Self::RecoveryShare => "recovery-share",
            Self::Recovery => "recovery",
            Self::Release => "release",
            Self::Export => "export",
            Self::Replica => "replica",
        };
        let layout = Layout::new("cloister/sealed-box/v1");
        layout.lp(name.as_bytes()).lp(context).into_bytes()
    }
}

/// The secret half of a sealing key.
pub struct SealingKey {
    secret: Zeroizing<[u8; 32]>,
    public: SealingPublicKey,
}

impl SealingKey {
    /// A new key: a TD's, for one session or one request.
    ///
    /// # Errors
    /// [`SealingError::Refused`] without randomness.
    pub fn generate() -> Result<Self, SealingError> {
        let mut secret = Zeroizing::new([0; 32]);
        getrandom::fill(secret.as_mut()).map_err(|_| SealingError::Refused)?;
        Self::new(secret)
    }

    /// A participant's: derived from its signing key.
    ///
    /// # Errors
    /// [`SealingError::Refused`] if nothing can be derived from that.
    pub fn of(signing: &SigningKey) -> Result<Self, SealingError> {
        Self::new(signing.derive(DERIVED_FOR).map_err(|_| SealingError::Refused)?)
    }

    fn new(secret: Zeroizing<[u8; 32]>) -> Result<Self, SealingError> {
        let pair = PrivateKey::from_private_key(&X25519, secret.as_ref()).map_err(|_| SealingError::Refused)?;
        let public = pair.compute_public_key().map_err(|_| SealingError::Refused)?;
        let public = public.as_ref().try_into().map_err(|_| SealingError::Refused)?;
        Ok(Self {
            secret,
            public: SealingPublicKey(public),
        })
    }

    /// The public half.
    pub fn public(&self) -> SealingPublicKey {
        self.public
    }

    /// Opens a box that was sealed to this key for that purpose and context.
    ///
    /// # Errors
    /// [`SealingError::NotOpened`].
    pub fn open(
        &self,
        purpose: Purpose,
        context: &[u8],
        sealed: &SealedBox,
    ) -> Result<Zeroizing<Vec<u8>>, SealingError> {
        let encapsulated = EncapsulatedSecret(sealed.enc.to_vec());
        let key = HpkePrivateKey::from(self.secret.to_vec());
        SUITE
            .open(&encapsulated, &purpose.info(context), &[], &sealed.ciphertext, &key)
            .map(Zeroizing::new)
            .map_err(|_| SealingError::NotOpened)
    }
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealingKey(public {})", self.public)
    }
}

/// The public half of a sealing key: X25519. As text base64.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SealingPublicKey([u8; 32]);

impl SealingPublicKey {
    /// A key out of its 32 bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Seals to this key.
    ///
    /// # Errors
    /// [`SealingError::NoBox`] of what is too large, [`SealingError::Refused`] of a key that nobody can have (RFC 7748, section 6).
    pub fn seal(&self, purpose: Purpose, context: &[u8], plain: &[u8]) -> Result<SealedBox, SealingError> {
        if plain.len() > MAX_SEALED_BYTES - ENC_BYTES - TAG_BYTES {
            return Err(SealingError::NoBox { bytes: plain.len() });
        }
        let key = HpkePublicKey(self.0.to_vec());
        let sealed = SUITE.seal(&purpose.info(context), &[], plain, &key);
        let (encapsulated, ciphertext) = sealed.map_err(|_| SealingError::Refused)?;
        let enc = encapsulated.0.try_into().map_err(|_| SealingError::Refused)?;
        Ok(SealedBox { enc, ciphertext })
    }
}

impl fmt::Display for SealingPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for SealingPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for SealingPublicKey {
    type Err = SealingError;

    fn from_str(text: &str) -> Result<Self, SealingError> {
        let bytes = STANDARD.decode(text.trim()).map_err(|_| SealingError::NoKey)?;
        bytes.try_into().map(Self).map_err(|_| SealingError::NoKey)
    }
}

impl Serialize for SealingPublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SealingPublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Something sealed to a public key: the encapsulated key, then the ciphertext.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedBox {
    enc: [u8; ENC_BYTES],
    ciphertext: Vec<u8>,
}

impl SealedBox {
    /// The box as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        [&self.enc[..], &self.ciphertext].concat()
    }

    /// Reads a box; whether it opens is for [`SealingKey::open`] to say.
    ///
    /// # Errors
    /// [`SealingError::NoBox`] by its size.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SealingError> {
        let no = SealingError::NoBox { bytes: bytes.len() };
        match bytes.split_first_chunk() {
            Some((enc, rest)) if rest.len() >= TAG_BYTES && bytes.len() <= MAX_SEALED_BYTES => Ok(Self {
                enc: *enc,
                ciphertext: rest.to_vec(),
            }),
            _ => Err(no),
        }
    }
}

impl fmt::Debug for SealedBox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedBox({} bytes)", ENC_BYTES + self.ciphertext.len())
    }
}

impl Serialize for SealedBox {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(self.to_bytes()))
    }
}

impl<'de> Deserialize<'de> for SealedBox {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text).map_err(serde::de::Error::custom)?;
        Self::from_bytes(&bytes).map_err(serde::de::Error::custom)
    }
}

/// A participant's word that a sealing key is its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipient {
    /// The participant.
    pub participant: String,
    /// Its sealing key.
    pub key: SealingPublicKey,
    /// Its Ed25519 signature over `cloister/recipient/v1` | lp(federation) | lp(participant) | lp(sealing key).
    pub signature: [u8; 64],
}

impl Recipient {
    /// A participant's word about the sealing key that is derived from its signing key.
    ///
    /// # Errors
    /// [`SealingError::Refused`] if none can be derived.
    pub fn sign(federation: &str, participant: &str, signing: &SigningKey) -> Result<Self, SealingError> {
        let key = SealingKey::of(signing)?.public();
        Ok(Self {
            participant: participant.to_owned(),
            key,
            signature: signing.sign(&recipient_message(federation, participant, &key)),
        })
    }

    /// Whether the participant of that key said so.
    #[must_use]
    pub fn verify(&self, federation: &str, participant_key: &PublicKey) -> bool {
        let message = recipient_message(federation, &self.participant, &self.key);
        participant_key.verify(&message, &self.signature)
    }
}

fn recipient_message(federation: &str, participant: &str, key: &SealingPublicKey) -> Vec<u8> {
    let layout = Layout::new("cloister/recipient/v1");
    layout
        .lp(federation.as_bytes())
        .lp(participant.as_bytes())
        .lp(key.as_bytes())
        .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_box_opens_for_its_key_purpose_and_context_alone() {
        let (key, other) = (SealingKey::generate().unwrap(), SealingKey::generate().unwrap());
        let sealed = key.public().seal(Purpose::Release, b"session 7", b"a key").unwrap();
        let sealed = SealedBox::from_bytes(&sealed.to_bytes()).unwrap();
        assert_eq!(*key.open(Purpose::Release, b"session 7", &sealed).unwrap(), b"a key");
        let refused = Err(SealingError::NotOpened);
        assert_eq!(other.open(Purpose::Release, b"session 7", &sealed), refused);
        assert_eq!(key.open(Purpose::Export, b"session 7", &sealed), refused);
        assert_eq!(key.open(Purpose::Release, b"session 8", &sealed), refused);
        for at in 0..sealed.to_bytes().len() {
            let mut bytes = sealed.to_bytes();
            bytes[at] ^= 1;
            let changed = SealedBox::from_bytes(&bytes).unwrap();
            assert!(key.open(Purpose::Release, b"session 7", &changed).is_err(), "byte {at}");
        }
    }

    #[test]
    fn boxes_have_bounds_and_an_impossible_key_is_refused() {
        assert!(SealedBox::from_bytes(&[0; 47]).is_err());
        assert!(SealedBox::from_bytes(&vec![0; MAX_SEALED_BYTES + 1]).is_err());
        let nobody = SealingPublicKey::from_bytes([0; 32]);
        assert_eq!(nobody.seal(Purpose::Export, b"", b"x"), Err(SealingError::Refused));
    }

    #[test]
    fn a_participants_key_follows_from_its_signing_key_and_it_vouches_for_it() {
        let signing = SigningKey::generate().unwrap();
        let recipient = Recipient::sign("wards", "alpha", &signing).unwrap();
        assert_eq!(recipient.key, SealingKey::of(&signing).unwrap().public());
        assert!(recipient.verify("wards", &signing.public()));
        assert!(!recipient.verify("other", &signing.public()));
        let other = SigningKey::generate().unwrap();
        assert!(!recipient.verify("wards", &other.public()));
        assert_ne!(recipient.key, SealingKey::of(&other).unwrap().public());
    }

    #[test]
    fn secrets_do_not_show() {
        let key = SealingKey::generate().unwrap();
        assert_eq!(format!("{key:?}"), format!("SealingKey(public {})", key.public()));
    }
}
