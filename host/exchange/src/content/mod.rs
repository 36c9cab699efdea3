//! The content store: what participants submit and nodes fetch, by its digest.
//!
//! Only what the policy names is taken, each object once, signed by the participant that submits it. An object's file
//! comes to be under its name when it is whole and its digest right; who submitted it stands beside it.

mod object;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cloister_attestation::identity::PublicKey;
use cloister_tensor::Digest;
use tokio::fs;
use tokio::io::AsyncWriteExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::ExchangeError;
pub(crate) use object::{Object, SendError};

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ContentKind {
    /// A WebAssembly component.
    Module,
    /// An ONNX graph.
    Graph,
    /// Initial weights, safetensors.
    Weights,
}

impl ContentKind {
    /// As text.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Module => "module",
            Self::Graph => "graph",
            Self::Weights => "weights",
        }
    }

    /// From text.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Module, Self::Graph, Self::Weights]
            .into_iter()
            .find(|kind| kind.as_str() == text)
    }
}

/// An object that the policy names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wanted {
    /// What it is.
    pub kind: ContentKind,
    /// Its name in the policy.
    pub name: String,
    /// Its SHA-256.
    pub digest: Digest,
}

/// What a participant says when it submits.
#[derive(Clone, Copy, Debug)]
pub struct Submission<'a> {
    /// Name of the federation.
    pub federation: &'a str,
    /// Its policy.
    pub policy_digest: &'a Digest,
    /// What the object is.
    pub kind: ContentKind,
    /// Its name in the policy.
    pub name: &'a str,
    /// Who submits.
    pub participant: &'a str,
}

/// What the participant signs: "cloister/submission/v1" | lp(federation) | lp(policy digest) | lp(kind) | lp(name) |
/// lp(participant) | lp(SHA-256 of the object), lp = u32 big-endian length prefix.
pub fn submission_bytes(submission: &Submission<'_>, digest: &Digest) -> Vec<u8> {
    let mut out = b"cloister/submission/v1".to_vec();
    for field in [
        submission.federation.as_bytes(),
        submission.policy_digest.as_bytes(),
        submission.kind.as_str().as_bytes(),
        submission.name.as_bytes(),
        submission.participant.as_bytes(),
        digest.as_bytes(),
    ] {
        out.extend_from_slice(&u32::try_from(field.len()).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(field);
    }
    out
}

/// Checks a participant's signature over its submission.
pub fn verify_submission(key: &PublicKey, submission: &Submission<'_>, digest: &Digest, signature: &[u8]) -> bool {
    key.verify(&submission_bytes(submission, digest), signature)
}

/// Objects of one participant that are on their way in (and so in memory) or out at a time.
const TRANSFERS: usize = 4;

/// A folder of objects, named by their digests. Clones share it.
#[derive(Clone, Debug)]
pub struct ContentStore {
    folder: PathBuf,
    wanted: Vec<Wanted>,
    limit_bytes: u64,
    turns: Arc<Mutex<BTreeMap<String, Arc<Semaphore>>>>,
    /// Files under a wanted name that hold something else: they count as missing until the object is submitted again.
    damaged: Arc<Mutex<BTreeSet<Digest>>>,
}

/// A place among a participant's transfers; given back when dropped.
#[derive(Debug)]
pub struct Turn(#[expect(dead_code, reason = "held, never looked at")] Option<OwnedSemaphorePermit>);

/// An object that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its length in bytes.
    pub length: u64,
    /// Who submitted it.
    pub participant: String,
}

impl ContentStore {
    /// A store for what the policy names, each object at most `limit_bytes`. Makes the folder. What lies in it is read through once:
    /// an object that is not what its name says counts as missing, and the log says so.
    pub async fn open(folder: PathBuf, mut wanted: Vec<Wanted>, limit_bytes: u64) -> Result<Self, ExchangeError> {
        wanted.sort();
        wanted.dedup();
        fs::create_dir_all(&folder)
            .await
            .map_err(|source| failed("making", &folder, source))?;
        let store = Self {
            folder,
            wanted,
            limit_bytes,
            turns: Arc::default(),
            damaged: Arc::default(),
        };
        store.look_through().await;
        Ok(store)
    }

    /// Reads every wanted object that is there, once: a disk that lost a bit would else be found out by each node that fetches.
    async fn look_through(&self) {
        let digests: BTreeSet<Digest> = self.wanted.iter().map(|wanted| wanted.digest).collect();
        for digest in digests {
            let Err(error) = self.read_through(&digest).await else {
                continue;
            };
            let named = self.wanted.iter().filter(|wanted| wanted.digest == digest);
            let named: Vec<_> = named
                .map(|wanted| format!("{} {}", wanted.kind.as_str(), wanted.name))
                .collect();
            tracing::warn!(
                "{} counts as missing: {error}; submit it again (`cloister module submit`), and look after the disk",
                named.join(", ")
            );
            self.marks().insert(digest);
        }
    }

    fn marks(&self) -> MutexGuard<'_, BTreeSet<Digest>> {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until fewer than four objects of this participant are on their way: whoever opens many transfers, or never ends
    /// one, is in the way of itself alone. `participant` is one of the policy, as the session proved it.
    pub async fn turn(&self, participant: &str) -> Turn {
        let turns = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            let own = turns.entry(participant.to_owned());
            Arc::clone(own.or_insert_with(|| Arc::new(Semaphore::new(TRANSFERS))))
        };
        // It is never closed.
        Turn(turns.acquire_owned().await.ok())
    }

    /// What the policy names.
    pub fn wanted(&self) -> &[Wanted] {
        &self.wanted
    }

    /// Most bytes of an object.
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// Whether the policy names this object, and as what.
    pub fn names(&self, kind: ContentKind, name: &str, digest: &Digest) -> bool {
        self.wanted
            .iter()
            .any(|wanted| wanted.kind == kind && wanted.name == name && wanted.digest == *digest)
    }

    /// The digest that the policy gives for a name.
    pub fn wanted_digest(&self, kind: ContentKind, name: &str) -> Option<Digest> {
        self.wanted
            .iter()
            .find(|wanted| wanted.kind == kind && wanted.name == name)
            .map(|wanted| wanted.digest)
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(digest.to_string())
    }

    fn note_path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(format!("{digest}.submission"))
    }

    /// Whether the object is there, how long it is, who brought it. One that was found damaged is not there.
    pub async fn stored(&self, digest: &Digest) -> Option<Stored> {
        if self.marks().contains(digest) {
            return None;
        }
        let length = fs::metadata(self.path(digest))
            .await
            .ok()
            .filter(|data| data.is_file())?
            .len();
        let note = fs::read_to_string(self.note_path(digest)).await.unwrap_or_default();
        let participant = note
            .lines()
            .find_map(|line| line.strip_prefix("participant "))
            .unwrap_or_default();
        Some(Stored {
            length,
            participant: participant.to_owned(),
        })
    }

    /// What of the policy's objects is not there yet.
    pub async fn missing(&self) -> Vec<Wanted> {
        let mut missing = Vec::new();
        for wanted in &self.wanted {
            if self.stored(&wanted.digest).await.is_none() {
                missing.push(wanted.clone());
            }
        }
        missing
    }

    /// An object to be read, if it is there.
    pub(crate) async fn object(&self, digest: &Digest) -> Result<Option<Object>, ExchangeError> {
        if self.marks().contains(digest) {
            return Ok(None);
        }
        Object::open(&self.path(digest), *digest, self.limit_bytes).await
    }

    /// Reads an object to its end; gives whether it is there, and an error if it is not what it was.
    async fn read_through(&self, digest: &Digest) -> Result<bool, ExchangeError> {
        let Some(mut object) = self.object(digest).await? else {
            return Ok(false);
        };
        while object.chunk().await?.is_some() {}
        Ok(true)
    }

    /// Puts an object in whose digest is the policy's; gives whether it was new. The caller has checked the signature.
    pub async fn put(
        &self,
        digest: &Digest,
        content: &[u8],
        participant: &str,
        signature: &[u8],
    ) -> Result<bool, ExchangeError> {
        let seen = Digest::of(content);
        if seen != *digest {
            let (seen, wanted) = (seen.to_string(), digest.to_string());
            return Err(ExchangeError::Digest {
                what: "a submission".to_owned(),
                seen,
                wanted,
            });
        }
        // What lies there damaged is replaced: nobody could read it.
        if matches!(self.read_through(digest).await, Ok(true)) {
            return Ok(false);
        }
        let signature: String = signature.iter().map(|byte| format!("{byte:02x}")).collect();
        let note = format!("participant {participant}\nsignature {signature}\n");
        self.write(&self.note_path(digest), note.as_bytes()).await?;
        self.write(&self.path(digest), content).await?;
        self.marks().remove(digest);
        Ok(true)
    }

    /// Temporary file, fsync, rename: a crash leaves the whole or nothing under the name.
    async fn write(&self, path: &Path, content: &[u8]) -> Result<(), ExchangeError> {
        // A name of its own for each write: several participants may submit one object at the same time.
        static WRITES: AtomicU64 = AtomicU64::new(0);
        let write = WRITES.fetch_add(1, Ordering::Relaxed);
        let temporary = path.with_added_extension(format!("part-{}-{write}", std::process::id()));
        let written = async {
            let mut file = fs::File::create_new(&temporary).await?;
            file.write_all(content).await?;
            file.sync_all().await
        };
        let outcome = match written.await {
            Ok(()) => fs::rename(&temporary, path)
                .await
                .map_err(|source| failed("renaming to", path, source)),
            Err(source) => Err(failed("writing", &temporary, source)),
        };
        if outcome.is_err() {
            // What is left of it is of no use; a disk that is full has it back.
            let _ = fs::remove_file(&temporary).await;
        }
        outcome
    }
}

fn failed(what: &'static str, path: &Path, source: std::io::Error) -> ExchangeError {
    ExchangeError::Store {
        what,
        path: path.display().to_string(),
        source,
    }
}

#[cfg(test)]
mod tests;
