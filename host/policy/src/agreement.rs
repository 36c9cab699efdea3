//! What a policy says: the types that the parser fills and that [`crate::draft`] writes down.

use crate::anchor::Anchor;
use std::collections::BTreeMap;

use cloister_attestation::identity::{PublicKey, Role};
use cloister_tensor::Digest;

use crate::dataset::DatasetSpec;
use crate::reader::Scalar;

/// Everything that a policy file says, with its defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Agreement {
    /// The federation's name.
    pub name: String,
    /// Version of the agreement, from 1.
    pub version: u64,
    /// Digest of the policy that this one follows.
    pub predecessor: Option<Digest>,
    /// The organisations; at least one.
    pub participants: Vec<Participant>,
    /// Their nodes: one aggregator and at least two workers.
    pub nodes: Vec<Node>,
    /// The model that is trained.
    pub model: Model,
    /// WebAssembly components, and what each may do.
    pub modules: Vec<Module>,
    /// Training and evaluation graphs.
    pub graphs: Vec<Graph>,
    /// Datasets, each on one node.
    pub datasets: Vec<Dataset>,
    /// How rounds go.
    pub rounds: Rounds,
    /// How graphs are computed.
    pub compute: Compute,
    /// What modules and messages may use up.
    pub limits: Limits,
    /// Which TDs are let in.
    pub attestation: AttestationRules,
    /// Who gets the model.
    pub release: Release,
    /// How many sign, and whether a successor may follow.
    pub consent: Consent,
}

/// With how many signatures the policy takes effect, and whether another may follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Consent {
    /// Participants who have to sign it, and its successor; more than half, so that two successors of one policy can't
    /// both be complete unless a participant signed both.
    pub threshold: u32,
    /// Whether successors are forbidden.
    pub immutable: bool,
    /// Recovery shares that open the state of the federation's manager when it starts again; each participant holds one.
    pub recovery_shares: u32,
}

impl Consent {
    /// What a policy has that says nothing: everybody signs, a successor may follow, and everybody's share opens a manager's state.
    pub fn of_all(participants: usize) -> Self {
        Self {
            threshold: u32::try_from(participants).unwrap_or(u32::MAX),
            immutable: false,
            recovery_shares: u32::try_from(participants).unwrap_or(u32::MAX),
        }
    }
}

/// An organisation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Participant {
    /// Its name.
    pub name: String,
    /// The Ed25519 key with which it signs policies, endorses nodes and submits modules.
    pub public_key: PublicKey,
}

/// A running host of a participant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// What it does.
    pub role: Role,
    /// Whose it is.
    pub participant: String,
}

/// The model that is trained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// Its name.
    pub name: String,
    /// SHA-256 of the safetensors file with the initial weights.
    pub weights: Digest,
}

/// What a module is for: the world that it implements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModuleRole {
    /// Trains on a worker's data.
    Trainer,
    /// Makes rows out of rows before graphs see them.
    Transform,
    /// Makes one model out of the workers' updates.
    Aggregator,
    /// Answers inference requests.
    Predictor,
}

impl ModuleRole {
    /// Every role.
    pub const ALL: [Self; 4] = [Self::Trainer, Self::Transform, Self::Aggregator, Self::Predictor];

    /// The role's text in a policy.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trainer => "trainer",
            Self::Transform => "transform",
            Self::Aggregator => "aggregator",
            Self::Predictor => "predictor",
        }
    }

    /// Whether nodes of that role can run such modules. Those that can do so unless the policy names the nodes; a transform runs
    /// where a dataset names it.
    pub fn runs_on(self, role: Role) -> bool {
        match self {
            Self::Trainer => role == Role::Worker,
            Self::Transform => matches!(role, Role::Worker | Role::Aggregator),
            Self::Aggregator => role == Role::Aggregator,
            Self::Predictor => role == Role::Server,
        }
    }
}

/// What a module may do with the values inside tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TensorAccess {
    /// Pass them on by handle: neither read nor make any, but for declared scalars. The default.
    #[default]
    Handles,
    /// Read them: parameters, gradients and rows of data.
    Read,
    /// Make them out of bytes of its own.
    Write,
    /// Both.
    ReadWrite,
}

impl TensorAccess {
    /// Every grant.
    pub const ALL: [Self; 4] = [Self::Handles, Self::Read, Self::Write, Self::ReadWrite];

    /// The grant's text in a policy.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Handles => "handles",
            Self::Read => "read",
            Self::Write => "write",
            Self::ReadWrite => "read-write",
        }
    }

    /// Whether the module may read the values of any tensor it holds.
    pub fn may_read(self) -> bool {
        matches!(self, Self::Read | Self::ReadWrite)
    }

    /// Whether the module may make tensors of more than one element.
    pub fn may_write(self) -> bool {
        matches!(self, Self::Write | Self::ReadWrite)
    }
}

/// The values that a scalar made by a module may have, both ends included.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScalarRange {
    /// Smallest value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
}

/// A WebAssembly component.
#[derive(Clone, Debug, PartialEq)]
pub struct Module {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub role: ModuleRole,
    /// SHA-256 of the `.wasm` file.
    pub sha256: Digest,
    /// What it may do with the values inside tensors.
    pub tensor_access: TensorAccess,
    /// Its settings.
    pub settings: BTreeMap<String, Scalar>,
    /// Scalar inputs of graphs that it may set, and their ranges.
    pub scalars: BTreeMap<String, ScalarRange>,
    /// Scalar outputs of graphs that it may read.
    pub reads: Vec<String>,
    /// The nodes that run it, if not every node whose role runs such modules; of a transform, if not every node with a dataset
    /// that names it.
    pub nodes: Option<Vec<String>>,
}

impl Module {
    /// What it may do with the values inside tensors, its role counted in: a transform sees rows and makes rows by its nature.
    pub fn effective_access(&self) -> TensorAccess {
        match self.role {
            ModuleRole::Transform => TensorAccess::ReadWrite,
            _ => self.tensor_access,
        }
    }
}

/// An ONNX graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Graph {
    /// Its name: `train`, `train@23` (for a remainder of 23 rows), `evaluate`, ...
    pub name: String,
    /// SHA-256 of the `.onnx` file.
    pub sha256: Digest,
    /// Rows of a batch.
    pub batch: u32,
    /// The nodes that run it, if not every node that [`Graph::runs_on`] says.
    pub nodes: Option<Vec<String>>,
}

impl Graph {
    /// The name without `@ROWS`.
    pub fn base_name(&self) -> &str {
        self.name.split_once('@').map_or(&self.name, |(base, _)| base)
    }

    /// Whether nodes of that role run it unless the policy names the nodes: `evaluate*` the aggregator, `predict*`
    /// servers, everything else workers.
    pub fn runs_on(&self, role: Role) -> bool {
        if self.name.starts_with("evaluate") {
            role == Role::Aggregator
        } else if self.name.starts_with("predict") {
            role == Role::Server
        } else {
            role == Role::Worker
        }
    }
}

/// A dataset on a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset {
    /// The node that has it.
    pub node: String,
    /// Salted commitment to its rows.
    pub commitment: Digest,
    /// How many rows it has, if the participants want that known.
    pub rows: Option<u64>,
    /// Its name and form.
    pub spec: DatasetSpec,
}

impl Dataset {
    /// The dataset's name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }
}

/// How workers' updates come together. A round of the two step modes is one step of the optimizer, on the aggregator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RoundMode {
    /// Workers train on their own from the same model, for as long as their module does; the models are averaged.
    #[default]
    Averaging,
    /// Each worker computes one gradient on the same model; one step goes by all of them.
    Synchronous,
    /// Each worker computes gradients at its own pace; one step goes by each as it comes.
    Asynchronous,
}

impl RoundMode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Averaging, Self::Synchronous, Self::Asynchronous];

    /// The mode's text in a policy.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Averaging => "averaging",
            Self::Synchronous => "synchronous",
            Self::Asynchronous => "asynchronous",
        }
    }

    /// Whether workers send gradients, by which the aggregator steps, and not models.
    pub fn by_steps(self) -> bool {
        match self {
            Self::Averaging => false,
            Self::Synchronous | Self::Asynchronous => true,
        }
    }
}

/// How rounds go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rounds {
    /// How updates come together.
    pub mode: RoundMode,
    /// How many rounds; in the asynchronous mode, how many updates.
    pub count: u32,
    /// Fewest workers whose updates make a round; in the asynchronous mode, fewest that take part at a time.
    pub quorum: u32,
    /// How long a round waits for a worker before it goes on without it, in seconds.
    pub deadline_s: u64,
    /// Fewest workers in an aggregate that anybody gets to see; below it the host refuses. At least 2, and 1 in the asynchronous mode.
    pub min_workers_per_aggregate: u32,
    /// What the seeds of rounds and of shuffling are derived from.
    pub seed: u64,
    /// Every how many rounds the model is sealed in the aggregator's vault; the last one always is.
    pub checkpoint_every: u32,
    /// Every how many rounds the model is evaluated; the last one always is.
    pub evaluate_every: u32,
    /// How many updates may have been applied since the model that an update was computed on; what is staler is left out.
    /// Of the asynchronous mode alone.
    pub max_staleness: u32,
}

impl Rounds {
    /// What [`Self::checkpoint_every`] and [`Self::evaluate_every`] are unless a policy says otherwise.
    pub const EVERY: u32 = 1;
    /// What [`Self::max_staleness`] is unless a policy says otherwise.
    pub const MAX_STALENESS: u32 = 16;

    /// Whether the model is sealed after this round.
    pub fn seals(&self, round: u64) -> bool {
        self.due(round, self.checkpoint_every)
    }

    /// Whether the model is evaluated after this round.
    pub fn evaluates(&self, round: u64) -> bool {
        self.due(round, self.evaluate_every)
    }

    fn due(&self, round: u64, every: u32) -> bool {
        round >= u64::from(self.count) || round.is_multiple_of(u64::from(every))
    }
}

/// How graphs are computed, on every node. What only a machine's speed depends on is its node file's concern.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compute {
    /// What engines compute in where a graph says f32.
    pub precision: Precision,
}

/// What an engine computes in where a graph says f32. Parameters, gradients and losses are f32 between graphs either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// In f32.
    #[default]
    F32,
    /// In bf16 inside of graphs, where processor and engine have it: faster, and gradients are off by 3e-3 to 0.3.
    Bf16,
}

impl Precision {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::F32, Self::Bf16];

    /// The text in a policy.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

/// What modules and messages may use up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Linear memory of a module, in MiB.
    pub guest_memory_mib: u64,
    /// Tensors that a module's calls keep on the host, in MiB.
    pub tensor_memory_mib: u64,
    /// One call of a module, in seconds.
    pub call_s: u64,
    /// All that a module does in a round, in seconds.
    pub round_s: u64,
    /// Core instances of a component.
    pub instances: u32,
    /// What a module may log in a round, in bytes.
    pub log_bytes: u64,
    /// A worker's update, in MiB.
    pub update_mib: u64,
    /// A module, a graph or initial weights that a participant submits, in MiB.
    pub content_mib: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            guest_memory_mib: 256,
            tensor_memory_mib: 2048,
            call_s: 120,
            round_s: 300,
            instances: 16,
            log_bytes: 65_536,
            update_mib: 1024,
            content_mib: 1024,
        }
    }
}

/// Bytes of a register of which some bits are fixed: `seen & mask == value`. In the quote's byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Masked {
    /// The bits that are looked at.
    pub mask: [u8; 8],
    /// What they have to be.
    pub value: [u8; 8],
}

impl Masked {
    /// Whether the register's fixed bits are as wanted.
    pub fn accepts(&self, seen: &[u8; 8]) -> bool {
        seen.iter()
            .zip(&self.mask)
            .zip(&self.value)
            .all(|((seen, mask), value)| seen & mask == *value)
    }
}

/// A TCB status that is taken, for good or until a date.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcbStatus {
    /// The status, as Intel names it.
    pub status: String,
    /// Until when, as seconds since 1970 (the end of that day in UTC).
    pub until_unix_s: Option<u64>,
}

/// A file that a host may run: the binary or a native library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFile {
    /// Name of the measured entry: `cloister` for the binary.
    pub name: String,
    /// SHA-256 of the file.
    pub sha256: Digest,
}

/// Name of the measured entry of the host's binary; every node has to have one.
pub const HOST_BINARY: &str = "cloister";

/// A 48-byte register or hash of a TD.
pub type Register = [u8; 48];

/// Somebody who may sign reference values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferenceSigner {
    /// A participant's name, or another's that the policy gives a key.
    pub name: String,
    /// Its key.
    pub public_key: PublicKey,
}

/// Who may add to the accepted registers by a signed document of its own ([`crate::references`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferenceRules {
    /// Who may sign.
    pub signers: Vec<ReferenceSigner>,
    /// How many of them have to.
    pub threshold: u32,
}

/// What RTMR3 has to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Rtmr3 {
    /// Zeros: nothing was extended, and nodes extend nothing.
    #[default]
    Zero,
    /// Anything. Nodes extend it by what they run where they can.
    Any,
    /// What a log explains: each policy, module and graph that a node runs, and what is named here. Nodes have to extend it.
    Log {
        /// Texts of further events that may be in the log, such as those of a guest's agent.
        others: Vec<String>,
    },
}

impl Rtmr3 {
    /// The rule's name in the policy.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Zero => "zero",
            Self::Any => "any",
            Self::Log { .. } => "log",
        }
    }
}

/// Which TDs are let in. An empty list of registers takes any value under a simulated root; elsewhere the parser wants `mrtd`,
/// `rtmr0` to `rtmr2` and `mrseam`, here or in reference values, and an empty `mrconfigid` takes zeros alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttestationRules {
    /// Whether the root is a simulated one: nothing is proven then.
    pub simulated: bool,
    /// SHA-384 over the root certificate's public key.
    pub root_key_id: Register,
    /// First contents of the TD.
    pub mrtd: Vec<Register>,
    /// Configuration by the virtual machine monitor.
    pub rtmr0: Vec<Register>,
    /// Boot loader and kernel.
    pub rtmr1: Vec<Register>,
    /// Kernel command line, initial RAM disk, root file system.
    pub rtmr2: Vec<Register>,
    /// What was extended at run time. It depends on what runs, so a policy can't list values.
    pub rtmr3: Rtmr3,
    /// The TDX module.
    pub mrseam: Vec<Register>,
    /// What the owner configured: in Confidential Containers, the hash of the pod's initdata.
    pub mrconfigid: Vec<Register>,
    /// What the accepted values of MRCONFIGID are the hashes of.
    pub anchors: Vec<Anchor>,
    /// The owner. Empty: zero alone.
    pub mrowner: Vec<Register>,
    /// What the owner set. Empty: zero alone.
    pub mrownerconfig: Vec<Register>,
    /// TD attributes; the debug bit is always refused.
    pub attributes: Masked,
    /// CPU features.
    pub xfam: Masked,
    /// TCB statuses that are taken.
    pub tcb_statuses: Vec<TcbStatus>,
    /// Advisories that must not apply.
    pub advisories_denied: Vec<String>,
    /// Lowest evaluation number of the collateral.
    pub min_tcb_eval_data_number: u32,
    /// Oldest collateral, in seconds since it was issued.
    pub collateral_max_age_s: u64,
    /// How far clocks may be apart, in seconds.
    pub max_clock_skew_s: u64,
    /// Longest life of a permit, in seconds: a connection that lives longer is attested anew before it is over.
    pub permit_max_s: u64,
    /// Platform families. Empty: any.
    pub fmspc: Vec<[u8; 6]>,
    /// Platforms. Empty: any.
    pub ppid: Vec<[u8; 16]>,
    /// Whether packages may be added to the platform.
    pub allow_dynamic_platform: bool,
    /// Whether Intel may have the platform's keys cached.
    pub allow_cached_keys: bool,
    /// Whether simultaneous multithreading may be on.
    pub allow_smt: bool,
    /// Who may add reference values; nobody by default.
    pub references: Option<ReferenceRules>,
    /// Oldest revocation list of platforms, in seconds since it was issued.
    pub crl_max_age_s: u64,
    /// Files that hosts may run. Empty: any, which the parser allows under a simulated root only.
    pub hosts: Vec<HostFile>,
}

/// SEPT_VE_DISABLE alone (TDX module 1.5 ABI, TD attributes): no debug, no profiling, no key locker, no migration.
pub const DEFAULT_ATTRIBUTES: Masked = Masked {
    mask: [0xff; 8],
    value: [0, 0, 0, 0x10, 0, 0, 0, 0],
};

/// x87 and SSE on; AVX, AVX-512, PKRU, CET and AMX as they come; everything else (processor trace, PASID, LBR, ...) off.
pub const DEFAULT_XFAM: Masked = Masked {
    mask: [0x1b, 0xe5, 0xf9, 0xff, 0xff, 0xff, 0xff, 0xff],
    value: [3, 0, 0, 0, 0, 0, 0, 0],
};

impl AttestationRules {
    /// The rules that a policy has which says nothing but its root: any TD under it, as far as the defaults allow.
    pub fn with_root(simulated: bool, root_key_id: Register) -> Self {
        Self {
            simulated,
            root_key_id,
            mrtd: Vec::new(),
            rtmr0: Vec::new(),
            rtmr1: Vec::new(),
            rtmr2: Vec::new(),
            rtmr3: Rtmr3::Zero,
            mrseam: Vec::new(),
            mrconfigid: Vec::new(),
            anchors: Vec::new(),
            mrowner: Vec::new(),
            mrownerconfig: Vec::new(),
            attributes: DEFAULT_ATTRIBUTES,
            xfam: DEFAULT_XFAM,
            tcb_statuses: vec![TcbStatus {
                status: "UpToDate".to_owned(),
                until_unix_s: None,
            }],
            advisories_denied: Vec::new(),
            min_tcb_eval_data_number: 0,
            collateral_max_age_s: 30 * 86_400,
            max_clock_skew_s: 300,
            permit_max_s: 3_600,
            fmspc: Vec::new(),
            ppid: Vec::new(),
            allow_dynamic_platform: false,
            allow_cached_keys: false,
            allow_smt: true,
            references: None,
            crl_max_age_s: 35 * 86_400,
            hosts: Vec::new(),
        }
    }
}

/// Which model leaves the federation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReleasedModel {
    /// The one after the last round.
    #[default]
    Final,
}

impl ReleasedModel {
    /// The text in a policy.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Final => "final",
        }
    }
}

/// Who gets the model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Release {
    /// Which model.
    pub model: ReleasedModel,
    /// The participants that get it; nobody by default.
    pub recipients: Vec<String>,
}
