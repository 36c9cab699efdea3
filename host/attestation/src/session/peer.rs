//! What the peer says and shows, checked: what is cheap first. A chain of certificates and a TCB are looked at only when
//! everything that a comparison or the participant's signature can tell has been told, so garbage costs next to nothing.

use std::sync::Arc;

use cloister_wire::session::{Evidence, Hello};
use subtle::ConstantTimeEq as _;

use super::VERSION;
use super::batch::BatchPath;
use super::binding::{Binding, Side};
use crate::encoding::hex;
use crate::evidence::{
    Appraise, PeerEvidence, VerifiedEvidence, VerifiedVisitor, assemble, check_identity, read_event_log,
};
use crate::identity::is_name;
use crate::quote::{Quote, TdReport};
use crate::ratls::{CoherentCertificate, PeerCertificate};
use crate::refusal::{FailedRule, Refusal};
use crate::verify::{VerdictCache, VerifiedQuote, Verifier};

/// A peer's Hello that makes sense.
#[derive(Clone, Debug)]
pub(crate) struct PeerHello {
    pub(crate) nonce: [u8; 32],
    role: String,
    node: String,
    policy_digest: [u8; 32],
    visitor: bool,
}

/// Checks the peer's Hello against ours.
pub(crate) fn check_hello(
    hello: &Hello,
    own_side: Side,
    own_nonce: &[u8; 32],
    own_policy: [u8; 32],
) -> Result<PeerHello, Refusal> {
    let mut failed = Vec::new();
    if hello.version != VERSION {
        failed.push(FailedRule::new("session.version", hello.version, VERSION));
    }
    let nonce: [u8; 32] = hello.nonce.as_ref().try_into().unwrap_or_default();
    if nonce == [0; 32] {
        failed.push(FailedRule::new(
            "session.nonce",
            format!("{} bytes or zeros", hello.nonce.len()),
            "32 random bytes",
        ));
    }
    if nonce == *own_nonce {
        failed.push(FailedRule::new(
            "session.nonce",
            "our own nonce sent back",
            "32 random bytes",
        ));
    }
    if hello.visitor && own_side == Side::Client {
        failed.push(FailedRule::new("session.visitor", "a listener without a TD", "a node"));
    }
    let named = is_name(&hello.node) && is_name(&hello.role);
    if !hello.visitor && !named {
        failed.push(FailedRule::new(
            "session.node",
            "a Hello without role and node",
            "the names of the policy",
        ));
    }
    let policy_digest: [u8; 32] = hello.policy_digest.as_ref().try_into().unwrap_or_default();
    // A visitor may come without a policy: it brings nothing that a policy could be about. So may we, as one.
    let either_without = (hello.visitor && policy_digest == [0; 32]) || own_policy == [0; 32];
    if policy_digest != own_policy && !either_without {
        let wanted = format!("{}, the policy of this node", hex(&own_policy));
        failed.push(FailedRule::new("policy.digest", hex(&policy_digest), wanted));
    }
    Refusal::unless_empty(failed)?;
    Ok(PeerHello {
        nonce,
        role: hello.role.clone(),
        node: hello.node.clone(),
        policy_digest,
        visitor: hello.visitor,
    })
}

/// Everything that a peer showed in one connection.
pub(crate) struct Shown<'a> {
    pub(crate) hello: &'a PeerHello,
    pub(crate) evidence: &'a Evidence,
    pub(crate) certificate: &'a PeerCertificate,
    /// What the peer's evidence has to be bound to, seen from its end.
    pub(crate) binding: &'a Binding<'a>,
}

/// What decides about a peer.
pub(crate) struct Judges<'a> {
    pub(crate) verifier: &'a Arc<Verifier>,
    pub(crate) verdicts: &'a VerdictCache,
    pub(crate) appraiser: &'a dyn Appraise,
}

impl Shown<'_> {
    /// Verifies it all and asks the policy.
    pub(crate) fn verify(&self, judges: &Judges<'_>, now_unix_s: u64) -> Result<PeerEvidence, Refusal> {
        if self.hello.visitor {
            return self
                .verify_visitor(judges.appraiser, now_unix_s)
                .map(PeerEvidence::Visitor);
        }
        self.verify_node(judges, now_unix_s)
            .map(|evidence| PeerEvidence::Td(Box::new(evidence)))
    }

    fn verify_visitor(&self, appraiser: &dyn Appraise, now_unix_s: u64) -> Result<VerifiedVisitor, Refusal> {
        let Evidence {
            participant, signature, ..
        } = self.evidence;
        let name = (!participant.is_empty()).then_some(participant.as_str());
        if let Some(name) = name {
            let key = appraiser.participant_key(name);
            let signed = key.is_some_and(|key| key.verify(&self.binding.visitor_message(), signature));
            if !signed {
                // Not said apart: who is in the policy is not a stranger's to learn.
                let wanted = "a signature of this connection by a participant of the policy";
                return Err(Refusal::one(
                    "visitor.signature",
                    "a signature that does not verify",
                    wanted,
                ));
            }
        }
        Refusal::unless_empty(appraiser.appraise_visitor(name, now_unix_s))?;
        Ok(VerifiedVisitor::new(name.map(str::to_owned)))
    }

    fn verify_node(&self, judges: &Judges<'_>, now_unix_s: u64) -> Result<VerifiedEvidence, Refusal> {
        if self.evidence.quote.is_empty() {
            return Err(Refusal::one(
                "session.evidence",
                "no session quote",
                "a quote bound to this connection",
            ));
        }
        let layer1 = self.certificate.check()?;
        self.check_claims(&layer1)?;
        let wanted = self.check_binding(&layer1)?;
        let Judges {
            verifier, appraiser, ..
        } = judges;
        let credential = check_identity(&layer1.claims, &self.evidence.credential, *appraiser, now_unix_s)?;
        let event_log = read_event_log(&self.evidence.event_log)?;
        let verified1 = judges.verdicts.verify(
            verifier,
            &appraiser.basis(),
            &layer1.quote,
            &layer1.report_data(),
            now_unix_s,
        )?;
        let verified2 = verifier.verify(&self.evidence.quote, &wanted, now_unix_s)?;
        same_platform(&verified1, &verified2)?;
        assemble(layer1.claims, verified2, credential, event_log, *appraiser, now_unix_s)
    }

    /// The session's quote is over this connection, alone or among others, and of the certificate's TD. Gives the report
    /// data that it has.
    fn check_binding(&self, layer1: &CoherentCertificate) -> Result<[u8; 64], Refusal> {
        let path = BatchPath::new(
            self.evidence.batch_index,
            self.evidence.batch_path.iter().map(|hash| &hash[..]),
        )
        .map_err(|error| Refusal::one("session.batch", error, "a path from this session to its quote"))?;
        let quote = Quote::parse(&self.evidence.quote)
            .map_err(|error| Refusal::one("quote", error, "a TDX quote of version 4 or 5"))?;
        let claims = &layer1.claims;
        let binding = self
            .binding
            .report_data(&claims.digest(), &claims.node.measurement.root());
        let wanted = path.report_data(&binding);
        if !bool::from(quote.report.report_data.ct_eq(&wanted)) {
            // Made for another connection, end, time or node: of a relay, or of a TLS proxy in between.
            let wanted = format!(
                "{}: this connection, direction, nonce, claims and measurement",
                hex(&wanted)
            );
            let seen = hex(&quote.report.report_data);
            return Err(Refusal::one("session.binding", seen, wanted));
        }
        same_td(&layer1.report, &quote.report)?;
        Ok(wanted)
    }

    /// The claims of layer 2 are those of layer 1, and the Hello said the same.
    fn check_claims(&self, layer1: &CoherentCertificate) -> Result<(), Refusal> {
        let mut failed = Vec::new();
        if !bool::from(self.evidence.claims.ct_eq(&layer1.claims_bytes)) {
            failed.push(FailedRule::new(
                "session.claims",
                "other claims",
                "the claims in the TLS certificate",
            ));
        }
        let node = &layer1.claims.node;
        if self.hello.node != node.node {
            failed.push(FailedRule::new(
                "session.node",
                &self.hello.node,
                format!("{}, as the claims say", node.node),
            ));
        }
        if self.hello.role != node.role.as_str() {
            failed.push(FailedRule::new(
                "session.role",
                &self.hello.role,
                format!("{}, as the claims say", node.role),
            ));
        }
        if &self.hello.policy_digest != node.policy_digest.as_bytes() {
            let seen = hex(&self.hello.policy_digest);
            failed.push(FailedRule::new(
                "policy.digest",
                seen,
                format!("{}, as the claims say", node.policy_digest),
            ));
        }
        Refusal::unless_empty(failed)
    }
}

/// Both layers have to be of the same TD, in the same state.
fn same_td(layer1: &TdReport, layer2: &TdReport) -> Result<(), Refusal> {
    let mut failed = Vec::new();
    if !layer1.same_td(layer2) {
        let (one, two) = (layer1.named(), layer2.named());
        let differ = one
            .into_iter()
            .zip(two)
            .filter(|((name, one), (_, two))| *name != "report_data" && one != two);
        for ((name, one), (_, two)) in differ {
            let wanted = format!("{one}, as the TLS certificate's quote says");
            failed.push(FailedRule::new(format!("session.same_td.{name}"), two, wanted));
        }
        if failed.is_empty() {
            failed.push(FailedRule::new(
                "session.same_td",
                "another TD",
                "the TD of the TLS certificate",
            ));
        }
    }
    Refusal::unless_empty(failed)
}

/// Both layers have to be of the same platform.
fn same_platform(layer1: &VerifiedQuote, layer2: &VerifiedQuote) -> Result<(), Refusal> {
    let platform = |quote: &VerifiedQuote| format!("{} {}", hex(&quote.platform().ppid), hex(&quote.platform().fmspc));
    if layer1.platform() == layer2.platform() {
        return Ok(());
    }
    let wanted = format!("{}, the platform of the TLS certificate's quote", platform(layer1));
    Err(Refusal::one("session.same_platform", platform(layer2), wanted))
}
