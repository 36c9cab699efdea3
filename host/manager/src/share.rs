//! A share of the recovery key: sealed, with its holder, and on its way to a manager that starts.

use std::fmt;

use cloister_attestation::encoding::Layout;
use cloister_attestation::identity::is_name;
use cloister_tensor::{Digest, Digester};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::recovery::RecoveryError;
use crate::sealing::{Purpose, SealedBox, SealingKey, SealingPublicKey};
use crate::witness::{Mark, StoreId};

/// Bytes of a share: its place, then one byte for each of the key's.
const SHARE_BYTES: usize = 33;
/// Longest share that is read, with what its holder remembers of the manager.
const MAX_PASSED_BYTES: usize = 4096;

/// A share, sealed to its holder. It lies in the store and may lie anywhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedShare {
    /// Whose it is.
    pub participant: String,
    /// Of which splitting.
    pub epoch: u32,
    /// Which store's.
    pub store: StoreId,
    /// The share.
    pub sealed: SealedBox,
}

/// What a holder says besides its share: what it remembers of the manager, against a store that was put back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remembered {
    /// The newest state that the participant has seen.
    pub newest: Option<Mark>,
    /// Whether the participant agrees that the manager starts though no quorum of nodes can confirm its state.
    pub without_nodes: bool,
}

/// A share in the clear: with its holder, or with the manager that starts.
pub struct RecoveryShare {
    pub(crate) federation: String,
    pub(crate) store: StoreId,
    pub(crate) epoch: u32,
    pub(crate) participant: String,
    pub(crate) share: Zeroizing<[u8; SHARE_BYTES]>,
    pub(crate) remembered: Remembered,
}

impl RecoveryShare {
    /// The holder opens its share.
    ///
    /// # Errors
    /// [`RecoveryError::Sealing`] if it is another's, [`RecoveryError::NoShare`].
    pub fn open(federation: &str, share: &SealedShare, key: &SealingKey) -> Result<Self, RecoveryError> {
        let context = share_context(federation, &share.participant, &share.store, share.epoch);
        let plain = key.open(Purpose::RecoveryShare, &context, &share.sealed)?;
        Ok(Self {
            federation: federation.to_owned(),
            store: share.store,
            epoch: share.epoch,
            participant: share.participant.clone(),
            share: share_of(&plain)?,
            remembered: Remembered::default(),
        })
    }

    /// Who holds it.
    pub fn participant(&self) -> &str {
        &self.participant
    }

    /// Of which splitting it is.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// What its holder says of the manager.
    pub fn remembered(&self) -> &Remembered {
        &self.remembered
    }

    /// Hands the share, with what its holder remembers, to the manager that starts: sealed to the key of its TD, which the holder has attested.
    ///
    /// # Errors
    /// [`RecoveryError::Sealing`].
    pub fn pass_on(&self, to: &SealingPublicKey, remembered: &Remembered) -> Result<SealedBox, RecoveryError> {
        let said = serde_json::to_vec(remembered).map_err(|error| RecoveryError::Plan(error.to_string()))?;
        let name = self.participant.as_bytes();
        let length = (name.len() as u32).to_be_bytes();
        // Room for all of it: a vector that grows leaves copies of the share behind.
        let mut plain = Zeroizing::new(Vec::with_capacity(MAX_PASSED_BYTES));
        for part in [
            &self.store.as_bytes()[..],
            &self.epoch.to_be_bytes(),
            &self.share[..],
            &length,
            name,
            &said,
        ] {
            plain.extend_from_slice(part);
        }
        Ok(to.seal(Purpose::Recovery, self.federation.as_bytes(), &plain)?)
    }

    /// The manager that starts takes a share.
    ///
    /// # Errors
    /// [`RecoveryError::Sealing`] if it is sealed to another, [`RecoveryError::NoShare`].
    pub fn receive(federation: &str, sealed: &SealedBox, key: &SealingKey) -> Result<Self, RecoveryError> {
        let plain = key.open(Purpose::Recovery, federation.as_bytes(), sealed)?;
        let parts = || {
            let (store, rest) = plain.split_first_chunk::<16>()?;
            let (epoch, rest) = rest.split_first_chunk::<4>()?;
            let (share, rest) = rest.split_at_checked(SHARE_BYTES)?;
            let (length, rest) = rest.split_first_chunk::<4>()?;
            let (name, said) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
            let name = str::from_utf8(name).ok().filter(|name| is_name(name))?;
            let remembered = serde_json::from_slice(said).ok()?;
            Some((
                StoreId::from_bytes(*store),
                u32::from_be_bytes(*epoch),
                share,
                name.to_owned(),
                remembered,
            ))
        };
        let no = RecoveryError::NoShare { bytes: plain.len() };
        if plain.len() > MAX_PASSED_BYTES {
            return Err(no);
        }
        let (store, epoch, share, participant, remembered) = parts().ok_or(no)?;
        Ok(Self {
            federation: federation.to_owned(),
            store,
            epoch,
            participant,
            share: share_of(share)?,
            remembered,
        })
    }

    /// What names a wrong share without telling it: 32 of its bytes are random.
    pub(crate) fn digest(&self) -> Digest {
        let layout = Layout::new("cloister/recovery-share/v1").raw(self.store.as_bytes());
        let layout = layout.raw(&self.epoch.to_be_bytes()).lp(self.participant.as_bytes());
        let mut digester = Digester::new();
        digester.update(&layout.into_bytes());
        digester.update(&self.share[..]);
        digester.finish()
    }
}

impl fmt::Debug for RecoveryShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecoveryShare(of {:?}, epoch {}, ..)", self.participant, self.epoch)
    }
}

pub(crate) fn share_of(bytes: &[u8]) -> Result<Zeroizing<[u8; SHARE_BYTES]>, RecoveryError> {
    let share: Result<[u8; SHARE_BYTES], _> = bytes.try_into();
    share
        .map(Zeroizing::new)
        .map_err(|_| RecoveryError::NoShare { bytes: bytes.len() })
}

pub(crate) fn share_context(federation: &str, participant: &str, store: &StoreId, epoch: u32) -> Vec<u8> {
    let layout = Layout::new("").lp(federation.as_bytes()).lp(participant.as_bytes());
    layout.raw(store.as_bytes()).raw(&epoch.to_be_bytes()).into_bytes()
}
