//! The content store: what participants submit and nodes fetch, by its digest.
//!
//! Only what the policy names is taken, each object once, signed by the participant that submits it. An object's file
//! comes to be under its name when it is whole and its digest right; who submitted it stands beside it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use cloister_attestation::identity::PublicKey;
use cloister_tensor::Digest;
use tokio::fs;
use tokio::io::AsyncWriteExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::ExchangeError;

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

/// Objects of one participant that are on their way in or out at a time, and so in memory.
const TRANSFERS: usize = 4;

/// A folder of objects, named by their digests. Clones share it.
#[derive(Clone, Debug)]
pub struct ContentStore {
    folder: PathBuf,
    wanted: Vec<Wanted>,
    limit_bytes: u64,
    turns: Arc<Mutex<BTreeMap<String, Arc<Semaphore>>>>,
    held: Arc<tokio::sync::Mutex<BTreeMap<Digest, Weak<Vec<u8>>>>>,
}

/// An object in memory, which all that it is sent to share.
struct Held(Arc<Vec<u8>>);

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
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
    /// A store for what the policy names, each object at most `limit_bytes`. Makes the folder.
    pub async fn open(folder: PathBuf, mut wanted: Vec<Wanted>, limit_bytes: u64) -> Result<Self, ExchangeError> {
        wanted.sort();
        wanted.dedup();
        fs::create_dir_all(&folder)
            .await
            .map_err(|source| failed("making", &folder, source))?;
        Ok(Self {
            folder,
            wanted,
            limit_bytes,
            turns: Arc::default(),
            held: Arc::default(),
        })
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

    /// Whether the object is there, how long it is, who brought it.
    pub async fn stored(&self, digest: &Digest) -> Option<Stored> {
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

    /// Reads an object whole and compares its digest: a store on disk is not trusted to have kept it. Whoever reads it while
    /// others have it shares their memory.
    pub async fn read(&self, digest: &Digest) -> Result<Option<Bytes>, ExchangeError> {
        let mut held = self.held.lock().await;
        if let Some(there) = held.get(digest).and_then(Weak::upgrade) {
            return Ok(Some(Bytes::from_owner(Held(there))));
        }
        let path = self.path(digest);
        let content = match fs::read(&path).await {
            Ok(content) => content,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed("reading", &path, source)),
        };
        let seen = Digest::of(&content);
        if seen != *digest {
            let what = format!("the object in {}", path.display());
            return Err(ExchangeError::Digest {
                what,
                seen: seen.to_string(),
                wanted: digest.to_string(),
            });
        }
        let content = Arc::new(content);
        held.retain(|_, object| object.strong_count() > 0);
        held.insert(*digest, Arc::downgrade(&content));
        Ok(Some(Bytes::from_owner(Held(content))))
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
        if matches!(self.read(digest).await, Ok(Some(_))) {
            return Ok(false);
        }
        let signature: String = signature.iter().map(|byte| format!("{byte:02x}")).collect();
        let note = format!("participant {participant}\nsignature {signature}\n");
        self.write(&self.note_path(digest), note.as_bytes()).await?;
        self.write(&self.path(digest), content).await?;
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
mod tests {
    use super::*;

    #[tokio::test]
    async fn objects_come_back_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let digest = Digest::of(b"module");
        let wanted = Wanted {
            kind: ContentKind::Module,
            name: "train".into(),
            digest,
        };
        let store = ContentStore::open(folder.path().join("c"), vec![wanted.clone(), wanted.clone()], 100)
            .await
            .unwrap();
        assert_eq!(store.missing().await, vec![wanted]);
        assert!(store.names(ContentKind::Module, "train", &digest));
        assert!(!store.names(ContentKind::Graph, "train", &digest));
        assert!(store.put(&digest, b"other", "alpha", &[1; 64]).await.is_err());
        assert!(store.put(&digest, b"module", "alpha", &[1; 64]).await.unwrap());
        assert!(!store.put(&digest, b"module", "alpha", &[1; 64]).await.unwrap());
        assert!(store.missing().await.is_empty());
        assert_eq!(
            store.stored(&digest).await,
            Some(Stored {
                length: 6,
                participant: "alpha".into()
            })
        );
        assert_eq!(store.read(&digest).await.unwrap().unwrap(), &b"module"[..]);
        let (one, other) = (
            store.read(&digest).await.unwrap().unwrap(),
            store.read(&digest).await.unwrap().unwrap(),
        );
        assert_eq!(one.as_ptr(), other.as_ptr(), "two that have it share it");
        drop((one, other));
        std::fs::write(store.path(&digest), b"changed").unwrap();
        assert!(matches!(store.read(&digest).await, Err(ExchangeError::Digest { .. })));
        assert!(store.read(&Digest::of(b"absent")).await.unwrap().is_none());
        assert!(
            store.put(&digest, b"module", "beta", &[2; 64]).await.unwrap(),
            "what is damaged can be brought again"
        );
        assert_eq!(store.read(&digest).await.unwrap().unwrap(), &b"module"[..]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn several_that_submit_one_object_at_a_time_leave_it_whole() {
        let folder = tempfile::tempdir().unwrap();
        let object = vec![7; 3 << 20];
        let digest = Digest::of(&object);
        let store = ContentStore::open(folder.path().to_owned(), Vec::new(), 8 << 20)
            .await
            .unwrap();
        let mut puts = tokio::task::JoinSet::new();
        for participant in ["alpha", "beta", "gamma", "delta"] {
            let (store, object) = (store.clone(), object.clone());
            puts.spawn(async move { store.put(&digest, &object, participant, &[1; 64]).await });
        }
        while let Some(put) = puts.join_next().await {
            put.unwrap().unwrap();
        }
        assert_eq!(store.read(&digest).await.unwrap().unwrap(), object);
        let files = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(files, 2, "the object and its note, and nothing half-written");
    }

    #[tokio::test]
    async fn a_participant_that_ends_no_transfer_stops_itself_alone() {
        let folder = tempfile::tempdir().unwrap();
        let store = ContentStore::open(folder.path().to_owned(), Vec::new(), 100)
            .await
            .unwrap();
        let mut held = Vec::new();
        for _ in 0..TRANSFERS {
            held.push(store.clone().turn("alpha").await);
        }
        let mut fifth = Box::pin(store.turn("alpha"));
        assert!(ready_now(&mut fifth).is_none(), "a fifth one waits");
        drop(store.turn("beta").await);
        held.pop();
        assert!(ready_now(&mut fifth).is_some());
    }

    /// What the future gives if it is ready.
    fn ready_now<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match std::pin::Pin::new(future).poll(&mut context) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        }
    }

    #[tokio::test]
    async fn a_write_that_fails_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let digest = Digest::of(b"module");
        let store = ContentStore::open(folder.path().to_owned(), Vec::new(), 100)
            .await
            .unwrap();
        // A folder stands where the object should come to be.
        std::fs::create_dir(store.path(&digest)).unwrap();
        assert!(store.put(&digest, b"module", "alpha", &[1; 64]).await.is_err());
        let left: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .filter(|name| name.to_string_lossy().contains("part-"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }

    #[test]
    fn a_submission_binds_every_field() {
        let (policy, object) = (Digest::of(b"policy"), Digest::of(b"object"));
        let base = Submission {
            federation: "f",
            policy_digest: &policy,
            kind: ContentKind::Module,
            name: "n",
            participant: "p",
        };
        let bytes = submission_bytes(&base, &object);
        let others = [
            submission_bytes(
                &Submission {
                    federation: "g",
                    ..base
                },
                &object,
            ),
            submission_bytes(
                &Submission {
                    policy_digest: &object,
                    ..base
                },
                &object,
            ),
            submission_bytes(
                &Submission {
                    kind: ContentKind::Graph,
                    ..base
                },
                &object,
            ),
            submission_bytes(&Submission { name: "m", ..base }, &object),
            submission_bytes(
                &Submission {
                    participant: "q",
                    ..base
                },
                &object,
            ),
            submission_bytes(&base, &policy),
        ];
        assert!(others.iter().all(|other| *other != bytes));
    }
}
