//! Roster evidence: made by each member, verified by every other.

use bytes::Bytes;
use cloister_attestation::session::roster_report_data;
use cloister_attestation::{
    Appraise, Claims, DetachedEvidence, FailedRule, RaTlsIdentity, Refusal, State, VerifiedEvidence, Verifier,
    verify_detached,
};
use cloister_rounds::RosterEntry;
use cloister_session::{NodeSide, SessionError};
use cloister_tensor::Digest;
use cloister_wire::federation as wire;

use crate::error::ExchangeError;

/// A node's own entry.
pub(crate) fn own_entry(identity: &RaTlsIdentity) -> RosterEntry {
    RosterEntry {
        node: identity.node.node.clone(),
        claims_digest: Digest::of(&identity.claims),
        measurement_root: *identity.node.measurement.root().as_bytes(),
    }
}

/// The entry of a peer whose evidence was verified.
pub(crate) fn entry(evidence: &VerifiedEvidence) -> RosterEntry {
    RosterEntry {
        node: evidence.node().to_owned(),
        claims_digest: evidence.claims_digest(),
        measurement_root: *evidence.measurement().root().as_bytes(),
    }
}

/// Makes this node's evidence over a challenge. Takes a quote.
pub(crate) async fn make(
    node: &NodeSide,
    epoch: u64,
    challenge: &[u8; 32],
) -> Result<wire::RosterEvidence, ExchangeError> {
    let identity = &node.identity;
    let report_data = roster_report_data(
        challenge,
        &Digest::of(&identity.claims),
        &identity.node.measurement.root(),
    );
    let quote = node
        .quotes
        .quote(report_data)
        .await
        .map_err(|source| SessionError::Quote {
            address: "the roster".to_owned(),
            source,
        })?;
    Ok(wire::RosterEvidence {
        epoch,
        node: identity.node.node.clone(),
        quote: Bytes::from(quote),
        claims: identity.claims.clone(),
        credential: identity.credential.clone(),
        event_log: identity.event_log.clone(),
    })
}

/// Verifies a member's evidence over the challenge: quote, claims, credential, event log and policy; the name that it was relayed
/// under; and that it is a member, not a node that still collects its content.
pub(crate) fn verify(
    evidence: &wire::RosterEvidence,
    challenge: &[u8; 32],
    verifier: &Verifier,
    appraiser: &dyn Appraise,
    now_unix_s: u64,
) -> Result<VerifiedEvidence, Refusal> {
    let claims =
        Claims::parse(&evidence.claims).map_err(|error| Refusal::one("claims", error, "claims of a Cloister node"))?;
    let report_data = roster_report_data(challenge, &claims.digest(), &claims.node.measurement.root());
    let shown = DetachedEvidence {
        quote: &evidence.quote,
        claims: &evidence.claims,
        credential: &evidence.credential,
        event_log: &evidence.event_log,
    };
    let verified = verify_detached(&shown, &report_data, verifier, appraiser, now_unix_s)?;
    let mut failed = Vec::new();
    if verified.node() != evidence.node {
        failed.push(FailedRule::new("roster.node", verified.node(), &evidence.node));
    }
    if verified.state() != State::Member {
        failed.push(FailedRule::new(
            "roster.state",
            verified.state().as_str(),
            State::Member.as_str(),
        ));
    }
    Refusal::unless_empty(failed)?;
    Ok(verified)
}
