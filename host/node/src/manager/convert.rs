//! Messages to the core's types and back. What comes off the wire is checked here, once.

use bytes::Bytes;
use cloister_manager::{
    Commit, Mark, NewSecret, RoundNote, SealingPublicKey, SecretId, SecretInfo, SecretKind, SecretValue, Wanted,
};
use cloister_tensor::Digest;
use cloister_wire::manager as wire;
use zeroize::Zeroizing;

/// Longest mark, in bytes of its JSON.
const MAX_MARK_BYTES: usize = 1024;

/// Why a message is none.
pub(super) type Wrong = String;

pub(super) fn digest(bytes: &[u8], what: &str) -> Result<Digest, Wrong> {
    let bytes: [u8; 32] = fixed(bytes, what)?;
    Ok(Digest::from_bytes(bytes))
}

/// Exactly so many bytes.
pub(super) fn fixed<const N: usize>(bytes: &[u8], what: &str) -> Result<[u8; N], Wrong> {
    bytes
        .try_into()
        .map_err(|_| format!("{what} of {} bytes, wanted {N}", bytes.len()))
}

/// A digest, or none for no bytes.
pub(super) fn optional_digest(bytes: &[u8], what: &str) -> Result<Option<Digest>, Wrong> {
    match bytes {
        [] => Ok(None),
        bytes => digest(bytes, what).map(Some),
    }
}

pub(super) fn bytes_of(digest: &Digest) -> Bytes {
    Bytes::copy_from_slice(digest.as_bytes())
}

fn optional_bytes(digest: Option<&Digest>) -> Bytes {
    digest.map(bytes_of).unwrap_or_default()
}

pub(super) fn recipient(bytes: &[u8]) -> Result<SealingPublicKey, Wrong> {
    fixed(bytes, "a recipient's key").map(SealingPublicKey::from_bytes)
}

/// A mark as JSON; no bytes for none.
pub(super) fn mark_bytes(mark: Option<&Mark>) -> Bytes {
    // Numbers and digests: this cannot fail.
    let bytes = mark.map(|mark| serde_json::to_vec(mark).unwrap_or_default());
    bytes.unwrap_or_default().into()
}

pub(super) fn mark(bytes: &[u8]) -> Result<Option<Mark>, Wrong> {
    match bytes {
        [] => Ok(None),
        bytes if bytes.len() > MAX_MARK_BYTES => Err(format!("a mark of {} bytes", bytes.len())),
        bytes => serde_json::from_slice(bytes)
            .map(Some)
            .map_err(|error| format!("a mark: {error}")),
    }
}

pub(super) fn version(version: Option<&wire::Version>) -> Result<Option<Commit>, Wrong> {
    let commit = |version: &wire::Version| {
        Ok(Commit {
            version: version.version,
            digest: digest(&version.digest, "a version's digest")?,
        })
    };
    version.map(commit).transpose()
}

pub(super) fn version_bytes(commit: Option<&Commit>) -> Option<wire::Version> {
    commit.map(|commit| wire::Version {
        version: commit.version,
        digest: bytes_of(&commit.digest),
    })
}

pub(super) fn wanted(wanted: &wire::Wanted) -> Result<Wanted, Wrong> {
    Ok(Wanted {
        id: secret_id(&wanted.id)?,
        ciphertext: optional_digest(&wanted.ciphertext, "the digest of a sealed file")?,
    })
}

pub(super) fn wanted_bytes(wanted: &Wanted) -> wire::Wanted {
    wire::Wanted {
        id: wanted.id.to_string(),
        ciphertext: optional_bytes(wanted.ciphertext.as_ref()),
    }
}

pub(super) fn secret_id(text: &str) -> Result<SecretId, Wrong> {
    text.parse().map_err(|error| format!("the name of a secret: {error}"))
}

/// A participant's new secret.
pub(super) fn new_secret(request: wire::PutSecretRequest) -> Result<NewSecret, Wrong> {
    let secret = request.secret.unwrap_or_default();
    Ok(NewSecret {
        kind: kind(&secret)?,
        value: SecretValue::new(Zeroizing::new(request.value.to_vec())),
        ciphertext: optional_digest(&secret.ciphertext, "the digest of a sealed file")?,
        plaintext: optional_digest(&secret.plaintext, "the digest of a content")?,
        name: secret.id,
    })
}

fn kind(secret: &wire::Secret) -> Result<SecretKind, Wrong> {
    let subject = || secret.subject.clone();
    match secret.kind.as_str() {
        "module" => Ok(SecretKind::Module { module: subject() }),
        "data" => Ok(SecretKind::Data {
            node: secret.node.clone(),
            dataset: subject(),
        }),
        "vault" => Ok(SecretKind::Vault { node: subject() }),
        "credential" => Ok(SecretKind::Credential { node: subject() }),
        "value" => Ok(SecretKind::Value),
        _ => Err("a secret's kind is module, data, vault, credential or value".to_owned()),
    }
}

/// What a secret is, without its value.
pub(super) fn secret(info: &SecretInfo) -> wire::Secret {
    let (kind, subject, node) = words(&info.kind);
    wire::Secret {
        id: info.id.to_string(),
        kind: kind.to_owned(),
        subject: subject.to_owned(),
        node: node.to_owned(),
        epoch: info.epoch,
        ciphertext: optional_bytes(info.ciphertext.as_ref()),
        plaintext: optional_bytes(info.plaintext.as_ref()),
        put_unix_s: info.put_unix_s,
        bytes: info.bytes as u64,
    }
}

/// The request that puts a secret.
pub(super) fn put(secret: NewSecret) -> wire::PutSecretRequest {
    let (kind, subject, node) = words(&secret.kind);
    wire::PutSecretRequest {
        secret: Some(wire::Secret {
            kind: kind.to_owned(),
            subject: subject.to_owned(),
            node: node.to_owned(),
            ciphertext: optional_bytes(secret.ciphertext.as_ref()),
            plaintext: optional_bytes(secret.plaintext.as_ref()),
            id: secret.name,
            ..wire::Secret::default()
        }),
        value: Bytes::copy_from_slice(secret.value.expose()),
    }
}

/// Kind, what it is of, and the node of a dataset.
fn words(kind: &SecretKind) -> (&'static str, &str, &str) {
    match kind {
        SecretKind::Module { module } => ("module", module, ""),
        SecretKind::Data { node, dataset } => ("data", dataset, node),
        SecretKind::Vault { node } => ("vault", node, ""),
        SecretKind::Credential { node } => ("credential", node, ""),
        SecretKind::Value => ("value", "", ""),
    }
}

/// A secret as the manager tells it.
pub(super) fn info(secret: &wire::Secret) -> Result<SecretInfo, Wrong> {
    Ok(SecretInfo {
        id: secret_id(&secret.id)?,
        kind: kind(secret)?,
        epoch: secret.epoch,
        ciphertext: optional_digest(&secret.ciphertext, "the digest of a sealed file")?,
        plaintext: optional_digest(&secret.plaintext, "the digest of a content")?,
        put_unix_s: secret.put_unix_s,
        bytes: usize::try_from(secret.bytes).unwrap_or(usize::MAX),
    })
}

/// A round that was sealed.
pub fn round(round: &wire::RoundNote) -> Result<RoundNote, Wrong> {
    Ok(RoundNote {
        round: round.round,
        model: digest(&round.model, "a model's digest")?,
        receipt: digest(&round.receipt, "a receipt's digest")?,
    })
}

/// The same, to be sent.
pub fn round_bytes(round: &RoundNote) -> wire::RoundNote {
    wire::RoundNote {
        round: round.round,
        model: bytes_of(&round.model),
        receipt: bytes_of(&round.receipt),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_digest_name_or_mark_is_refused() {
        assert!(digest(&[1; 31], "a digest").unwrap_err().contains("wanted 32"));
        assert_eq!(optional_digest(&[], "a digest").unwrap(), None);
        assert!(optional_digest(&[1], "a digest").is_err());
        assert!(secret_id("no-owner").is_err());
        assert!(mark(&[b' '; MAX_MARK_BYTES + 1]).is_err());
        assert!(mark(b"{}").is_err());
        assert_eq!(mark(&[]).unwrap(), None);
        let other = wire::Secret {
            kind: "password".into(),
            ..wire::Secret::default()
        };
        assert!(kind(&other).is_err());
    }

    #[test]
    fn a_secret_comes_back_as_it_went() {
        for kind in [
            SecretKind::Module { module: "train".into() },
            SecretKind::Data {
                node: "worker-a".into(),
                dataset: "train".into(),
            },
            SecretKind::Vault { node: "hub".into() },
            SecretKind::Credential { node: "hub".into() },
            SecretKind::Value,
        ] {
            let secret = NewSecret {
                name: "one".into(),
                kind: kind.clone(),
                value: SecretValue::new(Zeroizing::new(b"the value".to_vec())),
                ciphertext: Some(Digest::of(b"sealed")),
                plaintext: None,
            };
            let request = put(secret);
            assert!(!format!("{request:?}").contains("the value"));
            let back = new_secret(request).unwrap();
            assert_eq!((back.kind, back.value.expose()), (kind, &b"the value"[..]));
            assert_eq!((back.ciphertext, back.plaintext), (Some(Digest::of(b"sealed")), None));
        }
    }
}
