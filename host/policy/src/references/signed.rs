//! Reference values that the right ones signed, and those that are in force in a node.

use std::sync::{Arc, PoisonError, RwLock};

use super::{ReferenceError, ReferenceValues, known};
use crate::policy::Policy;
use crate::signatures::Signatures;

/// Reference values that enough of the policy's signers signed. Only [`SignedReferences::new`] makes one. Clones share them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedReferences {
    values: Arc<ReferenceValues>,
    signers: Arc<[String]>,
}

impl SignedReferences {
    /// Verifies every signature, and that they are enough.
    ///
    /// # Errors
    /// [`ReferenceError`] says what is wrong.
    pub fn new(values: ReferenceValues, signatures: &Signatures, policy: &Policy) -> Result<Self, ReferenceError> {
        let rules = values.check(policy)?;
        let mut signers: Vec<String> = Vec::new();
        for signature in signatures.iter() {
            let signer = &signature.participant;
            known(rules, signer, signature.public_key)?;
            if !signature
                .public_key
                .verify(&values.message(signer), &signature.signature)
            {
                return Err(ReferenceError::Wrong {
                    signer: signer.clone(),
                    digest: values.digest,
                });
            }
            if signers.contains(signer) {
                return Err(ReferenceError::Twice { signer: signer.clone() });
            }
            signers.push(signer.clone());
        }
        if (signers.len() as u64) < u64::from(rules.threshold) {
            let names: Vec<_> = rules.signers.iter().map(|signer| signer.name.as_str()).collect();
            return Err(ReferenceError::TooFew {
                seen: signers.len(),
                wanted: rules.threshold,
                names: names.join(", "),
            });
        }
        Ok(Self {
            values: Arc::new(values),
            signers: signers.into(),
        })
    }

    /// The values.
    pub fn values(&self) -> &ReferenceValues {
        &self.values
    }

    /// Who signed.
    pub fn signers(&self) -> &[String] {
        &self.signers
    }
}

/// The reference values in force: newer ones take their place while nodes run. Clones share the place.
#[derive(Clone, Debug, Default)]
pub(crate) struct InForce {
    place: Arc<RwLock<Option<SignedReferences>>>,
}

impl InForce {
    pub(crate) fn new(references: SignedReferences) -> Self {
        Self {
            place: Arc::new(RwLock::new(Some(references))),
        }
    }

    pub(crate) fn get(&self) -> Option<SignedReferences> {
        // What the lock guards is replaced whole.
        self.place.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts newer values in place. The same ones change nothing, and say so.
    pub(crate) fn replace(&self, newer: SignedReferences) -> Result<bool, ReferenceError> {
        let mut place = self.place.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = place.as_ref() {
            if before.values.digest == newer.values.digest {
                return Ok(false);
            }
            let (seen, wanted) = (newer.values.version, before.values.version);
            if seen <= wanted {
                return Err(ReferenceError::NotNewer { seen, wanted });
            }
        }
        *place = Some(newer);
        Ok(true)
    }
}

impl PartialEq for InForce {
    fn eq(&self, other: &Self) -> bool {
        self.get() == other.get()
    }
}
