//! The node file: what one host needs to know beside the agreement. Parsed once, here, into bounded types.
//!
//! ```toml
//! name = "worker-a"
//! policy = "digits.toml"            # signatures are looked for in digits.toml.sigs
//! credential = "worker-a.credential"
//! node_key = "worker-a.key"
//! aggregator = "127.0.0.1:7700"     # workers dial out; aggregators `listen` instead
//! proxy = "proxy.example.org:3128"  # optional HTTP CONNECT proxy
//! provider = "simulated"            # or "coco", "configfs"; left out: what this machine has
//! audit = "audit.jsonl"             # optional: what happened here, in lines that the node signs
//!
//! [agreement]                       # optional: refuse a policy that is not the newest in force
//! anchor = "hex"                    # of the founding policy, as `cloister policy status` tells it
//! policies = "policies"             # every policy from that one on, with its signatures
//!
//! [manager]                         # instead of `policy`, `credential`, `node_key`, [agreement] and keys in files
//! address = "manager.example.org:7800"  # of several managers all, with commas between them
//! anchor = "hex"
//!
//! [data.train]
//! path = "train.csv"                # the salt of its commitment lies in train.csv.salt
//!
//! [content]
//! dir = "content"                   # modules, graphs and weights, by digest
//!
//! [vault]
//! path = "vault"
//! key_file = "vault.key"
//! last_seen = "vault.last-seen"
//!
//! [engine]
//! backend = "auto"
//! threads = 1
//! cpus = "0-3,8"                    # optional: the processors that the runner keeps to
//! pinning = false                   # true: OpenVINO keeps each thread on a core of its own
//!
//! [simulated]
//! authority = "authority"
//!
//! [collateral]                      # optional: fetched, kept, and renewed in the background
//! url = "https://pccs.example.org:8081"
//! cache = "collateral"
//! platforms = ["00806f050000"]      # platform families beside those of the policy; "FMSPC/processor" under that authority
//! # bundle = "collateral.json"      # instead of `url`, `platforms`: a file that somebody brings, looked at each minute
//! ```
//! A salt, and the `key` of a sealed dataset, may be `kbs:///REPOSITORY/TYPE/TAG`, a resource of an external key service ([`KbsPlace`]):
//!
//! ```toml
//! [kbs]
//! url = "https://kbs.example.org:8080"
//! ```
//!
//! With `[manager]` a file of data or content may be sealed (`cloister seal`): the manager has its key. A salt, the `key` of a sealed dataset and
//! the `authorities` of [kbs] may be `secret://OWNER/NAME`, what that participant uploaded by `cloister manager secrets put`; nothing else of a node
//! file may. A manager's own file has `[store]` in place of data and vault ([`StoreFiles`]).
//!
//! Paths are relative to the folder of the node file. Unknown keys are errors that name the nearest known one.

mod collateral;
mod managed;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use cloister_runner::Cpus;
use serde::Deserialize;

pub use collateral::CollateralSource;
pub use managed::{KbsPlace, ManagerPlace, Place, StoreFiles};

/// No node file is larger than this.
const MAX_NODE_FILE_BYTES: u64 = 256 * 1024;

/// Every key that a node file may hold: what a typing error is compared with.
const KNOWN_KEYS: [&str; 56] = [
    "name",
    "policy",
    "credential",
    "node_key",
    "listen",
    "aggregator",
    "proxy",
    "provider",
    "data",
    "content",
    "modules",
    "graphs",
    "vault",
    "engine",
    "simulated",
    "path",
    "salt",
    "format",
    "dir",
    "key_file",
    "last_seen",
    "backend",
    "threads",
    "cpus",
    "pinning",
    "openvino_dir",
    "library_dir",
    "authority",
    "mrtd",
    "mrseam",
    "mrconfigid",
    "attributes",
    "rtmr0",
    "rtmr1",
    "rtmr2",
    "rtmr3",
    "quote_latency_ms",
    "references",
    "audit",
    "agreement",
    "anchor",
    "policies",
    "collateral",
    "bundle",
    "url",
    "cache",
    "authorities",
    "platforms",
    "manager",
    "address",
    "store",
    "recipients",
    "replicas",
    "peers",
    "kbs",
    "key",
];

/// Why a node file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the node file {path} cannot be read: {cause}")]
    Read {
        /// The file.
        path: String,
        /// The system's error.
        #[source]
        cause: std::io::Error,
    },
    /// The file is far too large.
    #[error("the node file {path} has {bytes} bytes; at most {MAX_NODE_FILE_BYTES} are read")]
    TooLarge {
        /// The file.
        path: String,
        /// Its size.
        bytes: u64,
    },
    /// The file is not TOML of this form.
    #[error("{path}:{line}:{column}: {message}{hint}")]
    Syntax {
        /// The file.
        path: String,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What the parser says.
        message: String,
        /// The nearest known key, where that may help.
        hint: String,
    },
    /// The keys are well-formed but don't fit together.
    #[error("{path}: {message}")]
    Meaning {
        /// The file.
        path: String,
        /// What doesn't fit, and what to do.
        message: String,
    },
}

/// A dataset of this node.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataFile {
    /// The file: CSV, Parquet, NPZ, IDX or CIFAR-10's binary form, by the end of its name.
    pub path: PathBuf,
    /// The salt of its commitment; by default the data file's path with `.salt` behind it.
    pub salt: Option<Place>,
    /// The key of a sealed one: at an external key service, or a value that the manager has.
    pub key: Option<Place>,
}

impl DataFile {
    /// Where the salt lies.
    pub fn salt_place(&self) -> Place {
        self.salt.clone().unwrap_or_else(|| {
            let mut path = self.path.clone().into_os_string();
            path.push(".salt");
            Place::File(PathBuf::from(path))
        })
    }
}

/// What the node's policy has to be the newest of.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgreementFiles {
    /// The founders' keys and threshold, as a digest in hexadecimal.
    pub anchor: String,
    /// The folder with every policy from the founding one on, and their signatures.
    pub policies: PathBuf,
}

/// A folder.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Folder {
    /// The folder.
    pub dir: PathBuf,
}

impl Folder {
    fn content() -> Self {
        Self { dir: "content".into() }
    }
}

/// The sealed storage of this node.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaultFiles {
    /// The vault's folder.
    pub path: PathBuf,
    /// The file with its key; a manager's nodes have none.
    pub key_file: Option<PathBuf>,
    /// The record against rollback, kept outside the vault. Without it freshness is not proven.
    pub last_seen: Option<PathBuf>,
}

/// Which engine computes.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum EngineChoice {
    /// OpenVINO where its libraries are there, tract otherwise.
    #[default]
    Auto,
    /// OpenVINO or nothing.
    Openvino,
    /// tract, the pure-Rust engine.
    Tract,
    /// ONNX Runtime, in a binary built with it.
    Onnxruntime,
    /// libtorch for steps in TorchScript, and tract for graphs in ONNX, in a binary built with it.
    Libtorch,
}

/// How graphs are computed.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Engine {
    /// Which engine.
    pub backend: EngineChoice,
    /// Threads of one computation (1 to 256) in OpenVINO; tract runs on one, and the log says so. Bytes are compared between machines at the same count only.
    pub threads: u16,
    /// The processors that the runner keeps to, engine and sandbox alike; left out: all that the node may use. Like `pinning`, it changes
    /// how long a step takes, and no result.
    pub cpus: Option<Cpus>,
    /// Whether OpenVINO keeps each of its threads on a processor core of its own: for a machine on which nothing else runs.
    pub pinning: bool,
    /// Where OpenVINO's libraries lie.
    pub openvino_dir: Option<PathBuf>,
    /// Where the libraries of ONNX Runtime or libtorch lie, if one of them is the engine.
    pub library_dir: Option<PathBuf>,
}

impl Default for Engine {
    fn default() -> Self {
        Self {
            backend: EngineChoice::Auto,
            threads: 1,
            cpus: None,
            pinning: false,
            openvino_dir: None,
            library_dir: None,
        }
    }
}

/// The simulated TD of this node. Registers are hexadecimal.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Simulated {
    /// The simulated authority's folder.
    pub authority: PathBuf,
    /// MRTD, 48 bytes.
    pub mrtd: Option<String>,
    /// MRSEAM, 48 bytes.
    pub mrseam: Option<String>,
    /// MRCONFIGID, 48 bytes.
    pub mrconfigid: Option<String>,
    /// TD attributes, 8 bytes.
    pub attributes: Option<String>,
    /// RTMR0, 48 bytes.
    pub rtmr0: Option<String>,
    /// RTMR1, 48 bytes.
    pub rtmr1: Option<String>,
    /// RTMR2, 48 bytes.
    pub rtmr2: Option<String>,
    /// RTMR3, 48 bytes.
    pub rtmr3: Option<String>,
    /// How long a quote takes.
    #[serde(default)]
    pub quote_latency_ms: u64,
}

/// Who makes the quotes.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// The simulator: real-format quotes under a root of its own.
    Simulated,
    /// The Linux kernel, by configfs-tsm.
    Configfs,
    /// The API server of a pod of Confidential Containers.
    Coco,
}

/// A node file, checked.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// The node's name in the policy.
    pub name: String,
    /// The policy file; a manager's nodes get it from there.
    pub policy: Option<PathBuf>,
    /// The node's credential, endorsed by its participant; with a manager it may lie there.
    pub credential: Option<PathBuf>,
    /// The node's Ed25519 key; with a manager it may lie there.
    pub node_key: Option<PathBuf>,
    /// Aggregators: the address to listen at.
    pub listen: Option<SocketAddr>,
    /// Workers: the aggregator's HOST:PORT.
    pub aggregator: Option<String>,
    /// Workers: an HTTP CONNECT proxy's HOST:PORT.
    pub proxy: Option<String>,
    /// Who makes the quotes.
    #[serde(default)]
    pub provider: Option<Provider>,
    /// The node's datasets by their names in the policy.
    #[serde(default)]
    pub data: BTreeMap<String, DataFile>,
    /// Where content (modules, graphs, weights) is kept by digest.
    #[serde(default = "Folder::content")]
    pub content: Folder,
    /// A folder with modules that are there already.
    pub modules: Option<Folder>,
    /// A folder with graphs that are there already.
    pub graphs: Option<Folder>,
    /// The sealed storage.
    pub vault: Option<VaultFiles>,
    /// How graphs are computed.
    #[serde(default)]
    pub engine: Engine,
    /// The simulated TD.
    pub simulated: Option<Simulated>,
    /// Where collateral comes from; a simulated authority's folder has its own.
    pub collateral: Option<CollateralSource>,
    /// Reference values that the policy takes besides, with their signatures in FILE.sigs.
    pub references: Option<PathBuf>,
    /// The audit log. Without it nothing is written down.
    pub audit: Option<PathBuf>,
    /// Of which chain the policy has to be the newest. Without it any policy runs that its own participants signed.
    pub agreement: Option<AgreementFiles>,
    /// Where policy, credential and keys come from, in place of files.
    pub manager: Option<ManagerPlace>,
    /// An external key service for salts and keys of datasets.
    pub kbs: Option<KbsPlace>,
    /// A manager's own state.
    pub store: Option<StoreFiles>,
}

impl NodeConfig {
    /// Reads and checks a node file; relative paths become relative to its folder.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let shown = path.display().to_string();
        let read = |cause| ConfigError::Read {
            path: shown.clone(),
            cause,
        };
        let bytes = std::fs::metadata(path).map_err(read)?.len();
        if bytes > MAX_NODE_FILE_BYTES {
            return Err(ConfigError::TooLarge { path: shown, bytes });
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        let mut config = Self::parse(&text, &shown)?;
        config.resolve(path.parent().unwrap_or(Path::new(".")));
        Ok(config)
    }

    /// Parses the text of a node file; `shown` names it in errors.
    pub fn parse(text: &str, shown: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| syntax(text, shown, &error))?;
        let meaning = |message: &str| {
            Err(ConfigError::Meaning {
                path: shown.into(),
                message: message.into(),
            })
        };
        let table = text.parse().map_err(|error| syntax(text, shown, &error))?;
        if let Err(message) = managed::no_stray_secrets(&table).and_then(|()| managed::check(&config)) {
            return meaning(&message);
        }
        if config.listen.is_some() == config.aggregator.is_some() {
            return meaning(
                "exactly one of `listen` (an aggregator's address) and `aggregator` (whom a worker dials) is wanted",
            );
        }
        if config.aggregator.as_ref().is_some_and(|address| !has_port(address)) {
            return meaning("`aggregator` is no HOST:PORT, such as \"aggregator.example.org:7700\"");
        }
        if config.listen.is_some() && config.proxy.is_some() {
            return meaning("`proxy` is for nodes that dial out; this one listens");
        }
        if !(1..=256).contains(&config.engine.threads) {
            return meaning("`engine.threads` must lie between 1 and 256");
        }
        if let Some(cpus) = &config.engine.cpus
            && cpus.count() < usize::from(config.engine.threads)
        {
            // The engine would take fewer, which moves last bits.
            return meaning(&format!(
                "`engine.threads` is {}, but `engine.cpus` names {} processors only: name as many, or have fewer threads",
                config.engine.threads,
                cpus.count()
            ));
        }
        if config.provider.is_some_and(|provider| provider != Provider::Simulated) && config.simulated.is_some() {
            return meaning(
                "a section [simulated] is there, and `provider` names another one: take one of the two out",
            );
        }
        if config.provider == Some(Provider::Simulated) && config.simulated.is_none() {
            return meaning("`provider = \"simulated\"` wants a section [simulated] with the authority's folder");
        }
        if let Some(message) = config.collateral.as_ref().and_then(CollateralSource::problem) {
            return meaning(message);
        }
        Ok(config)
    }

    /// The secrets of the manager that are named here, `OWNER/NAME`.
    pub fn secrets(&self) -> impl Iterator<Item = &str> {
        let data = self.data.values().flat_map(|data| [&data.salt, &data.key]);
        let kbs = self.kbs.iter().map(|kbs| &kbs.authorities);
        data.chain(kbs).filter_map(|place| match place {
            Some(Place::Secret(name)) => Some(name.as_str()),
            _ => None,
        })
    }

    fn resolve(&mut self, base: &Path) {
        let fix = |path: &mut PathBuf| *path = base.join(&*path);
        for path in [&mut self.policy, &mut self.credential, &mut self.node_key] {
            path.iter_mut().for_each(fix);
        }
        fix(&mut self.content.dir);
        for data in self.data.values_mut() {
            fix(&mut data.path);
            if let Some(Place::File(path)) = &mut data.salt {
                fix(path);
            }
        }
        for folder in [&mut self.modules, &mut self.graphs].into_iter().flatten() {
            fix(&mut folder.dir);
        }
        if let Some(vault) = &mut self.vault {
            fix(&mut vault.path);
            vault.key_file.iter_mut().for_each(fix);
            vault.last_seen.iter_mut().for_each(fix);
        }
        self.engine.openvino_dir.iter_mut().for_each(fix);
        self.engine.library_dir.iter_mut().for_each(fix);
        self.references.iter_mut().for_each(fix);
        self.audit.iter_mut().for_each(fix);
        if let Some(agreement) = &mut self.agreement {
            fix(&mut agreement.policies);
        }
        if let Some(collateral) = &mut self.collateral {
            fix(&mut collateral.cache);
            collateral.authorities.iter_mut().for_each(fix);
            collateral.bundle.iter_mut().for_each(fix);
        }
        if let Some(simulated) = &mut self.simulated {
            fix(&mut simulated.authority);
        }
        if let Some(Place::File(path)) = self.kbs.as_mut().and_then(|kbs| kbs.authorities.as_mut()) {
            fix(path);
        }
        if let Some(store) = &mut self.store {
            fix(&mut store.path);
            fix(&mut store.recipients);
        }
    }
}

/// An argument that is HOST:PORT.
///
/// # Errors
/// What is wanted.
pub fn address(text: &str) -> Result<String, String> {
    if has_port(text) {
        Ok(text.to_owned())
    } else {
        Err("HOST:PORT is wanted, such as aggregator.example.org:7700".to_owned())
    }
}

/// Whether a text is HOST:PORT.
fn has_port(address: &str) -> bool {
    let parts = address.rsplit_once(':');
    parts.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0))
}

fn syntax(text: &str, shown: &str, error: &toml::de::Error) -> ConfigError {
    let start = error.span().map_or(0, |span| span.start).min(text.len());
    let before = text.get(..start).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
    let message = error.message().to_owned();
    let hint = unknown_key(&message)
        .and_then(|key| {
            KNOWN_KEYS
                .iter()
                .map(|known| (strsim::damerau_levenshtein(key, known), known))
                .filter(|(distance, known)| *distance <= 1 + known.len() / 3)
                .min()
        })
        .map(|(_, known)| format!("; did you mean `{known}`?"))
        .unwrap_or_default();
    ConfigError::Syntax {
        path: shown.into(),
        line,
        column,
        message,
        hint,
    }
}

fn unknown_key(message: &str) -> Option<&str> {
    message.strip_prefix("unknown field `")?.split('`').next()
}

#[cfg(test)]
mod tests;
