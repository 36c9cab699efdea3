//! The keeper: a node's process with keys, evidence, vault and network. It reads the node file and the policy, shows who the
//! node is, and starts the runner, which has the modules, the engine and the rows, and nothing else.

pub mod audit;
pub mod config;
pub mod contents;
pub mod lineage;
pub mod measured;
pub mod models;
pub mod provider;
pub mod references;
pub mod runner;
pub mod runtime;
pub mod trust;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cloister_attestation::identity::{Credential, MAX_CREDENTIAL_BYTES, Role};
use cloister_attestation::measurement::{Entry, EntryRole};
use cloister_attestation::simulated::reissue_if_stale;
use cloister_attestation::{Collateral, NodeIdentity, QuoteProvider, RaTlsIdentity, State, TrustRoot, Verifier};
use cloister_policy::{Policy, Signatures, SignedPolicy};
use cloister_session::collateral::Refresher;
use cloister_session::{Clock, Local, NodeSide, QuoteService, SelfSide, SessionMemory};

use crate::files;
use crate::process;
use crate::ui::{Exit, fail, failed, now_unix_s, unreadable};
use audit::Audit;
use config::NodeConfig;
use measured::Loaded;
use references::{Watch, Watched};
use runtime::Runtime;

/// No policy or file of signatures is larger than this.
const MAX_POLICY_BYTES: u64 = 4 * 1024 * 1024;

/// A node's own side: what it agreed to, who it is, what it verifies with.
pub struct Keeper {
    /// The node file.
    pub config: NodeConfig,
    /// The agreement.
    pub policy: Arc<Policy>,
    /// The node's key and credential.
    pub identity: Arc<NodeIdentity>,
    /// The one way to the quote provider.
    pub quotes: QuoteService,
    /// Verifies peers' quotes under the root that the policy names.
    pub verifier: Arc<Verifier>,
    /// The native files that the host runs.
    host_files: Vec<Entry>,
    /// Where OpenVINO's libraries lie, if they are used.
    pub openvino_dir: Option<PathBuf>,
    provider: Arc<dyn QuoteProvider>,
    runtime: Runtime,
    clock: Clock,
    /// What happened here, written down.
    pub audit: Audit,
    /// Renews the verifier's collateral for as long as the keeper lives.
    _refresher: Option<Refresher>,
    /// Looks for newer reference values for as long as the keeper lives.
    _references: Option<Watch>,
}

impl Keeper {
    /// Reads everything that a node of this role starts from, and refuses what doesn't fit together.
    pub fn open(config_path: &Path, role: Role) -> Result<Self, miette::Report> {
        process::harden().map_err(|error| fail(Exit::Failed, error))?;
        let config = NodeConfig::load(config_path).map_err(unreadable)?;
        let signed = load_policy(&config.policy)?;
        let policy = Arc::clone(signed.policy());
        match signed.signers() {
            [] => tracing::warn!("nobody signed the policy {}", policy.digest()),
            signers => tracing::info!("policy {} signed by {}", policy.digest(), signers.join(", ")),
        }
        warn_of_unsigned(&signed);
        if let Some(files) = &config.agreement {
            lineage::check(files, &policy)?;
        }
        let identity = Arc::new(load_identity(&config)?);
        check_own_place(&config, &policy, &identity, role)?;
        let now = now_unix_s();
        let provider = provider::choose(&config)?;
        check_root(&policy, provider.as_ref())?;
        let (verifier, fetched) = own_verifier(&config, &policy, now)?;
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
        let openvino_dir = runner::openvino_folder(&config.engine)?;
        let host_files = process::host_files(openvino_dir.as_deref())
            .map_err(|error| fail(Exit::Failed, error))?
            .into_iter()
            .map(|(name, digest)| Entry::new(EntryRole::Host, name, digest))
            .collect();
        let audit = Audit::open(&config, &identity, policy.version, Arc::clone(&clock))?;
        audit.must(
            audit::AGREEMENT,
            serde_json::json!({
                "policy": policy.digest(),
                "name": policy.name,
                "version": policy.version,
                "signed_by": signed.signers(),
                "simulated": policy.attestation.simulated,
            }),
        )?;
        let runtime = Runtime::new(Arc::clone(&provider), policy.attestation.rtmr3.clone());
        runtime.extend(&[measured::policy_entry(&policy)])?;
        if let Some(references) = policy.references() {
            audit.must(references::EVENT, references::written_down(&references))?;
        }
        let watch = match &config.references {
            None => None,
            Some(path) => {
                let watched = Watched {
                    path: path.clone(),
                    policy: Arc::clone(&policy),
                    store: fetched.as_ref().map(|fetched| Arc::clone(&fetched.store)),
                };
                Some(Watch::start(watched, audit.clone()).map_err(|error| fail(Exit::Failed, error))?)
            }
        };
        Ok(Self {
            audit,
            config,
            identity,
            quotes: QuoteService::new(Arc::clone(&provider)),
            verifier: Arc::new(verifier),
            policy,
            host_files,
            openvino_dir,
            provider,
            runtime,
            clock,
            _refresher: fetched.map(|fetched| fetched.refresher),
            _references: watch,
        })
    }

    /// The wall clock, held to what was seen, as sessions want it.
    pub fn clock(&self) -> Clock {
        Arc::clone(&self.clock)
    }

    /// Measures the node, which loaded this, in a state, and makes its certificate. Takes one quote: not to be called on an async
    /// thread.
    pub fn certificate(&self, state: State, loaded: &Loaded) -> Result<Arc<RaTlsIdentity>, miette::Report> {
        let measurement = measured::measure(&self.policy, &self.config.name, state, &self.host_files, loaded)?;
        let identity = RaTlsIdentity::new(
            self.provider.as_ref(),
            &self.identity,
            state,
            measurement,
            self.policy.digest(),
            now_unix_s(),
        )
        .map_err(|error| fail(Exit::Failed, error))?;
        let identity = self.runtime.explain(identity)?;
        let (state, root) = (state.as_str(), identity.node.measurement.root().to_string());
        self.audit
            .must("measured", serde_json::json!({ "state": state, "measurement": root }))?;
        Ok(Arc::new(identity))
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
        Local {
            own: SelfSide::Node(self.side(certificate)),
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
    let verifier = verifier.ok_or_else(|| {
        failed(
            Exit::Usage,
            "the node file names no source of collateral, without which no peer's quote can be verified",
            Some("add [collateral] with `url` (a PCCS, or Intel's PCS) and `cache`".into()),
        )
    })?;
    Ok((verifier, fetched))
}

/// The newest issue date in a verifier's collateral, if that verifies: no honest clock is before it.
fn newest_issue(verifier: &Verifier, now: u64) -> u64 {
    let verified = verifier.collateral().verify(verifier.root(), now);
    verified.map_or(0, |verified| verified.latest_issue_unix_s())
}

/// Reads a policy and the signatures beside it, and verifies them.
pub fn load_policy(path: &Path) -> Result<SignedPolicy, miette::Report> {
    let policy =
        Policy::parse(&files::read(path, MAX_POLICY_BYTES)?, &path.display().to_string()).map_err(unreadable)?;
    let signatures = read_signatures_beside(path)?;
    SignedPolicy::new(policy, &signatures).map_err(|error| fail(Exit::Denied, error))
}

/// The signatures beside a policy; none if there is no such file.
pub fn read_signatures_beside(path: &Path) -> Result<Signatures, miette::Report> {
    let beside = files::with_suffix(path, ".sigs");
    if beside.exists() {
        let bytes = files::read(&beside, MAX_POLICY_BYTES)?;
        Signatures::parse(&bytes, &beside.display().to_string()).map_err(unreadable)
    } else {
        Ok(Signatures::default())
    }
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

/// A verifier under the root in a folder of `cloister quote authority` (its public part suffices), which must be the policy's.
pub fn load_verifier(trust_root: &Path, policy: &Policy) -> Result<Verifier, miette::Report> {
    let root = TrustRoot::from_file(trust_root).map_err(unreadable)?;
    if root.key_id() != &policy.attestation.root_key_id || root.simulated() != policy.attestation.simulated {
        let kind = |simulated| if simulated { "SIMULATED root" } else { "root of Intel" };
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        return Err(failed(
            Exit::Refused,
            format!(
                "the {} in {} has the key id {}, the policy names {} of {}",
                kind(root.simulated()),
                trust_root.display(),
                hex(root.key_id()),
                kind(policy.attestation.simulated),
                hex(&policy.attestation.root_key_id)
            ),
            Some("take the trust root that the federation agreed on".into()),
        ));
    }
    let collateral = Collateral::from_file(trust_root).map_err(unreadable)?;
    Ok(Verifier::new(root, collateral))
}

fn load_identity(config: &NodeConfig) -> Result<NodeIdentity, miette::Report> {
    let key = files::read_key(&config.node_key)?;
    let text = files::read(&config.credential, MAX_CREDENTIAL_BYTES as u64)?;
    let text = String::from_utf8(text).map_err(|_| {
        failed(
            Exit::Usage,
            format!("{} is not text", config.credential.display()),
            None,
        )
    })?;
    let credential = Credential::parse(&text).map_err(unreadable)?;
    Ok(NodeIdentity { key, credential })
}

/// Peers would refuse all of these; saying so at start saves the search.
fn check_own_place(
    config: &NodeConfig,
    policy: &Policy,
    identity: &NodeIdentity,
    role: Role,
) -> Result<(), miette::Report> {
    let denied = |message: String, help: &str| Err(failed(Exit::Denied, message, Some(help.to_owned())));
    let fields = &identity.credential.fields;
    let Some(node) = policy.node(&config.name) else {
        return denied(
            format!("the policy names no node {}", config.name),
            "check `name` in the node file",
        );
    };
    if node.role != role {
        return denied(
            format!(
                "the policy gives {} the role {}, but it was started as {role}",
                node.name, node.role
            ),
            "start it by the command of its role",
        );
    }
    if fields.node != node.name || fields.participant != node.participant || fields.federation != policy.name {
        return denied(
            format!(
                "the credential is for node {} of {} in {}, the node file and policy say {} of {} in {}",
                fields.node, fields.participant, fields.federation, node.name, node.participant, policy.name
            ),
            "have the participant endorse this node: cloister identity endorse",
        );
    }
    if fields.node_key != identity.key.public() {
        return denied(
            format!(
                "the credential is for the node key {}, the file {} holds {}",
                fields.node_key,
                config.node_key.display(),
                identity.key.public()
            ),
            "have the participant endorse this key: cloister identity endorse",
        );
    }
    Ok(())
}
