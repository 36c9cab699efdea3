//! The parts of a node file that have to do with a manager: where a node finds it, and what a manager itself needs.

use std::path::PathBuf;

use cloister_tensor::Digest;
use serde::Deserialize;

use super::{NodeConfig, has_port};

/// What stands before the name of a secret where a path or a value could stand.
const SECRET: &str = "secret://";
/// What a resource of an external key service begins with.
const KBS: &str = "kbs://";

/// Where a manager is, and whose it has to be.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManagerPlace {
    /// The manager's HOST:PORT; of several managers all, with commas between them.
    pub address: String,
    /// The founders' keys and threshold, as a digest in hexadecimal.
    pub anchor: String,
}

impl StoreFiles {
    /// The anchor; the node file's parsing has seen that it is one.
    pub fn anchor(&self) -> Option<Digest> {
        self.anchor.parse().ok()
    }
}

impl ManagerPlace {
    /// The addresses of all managers.
    pub fn addresses(&self) -> impl Iterator<Item = &str> {
        self.address.split(',').map(str::trim)
    }

    /// The anchor; the node file's parsing has seen that it is one.
    pub fn anchor(&self) -> Option<Digest> {
        self.anchor.parse().ok()
    }
}

/// A manager's state.
///
/// ```toml
/// name = "manager"
/// policy = "policy.toml"            # proposed to the founders, or the newest that was in force
/// credential = "manager.credential"
/// node_key = "manager.key"
/// listen = "0.0.0.0:7800"
///
/// [store]
/// path = "state"                    # a folder: the sealed state, and the policies that were in force
/// anchor = "hex"
/// recipients = "recipients"         # NAME.recipient of each founder: `cloister manager recipient`
///
/// [store.replicas]                  # only where the policy names several managers, which are then one
/// address = "a.example.org:7800"    # where the others dial this one
/// peers = ["b.example.org:7800", "c.example.org:7800"]
/// ```
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreFiles {
    /// The folder of the sealed state, and of the policies that were in force, which nobody needs to hide.
    pub path: PathBuf,
    /// The founders' keys and threshold, as a digest in hexadecimal.
    pub anchor: String,
    /// The folder with the keys to which the founders' recovery shares are sealed.
    pub recipients: PathBuf,
    /// The other managers, where the policy names several.
    pub replicas: Option<ReplicaPlaces>,
}

/// Where managers of one federation find each other.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplicaPlaces {
    /// Where the others dial this one: HOST:PORT.
    pub address: String,
    /// Where this one dials the others.
    pub peers: Vec<String>,
}

/// Most other managers.
const MAX_PEERS: usize = 4;

/// A file, or a secret of the manager.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(from = "String")]
pub enum Place {
    /// A file.
    File(PathBuf),
    /// A secret's name, `OWNER/NAME`.
    Secret(String),
    /// A resource of an external key service: `kbs:///REPOSITORY/TYPE/TAG`.
    Kbs(String),
}

impl From<String> for Place {
    fn from(text: String) -> Self {
        match text.strip_prefix(SECRET) {
            Some(name) => Self::Secret(name.to_owned()),
            None if text.starts_with(KBS) => Self::Kbs(text),
            None => Self::File(text.into()),
        }
    }
}

/// An external key service that speaks the protocol of Trustee's key broker.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KbsPlace {
    /// Its address, `https://kbs.example.org:8080`.
    pub url: String,
    /// Authorities for HTTPS, PEM; the system's, if not given.
    pub authorities: Option<Place>,
}

/// Where a node file may name a secret of the manager: what is read once the manager has been asked, and is small enough to be one. The
/// manager has keys and credentials of nodes as such, and everything else here is needed to reach it, or is no secret.
const TAKES_SECRETS: &str = "`salt` and `key` of [data.NAME], and `authorities` of [kbs]";

/// Refuses `secret://OWNER/NAME` where it would be taken for the name of a file.
pub(super) fn no_stray_secrets(table: &toml::Table) -> Result<(), String> {
    let mut open: Vec<(Vec<&str>, &toml::Value)> =
        table.iter().map(|(key, value)| (vec![key.as_str()], value)).collect();
    while let Some((keys, value)) = open.pop() {
        let below = |key| [&keys[..], &[key]].concat();
        match value {
            toml::Value::Table(table) => open.extend(table.iter().map(|(key, value)| (below(key.as_str()), value))),
            toml::Value::Array(values) => open.extend(values.iter().map(|value| (keys.clone(), value))),
            toml::Value::String(text) if text.starts_with(SECRET) => {
                let instead = match keys[..] {
                    ["data", _, "salt" | "key"] | ["kbs", "authorities"] => continue,
                    ["credential" | "node_key"] => {
                        "; without `credential` and `node_key` the manager gives this node its own"
                    }
                    ["vault", "key_file"] => "; the vault's key comes from the manager: take it out",
                    ["data", _, "path"] => "; data is sealed (`cloister seal data`), and its key is the secret",
                    _ => "",
                };
                let key = keys.join(".");
                return Err(format!(
                    "`{key}` can't be {text:?}: a node file names secrets as {TAKES_SECRETS}{instead}"
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

/// What of a manager, of a manager's node and of a node alone does not go together.
pub(super) fn check(config: &NodeConfig) -> Result<(), String> {
    for (name, data) in &config.data {
        let places = [data.salt.as_ref(), data.key.as_ref()];
        let of_kbs = places.into_iter().flatten().any(|place| matches!(place, Place::Kbs(_)));
        if of_kbs && config.kbs.is_none() {
            return Err(format!(
                "[data.{name}] names a resource of a key service: add [kbs] with its `url`"
            ));
        }
        if matches!(data.key, Some(Place::File(_))) {
            return Err(format!(
                "the key of [data.{name}] is neither `kbs:///REPOSITORY/TYPE/TAG` nor `secret://OWNER/NAME`; one that was uploaded for the dataset \
                 comes from the manager without being named"
            ));
        }
    }
    if let Some(KbsPlace {
        authorities: Some(Place::Kbs(name)),
        ..
    }) = &config.kbs
    {
        return Err(format!(
            "`kbs.authorities` is {name}, at the service that they are to vouch for; name a file"
        ));
    }
    if let Some(store) = &config.store {
        if config.manager.is_some() {
            return Err("[store] makes this a manager's file; take [manager] out".into());
        }
        if store.anchor.parse::<Digest>().is_err() {
            return Err("`store.anchor` is no digest; `cloister policy status` tells it of the founding policy".into());
        }
        if let Some(ReplicaPlaces { address, peers }) = &store.replicas
            && (!has_port(address)
                || !peers.iter().all(|peer| has_port(peer))
                || peers.is_empty()
                || peers.len() > MAX_PEERS)
        {
            return Err(format!(
                "[store.replicas] wants `address`, this manager's HOST:PORT, and `peers`, the 1 to {MAX_PEERS} others'"
            ));
        }
    }
    if config.credential.is_some() != config.node_key.is_some() {
        let missing = match config.credential {
            Some(_) => "node_key",
            None => "credential",
        };
        return Err(format!(
            "`{missing}` is missing: `credential` and `node_key` stand there both or neither"
        ));
    }
    let Some(manager) = &config.manager else {
        return alone(config);
    };
    let most = MAX_PEERS + 1;
    if !manager.addresses().all(has_port) || manager.addresses().count() > most {
        return Err(format!(
            "`manager.address` is no HOST:PORT, such as \"manager.example.org:7800\", nor up to {most} with commas between them"
        ));
    }
    if manager.anchor().is_none() {
        return Err("`manager.anchor` is no digest; `cloister policy status` tells it of the founding policy".into());
    }
    if config.policy.is_some() {
        return Err("the policy comes from the manager: take `policy` out".into());
    }
    if config.agreement.is_some() {
        return Err("the manager follows the chain of policies: take [agreement] out".into());
    }
    match &config.vault {
        Some(vault) if vault.key_file.is_some() => {
            Err("the vault's key comes from the manager: take `vault.key_file` out".into())
        }
        Some(vault) if vault.last_seen.is_some() => {
            Err("the manager counts the vault's commits: take `vault.last_seen` out".into())
        }
        _ => Ok(()),
    }
}

/// Without a manager everything comes from files.
fn alone(config: &NodeConfig) -> Result<(), String> {
    for (key, there) in [
        ("policy", config.policy.is_some()),
        ("credential", config.credential.is_some()),
    ] {
        if !there {
            return Err(format!("`{key}` is missing; only a node with [manager] does without"));
        }
    }
    if config.vault.as_ref().is_some_and(|vault| vault.key_file.is_none()) {
        return Err("`vault.key_file` is missing; only a node with [manager] does without".into());
    }
    match config.secrets().next() {
        Some(name) => Err(format!(
            "secret://{name} is named here, and only a node with [manager] gets secrets"
        )),
        None => Ok(()),
    }
}
