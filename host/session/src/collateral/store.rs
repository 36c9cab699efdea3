//! Collateral of a node: where it comes from, what of it is kept on disk, and what is never taken again.
//!
//! What the disk gives back is verified like what the network gives. The watermarks are a guard against a service, a bundle or
//! a cache that brings back older lists; whoever can put back the whole folder can put back its watermarks, too, and is held
//! by `min_tcb_eval_data_number` and the policy's ages alone.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use cloister_attestation::encoding::hex;
use cloister_attestation::{
    Collateral, CollateralError, MAX_WATERMARK_BYTES, Refusal, TrustRoot, VerifiedCollateral, Watermarks,
};

use super::FetchError;
use super::client::Client;
use super::family::{Authority, PlatformFamily};

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
    /// The bundle is no collateral.
    #[error("the bundle {path}: {source}; `cloister quote collateral -o FILE` writes one")]
    Bundle {
        /// The file.
        path: String,
        /// Why.
        source: CollateralError,
    },
    /// What there is does not verify, or goes back behind what was seen.
    #[error("{what} not taken: {refusal}")]
    Refused {
        /// What is refused, in words.
        what: String,
        /// Every rule that failed.
        refusal: Refusal,
    },
    /// Nothing was asked for.
    #[error("no platform family is named, so no collateral is fetched; name `platforms` or the policy's `fmspc`")]
    NoFamily,
    /// More families than a verifier works with.
    #[error("{seen} families of platforms are more than collateral is kept for; name fewer as `platforms`")]
    TooMany {
        /// How many.
        seen: usize,
    },
    /// The thread that fetches could not run.
    #[error("the thread that fetches collateral could not run: {cause}")]
    Thread {
        /// Why.
        cause: String,
    },
}

/// Where a store's collateral comes from.
#[derive(Clone, Debug)]
pub enum Supply {
    /// A service, which is asked for each of these families of platforms.
    Service {
        /// Asks it.
        client: Client,
        /// For whom.
        families: Vec<PlatformFamily>,
    },
    /// A file that somebody brings, as `cloister quote collateral` writes it.
    Bundle(PathBuf),
}

/// A part of a supply that is had, or not, by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Family(PlatformFamily),
    Bundle,
}

/// A node's collateral: what it needs, where it keeps it, whence it comes.
pub struct Store {
    dir: PathBuf,
    root: TrustRoot,
    supply: Supply,
    marks: Mutex<Watermarks>,
}

impl Store {
    /// Opens a store in a folder, which is made if it is not there.
    ///
    /// # Errors
    /// [`StoreError`] if folder or watermarks can't be used.
    pub fn open(dir: &Path, root: TrustRoot, supply: Supply) -> Result<Self, StoreError> {
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
            supply,
            marks: Mutex::new(marks),
        })
    }

    /// The root that all of it has to verify under.
    pub fn root(&self) -> &TrustRoot {
        &self.root
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
        self.raise(|marks| {
            let admitted = marks.admit_references(federation, version);
            admitted.map_err(|refusal| StoreError::Refused {
                what: "reference values are".into(),
                refusal,
            })
        })
    }

    /// Whether it is a bundle that others bring, and not a service that is asked.
    pub(super) fn is_bundle(&self) -> bool {
        matches!(self.supply, Supply::Bundle(_))
    }

    /// Everything that it should give.
    pub(super) fn parts(&self) -> Vec<Part> {
        match &self.supply {
            Supply::Service { families, .. } => families.iter().copied().map(Part::Family).collect(),
            Supply::Bundle(_) => vec![Part::Bundle],
        }
    }

    /// What the disk keeps of a part and still holds at that time. A bundle is kept by whoever brings it.
    pub(super) fn cached(&self, part: Part, now_unix_s: u64) -> Option<VerifiedCollateral> {
        let Part::Family(family) = part else { return None };
        let path = self.dir.join(file_name(family));
        let verified = Collateral::from_file(&path)
            .map_err(|error| error.to_string())
            .and_then(|collateral| {
                let seen = collateral.families().next().map(|(seen, _)| seen.to_owned());
                if seen.as_deref() != Some(&hex(&family.fmspc)) {
                    return Err("of another family".into());
                }
                let admitted = self.admit(&collateral, "what is kept is", now_unix_s);
                admitted.map_err(|error| error.to_string())
            });
        verified
            .inspect_err(|cause| tracing::info!("no collateral out of {}: {cause}", path.display()))
            .ok()
    }

    /// Gets a part anew, verifies it and keeps it.
    pub(super) async fn get(&self, part: Part, now_unix_s: u64) -> Result<VerifiedCollateral, StoreError> {
        match (&self.supply, part) {
            (Supply::Service { client, .. }, Part::Family(family)) => {
                let collateral = client.fetch(family).await?;
                let what = format!("collateral of the family {family} is");
                let verified = self.admit(&collateral, &what, now_unix_s)?;
                self.write(&file_name(family), collateral.to_json().as_bytes())?;
                Ok(verified)
            }
            (Supply::Bundle(path), _) => {
                let shown = path.display();
                let collateral = Collateral::from_file(path).map_err(|source| StoreError::Bundle {
                    path: shown.to_string(),
                    source,
                })?;
                self.admit(&collateral, &format!("the bundle {shown} is"), now_unix_s)
            }
            (Supply::Service { .. }, Part::Bundle) => Err(StoreError::NoFamily),
        }
    }

    fn admit(&self, collateral: &Collateral, what: &str, now_unix_s: u64) -> Result<VerifiedCollateral, StoreError> {
        let refused = |refusal| StoreError::Refused {
            what: what.to_owned(),
            refusal,
        };
        let verified = collateral.verify(&self.root, now_unix_s).map_err(refused)?;
        self.raise(|marks| marks.admit(&verified).map_err(refused))?;
        Ok(verified)
    }

    /// Raises the marks, on the disk before in memory: what is not written down yet raises them again. Collateral comes after its marks,
    /// since without them it could be replaced by older one.
    fn raise(&self, admit: impl FnOnce(&mut Watermarks) -> Result<bool, StoreError>) -> Result<(), StoreError> {
        let mut marks = self.marks();
        let mut raised = marks.clone();
        if admit(&mut raised)? {
            self.write("watermarks.json", raised.to_json().as_bytes())?;
            *marks = raised;
        }
        Ok(())
    }

    fn marks(&self) -> std::sync::MutexGuard<'_, Watermarks> {
        // Marks are put in their place whole.
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
        let dir = self.dir.display();
        match &self.supply {
            Supply::Service { client, .. } => write!(f, "Store({dir} out of {})", client.url()),
            Supply::Bundle(path) => write!(f, "Store({dir} out of {})", path.display()),
        }
    }
}

fn file_name(family: PlatformFamily) -> String {
    let fmspc = hex(&family.fmspc);
    match family.authority {
        Authority::Platform => format!("collateral-{fmspc}.json"),
        Authority::Processor => format!("collateral-{fmspc}-processor.json"),
    }
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
