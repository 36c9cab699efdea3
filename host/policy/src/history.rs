//! The chain of policies from the founding one to the newest, each signed as its predecessor demands.

use cloister_attestation::identity::PublicKey;
use cloister_tensor::Digest;

use crate::policy::Policy;
use crate::signatures::Signatures;
use crate::succession::Ballot;

/// Most policies that a history is made of.
pub const MAX_VERSIONS: usize = 4096;

/// A policy with the signatures under it.
#[derive(Clone, Debug)]
pub struct Version {
    /// The policy.
    pub policy: Policy,
    /// The signatures.
    pub signatures: Signatures,
    /// Where it was found, for people.
    pub file: String,
}

/// A participant who signed two policies of which only one can follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DoubleSigner {
    /// The participant.
    pub participant: String,
    /// The key with which it did.
    pub public_key: PublicKey,
    /// The policies, by digest.
    pub signed: Vec<Digest>,
}

/// Two or more complete policies after the same one: the history ends before them, since nobody can say which is valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fork {
    /// The policy that they all follow; `None` if they all found the federation.
    pub after: Option<Digest>,
    /// They, by digest.
    pub policies: Vec<Digest>,
}

/// What a set of policies tells of a federation.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The policies that took effect, the founding one first: indices into what was given.
    pub chain: Vec<usize>,
    /// Policies that follow the newest (or would found the federation) but are not complete.
    pub pending: Vec<(usize, Ballot)>,
    /// Policies beside one that took effect: they can't follow any more.
    pub overtaken: Vec<usize>,
    /// Policies that belong to no part of the chain.
    pub apart: Vec<usize>,
    /// The place where the history splits, if it does.
    pub fork: Option<Fork>,
    /// Who signed two policies that follow the same one, whether or not those are complete.
    pub double_signers: Vec<DoubleSigner>,
}

/// Follows the chain. With an `anchor` ([`Policy::anchor`]) only a founding policy of that anchor begins it; without one,
/// anybody's may, and the history is worth what the source of the files is. Copies of one policy are taken as one, with the
/// signatures of all; `versions` is changed so, and the indices are into what it is afterwards.
pub fn follow(versions: &mut Vec<Version>, anchor: Option<Digest>) -> History {
    join_copies(versions);
    let mut history = History::default();
    let mut left: Vec<usize> = (0..versions.len()).collect();
    loop {
        let tip = history.chain.last().and_then(|index| versions.get(*index));
        let (after, before) = (tip.map(|tip| tip.policy.digest()), tip.map(|tip| &tip.policy));
        let next = |version: &Version| match after {
            Some(_) => version.policy.predecessor == after,
            None => version.policy.predecessor.is_none() && (anchor.is_none() || version.policy.anchor() == anchor),
        };
        let (candidates, rest): (Vec<_>, Vec<_>) = left.iter().partition(|index| next(&versions[**index]));
        left = rest;
        let ballots: Vec<(usize, Ballot)> = candidates
            .into_iter()
            .map(|index| {
                let version = &versions[index];
                (index, Ballot::count(&version.policy, &version.signatures, before))
            })
            .collect();
        history.double_signers.extend(double_signers(versions, &ballots));
        let (complete, pending): (Vec<_>, Vec<_>) = ballots.into_iter().partition(|(_, ballot)| ballot.complete());
        match complete.as_slice() {
            [] => {
                history.pending = pending;
                break;
            }
            [(index, _)] => {
                history.chain.push(*index);
                history.overtaken.extend(pending.into_iter().map(|(index, _)| index));
            }
            several => {
                let digests = several.iter().map(|(index, _)| versions[*index].policy.digest());
                history.fork = Some(Fork {
                    after,
                    policies: digests.collect(),
                });
                history.pending = pending;
                break;
            }
        }
    }
    history.apart = left;
    history
}

fn join_copies(versions: &mut Vec<Version>) {
    let mut joined: Vec<Version> = Vec::with_capacity(versions.len().min(MAX_VERSIONS));
    for version in versions.drain(..) {
        let same = |other: &&mut Version| other.policy.digest() == version.policy.digest();
        match joined.iter_mut().find(same) {
            Some(copy) => copy.signatures.merge(&version.signatures),
            None => joined.push(version),
        }
    }
    *versions = joined;
}

/// Who signed more than one of the candidates, by the count of their own participants and of those before them.
fn double_signers(versions: &[Version], candidates: &[(usize, Ballot)]) -> Vec<DoubleSigner> {
    let mut found: Vec<DoubleSigner> = Vec::new();
    for (index, ballot) in candidates {
        let digest = versions[*index].policy.digest();
        let votes = ballot
            .own
            .signed()
            .chain(ballot.before.iter().flat_map(|tally| tally.signed()));
        for vote in votes {
            let same = |known: &&mut DoubleSigner| {
                known.participant == vote.participant && known.public_key == vote.public_key
            };
            match found.iter_mut().find(same) {
                Some(known) if known.signed.contains(&digest) => {}
                Some(known) => known.signed.push(digest),
                None => found.push(DoubleSigner {
                    participant: vote.participant.clone(),
                    public_key: vote.public_key,
                    signed: vec![digest],
                }),
            }
        }
    }
    found.retain(|known| known.signed.len() > 1);
    found
}
