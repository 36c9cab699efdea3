//! JWE in flattened JSON (RFC 7516, section 7.2.2): ECDH-ES+A256KW over P-256 (RFC 7518, section 4.6) and A256GCM, nothing else.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{ECDH_P256, PrivateKey, UnparsedPublicKey, agree};
use aws_lc_rs::digest::{Context, SHA256};
use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrap as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::KbsError;

const ALGORITHM: &str = "ECDH-ES+A256KW";
const ENCRYPTION: &str = "A256GCM";
/// Bytes of a coordinate of P-256, of a key, and of what wraps one.
const BYTES: usize = 32;
const WRAPPED_BYTES: usize = BYTES + 8;
const TAG_BYTES: usize = 16;
/// How an uncompressed point begins.
const UNCOMPRESSED: u8 = 4;

/// A key that lives for one exchange.
pub(super) struct TeeKey {
    key: PrivateKey,
    x: String,
    y: String,
}

impl TeeKey {
    pub(super) fn generate() -> Result<Self, KbsError> {
        let key = PrivateKey::generate(&ECDH_P256).map_err(|_| KbsError::Cryptography)?;
        let public = key.compute_public_key().map_err(|_| KbsError::Cryptography)?;
        let (x, y) = match public.as_ref() {
            [UNCOMPRESSED, point @ ..] if point.len() == 2 * BYTES => point.split_at(BYTES),
            _ => return Err(KbsError::Cryptography),
        };
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        Ok(Self { key, x, y })
    }

    /// The public half, as a JSON web key.
    pub(super) fn jwk(&self) -> Value {
        json!({ "kty": "EC", "crv": "P-256", "alg": ALGORITHM, "x": self.x, "y": self.y })
    }

    /// Opens an answer.
    pub(super) fn open(&self, jwe: &[u8], limit: usize) -> Result<Zeroizing<Vec<u8>>, KbsError> {
        let no = |cause: &str| KbsError::Answer {
            what: "a resource",
            cause: cause.to_owned(),
        };
        let jwe: Value = serde_json::from_slice(jwe).map_err(|error| no(&error.to_string()))?;
        let text = |field: &str| jwe[field].as_str().unwrap_or_default();
        let bytes = |text: &str| URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok();
        let protected = text("protected");
        let header = bytes(protected).and_then(|header| serde_json::from_slice::<Value>(&header).ok());
        let header = header.ok_or_else(|| no("its protected header is no JSON"))?;
        if header["alg"] != ALGORITHM || header["enc"] != ENCRYPTION {
            return Err(no(&format!(
                "sealed by other algorithms than {ALGORITHM} and {ENCRYPTION}"
            )));
        }
        let epk = &header["epk"];
        let coordinate = |name: &str| epk[name].as_str().and_then(bytes).filter(|bytes| bytes.len() == BYTES);
        let point = coordinate("x").zip(coordinate("y")).filter(|_| epk["crv"] == "P-256");
        let (x, y) = point.ok_or_else(|| no("its key `epk` is no point of P-256"))?;
        let party = |name: &str| header[name].as_str().map_or(Some(Vec::new()), bytes);
        let parties = party("apu")
            .zip(party("apv"))
            .ok_or_else(|| no("`apu` or `apv` is no base64"))?;
        let fields = || {
            Some((
                bytes(text("encrypted_key"))?,
                bytes(text("iv"))?,
                bytes(text("ciphertext"))?,
                bytes(text("tag"))?,
            ))
        };
        let (wrapped, iv, mut sealed, tag) = fields().ok_or_else(|| no("a field of it is no base64"))?;
        if wrapped.len() != WRAPPED_BYTES || tag.len() != TAG_BYTES || sealed.len() > limit {
            return Err(no("a field of it has another length than it can have"));
        }
        let not_opened = || no("it does not open with this exchange's key, or was changed");
        let public = [&[UNCOMPRESSED][..], &x, &y].concat();
        let public = UnparsedPublicKey::new(&ECDH_P256, public);
        let kek = agree(&self.key, public, (), |shared| Ok(wrapping_key(shared, &parties)));
        let kek = kek.map_err(|()| not_opened())?;
        let mut key = Zeroizing::new([0; BYTES]);
        AesKek::new(&AES_256, kek.as_ref())
            .and_then(|kek| kek.unwrap(&wrapped, key.as_mut()).map(|_| ()))
            .map_err(|_| not_opened())?;
        sealed.extend_from_slice(&tag);
        let mut plain = Zeroizing::new(sealed);
        let key = UnboundKey::new(&AES_256_GCM, key.as_ref()).map_err(|_| KbsError::Cryptography)?;
        let nonce = Nonce::try_assume_unique_for_key(&iv).map_err(|_| not_opened())?;
        let opened = LessSafeKey::new(key).open_in_place(nonce, Aad::from(protected.as_bytes()), &mut plain);
        let length = opened.map_err(|_| not_opened())?.len();
        plain.truncate(length);
        Ok(plain)
    }
}

/// The single-step key derivation of NIST SP 800-56A with SHA-256, as RFC 7518 fills it in.
fn wrapping_key(shared: &[u8], (apu, apv): &(Vec<u8>, Vec<u8>)) -> Zeroizing<[u8; BYTES]> {
    let mut hash = Context::new(&SHA256);
    hash.update(&1_u32.to_be_bytes());
    hash.update(shared);
    for field in [ALGORITHM.as_bytes(), apu, apv] {
        hash.update(&(field.len() as u32).to_be_bytes());
        hash.update(field);
    }
    hash.update(&(8 * BYTES as u32).to_be_bytes());
    let mut key = Zeroizing::new([0; BYTES]);
    key.copy_from_slice(hash.finish().as_ref());
    key
}
