//! A node that has a manager: it starts with the manager's address and the federation's anchor, and gets everything else from there.

use std::path::PathBuf;
use std::sync::Arc;

use cloister_attestation::identity::Role;
use cloister_attestation::{NodeIdentity, State};
use cloister_manager::{Released, SecretId, SecretInfo, SecretKind, Wanted};
use cloister_policy::{Policy, SignedPolicy};
use cloister_session::{DialOptions, Proxy};
use cloister_vault::{VaultKey, VaultKeys};
use zeroize::Zeroizing;

use super::config::{ManagerPlace, NodeConfig, Place};
use super::ground::Ground;
use super::measured::{Loaded, measure};
use super::provisions::{ParcelKey, Provisions, sealed_digest, sealed_files, secrets_in};
use super::{check_own_place, load_identity};
use crate::manager::ManagerError;
use crate::manager::apply::{self, Applicant};
use crate::manager::link::Link;
use crate::ui::{Exit, fail, failed, now_unix_s, refused, unreadable};

/// The newest policy of the federation, as the manager tells the chain.
pub(super) fn policy(place: &ManagerPlace, config: &NodeConfig) -> Result<SignedPolicy, miette::Report> {
    let anchor = place.anchor().unwrap_or_else(|| cloister_tensor::Digest::of(b""));
    let dials = dials(place, config)?;
    block_on(apply::newest_policy(&dials, &anchor, now_unix_s()))
}

/// The node's identity, the keys that its policy grants it, and the link by which it keeps its lease.
pub(super) fn join(
    place: &ManagerPlace,
    config: &NodeConfig,
    ground: &Ground,
    role: Role,
) -> Result<(Arc<NodeIdentity>, (Provisions, Link)), miette::Report> {
    let dials = dials(place, config)?;
    let identity = match config.credential {
        Some(_) => load_identity(config)?,
        None => {
            let local = ground.visiting()?;
            let applicant = Applicant {
                provider: ground.provider.as_ref(),
                runtime: &ground.runtime,
                node: &config.name,
                measurement: measure(
                    &ground.policy,
                    &config.name,
                    State::Applicant,
                    &ground.host_files,
                    &Loaded::default(),
                )?,
            };
            block_on(apply::credential(&local, &dials, &applicant))?
        }
    };
    check_own_place(config, &ground.policy, &identity, role)?;
    let certificate = ground.certificate(&identity, State::Applicant, &Loaded::default())?;
    let simulated = ground.quotes.simulated();
    let told = |error: ManagerError| match error.refusal() {
        Some(_) => refused(error, simulated),
        None if matches!(error, ManagerError::Refused { .. }) => fail(Exit::Denied, error),
        None => fail(Exit::Failed, error),
    };
    let link = Link::new(ground.local(&certificate), dials, &config.name).map_err(told)?;
    let grants = link.grants().map_err(told)?;
    let wanted = wanted(config, &ground.policy, &grants.secrets)?;
    let mut provisions = Provisions::default();
    if !wanted.is_empty() {
        let names: Vec<_> = wanted.iter().map(|wanted| wanted.id.to_string()).collect();
        let released = link.release(wanted.clone()).map_err(told)?;
        take(&mut provisions, released, &wanted)?;
        for (dataset, data) in &config.data {
            if let Some(Place::Secret(name)) = &data.key {
                provisions.opens_dataset(dataset, &data.path, name)?;
            }
        }
        tracing::info!("the manager released {}", names.join(", "));
    }
    provisions.sealed_modules = grants.sealed_modules.into_iter().collect();
    link.hold_lease().map_err(told)?;
    Ok((Arc::new(identity), (provisions, link)))
}

/// All managers that the node file names.
fn dials(place: &ManagerPlace, config: &NodeConfig) -> Result<Vec<DialOptions>, miette::Report> {
    let proxy = config.proxy.as_deref().map(str::parse::<Proxy>).transpose();
    let proxy = proxy.map_err(unreadable)?;
    let dial = |address: &str| DialOptions {
        address: address.to_owned(),
        proxy: proxy.clone(),
        role: Some(Role::Manager),
    };
    Ok(place.addresses().map(dial).collect())
}

/// What of all that the manager grants this node has a use for: keys of sealed files that are at hand, its vault's key, the values
/// that it or its modules name.
fn wanted(config: &NodeConfig, policy: &Policy, granted: &[SecretInfo]) -> Result<Vec<Wanted>, miette::Report> {
    let values = values_named(config, policy)?;
    let folders = folders(config);
    let at_hand = sealed_files(&folders, policy.limits.content_mib << 20)?;
    let mut wanted = Vec::new();
    for info in granted {
        let ciphertext = match &info.kind {
            SecretKind::Module { .. } => match info.ciphertext.filter(|digest| at_hand.contains_key(digest)) {
                Some(digest) => Some(digest),
                None => continue,
            },
            SecretKind::Data { dataset, .. } => match config.data.get(dataset) {
                Some(file) => match sealed_digest(&file.path)? {
                    Some(digest) => Some(digest),
                    None => continue,
                },
                None => continue,
            },
            SecretKind::Vault { .. } if config.vault.is_some() => None,
            SecretKind::Value if values.contains(&info.id) => None,
            SecretKind::Vault { .. } | SecretKind::Value | SecretKind::Credential { .. } => continue,
        };
        let id = info.id.clone();
        wanted.push(Wanted { id, ciphertext });
    }
    if let Some(missing) = values.iter().find(|id| !granted.iter().any(|info| info.id == **id)) {
        return Err(failed(
            Exit::Denied,
            format!(
                "this node's configuration, or a module of its, names the secret {missing}, and the manager does not grant it"
            ),
            Some(format!(
                "{} uploads it: cloister manager secrets put; `cloister manager secrets ls` lists what is there",
                missing.owner
            )),
        ));
    }
    if config.vault.is_some() && !granted.iter().any(|info| matches!(info.kind, SecretKind::Vault { .. })) {
        return Err(failed(
            Exit::Denied,
            "the node file names a vault, and the manager has no key for this node's vault",
            Some("its participant uploads one: cloister vault keygen, cloister manager secrets put --vault".into()),
        ));
    }
    Ok(wanted)
}

/// The folders in which sealed modules are looked for.
pub(super) fn folders(config: &NodeConfig) -> Vec<PathBuf> {
    let folders = [Some(&config.content), config.modules.as_ref()];
    folders.into_iter().flatten().map(|folder| folder.dir.clone()).collect()
}

/// The secrets that the node file and the settings of the node's modules name.
fn values_named(config: &NodeConfig, policy: &Policy) -> Result<Vec<SecretId>, miette::Report> {
    let modules = policy.modules_for(&config.name);
    let settings = modules.iter().flat_map(|module| secrets_in(module));
    let names = config.secrets().chain(settings).map(|name| {
        let id: Result<SecretId, _> = name.parse();
        id.map_err(|error| failed(Exit::Usage, format!("secret://{name}: {error}"), None))
    });
    let mut names: Vec<_> = names.collect::<Result<_, _>>()?;
    names.sort();
    names.dedup();
    Ok(names)
}

/// Puts what was released in its place.
fn take(provisions: &mut Provisions, released: Vec<Released>, wanted: &[Wanted]) -> Result<(), miette::Report> {
    let mut vault = Vec::new();
    for one in released {
        let text = Zeroizing::new(String::from_utf8_lossy(one.value.expose()).into_owned());
        let key = || {
            VaultKey::parse(&text).ok_or_else(|| {
                failed(
                    Exit::Failed,
                    format!("{} is no key: 64 hexadecimal digits are wanted", one.id),
                    Some("its owner uploads the file that `cloister seal` or `cloister vault keygen` made".into()),
                )
            })
        };
        let asked = wanted.iter().find(|wanted| wanted.id == one.id);
        let parcel = || {
            let ciphertext = asked.and_then(|wanted| wanted.ciphertext);
            let ciphertext =
                ciphertext.ok_or_else(|| failed(Exit::Failed, format!("{} was not asked for", one.id), None))?;
            Ok::<_, miette::Report>(ParcelKey {
                key: key()?,
                ciphertext,
                plaintext: one.plaintext,
            })
        };
        match &one.kind {
            SecretKind::Module { module } => {
                provisions.modules.insert(module.clone(), parcel()?);
            }
            SecretKind::Data { dataset, .. } => {
                provisions.data.insert(dataset.clone(), parcel()?);
            }
            // All epochs come: the newest one seals, the others open what was sealed before. A vault counts them from 0.
            SecretKind::Vault { .. } => vault.push((u64::from(one.epoch).saturating_sub(1), key()?)),
            SecretKind::Value => {
                provisions.values.insert(one.id.to_string(), text);
            }
            SecretKind::Credential { .. } => {}
        }
    }
    provisions.vault = VaultKeys::new(vault);
    Ok(())
}

fn block_on<T>(work: impl Future<Output = Result<T, miette::Report>>) -> Result<T, miette::Report> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| fail(Exit::Failed, error))?.block_on(work)
}
