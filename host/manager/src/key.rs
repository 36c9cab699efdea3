//! The state key, and how a record is sealed under it: `FORMAT.md`, section 2.

use std::collections::HashMap;
use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hmac;
use cloister_attestation::encoding::Layout;
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::witness::StoreId;

const NONCE_BYTES: usize = 12;
const SALT_BYTES: usize = 32;
const TAG_BYTES: usize = 16;
/// Version, salt and nonce stand before the ciphertext.
const HEAD_BYTES: usize = 8 + SALT_BYTES + NONCE_BYTES;
/// Keys of earlier runs that are kept while a store is read; a hostile file could name a new one in each record.
const MAX_CACHED_KEYS: usize = 64;

/// 32 random bytes: what everything in a store is sealed under, or what that key itself is sealed under and that is shared
/// between the participants.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(crate) struct SecretKey([u8; 32]);

impl SecretKey {
    pub(crate) fn generate() -> Option<Self> {
        let mut key = Self([0; 32]);
        getrandom::fill(&mut key.0).ok()?;
        Some(key)
    }

    pub(crate) fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Another copy in memory, for what reads the same store.
    pub(crate) fn copied(&self) -> Self {
        Self(self.0)
    }

    /// HKDF-SHA-256 (RFC 5869).
    fn derive(&self, salt: &[u8], info: &[u8]) -> Zeroizing<[u8; 32]> {
        let mut okm = Zeroizing::new([0; 32]);
        // 32 bytes are far below what HKDF can give: expand cannot fail.
        let expanded = Hkdf::<Sha256>::new(Some(salt), &self.0).expand(info, okm.as_mut());
        debug_assert!(expanded.is_ok());
        okm
    }

    /// Seals the state key under a recovery key, which seals nothing else.
    pub(crate) fn wrap(&self, state_key: &Self, bound_to: &[u8]) -> Option<Vec<u8>> {
        let key = cipher(&self.derive(&[], b"cloister/manager-wrap/v1"))?;
        let mut sealed = state_key.0.to_vec();
        let nonce = Nonce::assume_unique_for_key([0; NONCE_BYTES]);
        key.seal_in_place_append_tag(nonce, Aad::from(bound_to), &mut sealed)
            .ok()?;
        Some(sealed)
    }

    /// Opens what [`SecretKey::wrap`] sealed.
    pub(crate) fn unwrap(&self, wrapped: &[u8], bound_to: &[u8]) -> Option<Self> {
        let key = cipher(&self.derive(&[], b"cloister/manager-wrap/v1"))?;
        let mut sealed = Zeroizing::new(wrapped.to_vec());
        let nonce = Nonce::assume_unique_for_key([0; NONCE_BYTES]);
        let plain = key.open_in_place(nonce, Aad::from(bound_to), &mut sealed).ok()?;
        Self::from_slice(plain)
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

fn cipher(key: &[u8; 32]) -> Option<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, key).ok().map(LessSafeKey::new)
}

/// The cipher keys of earlier runs that were needed so far.
#[derive(Default)]
pub(crate) struct EarlierKeys(HashMap<[u8; SALT_BYTES], LessSafeKey>);

/// Seals and opens the records of one store.
///
/// A run of the manager has a cipher key of its own, derived from the state key and a random salt, and counts its nonces up in
/// memory. So no nonce repeats, not even where an older copy of the store was put back and the same versions are written again.
pub(crate) struct RecordCipher {
    store: StoreId,
    key: SecretKey,
    salt: [u8; SALT_BYTES],
    own: LessSafeKey,
    sealed: u64,
    names: hmac::Key,
    tags: hmac::Key,
}

impl RecordCipher {
    /// `None` without randomness.
    pub(crate) fn new(store: StoreId, key: SecretKey) -> Option<Self> {
        let mut salt = [0; SALT_BYTES];
        getrandom::fill(&mut salt).ok()?;
        let mac = |info: &[u8]| hmac::Key::new(hmac::HMAC_SHA256, key.derive(store.as_bytes(), info).as_ref());
        Some(Self {
            names: mac(b"cloister/manager-names/v1"),
            tags: mac(b"cloister/manager-tags/v1"),
            own: record_key(&store, &key, &salt)?,
            store,
            key,
            salt,
            sealed: 0,
        })
    }

    /// What stands for a record's name in the store: names tell of participants and files.
    pub(crate) fn place(&self, name: &str) -> [u8; 32] {
        mac(&self.names, &[name.as_bytes()])
    }

    /// What stands for a record in the digest of all of them.
    pub(crate) fn tag(&self, place: &[u8], sealed: &[u8]) -> [u8; 32] {
        let length = (place.len() as u32).to_be_bytes();
        mac(&self.tags, &[&length, place, sealed])
    }

    /// Seals a record of that place in the store and that version.
    pub(crate) fn seal(&mut self, place: &[u8], version: u64, plain: &[u8]) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE_BYTES];
        nonce[4..].copy_from_slice(&self.sealed.to_be_bytes());
        self.sealed = self.sealed.checked_add(1)?;
        let mut sealed = Vec::with_capacity(HEAD_BYTES + plain.len() + TAG_BYTES);
        sealed.extend_from_slice(&version.to_be_bytes());
        sealed.extend_from_slice(&self.salt);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(plain);
        let (_, text) = sealed.split_at_mut_checked(HEAD_BYTES)?;
        let bound = Aad::from(bound_to(&self.store, place, version));
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self.own.seal_in_place_separate_tag(nonce, bound, text).ok()?;
        sealed.extend_from_slice(tag.as_ref());
        Some(sealed)
    }

    /// Opens a record, and gives the version of the store that wrote it.
    pub(crate) fn open(
        &self,
        earlier: &mut EarlierKeys,
        place: &[u8],
        sealed: &[u8],
    ) -> Option<(u64, Zeroizing<Vec<u8>>)> {
        let (version, rest) = sealed.split_first_chunk::<8>()?;
        let (salt, rest) = rest.split_first_chunk::<SALT_BYTES>()?;
        let (nonce, text) = rest.split_first_chunk::<NONCE_BYTES>()?;
        let version = u64::from_be_bytes(*version);
        let mut plain = Zeroizing::new(text.to_vec());
        let bound = Aad::from(bound_to(&self.store, place, version));
        let key = if *salt == self.salt {
            &self.own
        } else {
            if !earlier.0.contains_key(salt) {
                if earlier.0.len() >= MAX_CACHED_KEYS {
                    earlier.0.clear();
                }
                earlier.0.insert(*salt, record_key(&self.store, &self.key, salt)?);
            }
            earlier.0.get(salt)?
        };
        let opened = key.open_in_place(Nonce::assume_unique_for_key(*nonce), bound, &mut plain);
        let bytes = opened.ok()?.len();
        plain.truncate(bytes);
        Some((version, plain))
    }

    /// The state key, of a store that nobody writes any more.
    pub(crate) fn into_key(self) -> SecretKey {
        self.key
    }

    /// The state key, sealed anew under another recovery key.
    pub(crate) fn wrapped_under(&self, recovery: &SecretKey, bound_to: &[u8]) -> Option<Vec<u8>> {
        recovery.wrap(&self.key, bound_to)
    }
}

impl fmt::Debug for RecordCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecordCipher(..)")
    }
}

fn record_key(store: &StoreId, key: &SecretKey, salt: &[u8; SALT_BYTES]) -> Option<LessSafeKey> {
    let info = Layout::new("cloister/manager-records/v1")
        .raw(store.as_bytes())
        .into_bytes();
    cipher(&key.derive(salt, &info))
}

fn bound_to(store: &StoreId, place: &[u8], version: u64) -> Vec<u8> {
    let layout = Layout::new("cloister/manager-record/v1")
        .raw(store.as_bytes())
        .lp(place);
    layout.raw(&version.to_be_bytes()).into_bytes()
}

fn mac(key: &hmac::Key, parts: &[&[u8]]) -> [u8; 32] {
    let mut context = hmac::Context::with_key(key);
    parts.iter().for_each(|part| context.update(part));
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.sign().as_ref());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cipher_of(store: u8) -> RecordCipher {
        let key = SecretKey::from_slice(&[7; 32]).unwrap();
        RecordCipher::new(StoreId::from_bytes([store; 16]), key).unwrap()
    }

    fn opens(cipher: &RecordCipher, place: &[u8], sealed: &[u8]) -> Option<(u64, Vec<u8>)> {
        let (version, plain) = cipher.open(&mut EarlierKeys::default(), place, sealed)?;
        Some((version, plain.to_vec()))
    }

    #[test]
    fn a_record_opens_in_its_store_place_and_version_alone() {
        let mut cipher = cipher_of(1);
        let sealed = cipher.seal(b"here", 3, b"content").unwrap();
        assert_ne!(
            sealed,
            cipher.seal(b"here", 3, b"content").unwrap(),
            "a nonce never repeats"
        );
        let content = Some((3, b"content".to_vec()));
        assert_eq!(opens(&cipher, b"here", &sealed), content);
        assert_eq!(opens(&cipher, b"there", &sealed), None);
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(opens(&cipher, b"here", &changed), None, "byte {at}");
        }
        // The same manager started again, and another store of the same key.
        assert_eq!(opens(&cipher_of(1), b"here", &sealed), content);
        assert_eq!(opens(&cipher_of(2), b"here", &sealed), None);
        for cut in 0..sealed.len() {
            assert_eq!(opens(&cipher, b"here", &sealed[..cut]), None);
        }
    }

    #[test]
    fn a_store_put_back_is_not_written_with_the_same_keystream() {
        let once = cipher_of(1).seal(b"x", 9, b"first").unwrap();
        let twice = cipher_of(1).seal(b"x", 9, b"first").unwrap();
        assert_ne!(once[HEAD_BYTES..], twice[HEAD_BYTES..]);
    }
}
