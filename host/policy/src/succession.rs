//! When a policy takes effect: enough of its own participants signed it, and enough of its predecessor's.

use cloister_attestation::FailedRule;
use cloister_attestation::identity::PublicKey;

use crate::policy::Policy;
use crate::signatures::{Signature, Signatures};

/// What became of one participant's signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is there, and good.
    Signed,
    /// It is not there.
    Missing,
    /// There is one, but not over this policy: one of the two was changed since.
    Invalid,
    /// There is one, but with this key, which is not the participant's.
    OtherKey(PublicKey),
}

impl Standing {
    /// A short name, for machines.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Signed => "signed",
            Self::Missing => "missing",
            Self::Invalid => "invalid",
            Self::OtherKey(_) => "other-key",
        }
    }
}

/// A participant and its signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vote {
    /// The participant.
    pub participant: String,
    /// Its key.
    pub public_key: PublicKey,
    /// Its signature.
    pub standing: Standing,
}

/// The signatures under a policy, counted by the participants and the threshold of one (itself, or the one before it).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally {
    /// How many have to sign.
    pub threshold: u32,
    /// Every participant, in the policy's order.
    pub votes: Vec<Vote>,
}

impl Tally {
    fn count(policy: &Policy, electorate: &Policy, signatures: &Signatures) -> Self {
        let votes = electorate.participants.iter().map(|participant| {
            let own = signatures.iter().filter(|found| found.participant == participant.name);
            let mut standing = Standing::Missing;
            for signature in own {
                if signature.public_key != participant.public_key {
                    if standing == Standing::Missing {
                        standing = Standing::OtherKey(signature.public_key);
                    }
                } else if signature.is_over(policy) {
                    standing = Standing::Signed;
                    break;
                } else {
                    standing = Standing::Invalid;
                }
            }
            Vote {
                participant: participant.name.clone(),
                public_key: participant.public_key,
                standing,
            }
        });
        Self {
            threshold: electorate.consent.threshold,
            votes: votes.collect(),
        }
    }

    /// The participants whose signature is good.
    pub fn signed(&self) -> impl Iterator<Item = &Vote> {
        self.votes.iter().filter(|vote| vote.standing == Standing::Signed)
    }

    /// Whether enough signed.
    pub fn complete(&self) -> bool {
        self.signed().count() >= self.threshold as usize
    }
}

/// All that decides whether a policy takes effect.
#[derive(Clone, Debug)]
pub struct Ballot {
    /// Its own participants' signatures.
    pub own: Tally,
    /// Those of the participants of the policy before it, if that is at hand.
    pub before: Option<Tally>,
    /// Whether it follows a policy that is not at hand: what that one demands can't be told.
    pub unknown_predecessor: bool,
    /// Why it can't follow that policy at all.
    pub broken: Vec<FailedRule>,
    /// Signatures that are nobody's: who made them, and what is wrong.
    pub strays: Vec<FailedRule>,
}

impl Ballot {
    /// Counts the signatures under `policy`; `predecessor` is the policy that it follows, if it is at hand.
    pub fn count(policy: &Policy, signatures: &Signatures, predecessor: Option<&Policy>) -> Self {
        let known = |signature: &Signature| {
            [Some(policy), predecessor]
                .into_iter()
                .flatten()
                .any(|one| one.participant_key(&signature.participant) == Some(signature.public_key))
        };
        let stray = |index: usize, signature: &Signature| {
            let rule = format!("signature[{index}] of {:?}", signature.participant);
            let twice = signatures.iter().take(index).any(|earlier| {
                earlier.participant == signature.participant && earlier.public_key == signature.public_key
            });
            if !known(signature) {
                let seen = format!("the key {}", signature.public_key);
                Some(FailedRule::new(rule, seen, "a participant of the policy, with its key"))
            } else if twice {
                Some(FailedRule::new(
                    rule,
                    "a second one by that key",
                    "one; remove the other",
                ))
            } else if !signature.is_over(policy) {
                let wanted = format!("one over the policy {}", policy.digest());
                Some(FailedRule::new(rule, "a signature over other bytes", wanted))
            } else {
                None
            }
        };
        let strays = signatures.iter().enumerate();
        Self {
            own: Tally::count(policy, policy, signatures),
            before: predecessor.map(|before| Tally::count(policy, before, signatures)),
            unknown_predecessor: policy.predecessor.is_some() && predecessor.is_none(),
            broken: predecessor.map_or_else(Vec::new, |before| broken_rules(before, policy)),
            strays: strays
                .filter_map(|(index, signature)| stray(index, signature))
                .collect(),
        }
    }

    /// Whether the policy takes effect.
    pub fn complete(&self) -> bool {
        self.own.complete()
            && self.before.as_ref().is_none_or(Tally::complete)
            && !self.unknown_predecessor
            && self.broken.is_empty()
    }
}

/// Why `new` can't follow `old`, whoever signs it; empty if it can.
pub fn broken_rules(old: &Policy, new: &Policy) -> Vec<FailedRule> {
    let mut broken = Vec::new();
    let mut fail = |rule: &str, seen: String, wanted: String| broken.push(FailedRule::new(rule, seen, wanted));
    if new.name != old.name {
        fail("name", new.name.clone(), format!("{}, the federation's", old.name));
    }
    if new.predecessor != Some(old.digest()) {
        let seen = new.predecessor.map_or("none".to_owned(), |digest| digest.to_string());
        fail(
            "predecessor",
            seen,
            format!("{}, the older policy's SHA-256", old.digest()),
        );
    }
    if new.version != old.version + 1 {
        fail("version", new.version.to_string(), (old.version + 1).to_string());
    }
    if old.consent.immutable {
        let wanted = "none, as the older policy is immutable".to_owned();
        fail("agreement.immutable", "a successor".to_owned(), wanted);
    }
    broken
}
