//! What a node stands on before it is anybody: its policy, its TD, what it verifies others with, the files that it runs.

use std::path::PathBuf;
use std::sync::Arc;

use cloister_attestation::measurement::{Entry, EntryRole};
use cloister_attestation::ratls::VisitorIdentity;
use cloister_attestation::simulated::reissue_if_stale;
use cloister_attestation::{NodeIdentity, QuoteProvider, RaTlsIdentity, State, TrustRoot, Verifier};
use cloister_policy::{Policy, SignedPolicy};
use cloister_session::collateral::{Refresher, Store};
use cloister_session::{Clock, Local, NodeSide, QuoteService, SelfSide, SessionMemory};

use super::config::NodeConfig;
use super::measured::{self, Loaded};
use super::references::{Watch, Watched};
use super::runtime::Runtime;
use super::{libraries, load_verifier, references, trust};
use crate::process;
use crate::ui::{Exit, fail, failed, now_unix_s};

/// What a node stands on.
pub struct Ground {
    /// The node's name in the policy.
    node: String,
    /// The agreement.
    pub policy: Arc<Policy>,
    /// The one way to the quote provider.
    pub quotes: QuoteService,
    /// Verifies peers' quotes under the root that the policy names.
    pub verifier: Arc<Verifier>,
    /// The native files that the host runs.
    pub(super) host_files: Vec<Entry>,
    /// Where the engine's libraries lie, if it has any.
    pub library_dir: Option<PathBuf>,
    /// Takes quotes where nobody else does at the same time.
    pub(super) provider: Arc<dyn QuoteProvider>,
    /// Extends RTMR3 by what is about to run.
    pub(super) runtime: Runtime,
    pub(super) clock: Clock,
    /// Cache and watermarks of collateral, where it is fetched.
    pub(super) store: Option<Arc<Store>>,
    /// Renews the verifier's collateral for as long as this lives.
    _refresher: Option<Refresher>,
}

impl Ground {
    /// Under a signed policy, in that TD. Refuses a root of trust that is not the policy's.
    pub fn new(
        config: &NodeConfig,
        signed: &SignedPolicy,
        provider: Arc<dyn QuoteProvider>,
    ) -> Result<Self, miette::Report> {
        let policy = signed.policy();
        match signed.signers() {
            [] => tracing::warn!("nobody signed the policy {}", policy.digest()),
            signers => tracing::info!("policy {} signed by {}", policy.digest(), signers.join(", ")),
        }
        warn_of_unsigned(signed);
        Self::under(config, Arc::clone(policy), provider)
    }

    /// Under a policy, whoever signed it: a manager works under one that is proposed, too.
    pub fn under(
        config: &NodeConfig,
        policy: Arc<Policy>,
        provider: Arc<dyn QuoteProvider>,
    ) -> Result<Self, miette::Report> {
        let now = now_unix_s();
        check_root(&policy, provider.as_ref())?;
        process::keep_memory(policy.attestation.simulated).map_err(|error| fail(Exit::Failed, error))?;
        let (verifier, fetched) = own_verifier(config, &policy, now)?;
        let floor_unix_s = match &fetched {
            Some(fetched) => fetched.store.floor_unix_s(),
            None => newest_issue(&verifier, now),
        };
        let clock = trust::clock(floor_unix_s, policy.attestation.max_clock_skew_s)?;
        let policy = match &config.references {
            Some(path) => {
                let store = fetched.as_ref().map(|fetched| fetched.store.as_ref());
                let references = references::references(path, &policy, store)?;
                Arc::new((*policy).clone().with_references(references))
            }
            None => policy,
        };
        let library_dir = libraries::library_folder(&config.engine, policy.attestation.simulated)?;
        let host_files = process::host_files(library_dir.as_deref())
            .map_err(|error| fail(Exit::Failed, error))?
            .into_iter()
            .map(|(name, digest)| Entry::new(EntryRole::Host, name, digest))
            .collect();
        let runtime = Runtime::new(Arc::clone(&provider), policy.attestation.rtmr3.clone());
        runtime.extend(&[measured::policy_entry(&policy)])?;
        Ok(Self {
            runtime,
            node: config.name.clone(),
            quotes: QuoteService::new(Arc::clone(&provider)),
            verifier: Arc::new(verifier),
            policy,
            host_files,
            library_dir,
            provider,
            clock,
            store: fetched.as_ref().map(|fetched| Arc::clone(&fetched.store)),
            _refresher: fetched.map(|fetched| fetched.refresher),
        })
    }

    /// The wall clock, held to what was seen, as sessions want it.
    pub fn clock(&self) -> Clock {
        Arc::clone(&self.clock)
    }

    /// Measures the node, which loaded this, in a state, and makes its certificate. Takes one quote: not to be called on an async
    /// thread.
    pub fn certificate(
        &self,
        identity: &NodeIdentity,
        state: State,
        loaded: &Loaded,
    ) -> Result<Arc<RaTlsIdentity>, miette::Report> {
        let measurement = measured::measure(&self.policy, &self.node, state, &self.host_files, loaded)?;
        let made = RaTlsIdentity::new(
            self.provider.as_ref(),
            identity,
            state,
            measurement,
            self.policy.digest(),
            now_unix_s(),
        );
        let made = made.map_err(|error| fail(Exit::Failed, error))?;
        self.runtime.explain(made).map(Arc::new)
    }

    /// This side of sessions, showing that certificate.
    pub fn side(&self, certificate: &Arc<RaTlsIdentity>) -> NodeSide {
        NodeSide {
            identity: Arc::clone(certificate),
            quotes: self.quotes.clone(),
        }
    }

    /// Everything that sessions need, showing that certificate.
    pub fn local(&self, certificate: &Arc<RaTlsIdentity>) -> Local {
        self.local_as(SelfSide::Node(self.side(certificate)))
    }

    /// Looks for newer reference values for as long as what it gives is held; `tell` writes down what was taken.
    pub fn watch_references(
        &self,
        config: &NodeConfig,
        tell: impl Fn(serde_json::Value) + Send + 'static,
    ) -> Result<Option<Watch>, miette::Report> {
        let watched = |path: &PathBuf| Watched {
            path: path.clone(),
            policy: Arc::clone(&self.policy),
            store: self.store.clone(),
        };
        let watched = config.references.as_ref().map(watched);
        let watch = watched.map(|watched| Watch::start(watched, tell)).transpose();
        watch.map_err(|error| fail(Exit::Failed, error))
    }

    /// Everything that sessions need to dial and verify others, showing nothing.
    pub fn visiting(&self) -> Result<Local, miette::Report> {
        let visitor = VisitorIdentity::new(None, now_unix_s()).map_err(|error| fail(Exit::Failed, error))?;
        Ok(self.local_as(SelfSide::Visitor(Arc::new(visitor))))
    }

    /// Everything that sessions need, as somebody.
    fn local_as(&self, own: SelfSide) -> Local {
        Local {
            own,
            verifier: Arc::clone(&self.verifier),
            policy: Arc::clone(&self.policy),
            clock: self.clock(),
            memory: SessionMemory::default(),
        }
    }
}

/// A simulated TD under Intel's root, and the other way round, would be refused by every peer.
fn check_root(policy: &Policy, provider: &dyn QuoteProvider) -> Result<(), miette::Report> {
    let (message, help) = match (policy.attestation.simulated, provider.simulated()) {
        (false, true) => (
            "the policy demands Intel's root, and this node's quotes are simulated",
            "run the node in a TD, or agree on a policy with `simulated = true` for trials",
        ),
        (true, false) => (
            "the policy is for simulated TDs, and this node's quotes are a real TD's",
            "add [simulated] to the node file for a trial, or agree on a policy with `simulated = false`",
        ),
        _ => return Ok(()),
    };
    Err(failed(Exit::Denied, message, Some(help.into())))
}

/// What peers are verified with: the simulated authority's root and collateral, or Intel's root and what was fetched.
fn own_verifier(
    config: &NodeConfig,
    policy: &Policy,
    now: u64,
) -> Result<(Verifier, Option<trust::Fetched>), miette::Report> {
    let simulated = config.simulated.as_ref().filter(|_| policy.attestation.simulated);
    let beside = match simulated {
        Some(simulated) => {
            reissue_if_stale(&simulated.authority, now).map_err(|error| fail(Exit::Failed, error))?;
            Some(load_verifier(&simulated.authority, policy)?)
        }
        None => None,
    };
    let intel = TrustRoot::intel().map_err(|error| fail(Exit::Failed, error))?;
    let root = beside.as_ref().map_or(&intel, Verifier::root);
    let fetched = match &config.collateral {
        Some(source) => Some(trust::fetch(source, config, policy, root)?),
        None => None,
    };
    let verifier = fetched.as_ref().map(|fetched| fetched.verifier.clone()).or(beside);
    Ok((verifier.ok_or_else(trust::no_source)?, fetched))
}

/// The newest issue date in a verifier's collateral, if that verifies: no honest clock is before it.
fn newest_issue(verifier: &Verifier, now: u64) -> u64 {
    let verified = verifier.collateral().verify(verifier.root(), now);
    verified.map_or(0, |verified| verified.latest_issue_unix_s())
}

/// Under a simulated root an unsigned policy runs: that must not go unsaid.
fn warn_of_unsigned(signed: &SignedPolicy) {
    let signers = signed.signers();
    let participants = signed.policy().participants.iter();
    let missing: Vec<_> = participants
        .map(|participant| participant.name.as_str())
        .filter(|name| !signers.iter().any(|signer| signer == name))
        .collect();
    if !missing.is_empty() {
        tracing::warn!("the policy is not signed by {}", missing.join(", "));
    }
}
