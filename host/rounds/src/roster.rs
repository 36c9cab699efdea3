//! Who the members of an epoch are, as each of them verified it.
//!
//! The aggregator relays; it decides nothing here. Every member puts a fresh nonce in, so a roster quote that answers
//! the challenge is fresh for every member, and every member computes challenge and digest by itself.

use cloister_tensor::Digest;

use crate::transcript::Transcript;

/// Most members of a roster.
pub const MAX_MEMBERS: usize = 1024;

/// One member as its evidence shows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RosterEntry {
    /// Its name in the policy.
    pub node: String,
    /// SHA-256 of its claims.
    pub claims_digest: Digest,
    /// Root of its measurement, SHA-384.
    pub measurement_root: [u8; 48],
}

/// The challenge of an epoch: SHA-256("cloister/roster-challenge/v1" | epoch | count | for each node in ascending order
/// lp(node) | lp(nonce)). `None` unless the nonces stand in strictly ascending order of their nodes, at most
/// [`MAX_MEMBERS`].
pub fn challenge(epoch: u64, nonces: &[(String, [u8; 32])]) -> Option<[u8; 32]> {
    if nonces.len() > MAX_MEMBERS || nonces.windows(2).any(|pair| pair[0].0 >= pair[1].0) {
        return None;
    }
    let mut transcript = Transcript::new("cloister/roster-challenge/v1");
    transcript.number(epoch).count(nonces.len());
    for (node, nonce) in nonces {
        transcript.text(node).bytes(nonce);
    }
    Some(*transcript.digest().as_bytes())
}

/// The digest of a roster: SHA-256("cloister/roster/v1" | epoch | lp(challenge) | aggregator | count | members in
/// ascending order), each as lp(node) | lp(claims digest) | lp(root). Binding the aggregator's entry makes all members
/// agree on one aggregator TD. `None` unless the members stand in strictly ascending order.
pub fn digest(epoch: u64, challenge: &[u8; 32], aggregator: &RosterEntry, members: &[RosterEntry]) -> Option<Digest> {
    if members.len() > MAX_MEMBERS || members.windows(2).any(|pair| pair[0].node >= pair[1].node) {
        return None;
    }
    let mut transcript = Transcript::new("cloister/roster/v1");
    transcript.number(epoch).bytes(challenge);
    put(&mut transcript, aggregator);
    transcript.count(members.len());
    members.iter().for_each(|member| put(&mut transcript, member));
    Some(transcript.digest())
}

fn put(transcript: &mut Transcript, entry: &RosterEntry) {
    transcript
        .text(&entry.node)
        .bytes(entry.claims_digest.as_bytes())
        .bytes(&entry.measurement_root);
}
