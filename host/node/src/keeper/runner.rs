//! The runner of a node: started, loaded with what the policy names, asked for a round's work.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cloister_attestation::measurement::{Entry, EntryRole};
use cloister_data::{Format, salt};
use cloister_engine::Precision;
use cloister_exchange::content::ContentKind;
use cloister_policy::agreement::{self as policy, Limits, Module, ScalarRange as Range};
use cloister_policy::{ModuleRole, Policy, Scalar};
use cloister_runner::{BackendChoice, Confinement, Runner, RunnerOptions};
use cloister_sandbox::{CallLimits, Grants, ScalarRange, SettingValue, TensorAccess};
use cloister_tensor::Digest;

use super::Keeper;
use super::config::{EngineChoice, Place};
use super::contents::Contents;
use super::measured::Loaded;
use super::provisions::plain_name;
use crate::process::own_binary;
use crate::ui::{Exit, fail, failed, unreadable};

/// What to say where more threads were asked for than the engine uses.
pub fn unused_threads(backend: &str, threads: usize) -> Option<String> {
    let tract = backend.starts_with("tract");
    (tract && threads > 1).then(|| format!("{backend} runs on one thread: `threads = {threads}` is for other engines"))
}

/// What to say where cores were to be kept and the engine does not do that.
fn unused_pinning(backend: &str, pinning: bool) -> Option<String> {
    let openvino = backend.starts_with("openvino");
    (pinning && !openvino).then(|| {
        format!("{backend} keeps no threads on cores: `pinning` is for OpenVINO, `cpus` holds for every engine")
    })
}

impl Keeper {
    /// Starts the node's runner.
    pub fn start_runner(&self) -> Result<Runner, miette::Report> {
        let mut options = RunnerOptions::new(own_binary());
        let library_dir = self.library_dir.clone();
        options.backend = match (self.config.engine.backend, &library_dir) {
            (EngineChoice::Tract, _) | (EngineChoice::Auto, None) => BackendChoice::Tract,
            (EngineChoice::Openvino, _) => BackendChoice::OpenVino,
            (EngineChoice::Auto, Some(_)) => BackendChoice::Auto,
            (EngineChoice::Onnxruntime, _) => BackendChoice::OnnxRuntime,
            (EngineChoice::Libtorch, _) => BackendChoice::Libtorch,
        };
        match options.backend {
            BackendChoice::OnnxRuntime | BackendChoice::Libtorch => options.library_dir = library_dir,
            _ => options.openvino_dir = library_dir,
        }
        options.threads = usize::from(self.config.engine.threads);
        options.cpus.clone_from(&self.config.engine.cpus);
        options.pinning = self.config.engine.pinning;
        options.precision = match self.policy.compute.precision {
            policy::Precision::F32 => Precision::F32,
            policy::Precision::Bf16 => Precision::Bf16,
        };
        options.limits.tensor_bytes = self.policy.limits.update_mib << 20;
        options.limits.file_bytes = self.policy.limits.content_mib << 20;
        options.limits.memory_bytes = memory_bytes(&self.policy.limits, options.limits.dataset_bytes);
        options.confinement = if self.policy.attestation.simulated {
            Confinement::WherePossible
        } else {
            Confinement::Required
        };
        let runner = Runner::start(options).map_err(|error| fail(Exit::Failed, error))?;
        match runner.note() {
            Some(note) => tracing::info!("runner computes with {}: {note}", runner.backend()),
            None => tracing::info!("runner computes with {}", runner.backend()),
        }
        let engine = &self.config.engine;
        let unused = [
            unused_threads(runner.backend(), engine.threads.into()),
            unused_pinning(runner.backend(), engine.pinning),
        ];
        for note in unused.into_iter().flatten() {
            tracing::warn!("{note}");
        }
        if let Some(open) = runner.unconfined() {
            tracing::warn!(
                "SIMULATED only: the runner is not confined in full, a node under Intel's root would not start: {open}"
            );
        }
        Ok(runner)
    }

    /// Opens this node's datasets in the runner and compares each commitment with the policy's.
    pub fn open_datasets(&self, runner: &mut Runner) -> Result<Loaded, miette::Report> {
        let datasets = self.policy.datasets_for(&self.config.name);
        let names: Vec<_> = datasets.iter().map(|dataset| dataset.name()).collect();
        if let Some(other) = self.config.data.keys().find(|name| !names.contains(&name.as_str())) {
            return Err(failed(
                Exit::Usage,
                format!(
                    "the node file has a section [data.{other}], but the policy gives {} no dataset {other}; it gives {}",
                    self.config.name,
                    if names.is_empty() {
                        "none".to_owned()
                    } else {
                        names.join(", ")
                    }
                ),
                Some(format!("remove [data.{other}], or agree on a policy that grants it")),
            ));
        }
        let mut loaded = Loaded::default();
        for dataset in datasets {
            let name = dataset.name();
            let file = self.config.data.get(name).ok_or_else(|| {
                failed(
                    Exit::Usage,
                    format!("the policy gives this node the dataset {name}, but the node file names no file for it"),
                    Some(format!("add [data.{name}] with `path`")),
                )
            })?;
            let shown = file.path.display().to_string();
            let format = Format::of_name(&plain_name(&file.path)).ok_or_else(|| {
                failed(
                    Exit::Usage,
                    format!("{shown}: a name that ends in .csv, .parquet, .npz, .npy, .idx (or -ubyte), .bin (CIFAR-10) or .zip (folders of images) is wanted"),
                    None,
                )
            })?;
            // Before its salt, which is looked for beside it.
            let open = self.provisions.dataset(name, &file.path)?;
            let salt = match file.salt_place() {
                Place::File(path) => salt::read(&path).map_err(unreadable)?,
                Place::Secret(secret) | Place::Kbs(secret) => salt::parse(self.provisions.value(&secret)?.trim())
                    .ok_or_else(|| {
                        failed(
                            Exit::Usage,
                            format!("secret://{secret} is no salt: 64 hexadecimal digits are wanted"),
                            None,
                        )
                    })?,
            };
            let info = runner
                .open_dataset(&shown, open, format, &dataset.spec, &salt)
                .map_err(|error| fail(Exit::Usage, error))?;
            if info.commitment != dataset.commitment {
                return Err(failed(
                    Exit::Denied,
                    format!(
                        "{shown} is not the dataset {name} of the policy: commitment seen {}, wanted {}",
                        info.commitment, dataset.commitment
                    ),
                    Some("put back the file (and its salt) that was committed to, or agree on a new policy".into()),
                ));
            }
            loaded.add(EntryRole::Data, name, info.commitment);
            tracing::info!("dataset {name}: {} rows, as committed", info.rows);
            if info.skipped.rows > 0 {
                let first = info.skipped.first.join("; ");
                tracing::warn!("dataset {name}: {} damaged rows left out: {first}", info.skipped.rows);
            }
        }
        Ok(loaded)
    }

    /// Extends RTMR3 by the modules and graphs, loads them into the runner, and notes the digests of the bytes that went in.
    pub fn load(&self, runner: &mut Runner, contents: &Contents, loaded: &mut Loaded) -> Result<(), miette::Report> {
        let entries = contents.iter().filter_map(|(item, bytes)| {
            let role = match item.kind {
                ContentKind::Module => EntryRole::Module,
                ContentKind::Graph => EntryRole::Graph,
                ContentKind::Weights => return None,
            };
            Some(Entry::new(role, item.name.as_str(), Digest::of(bytes)))
        });
        self.runtime.extend(&entries.collect::<Vec<_>>())?;
        for (item, bytes) in contents {
            let digest = Digest::of(bytes);
            let (role, in_runner) = match item.kind {
                ContentKind::Module => {
                    let info = runner
                        .load_module(&item.name, bytes)
                        .map_err(|error| fail(Exit::Failed, error))?;
                    tracing::info!("module {} ({}), {}", item.name, info.world, digest.short());
                    (EntryRole::Module, info.digest)
                }
                ContentKind::Graph => {
                    let info = runner
                        .load_graph(&item.name, bytes)
                        .map_err(|error| fail(Exit::Failed, error))?;
                    tracing::info!("graph {}, {}", item.name, digest.short());
                    (EntryRole::Graph, info.source_digest)
                }
                ContentKind::Weights => continue,
            };
            if in_runner != digest {
                return Err(failed(
                    Exit::Failed,
                    format!(
                        "the runner says that {role} {} has the digest {in_runner}, but it was given {digest}",
                        item.name
                    ),
                    Some("the runner is not to be trusted: look for what changed its binary".into()),
                ));
            }
            loaded.add(role, &item.name, digest);
        }
        Ok(())
    }
}

/// The one module of a role that a node runs.
pub fn only_module<'a>(policy: &'a Policy, node: &str, role: ModuleRole) -> Result<&'a Module, miette::Report> {
    let mut modules = policy
        .modules_for(node)
        .into_iter()
        .filter(|module| module.role == role);
    match (modules.next(), modules.next()) {
        (Some(module), None) => Ok(module),
        (None, _) => Err(failed(
            Exit::Denied,
            format!("the policy gives {node} no module with the role {}", role.as_str()),
            None,
        )),
        (Some(first), Some(second)) => Err(failed(
            Exit::Denied,
            format!(
                "the policy gives {node} two modules with the role {}: {} and {}",
                role.as_str(),
                first.name,
                second.name
            ),
            Some("name the `nodes` of each".into()),
        )),
    }
}

/// Memory that a runner may take: what the policy lets guests and tensors have, the rows, and the engine's own.
fn memory_bytes(limits: &Limits, dataset_bytes: u64) -> u64 {
    /// Libraries, compiled graphs and modules, stacks of threads, and what parsers need for a moment.
    const ENGINE_BYTES: u64 = 4 << 30;
    // A trainer and the transform that runs ahead of it.
    let mib = limits
        .guest_memory_mib
        .saturating_mul(2)
        .saturating_add(limits.tensor_memory_mib)
        .saturating_add(limits.update_mib.saturating_mul(2))
        .saturating_add(limits.content_mib.saturating_mul(2));
    mib.saturating_mul(1 << 20)
        .saturating_add(dataset_bytes)
        .saturating_add(ENGINE_BYTES)
}

/// A module's settings as the sandbox takes them.
pub fn settings(module: &Module) -> BTreeMap<String, SettingValue> {
    let value = |scalar: &Scalar| match scalar {
        Scalar::Boolean(value) => SettingValue::Boolean(*value),
        Scalar::Integer(value) => SettingValue::Integer(*value),
        Scalar::Float(value) => SettingValue::Number(*value),
        Scalar::Text(value) => SettingValue::Text(value.clone()),
    };
    module
        .settings
        .iter()
        .map(|(name, scalar)| (name.clone(), value(scalar)))
        .collect()
}

/// Settings of the transforms that a node's datasets go through, by the names of the modules.
pub fn transforms(policy: &Policy, node: &str) -> BTreeMap<String, BTreeMap<String, SettingValue>> {
    let modules = policy.modules_for(node).into_iter();
    let transforms = modules.filter(|module| module.role == ModuleRole::Transform);
    transforms
        .map(|module| (module.name.clone(), settings(module)))
        .collect()
}

/// What the policy grants a module, as the sandbox takes it.
pub fn grants(module: &Module) -> Grants {
    let range = |range: &Range| ScalarRange {
        min: range.min,
        max: range.max,
    };
    Grants {
        tensor_access: TensorAccess {
            read: module.tensor_access.may_read(),
            write: module.tensor_access.may_write(),
        },
        scalars: module
            .scalars
            .iter()
            .map(|(name, allowed)| (name.clone(), range(allowed)))
            .collect(),
        reads: module.reads.iter().cloned().collect(),
    }
}

/// The policy's limits of one call.
pub fn call_limits(policy: &Policy) -> CallLimits {
    let limits = &policy.limits;
    CallLimits {
        guest_memory_bytes: usize::try_from(limits.guest_memory_mib << 20).unwrap_or(usize::MAX),
        tensor_memory_bytes: limits.tensor_memory_mib << 20,
        instances: limits.instances as usize,
        call: Duration::from_secs(limits.round_s),
        compute: Duration::from_secs(limits.call_s),
        log_bytes: usize::try_from(limits.log_bytes).unwrap_or(usize::MAX),
        ..CallLimits::default()
    }
}

/// How long the keeper waits for the runner in a round before it ends it: the sandbox's own limit, and time to answer.
pub fn round_timeout(policy: &Policy) -> Duration {
    Duration::from_secs(policy.limits.round_s.saturating_add(10))
}

/// The graphs among a node's whose names start with `base`.
pub fn graphs_named(policy: &Policy, node: &str, base: &str) -> BTreeSet<String> {
    policy
        .graphs_for(node)
        .into_iter()
        .filter(|graph| graph.base_name() == base)
        .map(|graph| graph.name.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_and_cores_that_an_engine_does_not_use_are_said() {
        let tract = cloister_engine::tract::Tract::new();
        let name = cloister_engine::Backend::name(&tract);
        assert!(
            unused_threads(name, 4).is_some_and(|note| note.contains("one thread") && note.contains("threads = 4"))
        );
        assert_eq!(unused_threads(name, 1), None);
        assert_eq!(unused_threads("openvino 2026.4.1", 4), None);
        assert!(unused_pinning(name, true).is_some_and(|note| note.contains("`cpus` holds")));
        assert_eq!(unused_pinning("openvino 2026.4.1", true), None);
        assert_eq!(unused_pinning(name, false), None);
    }
}
