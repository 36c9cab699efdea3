//! The file that carries a model out: `host/manager/FORMAT.md`, section 7. Keys of its own seal it, the node that had the vault signs
//! it, and its keys are sealed to one recipient, whom the policy names.

use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cloister_attestation::NodeIdentity;
use cloister_attestation::encoding::Layout;
use cloister_attestation::identity::{Credential, PublicKey, Role};
use cloister_manager::{Purpose, SealedBox, SealingError, SealingKey, SealingPublicKey};
use cloister_policy::Policy;
use cloister_tensor::Digest;
use cloister_vault::{
    Cipher, FileName, ParcelError, ParcelKind, READ_AHEAD_BYTES, SealedReader, VaultError, VaultKey, open_parcel,
    seal_parcel,
};
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;
use zeroize::Zeroizing;

use crate::through::Through;

const MAGIC: [u8; 16] = *b"cloister-export1";
const FORMAT: u32 = 1;
/// Longest statement, in bytes.
const MAX_STATEMENT_BYTES: u32 = 64 * 1024;
/// Most files of an export.
const MAX_FILES: usize = 16;
/// Of each file the box has a key and the digest of its content.
const ENTRY_BYTES: usize = 64;
const SIGNATURE_BYTES: usize = 64;

/// Why an export was not made or not opened.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The policy does not let it go there.
    #[error("{0}")]
    NotGranted(String),
    /// It is none, or was changed.
    #[error("it is no export as a node of this federation makes them: {0}")]
    NotOne(String),
    /// It is another's, of another policy, or was made for another connection.
    #[error("{0}")]
    NotOurs(String),
    /// Its keys do not open.
    #[error("its keys cannot be had: {0}")]
    Sealing(#[from] SealingError),
    /// A file of it does not open.
    #[error("{name} in it: {cause}")]
    File {
        /// Its name.
        name: String,
        /// Why.
        cause: ParcelError,
    },
    /// The vault it comes out of.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// Something cannot be read or written.
    #[error("{what}: {cause}")]
    Io {
        /// What.
        what: String,
        /// The system's error.
        cause: io::Error,
    },
}

impl ExportError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        |cause| Self::Io { what, cause }
    }
}

/// For whom an export is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recipient {
    /// A participant, by its key.
    Participant(String),
    /// A TD, over the connection on which it was attested.
    Node {
        /// Its name in the policy.
        name: String,
        /// The TLS exporter of the session.
        connection: [u8; 32],
    },
}

impl fmt::Display for Recipient {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Participant(name) => write!(out, "participant/{name}"),
            Self::Node { name, .. } => write!(out, "node/{name}"),
        }
    }
}

impl Recipient {
    /// Whether the policy releases the model to it: to a participant by its name, to a TD that is a server of such a participant.
    ///
    /// # Errors
    /// [`ExportError::NotGranted`] says whom the policy names.
    pub fn granted(&self, policy: &Policy) -> Result<(), ExportError> {
        let named = &policy.release.recipients;
        let gets = |name: &str| named.iter().any(|recipient| recipient == name);
        let (granted, wanted) = match self {
            Self::Participant(name) => (gets(name), "participants"),
            Self::Node { name, .. } => {
                let node = policy.node(name);
                let server = node.is_some_and(|node| node.role == Role::Server && gets(&node.participant));
                (server, "nodes with the role server of")
            }
        };
        if granted {
            return Ok(());
        }
        let named = match named.as_slice() {
            [] => "nobody".to_owned(),
            named => format!("{wanted} {}", named.join(", ")),
        };
        Err(ExportError::NotGranted(format!(
            "the policy does not release the model to {self}: [release] names {named}"
        )))
    }

    fn context(&self, policy: &Policy) -> Vec<u8> {
        let layout = Layout::new("")
            .lp(policy.name.as_bytes())
            .raw(policy.digest().as_bytes())
            .lp(self.to_string().as_bytes());
        match self {
            Self::Participant(_) => layout.lp(&[]).into_bytes(),
            Self::Node { connection, .. } => layout.lp(connection).into_bytes(),
        }
    }
}

/// What an export says in the clear. It tells who gets which model, and nothing of the model.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    format: u32,
    federation: String,
    policy: Digest,
    to: String,
    credential: String,
    /// The round that the model came out of.
    pub round: u64,
    /// The model's digest, as the round's receipt has it.
    pub model: Digest,
    files: Vec<Sealed>,
    keys: SealedBox,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    name: FileName,
    bytes: u64,
    sha256: Digest,
}

fn signed(statement: &[u8]) -> Vec<u8> {
    Layout::new("cloister/export/v1").lp(statement).into_bytes()
}

/// Seals files to a recipient that the policy names, into a new file without a name in `folder`.
///
/// # Errors
/// [`ExportError`]: the policy does not grant it, or something cannot be read or written.
pub fn write(
    (policy, identity): (&Policy, &NodeIdentity),
    (to, key): (&Recipient, &SealingPublicKey),
    (round, model): (u64, Digest),
    files: Vec<(FileName, SealedReader)>,
    folder: &Path,
) -> Result<(NamedTempFile, Statement), ExportError> {
    to.granted(policy)?;
    let beside = || NamedTempFile::new_in(folder).map_err(ExportError::io(folder.display().to_string()));
    let mut parcels = beside()?;
    let mut keys = Zeroizing::new(Vec::with_capacity(files.len() * ENTRY_BYTES));
    let mut listed = Vec::new();
    for (name, reader) in files {
        let mut secret = Zeroizing::new([0; 32]);
        getrandom::fill(secret.as_mut()).map_err(|_| SealingError::Refused)?;
        let (own, salt) = (VaultKey::from_bytes(*secret), VaultKey::salt()?);
        let content = Through::new(reader);
        let mut content = BufReader::with_capacity(READ_AHEAD_BYTES, content);
        let mut sealed = Through::new(parcels.as_file_mut());
        let before = position(sealed.inner())?;
        seal_parcel(&own, ParcelKind::Model, &salt, Cipher::Bulk, &mut content, &mut sealed).map_err(|cause| {
            let name = name.to_string();
            ExportError::File { name, cause }
        })?;
        let (_, plain) = content.into_inner().finish();
        let (file, sha256) = sealed.finish();
        let bytes = position(file)? - before;
        keys.extend_from_slice(secret.as_ref());
        keys.extend_from_slice(plain.as_bytes());
        listed.push(Sealed { name, bytes, sha256 });
    }
    let statement = Statement {
        format: FORMAT,
        federation: policy.name.clone(),
        policy: policy.digest(),
        to: to.to_string(),
        credential: STANDARD.encode(identity.credential.to_text()),
        round,
        model,
        files: listed,
        keys: key.seal(Purpose::Export, &to.context(policy), &keys)?,
    };
    let text = serde_json::to_vec(&statement).map_err(|error| ExportError::NotOne(error.to_string()))?;
    let mut whole = beside()?;
    let failed = || ExportError::io(folder.display().to_string());
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes();
    for part in [&MAGIC[..], &length, &text, &identity.key.sign(&signed(&text))] {
        whole.write_all(part).map_err(failed())?;
    }
    let sealed = parcels.as_file_mut();
    sealed.seek(SeekFrom::Start(0)).map_err(failed())?;
    io::copy(sealed, whole.as_file_mut()).map_err(failed())?;
    whole.as_file().sync_all().map_err(failed())?;
    Ok((whole, statement))
}

fn position(file: &mut File) -> Result<u64, ExportError> {
    file.stream_position()
        .map_err(ExportError::io("the sealed files on their way"))
}

/// Opens an export into a folder: each file appears when all of them are what was sealed, and none is overwritten.
///
/// # Errors
/// [`ExportError`]: it is none, another's or of another policy; its node did not sign it; something in it was changed.
pub fn open(
    source: &mut dyn Read,
    policy: &Policy,
    (to, key): (&Recipient, &SealingKey),
    folder: &Path,
) -> Result<(Statement, Vec<PathBuf>), ExportError> {
    let (statement, node) = read_statement(source, policy)?;
    if statement.to != to.to_string() {
        return Err(ExportError::NotOurs(format!(
            "it is for {}, and this is {to}",
            statement.to.escape_debug()
        )));
    }
    to.granted(policy)?;
    let keys = key.open(Purpose::Export, &to.context(policy), &statement.keys)?;
    if keys.len() != statement.files.len() * ENTRY_BYTES {
        return Err(ExportError::NotOne(format!("keys of {} bytes", keys.len())));
    }
    std::fs::create_dir_all(folder).map_err(ExportError::io(folder.display().to_string()))?;
    let mut opened = Vec::new();
    for (file, entry) in statement.files.iter().zip(keys.chunks_exact(ENTRY_BYTES)) {
        let path = folder.join(file.name.as_str());
        if path.exists() {
            let there = io::Error::from(io::ErrorKind::AlreadyExists);
            return Err(ExportError::io(path.display().to_string())(there));
        }
        opened.push((open_one(source, file, entry, folder)?, path));
    }
    let mut rest = [0; 1];
    if !matches!(source.read(&mut rest), Ok(0)) {
        return Err(ExportError::NotOne("something follows behind its last file".into()));
    }
    let mut paths = Vec::new();
    for (file, path) in opened {
        let failed = || ExportError::io(path.display().to_string());
        file.as_file().sync_all().map_err(failed())?;
        file.persist_noclobber(&path).map_err(|error| failed()(error.error))?;
        paths.push(path);
    }
    tracing::info!("the model of round {}, signed by {node}", statement.round);
    Ok((statement, paths))
}

/// The statement, if a node of the policy's aggregators signed it.
fn read_statement(source: &mut dyn Read, policy: &Policy) -> Result<(Statement, String), ExportError> {
    let not_one = |why: &str| ExportError::NotOne(why.to_owned());
    let mut head = [0; MAGIC.len() + 4];
    source.read_exact(&mut head).map_err(|_| not_one("it is cut short"))?;
    let (magic, length) = head.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(not_one("it does not begin with `cloister-export1`"));
    }
    let length = length.try_into().map_or(0, u32::from_be_bytes);
    if length > MAX_STATEMENT_BYTES {
        return Err(not_one("its statement is longer than one can be"));
    }
    let (mut text, mut signature) = (vec![0; length as usize], [0; SIGNATURE_BYTES]);
    let read = source
        .read_exact(&mut text)
        .and_then(|()| source.read_exact(&mut signature));
    read.map_err(|_| not_one("it is cut short"))?;
    let statement: Statement = serde_json::from_slice(&text).map_err(|error| not_one(&error.to_string()))?;
    let Statement {
        format,
        federation,
        policy: under,
        files,
        ..
    } = &statement;
    if *format != FORMAT || files.is_empty() || files.len() > MAX_FILES {
        return Err(not_one("its format or the number of its files"));
    }
    if files.iter().any(|file| file.name.as_str().contains('/')) {
        return Err(not_one("a file of it is in a folder"));
    }
    if (federation.as_str(), *under) != (policy.name.as_str(), policy.digest()) {
        return Err(ExportError::NotOurs(format!(
            "it is of {} under the policy {under}; the policy at hand is of {} and {}",
            federation.escape_debug(),
            policy.name,
            policy.digest()
        )));
    }
    let (node, node_key) = signer(&statement.credential, policy)?;
    if !node_key.verify(&signed(&text), &signature) {
        return Err(ExportError::NotOne(format!(
            "{node} did not sign it, or it was changed since"
        )));
    }
    Ok((statement, node))
}

/// Who may sign an export: an aggregator, by a credential of its participant's. It may have expired since.
fn signer(credential: &str, policy: &Policy) -> Result<(String, PublicKey), ExportError> {
    let not_one = |why: String| ExportError::NotOne(why);
    let text = STANDARD
        .decode(credential)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok());
    let text = text.ok_or_else(|| not_one("its credential is no text".into()))?;
    let credential = Credential::parse(&text).map_err(|error| not_one(error.to_string()))?;
    let fields = &credential.fields;
    let known = policy.node(&fields.node);
    let aggregator = known.is_some_and(|node| {
        node.role == Role::Aggregator && fields.role == Role::Aggregator && node.participant == fields.participant
    });
    let endorsed = policy
        .participant_key(&fields.participant)
        .is_some_and(|key| credential.verify(&key, 0).is_empty());
    if !aggregator || !endorsed || fields.federation != policy.name {
        return Err(not_one(format!("{} is no aggregator of the policy", fields.node)));
    }
    Ok((credential.fields.node, credential.fields.node_key))
}

fn open_one(source: &mut dyn Read, file: &Sealed, entry: &[u8], folder: &Path) -> Result<NamedTempFile, ExportError> {
    let (secret, wanted) = entry.split_at(32);
    let mut key = Zeroizing::new([0; 32]);
    key.copy_from_slice(secret);
    let fresh = NamedTempFile::new_in(folder).map_err(ExportError::io(folder.display().to_string()))?;
    let mut plain = Through::new(fresh);
    let mut sealed = Through::new(source.take(file.bytes));
    let opened = open_parcel(&VaultKey::from_bytes(*key), Cipher::Bulk, &mut sealed, &mut plain);
    let (kind, _) = opened.map_err(|cause| ExportError::File {
        name: file.name.to_string(),
        cause,
    })?;
    let (rest, sha256) = sealed.finish();
    let (fresh, content) = plain.finish();
    if kind != ParcelKind::Model || rest.limit() != 0 || sha256 != file.sha256 || content.as_bytes() != wanted {
        return Err(ExportError::NotOne(format!("{} is not what was sealed", file.name)));
    }
    Ok(fresh)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
mod tests;
