//! The recovery key, shared between participants so that none of them alone, and no operator, can open the state.
//!
//! The state key is sealed under a recovery key; that one is split n of m by Shamir's sharing over GF(256) (`vsss-rs`), and each
//! share sealed to its holder's key. Splitting anew makes a new recovery key of the next *epoch*: shares of older ones are stale.

use std::collections::BTreeSet;
use std::convert::Infallible;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cloister_attestation::encoding::Layout;
use cloister_attestation::identity::is_name;
use cloister_policy::Policy;
use cloister_tensor::Digest;
use rand_core::{TryCryptoRng, TryRng};
use serde::{Deserialize, Serialize};
use vsss_rs::Gf256;
use zeroize::Zeroizing;

use crate::key::SecretKey;
use crate::sealing::{Purpose, Recipient, SealingError};
use crate::share::{RecoveryShare, Remembered, SealedShare, share_context, share_of};
use crate::witness::StoreId;

/// Most holders of shares: what GF(256) has room for.
pub const MAX_HOLDERS: usize = 255;

/// Why the state key was not had out of the shares.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoveryError {
    /// Fewer shares than it takes.
    #[error("{have} good recovery shares, but it takes {wanted}; ask further holders for theirs")]
    TooFew {
        /// How many good ones there are.
        have: usize,
        /// How many it takes.
        wanted: u8,
    },
    /// A share is not what its holder was given.
    #[error("the recovery share of {participant:?} is not the one it was given; ask for it again")]
    Wrong {
        /// Whose.
        participant: String,
    },
    /// A share of an earlier splitting.
    #[error(
        "the recovery share of {participant:?} is of epoch {epoch}, but the store is in epoch {current}: the key was split anew since; use the newer share"
    )]
    Stale {
        /// Whose.
        participant: String,
        /// The share's epoch.
        epoch: u32,
        /// The store's.
        current: u32,
    },
    /// A share of a later splitting than the store knows: the store is an old copy.
    #[error(
        "the recovery share of {participant:?} is of epoch {epoch}, but the store is in epoch {current}: an older copy of the store was put back"
    )]
    OlderStore {
        /// Whose.
        participant: String,
        /// The share's epoch.
        epoch: u32,
        /// The store's.
        current: u32,
    },
    /// One holder's share came twice.
    #[error("the recovery share of {participant:?} was given twice; one of each holder counts")]
    Twice {
        /// Whose.
        participant: String,
    },
    /// A share of another manager's store.
    #[error("the recovery share of {participant:?} is of another store than this one")]
    OtherStore {
        /// Whose.
        participant: String,
    },
    /// The shares are good in themselves, but what they make does not open the store.
    #[error("the shares do not open this store: what says so in its file was changed; put back the file or a backup")]
    WrongKey,
    /// A share was not sealed or not opened.
    #[error("recovery share: {0}")]
    Sealing(#[from] SealingError),
    /// The bytes are no share.
    #[error("{bytes} bytes that are no recovery share")]
    NoShare {
        /// How many.
        bytes: usize,
    },
    /// Nobody can hold shares like this.
    #[error("recovery shares can't be made: {0}")]
    Plan(String),
}

/// Who is to hold shares, and how many of them it takes.
#[derive(Clone, Debug)]
pub struct RecoveryPlan {
    /// How many shares open the state: at least 2.
    pub threshold: u8,
    /// The holders, each with the key that its share is sealed to.
    pub holders: Vec<Recipient>,
}

impl RecoveryPlan {
    /// Checks the plan in itself and, where a policy is at hand, that each holder is a participant of it and signed for its key.
    ///
    /// # Errors
    /// [`RecoveryError::Plan`] says what is wrong.
    pub fn check(&self, federation: &str, policy: Option<&Policy>) -> Result<(), RecoveryError> {
        let no = |why: String| Err(RecoveryError::Plan(why));
        let count = self.holders.len();
        if count > MAX_HOLDERS || usize::from(self.threshold) > count || self.threshold < 2 {
            return no(format!(
                "{} of {count} shares; at least 2 of at most {MAX_HOLDERS} are wanted",
                self.threshold
            ));
        }
        let mut names = BTreeSet::new();
        for holder in &self.holders {
            let name = &holder.participant;
            if !is_name(name) || !names.insert(name) {
                return no(format!("{name:?} is no participant's name, or there twice"));
            }
            let Some(policy) = policy else { continue };
            match policy.participant_key(name) {
                None => return no(format!("{name:?} is no participant of the policy")),
                Some(key) if !holder.verify(federation, &key) => {
                    return no(format!("the sealing key of {name:?} is not signed by the participant"));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

/// How the state key is recovered; it lies in the store in the clear, since it is read before there is a key. Whoever changes it
/// keeps the store from being opened, and no more: what is believed is bound into the seal of the state key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Recovery {
    pub(crate) epoch: u32,
    pub(crate) threshold: u8,
    pub(crate) shares: Vec<SealedShare>,
    /// Digest of each share, to name one that is wrong.
    digests: Vec<Digest>,
    /// The state key under the recovery key, base64.
    wrapped: String,
}

impl Recovery {
    /// Splits a new recovery key among the plan's holders, and seals the state key under it by `wrap`.
    pub(crate) fn split(
        federation: &str,
        store: &StoreId,
        epoch: u32,
        plan: &RecoveryPlan,
        wrap: impl FnOnce(&SecretKey, &[u8]) -> Option<Vec<u8>>,
    ) -> Result<Self, RecoveryError> {
        let refused = || RecoveryError::Sealing(SealingError::Refused);
        let key = SecretKey::generate().ok_or_else(refused)?;
        let mut random = Random { failed: false };
        let made = Gf256::split_bytes(plan.threshold.into(), plan.holders.len(), key.as_bytes(), &mut random);
        let made = made.map_err(|error| RecoveryError::Plan(error.to_string()))?;
        let made: Vec<_> = made.into_iter().map(Zeroizing::new).collect();
        if random.failed {
            return Err(refused());
        }
        let (mut shares, mut digests) = (Vec::new(), Vec::new());
        for (holder, share) in plan.holders.iter().zip(&made) {
            let context = share_context(federation, &holder.participant, store, epoch);
            let clear = RecoveryShare {
                federation: federation.to_owned(),
                store: *store,
                epoch,
                participant: holder.participant.clone(),
                share: share_of(share)?,
                remembered: Remembered::default(),
            };
            digests.push(clear.digest());
            shares.push(SealedShare {
                participant: clear.participant.clone(),
                epoch,
                store: *store,
                sealed: holder.key.seal(Purpose::RecoveryShare, &context, &clear.share[..])?,
            });
        }
        let mut split = Self {
            epoch,
            threshold: plan.threshold,
            shares,
            digests,
            wrapped: String::new(),
        };
        let wrapped = wrap(&key, &split.bound_to(federation, store)).ok_or_else(refused)?;
        split.wrapped = STANDARD.encode(wrapped);
        Ok(split)
    }

    /// What the seal of the state key is bound to: everything here but the sealed shares, which are of their holders' concern.
    fn bound_to(&self, federation: &str, store: &StoreId) -> Vec<u8> {
        let head = Layout::new("cloister/manager-recovery/v1")
            .lp(federation.as_bytes())
            .raw(store.as_bytes())
            .raw(&self.epoch.to_be_bytes())
            .raw(&[self.threshold]);
        let digests = self.digests.iter();
        let layout = digests.fold(head, |layout, digest| layout.raw(digest.as_bytes()));
        layout.into_bytes()
    }

    /// The state key, out of enough good shares.
    pub(crate) fn combine(
        &self,
        federation: &str,
        store: &StoreId,
        shares: &[RecoveryShare],
    ) -> Result<SecretKey, RecoveryError> {
        let mut seen = BTreeSet::new();
        let mut good: Vec<Vec<u8>> = Vec::new();
        for share in shares {
            let participant = share.participant.clone();
            let (epoch, current) = (share.epoch, self.epoch);
            if share.store != *store || share.federation != federation {
                return Err(RecoveryError::OtherStore { participant });
            }
            if epoch < current {
                return Err(RecoveryError::Stale {
                    participant,
                    epoch,
                    current,
                });
            }
            if epoch > current {
                return Err(RecoveryError::OlderStore {
                    participant,
                    epoch,
                    current,
                });
            }
            if !seen.insert(participant.clone()) {
                return Err(RecoveryError::Twice { participant });
            }
            let held = self.shares.iter().zip(&self.digests);
            let mut held = held.filter(|(sealed, _)| sealed.participant == participant);
            if !held.any(|(_, digest)| *digest == share.digest()) {
                return Err(RecoveryError::Wrong { participant });
            }
            good.push(share.share.to_vec());
        }
        let wanted = self.threshold;
        if good.len() < usize::from(wanted) || wanted < 2 {
            return Err(RecoveryError::TooFew {
                have: good.len(),
                wanted,
            });
        }
        let combined = Gf256::combine_bytes(&good).map(Zeroizing::new);
        good.into_iter().for_each(|share| drop(Zeroizing::new(share)));
        let key = combined.ok().and_then(|bytes| SecretKey::from_slice(&bytes));
        let wrapped = STANDARD.decode(&self.wrapped).ok();
        key.zip(wrapped)
            .and_then(|(key, wrapped)| key.unwrap(&wrapped, &self.bound_to(federation, store)))
            .ok_or(RecoveryError::WrongKey)
    }
}

/// The system's randomness in the form that `vsss-rs` takes. That form can't fail, so a failure is remembered and looked at after.
struct Random {
    failed: bool,
}

impl TryRng for Random {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_ne_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_ne_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, place: &mut [u8]) -> Result<(), Infallible> {
        self.failed |= getrandom::fill(place).is_err();
        Ok(())
    }
}

impl TryCryptoRng for Random {}
