//! Content that the policy names: modules, graphs and initial weights, by digest, out of folders or from the aggregator.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use cloister_exchange::content::{ContentKind, Wanted};
use cloister_policy::Policy;
use cloister_tensor::{Digest, ReadLimits, TensorMap, safetensors};

use super::Keeper;
use super::config::NodeConfig;
use crate::files;
use crate::ui::{Exit, failed, unreadable};

/// Content in memory, checked against the policy: kind and name to bytes.
pub type Contents = BTreeMap<Wanted, Bytes>;

/// All that the policy names.
fn named(policy: &Policy) -> Vec<Wanted> {
    let mut wanted: Vec<_> = policy
        .modules
        .iter()
        .map(|module| Wanted {
            kind: ContentKind::Module,
            name: module.name.clone(),
            digest: module.sha256,
        })
        .chain(policy.graphs.iter().map(|graph| Wanted {
            kind: ContentKind::Graph,
            name: graph.name.clone(),
            digest: graph.sha256,
        }))
        .collect();
    wanted.push(Wanted {
        kind: ContentKind::Weights,
        name: policy.model.name.clone(),
        digest: policy.model.weights,
    });
    wanted
}

/// All of those that lie open somewhere: sealed modules travel as files, and are opened inside the nodes that are granted them.
pub fn collected(keeper: &Keeper) -> Vec<Wanted> {
    let sealed =
        |item: &Wanted| item.kind == ContentKind::Module && keeper.provisions.sealed_modules.contains_key(&item.name);
    let mut named = named(&keeper.policy);
    named.retain(|item| !sealed(item));
    named
}

/// Takes what is at hand: open files by their digest, sealed modules with the keys that the manager released. Gives what is still
/// missing.
pub fn at_hand(keeper: &Keeper, wanted: &[Wanted]) -> Result<(Contents, Vec<Wanted>), miette::Report> {
    let (mut found, missing) = from_folders(&keeper.config, &keeper.policy, wanted)?;
    let folders = super::managed::folders(&keeper.config);
    let limit = keeper.policy.limits.content_mib << 20;
    let mut still = Vec::new();
    for item in missing {
        let sealed = keeper.provisions.sealed_modules.get(&item.name);
        let Some(ciphertext) = sealed.filter(|_| item.kind == ContentKind::Module) else {
            still.push(item);
            continue;
        };
        let opened = keeper.provisions.module(&item.name, &item.digest, &folders, limit)?;
        let content = opened.ok_or_else(|| {
            failed(
                Exit::Denied,
                format!(
                    "the module {} is sealed ({}), and this node has no key for it: the sealed file is not in its folders, or the \
                     manager does not grant it",
                    item.name,
                    ciphertext.short()
                ),
                Some("put the file there that `cloister seal module` made; `cloister manager secrets ls` says whose key it is".into()),
            )
        })?;
        found.insert(item, content);
    }
    if !still.is_empty() {
        writable(&keeper.config.content.dir)?;
    }
    Ok((found, still))
}

/// Whether what is missing could be kept once it comes: said now rather than after it came.
fn writable(dir: &Path) -> Result<(), miette::Report> {
    std::fs::create_dir_all(dir)
        .and_then(|()| tempfile::NamedTempFile::new_in(dir).map(drop))
        .map_err(|error| {
            failed(
                Exit::Failed,
                format!("content cannot be kept in {}: {error}", dir.display()),
                Some("name a folder that this node may write to: [content] dir".into()),
            )
        })
}

/// What one node needs to be a member: what it runs, and the weights that round 1 starts from. The aggregator sends them,
/// and each worker compares what it is sent with them.
pub fn needed(policy: &Policy, node: &str) -> Vec<Wanted> {
    let modules = policy.modules_for(node).into_iter();
    let mut wanted: Vec<_> = modules
        .map(|module| Wanted {
            kind: ContentKind::Module,
            name: module.name.clone(),
            digest: module.sha256,
        })
        .collect();
    wanted.extend(policy.graphs_for(node).into_iter().map(|graph| Wanted {
        kind: ContentKind::Graph,
        name: graph.name.clone(),
        digest: graph.sha256,
    }));
    wanted.push(Wanted {
        kind: ContentKind::Weights,
        name: policy.model.name.clone(),
        digest: policy.model.weights,
    });
    wanted
}

/// The weights that round 1 starts from.
pub fn initial_weights(policy: &Policy, contents: &Contents) -> Result<TensorMap, miette::Report> {
    let bytes = contents
        .iter()
        .find(|(item, _)| item.kind == ContentKind::Weights)
        .map(|(_, bytes)| bytes.clone())
        .ok_or_else(|| failed(Exit::Failed, "the initial weights are missing", None))?;
    let limits = ReadLimits {
        max_bytes: policy.limits.update_mib << 20,
        ..ReadLimits::default()
    };
    safetensors::read(bytes, &limits).map_err(unreadable)
}

/// Takes from the node's folders what is there and has the right digest; gives what is still missing.
fn from_folders(
    config: &NodeConfig,
    policy: &Policy,
    wanted: &[Wanted],
) -> Result<(Contents, Vec<Wanted>), miette::Report> {
    let limit = policy.limits.content_mib << 20;
    let mut by_digest: BTreeMap<Digest, Bytes> = BTreeMap::new();
    for folder in [Some(&config.content), config.modules.as_ref(), config.graphs.as_ref()]
        .into_iter()
        .flatten()
    {
        if folder.dir.is_dir() {
            take_folder(&folder.dir, limit, wanted, &mut by_digest)?;
        }
    }
    let (mut found, mut missing) = (Contents::new(), Vec::new());
    for item in wanted {
        match by_digest.get(&item.digest) {
            Some(bytes) => {
                found.insert(item.clone(), bytes.clone());
            }
            None => missing.push(item.clone()),
        }
    }
    Ok((found, missing))
}

fn take_folder(
    dir: &Path,
    limit: u64,
    wanted: &[Wanted],
    into: &mut BTreeMap<Digest, Bytes>,
) -> Result<(), miette::Report> {
    let unreadable =
        |cause: std::io::Error| failed(Exit::Usage, format!("{} cannot be read: {cause}", dir.display()), None);
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let small = std::fs::metadata(&path).is_ok_and(|found| found.is_file() && found.len() <= limit);
        if !small {
            continue;
        }
        let bytes = files::read(&path, limit)?;
        let digest = Digest::of(&bytes);
        if wanted.iter().any(|item| item.digest == digest) {
            into.insert(digest, bytes.into());
        }
    }
    Ok(())
}

/// Keeps fetched content in the node's content folder, under its digest.
pub fn keep(dir: &Path, digest: &Digest, bytes: &[u8]) -> Result<(), miette::Report> {
    let path = dir.join(digest.to_string());
    let cannot = |cause: std::io::Error| {
        failed(
            Exit::Failed,
            format!("{} cannot be written: {cause}", path.display()),
            None,
        )
    };
    std::fs::create_dir_all(dir).map_err(cannot)?;
    let mut fresh = tempfile::NamedTempFile::new_in(dir).map_err(cannot)?;
    std::io::Write::write_all(&mut fresh, bytes).map_err(cannot)?;
    fresh.persist(&path).map_err(|error| cannot(error.error))?;
    Ok(())
}

/// The missing content in words: kind, name, digest.
pub fn in_words(missing: &[Wanted]) -> String {
    let words: Vec<_> = missing
        .iter()
        .map(|item| format!("{} {} ({})", item.kind.as_str(), item.name, item.digest.short()))
        .collect();
    words.join(", ")
}
