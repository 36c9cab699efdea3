//! The keeper: a node's process with keys, evidence, vault and network. It reads the node file and the policy, shows who the
//! node is, and starts the runner, which has the modules, the engine and the rows, and nothing else.

pub mod audit;
pub mod config;
pub mod contents;
mod external;
pub mod ground;
pub mod libraries;
pub mod lineage;
mod managed;
pub mod measured;
pub mod models;
pub mod provider;
pub mod provisions;
pub mod references;
pub mod runner;
pub mod runtime;
pub mod trust;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cloister_attestation::identity::{Credential, MAX_CREDENTIAL_BYTES, Role};
use cloister_attestation::{Collateral, NodeIdentity, RaTlsIdentity, State, TrustRoot, Verifier};
use cloister_policy::{Policy, Signatures, SignedPolicy};

use crate::files;
use crate::manager::link::Link;
use crate::process;
use crate::ui::{Exit, fail, failed, unreadable};
use audit::Audit;
use config::NodeConfig;
use ground::Ground;
use measured::Loaded;
use provisions::Provisions;
use references::Watch;

/// No policy or file of signatures is larger than this.
const MAX_POLICY_BYTES: u64 = 4 * 1024 * 1024;

/// A node's own side: what it agreed to, who it is, what it verifies with.
pub struct Keeper {
    /// The node file.
    pub config: NodeConfig,
    /// The node's key and credential.
    pub identity: Arc<NodeIdentity>,
    /// What happened here, written down.
    pub audit: Audit,
    /// What the node's manager released to it.
    pub provisions: Provisions,
    /// The link to the manager, if it has one.
    pub link: Option<Link>,
    ground: Ground,
    /// Looks for newer reference values for as long as the keeper lives.
    _references: Option<Watch>,
}

impl std::ops::Deref for Keeper {
    type Target = Ground;

    fn deref(&self) -> &Ground {
        &self.ground
    }
}

impl Keeper {
    /// Reads everything that a node of this role starts from, or gets it from the node's manager, and refuses what doesn't fit
    /// together.
    pub fn open(config_path: &Path, role: Role) -> Result<Self, miette::Report> {
        process::harden().map_err(|error| fail(Exit::Failed, error))?;
        let config = NodeConfig::load(config_path).map_err(unreadable)?;
        let signed = match &config.manager {
            Some(place) => managed::policy(place, &config)?,
            None => own_policy(&config)?,
        };
        let provider = provider::choose(&config)?;
        let ground = Ground::new(&config, &signed, provider)?;
        let (identity, managed) = match &config.manager {
            Some(place) => {
                let (identity, managed) = managed::join(place, &config, &ground, role)?;
                (identity, Some(managed))
            }
            None => (own_identity(&config, &ground.policy, role)?, None),
        };
        let (provisions, link) = managed.unzip();
        let mut provisions = provisions.unwrap_or_default();
        external::fetch(&config, &ground, &mut provisions)?;
        let audit = Audit::open(&config, &identity, ground.policy.version, Arc::clone(&ground.clock))?;
        audit.must(
            audit::AGREEMENT,
            serde_json::json!({
                "policy": ground.policy.digest(),
                "name": ground.policy.name,
                "version": ground.policy.version,
                "signed_by": signed.signers(),
                "simulated": ground.policy.attestation.simulated,
            }),
        )?;
        if let Some(references) = ground.policy.references() {
            audit.must(references::EVENT, references::written_down(&references))?;
        }
        let log = audit.clone();
        let watch = ground.watch_references(&config, move |newer| log.note(references::EVENT, newer))?;
        Ok(Self {
            audit,
            config,
            identity,
            ground,
            provisions,
            link,
            _references: watch,
        })
    }

    /// Measures the node, which loaded this, in a state, and makes its certificate. Takes one quote: not to be called on an async
    /// thread.
    pub fn certificate(&self, state: State, loaded: &Loaded) -> Result<Arc<RaTlsIdentity>, miette::Report> {
        let certificate = self.ground.certificate(&self.identity, state, loaded)?;
        let (state, root) = (state.as_str(), certificate.node.measurement.root().to_string());
        self.audit
            .must("measured", serde_json::json!({ "state": state, "measurement": root }))?;
        if let Some(link) = &self.link {
            link.show(self.ground.local(&certificate));
        }
        Ok(certificate)
    }
}

/// The policy of the node's own files: the newest in force, where they say of which chain.
fn own_policy(config: &NodeConfig) -> Result<SignedPolicy, miette::Report> {
    // The node file's parsing saw that it is there.
    let path = config.policy.as_deref().unwrap_or(Path::new("policy.toml"));
    let signed = load_policy(path)?;
    if let Some(files) = &config.agreement {
        lineage::check(files, signed.policy())?;
    }
    Ok(signed)
}

/// Key and credential of the node's own files, which have to be for its place in the policy.
fn own_identity(config: &NodeConfig, policy: &Policy, role: Role) -> Result<Arc<NodeIdentity>, miette::Report> {
    let identity = load_identity(config)?;
    check_own_place(config, policy, &identity, role)?;
    Ok(Arc::new(identity))
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

/// A node's key and credential out of its files.
pub fn load_identity(config: &NodeConfig) -> Result<NodeIdentity, miette::Report> {
    // The node file's parsing saw that both are there.
    let place = |path: &Option<PathBuf>| path.clone().unwrap_or_default();
    let (node_key, credential) = (place(&config.node_key), place(&config.credential));
    let key = files::read_key(&node_key)?;
    let text = files::read(&credential, MAX_CREDENTIAL_BYTES as u64)?;
    let text = String::from_utf8(text)
        .map_err(|_| failed(Exit::Usage, format!("{} is not text", credential.display()), None))?;
    let credential = Credential::parse(&text).map_err(unreadable)?;
    Ok(NodeIdentity { key, credential })
}

/// Peers would refuse all of these; saying so at start saves the search.
pub fn check_own_place(
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
                "the credential is for the node key {}, but the node's key is {}",
                fields.node_key,
                identity.key.public()
            ),
            "have the participant endorse this key: cloister identity endorse",
        );
    }
    Ok(())
}
