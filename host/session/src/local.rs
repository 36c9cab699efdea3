//! What this side brings into a session: who it is, what it verifies with, what it decides by.

use std::sync::Arc;

use cloister_attestation::ratls::VisitorIdentity;
use cloister_attestation::session::SelfInfo;
use cloister_attestation::{RaTlsIdentity, VerdictCache, Verifier};
use cloister_policy::Policy;

use crate::lease::Leases;
use crate::quotes::QuoteService;

/// The wall clock in seconds since 1970, as the node gives it.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// A node's own side: its certificate, and where it takes a quote for each session.
#[derive(Clone, Debug)]
pub struct NodeSide {
    /// Certificate, key and claims.
    pub identity: Arc<RaTlsIdentity>,
    /// The node's one way to its quote provider.
    pub quotes: QuoteService,
}

/// What this side is.
#[derive(Clone, Debug)]
pub enum SelfSide {
    /// A node in a TD.
    Node(NodeSide),
    /// A command line, which dials only.
    Visitor(Arc<VisitorIdentity>),
}

/// What this side remembers from one session to the next. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct SessionMemory {
    /// Which certificates' quotes verified.
    pub(crate) verdicts: Arc<VerdictCache>,
    /// Until when each peer is believed.
    pub(crate) leases: Arc<Leases>,
}

/// Everything that this side brings into its sessions.
#[derive(Clone)]
pub struct Local {
    /// What it is.
    pub own: SelfSide,
    /// Verifies the peers' quotes, under the one root that the policy names.
    pub verifier: Arc<Verifier>,
    /// Decides about peers.
    pub policy: Arc<Policy>,
    /// The wall clock.
    pub clock: Clock,
    /// What it remembers.
    pub memory: SessionMemory,
}

impl Local {
    pub(crate) fn tls_identity(&self) -> (&[u8], &[u8]) {
        match &self.own {
            SelfSide::Node(node) => (&node.identity.cert_der, &node.identity.key_pkcs8),
            SelfSide::Visitor(visitor) => (&visitor.cert_der, &visitor.key_pkcs8),
        }
    }

    pub(crate) fn self_info(&self) -> SelfInfo {
        match &self.own {
            SelfSide::Node(node) => SelfInfo::Node(Arc::clone(&node.identity)),
            SelfSide::Visitor(visitor) => SelfInfo::Visitor(Arc::clone(visitor), *self.policy.digest().as_bytes()),
        }
    }
}
