//! Reference values of a node: read when it starts, and looked at again each minute for as long as it runs, so that a kernel's
//! patch needs no node to be started anew.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use cloister_policy::{Policy, ReferenceValues, Signatures, SignedReferences};
use cloister_session::collateral::Store;
use cloister_tensor::Digest;

use super::MAX_POLICY_BYTES;
use crate::files;
use crate::ui::{Exit, fail, unreadable};

/// How often the file is looked at.
const EVERY: Duration = Duration::from_secs(60);

/// The event in the audit log.
pub const EVENT: &str = "references";

/// What of reference values stands in the audit log.
pub fn written_down(references: &SignedReferences) -> serde_json::Value {
    let values = references.values();
    serde_json::json!({ "version": values.version, "digest": values.digest(), "signed_by": references.signers() })
}

/// Reads reference values and the signatures beside them; refuses a version below one that was seen.
pub fn references(path: &Path, policy: &Policy, store: Option<&Store>) -> Result<SignedReferences, miette::Report> {
    let signed = read_references(path, policy)?;
    admit(&signed, policy, store)?;
    if store.is_none() {
        tracing::warn!(
            "nothing remembers that reference values of version {} were seen: after a start an older version would be taken again; \
             [collateral] keeps a record",
            signed.values().version
        );
    }
    Ok(signed)
}

/// Reads reference values and the signatures beside them, and verifies those.
pub fn read_references(path: &Path, policy: &Policy) -> Result<SignedReferences, miette::Report> {
    let text = files::read(path, MAX_POLICY_BYTES)?;
    let values = ReferenceValues::parse(&text, &path.display().to_string()).map_err(unreadable)?;
    let beside = files::with_suffix(path, ".sigs");
    let signatures = if beside.exists() {
        Signatures::parse(&files::read(&beside, MAX_POLICY_BYTES)?, &beside.display().to_string())
            .map_err(unreadable)?
    } else {
        Signatures::default()
    };
    SignedReferences::new(values, &signatures, policy).map_err(|error| fail(Exit::Denied, error))
}

fn admit(signed: &SignedReferences, policy: &Policy, store: Option<&Store>) -> Result<(), miette::Report> {
    let (version, signers) = (signed.values().version, signed.signers().join(", "));
    if let Some(store) = store {
        store
            .admit_references(&policy.name, version)
            .map_err(|error| fail(Exit::Denied, error))?;
    }
    tracing::info!("reference values of version {version}, signed by {signers}");
    Ok(())
}

/// A file of reference values that is looked at for as long as this is held.
#[derive(Debug)]
pub struct Watch {
    _stop: Sender<()>,
}

impl Watch {
    /// Looks at the file of a policy that has reference values from it. What it finds counts from then on for all who hold the
    /// policy: each session asks it, and what was remembered of peers is forgotten. What can't be taken changes nothing.
    /// `tell` writes down what was taken.
    pub fn start(watched: Watched, tell: impl Fn(serde_json::Value) + Send + 'static) -> std::io::Result<Self> {
        let (stop, stopped) = channel();
        std::thread::Builder::new().name("references".into()).spawn(move || {
            let mut last = String::new();
            while stopped.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                match watched.look() {
                    Ok(None) => last.clear(),
                    Ok(Some(newer)) => {
                        last.clear();
                        tell(written_down(&newer));
                    }
                    // Said once, and not each minute.
                    Err(error) => {
                        let error = error.to_string();
                        if error != last {
                            tracing::warn!("newer reference values are not taken: {error}");
                            last = error;
                        }
                    }
                }
            }
        })?;
        Ok(Self { _stop: stop })
    }
}

/// What is looked at, and for whom.
pub struct Watched {
    /// The document; its signatures are beside it.
    pub path: PathBuf,
    /// Whose reference values they are.
    pub policy: Arc<Policy>,
    /// Remembers the highest version.
    pub store: Option<Arc<Store>>,
}

impl Watched {
    /// Looks once, and takes what is newer.
    fn look(&self) -> Result<Option<SignedReferences>, miette::Report> {
        let seen = Digest::of(&files::read(&self.path, MAX_POLICY_BYTES)?);
        let current = self.policy.references();
        if current.is_some_and(|current| current.values().digest() == seen) {
            return Ok(None);
        }
        let newer = read_references(&self.path, &self.policy)?;
        admit(&newer, &self.policy, self.store.as_deref())?;
        let changed = self.policy.renew_references(newer.clone());
        let changed = changed.map_err(|error| fail(Exit::Denied, error))?;
        Ok(changed.then_some(newer))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use cloister_attestation::Appraise as _;
    use cloister_attestation::identity::SigningKey;
    use cloister_policy::agreement::{ReferenceRules, ReferenceSigner};
    use cloister_policy::{Appraiser, Reference, draft};
    use cloister_testkit::world::{World, WorldOptions};

    use super::*;

    struct Case {
        folder: tempfile::TempDir,
        vendor: SigningKey,
        watched: Watched,
    }

    impl Case {
        fn new() -> Self {
            let vendor = SigningKey::generate().unwrap();
            let mut agreement = World::new(WorldOptions::default()).policy.agreement().clone();
            agreement.attestation.references = Some(ReferenceRules {
                signers: vec![ReferenceSigner {
                    name: "vendor".into(),
                    public_key: vendor.public(),
                }],
                threshold: 1,
            });
            let policy = Policy::parse(draft(&agreement).unwrap().as_bytes(), "policy.toml").unwrap();
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("references.toml");
            let case = Self {
                vendor,
                watched: Watched {
                    path,
                    policy: Arc::new(policy),
                    store: None,
                },
                folder,
            };
            case.put(3, 1, true);
            let first = references(&case.watched.path, &case.watched.policy, None).unwrap();
            let policy = Arc::new((*case.watched.policy).clone().with_references(first));
            Self {
                watched: Watched { policy, ..case.watched },
                ..case
            }
        }

        fn put(&self, version: u64, rtmr1: u8, sign: bool) {
            let mut registers = [const { Vec::new() }; 6];
            registers[2] = vec![[rtmr1; 48]];
            let reference = Reference {
                name: "kernel".into(),
                until_unix_s: 2_000_000_000 / 86_400 * 86_400,
                registers,
            };
            let policy = &self.watched.policy;
            let text = ReferenceValues::to_text(&policy.name, version, &[reference], &[]);
            std::fs::write(&self.watched.path, &text).unwrap();
            let values = ReferenceValues::parse(text.as_bytes(), "r").unwrap();
            let mut signatures = Signatures::default();
            if sign {
                signatures.add(values.sign(policy, "vendor", &self.vendor).unwrap());
            }
            std::fs::write(self.folder.path().join("references.toml.sigs"), signatures.to_text()).unwrap();
        }

        fn version(&self) -> u64 {
            self.watched.policy.references().unwrap().values().version
        }
    }

    #[test]
    fn newer_reference_values_are_taken_while_a_node_runs_and_what_was_remembered_is_forgotten() {
        let case = Case::new();
        // Whoever shares the policy sees it: sessions hold it, too.
        let appraiser = Appraiser::new(Arc::clone(&case.watched.policy));
        let before = appraiser.basis();
        assert!(case.watched.look().unwrap().is_none(), "nothing changed");
        assert_eq!(appraiser.basis(), before);
        case.put(4, 2, true);
        assert_eq!(case.watched.look().unwrap().unwrap().values().version, 4);
        assert_eq!(case.version(), 4);
        assert_ne!(appraiser.basis(), before, "verdicts of before are forgotten");
        assert!(case.watched.look().unwrap().is_none());
    }

    #[test]
    fn reference_values_never_go_back_and_unsigned_ones_change_nothing() {
        let case = Case::new();
        for (version, rtmr1, sign, wanted) in [
            (2, 2, true, "wanted one above 3"),
            // Two documents of one version: one of them is not what its signers meant to be in force.
            (3, 2, true, "wanted one above 3"),
            (9, 2, false, "the policy wants 1 of vendor"),
        ] {
            case.put(version, rtmr1, sign);
            let error = case.watched.look().unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
            assert_eq!(case.version(), 3);
        }
        std::fs::remove_file(&case.watched.path).unwrap();
        assert!(case.watched.look().is_err());
        assert_eq!(case.version(), 3);
    }
}
