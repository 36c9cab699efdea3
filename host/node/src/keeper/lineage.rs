//! Whether the policy that a node is to run is the one in force: the newest of the chain that the founders began.

use std::path::{Path, PathBuf};

use cloister_policy::{MAX_VERSIONS, Policy, Signatures, Version, follow};
use cloister_tensor::Digest;

use super::config::AgreementFiles;
use super::{MAX_POLICY_BYTES, read_signatures_beside};
use crate::files;
use crate::ui::{Exit, failed, unreadable};

/// The policies of a folder, each with the signatures beside it. What is a TOML file but no policy goes to `other`; what was signed was
/// meant to be a policy, and is an error then.
pub fn policies_in(folder: &Path, other: &mut dyn FnMut(&Path)) -> Result<Vec<Version>, miette::Report> {
    let mut versions = Vec::new();
    for path in toml_files(folder)? {
        let shown = path.display().to_string();
        match Policy::parse(&files::read(&path, MAX_POLICY_BYTES)?, &shown) {
            Ok(policy) => versions.push(version(&path, policy)?),
            Err(error) if files::with_suffix(&path, ".sigs").exists() => return Err(unreadable(error)),
            Err(_) => other(&path),
        }
    }
    Ok(versions)
}

/// A policy that was read from `path`, with the signatures beside that.
pub fn version(path: &Path, policy: Policy) -> Result<Version, miette::Report> {
    let signatures: Signatures = read_signatures_beside(path)?;
    Ok(Version {
        policy,
        signatures,
        file: path.display().to_string(),
    })
}

/// The TOML files of a folder, by name.
pub fn toml_files(folder: &Path) -> Result<Vec<PathBuf>, miette::Report> {
    let cannot = |error: std::io::Error| {
        let text = format!("{} cannot be listed: {error}", folder.display());
        failed(Exit::Usage, text, files::help(error.kind()))
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(cannot)? {
        let path = entry.map_err(cannot)?.path();
        if path.extension().is_some_and(|extension| extension == "toml") && path.is_file() {
            found.push(path);
        }
        if found.len() > MAX_VERSIONS {
            let text = format!("{} has more than {MAX_VERSIONS} TOML files", folder.display());
            return Err(failed(
                Exit::Usage,
                text,
                Some("name a folder of policies alone".into()),
            ));
        }
    }
    found.sort();
    Ok(found)
}

/// Refuses a policy that is not the newest in force: an older one, one that is not complete yet, or one of other founders.
pub fn check(files: &AgreementFiles, policy: &Policy) -> Result<(), miette::Report> {
    let anchor: Digest = files.anchor.parse().map_err(|error| {
        let text = format!("`agreement.anchor` is {:?}: {error}", files.anchor);
        failed(
            Exit::Usage,
            text,
            Some("`cloister policy status` tells it of the founding policy".into()),
        )
    })?;
    let mut versions = policies_in(&files.policies, &mut |_| ())?;
    let history = follow(&mut versions, Some(anchor));
    let folder = files.policies.display();
    let denied = |text: String| {
        let help = format!("`cloister policy history {folder} --anchor {anchor}` says more");
        Err(failed(Exit::Denied, text, Some(help)))
    };
    if let Some(fork) = &history.fork {
        let sides: Vec<_> = fork.policies.iter().map(Digest::short).collect();
        return denied(format!(
            "the policies in {folder} split: {} are both complete",
            sides.join(" and ")
        ));
    }
    let newest = history.chain.last().and_then(|index| versions.get(*index));
    let Some(newest) = newest.map(|version| &version.policy) else {
        return denied(format!(
            "no policy in {folder} founds the federation {anchor} with the signatures that it asks for"
        ));
    };
    if newest.digest() == policy.digest() {
        return Ok(());
    }
    denied(format!(
        "this node's policy is version {} ({}), but version {} ({}) is in force",
        policy.version,
        policy.digest().short(),
        newest.version,
        newest.digest().short()
    ))
}
