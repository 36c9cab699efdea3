//! AES-256-GCM over one segment, by either of two implementations that give the same bytes.

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, KeyInit};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use crate::key::FileKey;

/// Bytes of an authentication tag.
pub(crate) const TAG_BYTES: usize = 16;

/// Which implementation of AES-256-GCM works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cipher {
    /// aws-lc-rs: assembly, several gigabytes a second.
    #[default]
    Bulk,
    /// The `aes-gcm` crate: portable Rust. `cloister vault verify` checks with it, so that one library's fault doesn't hide.
    Portable,
}

/// A segment didn't open.
pub(crate) struct Unauthentic;

pub(crate) enum SegmentCipher {
    Bulk(Box<LessSafeKey>),
    Portable(Box<Aes256Gcm>),
}

impl SegmentCipher {
    pub(crate) fn new(choice: Cipher, key: &FileKey) -> Self {
        match (choice, UnboundKey::new(&AES_256_GCM, &key.cipher_key)) {
            (Cipher::Bulk, Ok(unbound)) => Self::Bulk(Box::new(LessSafeKey::new(unbound))),
            _ => Self::Portable(Box::new(Aes256Gcm::new(&key.cipher_key.into()))),
        }
    }

    /// Encrypts in place and gives the tag.
    pub(crate) fn seal(&self, nonce: [u8; 12], segment: &mut [u8]) -> Result<[u8; TAG_BYTES], Unauthentic> {
        let mut bytes = [0; TAG_BYTES];
        match self {
            Self::Bulk(key) => {
                let tag = key
                    .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), segment)
                    .map_err(|_| Unauthentic)?;
                bytes.copy_from_slice(tag.as_ref());
            }
            Self::Portable(key) => {
                let tag = key
                    .encrypt_inout_detached(&nonce.into(), &[], segment.into())
                    .map_err(|_| Unauthentic)?;
                bytes.copy_from_slice(&tag);
            }
        }
        Ok(bytes)
    }

    /// Encrypts `plain` into `sealed`, which has room for the tag behind it: the plaintext is read once and copied nowhere.
    pub(crate) fn seal_into(&self, nonce: [u8; 12], plain: &[u8], sealed: &mut [u8]) -> Result<(), Unauthentic> {
        let (segment, tag) = sealed.split_at_mut_checked(plain.len()).ok_or(Unauthentic)?;
        match self {
            Self::Bulk(key) => {
                let nonce = Nonce::assume_unique_for_key(nonce);
                key.seal_out_of_place_scatter(nonce, Aad::empty(), plain, segment, &[], tag)
                    .map_err(|_| Unauthentic)
            }
            Self::Portable(_) => {
                segment.copy_from_slice(plain);
                let made = self.seal(nonce, segment)?;
                tag.copy_from_slice(&made);
                Ok(())
            }
        }
    }

    /// Decrypts in place; `sealed` is the ciphertext with its tag behind it.
    pub(crate) fn open<'a>(&self, nonce: [u8; 12], sealed: &'a mut [u8]) -> Result<&'a mut [u8], Unauthentic> {
        let plain_bytes = sealed.len().checked_sub(TAG_BYTES).ok_or(Unauthentic)?;
        match self {
            Self::Bulk(key) => key
                .open_in_place(Nonce::assume_unique_for_key(nonce), Aad::empty(), sealed)
                .map_err(|_| Unauthentic),
            Self::Portable(key) => {
                let (segment, tag) = sealed.split_at_mut(plain_bytes);
                let tag: [u8; TAG_BYTES] = (&*tag).try_into().map_err(|_| Unauthentic)?;
                key.decrypt_inout_detached(&nonce.into(), &[], (&mut *segment).into(), &tag.into())
                    .map_err(|_| Unauthentic)?;
                Ok(segment)
            }
        }
    }
}
