//! The collateral of a node: on disk beside its watermarks, and renewed by a thread of its own.
//!
//! What the disk gives back is verified like what the network gives. The watermarks are a guard against a service or a
//! cache that brings back older lists; whoever can put back the whole folder can put back its watermarks, too, and is held
//! by `min_tcb_eval_data_number` and the policy's ages alone.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use cloister_attestation::encoding::hex;
use cloister_attestation::{
    Collateral, MAX_WATERMARK_BYTES, Refusal, TrustRoot, VerifiedCollateral, Verifier, Watermarks,
};

use super::FetchError;
use super::client::{Authority, Client};
use crate::local::Clock;

/// Shortest and longest time between two renewals, in seconds.
const SHORTEST_S: u64 = 60;
const LONGEST_S: u64 = 6 * 3600;

/// Why a store has no collateral to give.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder can't be used.
    #[error("the collateral's cache {path}: {source}")]
    Io {
        /// The file or folder.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The watermarks are there and can't be read: without them older lists could come back.
    #[error(
        "the watermarks {path} can't be read: {cause}; put them back from a copy, or remove them knowing that older revocation lists are then not recognised"
    )]
    Watermarks {
        /// The file.
        path: String,
        /// Why.
        cause: String,
    },
    /// The service gave none.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// What it gave does not verify, or goes back behind what was seen.
    #[error("collateral of the family {fmspc} is not taken: {refusal}")]
    Refused {
        /// The platform family.
        fmspc: String,
        /// Every rule that failed.
        refusal: Refusal,
    },
    /// The thread that fetches could not run.
    #[error("the thread that fetches collateral could not run: {cause}")]
    Thread {
        /// Why.
        cause: String,
    },
}

/// A node's collateral: which families it needs, where it keeps them, whom it asks.
pub struct Store {
    dir: PathBuf,
    root: TrustRoot,
    client: Client,
    families: Vec<([u8; 6], Authority)>,
    marks: Mutex<Watermarks>,
}

impl Store {
    /// Opens a store in a folder, which is made if it is not there.
    ///
    /// # Errors
    /// [`StoreError`] if folder or watermarks can't be used.
    pub fn open(
        dir: &Path,
        root: TrustRoot,
        client: Client,
        families: Vec<([u8; 6], Authority)>,
    ) -> Result<Self, StoreError> {
        std::fs::create_dir_all(dir).map_err(|source| io(dir, source))?;
        let path = dir.join("watermarks.json");
        let marks = match read(&path, MAX_WATERMARK_BYTES) {
            Ok(json) => Watermarks::parse(&json).map_err(|cause| StoreError::Watermarks {
                path: path.display().to_string(),
                cause,
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Watermarks::default(),
            Err(source) => return Err(io(&path, source)),
        };
        Ok(Self {
            dir: dir.to_owned(),
            root,
            client,
            families,
            marks: Mutex::new(marks),
        })
    }

    /// Newest issue date seen, seconds since 1970: no honest clock is before it.
    pub fn floor_unix_s(&self) -> u64 {
        self.marks().floor_unix_s()
    }

    /// Takes a version of a document of reference values in, and remembers it.
    ///
    /// # Errors
    /// [`StoreError::Refused`] if a higher version was seen before.
    pub fn admit_references(&self, federation: &str, version: u64) -> Result<(), StoreError> {
        let mut marks = self.marks();
        let raised = marks
            .admit_references(federation, version)
            .map_err(|refusal| StoreError::Refused {
                fmspc: "reference values".into(),
                refusal,
            })?;
        if raised {
            self.write("watermarks.json", marks.to_json().as_bytes())?;
        }
        Ok(())
    }

    /// What the disk has and still holds at that time; families for which it has nothing sound are left out.
    pub fn cached(&self, now_unix_s: u64) -> Vec<VerifiedCollateral> {
        let read = |(fmspc, _): &([u8; 6], Authority)| {
            let path = self.dir.join(file_name(fmspc));
            let verified = Collateral::from_file(&path)
                .map_err(|error| error.to_string())
                .and_then(|collateral| {
                    let verified = collateral.verify(&self.root, now_unix_s);
                    verified.map_err(|error| error.to_string())
                })
                .and_then(|verified| {
                    let family = verified.collateral().families().next().map(|(seen, _)| seen.to_owned());
                    if family.as_deref() != Some(&hex(fmspc)) {
                        return Err("of another family".into());
                    }
                    self.marks().admit(&verified).map_err(|refusal| refusal.to_string())?;
                    Ok(verified)
                });
            match verified {
                Ok(verified) => Some(verified),
                Err(cause) => {
                    tracing::info!("no collateral out of {}: {cause}", path.display());
                    None
                }
            }
        };
        self.families.iter().filter_map(read).collect()
    }

    /// Fetches all families anew, verifies them and keeps them.
    ///
    /// # Errors
    /// [`StoreError`] of the first family that could not be had.
    pub async fn fetch(&self, now_unix_s: u64) -> Result<Vec<VerifiedCollateral>, StoreError> {
        let mut all = Vec::new();
        for (fmspc, authority) in &self.families {
            let collateral = self.client.fetch(*fmspc, *authority).await?;
            let refused = |refusal| StoreError::Refused {
                fmspc: hex(fmspc),
                refusal,
            };
            let verified = collateral.verify(&self.root, now_unix_s).map_err(refused)?;
            let mut marks = self.marks();
            let raised = marks.admit(&verified).map_err(refused)?;
            // The marks first: collateral without its marks could be replaced by older one.
            if raised {
                self.write("watermarks.json", marks.to_json().as_bytes())?;
            }
            drop(marks);
            self.write(&file_name(fmspc), collateral.to_json().as_bytes())?;
            all.push(verified);
        }
        Ok(all)
    }

    fn marks(&self) -> std::sync::MutexGuard<'_, Watermarks> {
        // `admit` leaves the marks as they were where it fails.
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a file whole or not at all.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        use std::io::Write as _;
        let path = self.dir.join(name);
        let new = self.dir.join(format!(".{name}.{}.new", std::process::id()));
        let written = std::fs::File::create(&new).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()?;
            std::fs::rename(&new, &path)?;
            std::fs::File::open(&self.dir)?.sync_all()
        });
        written.map_err(|source| io(&path, source))
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({} out of {})", self.dir.display(), self.client.url())
    }
}

/// Keeps a verifier's collateral new for as long as it is held.
#[derive(Debug)]
pub struct Refresher {
    stop: Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Refresher {
    /// Fills a verifier with collateral, out of the cache or, where that has not all, out of the service; then renews it in
    /// the background when half of its time is over, at the latest every six hours. Blocks until the first is there.
    ///
    /// # Errors
    /// [`StoreError`] if there is no collateral to begin with.
    pub fn start(store: Arc<Store>, clock: Clock) -> Result<(Self, Verifier), StoreError> {
        let thread = |error: std::io::Error| StoreError::Thread {
            cause: error.to_string(),
        };
        let (first_tx, first_rx) = channel();
        let (stop, stopped) = channel();
        let worker = std::thread::Builder::new().name("collateral".into()).spawn(move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => {
                    let _ = first_tx.send(Err(thread(error)));
                    return;
                }
            };
            let now = clock();
            let cached = store.cached(now);
            let first = if cached.len() == store.families.len() && !cached.is_empty() {
                Ok(cached)
            } else {
                runtime.block_on(store.fetch(now))
            };
            let first = first.and_then(|all| verifier(&store, &all).map(|verifier| (verifier, all)));
            let (verifier, mut current) = match first {
                Ok(first) => first,
                Err(error) => {
                    let _ = first_tx.send(Err(error));
                    return;
                }
            };
            if first_tx.send(Ok(verifier.clone())).is_err() {
                return;
            }
            loop {
                let wait = Duration::from_secs(until_renewal_s(&current, clock()));
                match stopped.recv_timeout(wait) {
                    Err(RecvTimeoutError::Timeout) => {}
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
                }
                match runtime.block_on(store.fetch(clock())) {
                    Ok(all) => {
                        if let Some(together) = together(&all) {
                            verifier.replace_collateral(&together);
                        }
                        current = all;
                        tracing::info!("collateral renewed");
                    }
                    Err(error) => {
                        tracing::warn!("collateral not renewed: {error}; what is there is used as long as it holds")
                    }
                }
            }
        });
        let worker = worker.map_err(thread)?;
        let verifier = first_rx.recv().map_err(|_| StoreError::Thread {
            cause: "it ended early".into(),
        })??;
        Ok((
            Self {
                stop,
                thread: Some(worker),
            },
            verifier,
        ))
    }
}

impl Drop for Refresher {
    fn drop(&mut self) {
        let _ = self.stop.send(());
        // A fetch in flight ends by its own timeouts; nobody waits for it.
        drop(self.thread.take());
    }
}

fn verifier(store: &Store, all: &[VerifiedCollateral]) -> Result<Verifier, StoreError> {
    let missing = || StoreError::Thread {
        cause: "no platform family is named, so no collateral is fetched; name `platforms` or the policy's `fmspc`"
            .into(),
    };
    let together = together(all).ok_or_else(missing)?;
    Ok(Verifier::new(store.root.clone(), together.collateral().clone()))
}

fn together(all: &[VerifiedCollateral]) -> Option<VerifiedCollateral> {
    VerifiedCollateral::together(all)
}

/// Seconds until half of the time that is left to the first part to end is over.
fn until_renewal_s(all: &[VerifiedCollateral], now: u64) -> u64 {
    let ends = all
        .iter()
        .flat_map(|verified| {
            verified
                .collateral()
                .dates()
                .map(|dates| dates.next_update_unix_s)
                .collect::<Vec<_>>()
        })
        .min()
        .unwrap_or(0);
    (ends.saturating_sub(now) / 2).clamp(SHORTEST_S, LONGEST_S)
}

fn file_name(fmspc: &[u8; 6]) -> String {
    format!("collateral-{}.json", hex(fmspc))
}

fn io(path: &Path, source: std::io::Error) -> StoreError {
    StoreError::Io {
        path: path.display().to_string(),
        source,
    }
}

fn read(path: &Path, limit: u64) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
