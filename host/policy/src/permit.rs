//! What a policy makes out of verified evidence. Nothing secret goes to a peer without a permit.

use cloister_attestation::identity::Role;
use cloister_attestation::measurement::MeasurementRoot;
use cloister_attestation::{Refusal, State, VerifiedEvidence, VerifiedTd, VerifiedVisitor};
use cloister_tensor::Digest;

use crate::appraise::unknown_visitor;
use crate::policy::Policy;

/// Leave to exchange what the policy grants with one node over one connection. Only [`Policy::permit`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permit {
    federation: String,
    participant: String,
    node: String,
    role: Role,
    state: State,
    policy_digest: Digest,
    measurement_root: MeasurementRoot,
    tcb_status: String,
    expiry_unix_s: u64,
    connection: [u8; 32],
}

impl Permit {
    /// The federation's name.
    pub fn federation(&self) -> &str {
        &self.federation
    }

    /// The participant whose node it is.
    pub fn participant(&self) -> &str {
        &self.participant
    }

    /// The node's name.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// What the node does.
    pub fn role(&self) -> Role {
        self.role
    }

    /// How far the node has come: content goes to bootstrap nodes, too; updates and models to members alone.
    pub fn state(&self) -> State {
        self.state
    }

    /// SHA-256 of the policy file that decided.
    pub fn policy_digest(&self) -> Digest {
        self.policy_digest
    }

    /// Root of what the node measured of itself, as it showed it first on the connection.
    pub fn measurement_root(&self) -> MeasurementRoot {
        self.measurement_root
    }

    /// Status of its platform, as Intel names it.
    pub fn tcb_status(&self) -> &str {
        &self.tcb_status
    }

    /// When it ends, in seconds since 1970.
    pub fn expiry_unix_s(&self) -> u64 {
        self.expiry_unix_s
    }

    /// Whether it has ended.
    pub fn expired(&self, now_unix_s: u64) -> bool {
        now_unix_s >= self.expiry_unix_s
    }

    /// The connection that it is for: the TLS exporter of the session.
    pub fn connection(&self) -> &[u8; 32] {
        &self.connection
    }
}

/// Leave for a TD without a credential to be given the one that its participant left for it, over one connection. Only
/// [`Policy::admit`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    federation: String,
    participant: String,
    node: String,
    role: Role,
    policy_digest: Digest,
    expiry_unix_s: u64,
    connection: [u8; 32],
}

impl Admission {
    /// The federation's name.
    pub fn federation(&self) -> &str {
        &self.federation
    }

    /// The participant whose node it is to be.
    pub fn participant(&self) -> &str {
        &self.participant
    }

    /// The node that it is to be.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// What that node does.
    pub fn role(&self) -> Role {
        self.role
    }

    /// SHA-256 of the policy file that decided.
    pub fn policy_digest(&self) -> Digest {
        self.policy_digest
    }

    /// When it ends, in seconds since 1970.
    pub fn expiry_unix_s(&self) -> u64 {
        self.expiry_unix_s
    }

    /// The connection that it is for: the TLS exporter of the session.
    pub fn connection(&self) -> &[u8; 32] {
        &self.connection
    }
}

/// Leave for a command line without a TD to look around and, as a participant, to submit content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visit {
    participant: Option<String>,
}

impl Visit {
    /// The participant whose key signed the connection. Without one the visitor may only look.
    pub fn participant(&self) -> Option<&str> {
        self.participant.as_deref()
    }
}

impl Policy {
    /// A permit for the connection, if the evidence passes every rule at that time. It ends with the credential, with the
    /// collateral, or after `permit_max_s`, whichever is first.
    ///
    /// # Errors
    /// [`Refusal`] with every rule that failed.
    pub fn permit(
        &self,
        evidence: &VerifiedEvidence,
        connection: [u8; 32],
        now_unix_s: u64,
    ) -> Result<Permit, Refusal> {
        Refusal::unless_empty(self.appraise(evidence, now_unix_s))?;
        let ends = [
            evidence.credential().fields.not_after_unix_s,
            evidence.tcb().collateral_expires_unix_s,
            now_unix_s.saturating_add(self.attestation.permit_max_s),
        ];
        Ok(Permit {
            federation: evidence.federation().to_owned(),
            participant: evidence.participant().to_owned(),
            node: evidence.node().to_owned(),
            role: evidence.role(),
            state: evidence.state(),
            policy_digest: self.digest(),
            measurement_root: evidence.measurement().root(),
            tcb_status: evidence.tcb().status.clone(),
            expiry_unix_s: ends.into_iter().min().unwrap_or(now_unix_s),
            connection,
        })
    }

    /// Leave for a TD to be given its credential over the connection, if what it shows passes every rule that a node's evidence has to
    /// pass, the credential apart. It ends as a permit does.
    ///
    /// # Errors
    /// [`Refusal`] with every rule that failed.
    pub fn admit(&self, applicant: &VerifiedTd, connection: [u8; 32], now_unix_s: u64) -> Result<Admission, Refusal> {
        Refusal::unless_empty(self.appraise_applicant(applicant, now_unix_s))?;
        let claims = applicant.claims();
        let collateral_ends = applicant.tcb().collateral_expires_unix_s;
        Ok(Admission {
            federation: claims.federation.clone(),
            participant: claims.participant.clone(),
            node: claims.node.clone(),
            role: claims.role,
            policy_digest: self.digest(),
            expiry_unix_s: collateral_ends.min(now_unix_s.saturating_add(self.attestation.permit_max_s)),
            connection,
        })
    }

    /// Leave to visit, for a participant of the policy or for nobody.
    ///
    /// # Errors
    /// [`Refusal`] if the participant that signed is none of the policy's.
    pub fn visit(&self, visitor: &VerifiedVisitor) -> Result<Visit, Refusal> {
        let unknown = visitor.participant().and_then(|name| unknown_visitor(self, name));
        Refusal::unless_empty(unknown.into_iter().collect())?;
        Ok(Visit {
            participant: visitor.participant().map(str::to_owned),
        })
    }
}
