//! A simulated federation, complete but for runners.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use base64::Engine as _;
use bytes::Bytes;
use cloister_attestation::claims::NodeClaims;
use cloister_attestation::encoding::hex;
use cloister_attestation::identity::{CredentialFields, Role, SigningKey, endorse};
use cloister_attestation::measurement::{Entry, EntryRole, Measurement};
use cloister_attestation::ratls::VisitorIdentity;
use cloister_attestation::simulated::{SimulatedAuthority, SimulatedTd, TdValues, create_authority};
use cloister_attestation::{
    Collateral, NodeIdentity, QuoteProvider, RaTlsIdentity, RuntimeEvent, State, TrustRoot, Verifier,
};
use cloister_exchange::aggregator::{self, AggregatorHandle, AggregatorOptions, Driver, StartingPoint};
use cloister_exchange::content::{ContentKind, ContentStore, Wanted};
use cloister_exchange::progress::Progress;
use cloister_exchange::service::{FederationService, serve};
use cloister_exchange::sink::{HeapSink, ModelSink};
use cloister_exchange::worker::{Backoff, WorkerOptions};
use cloister_policy::Policy;
use cloister_policy::agreement::{RoundMode, Rounds, Rtmr3};
use cloister_session::{
    Clock, DialOptions, ListenLimits, Listener, Local, NodeSide, QuoteService, SelfSide, SessionError, SessionMemory,
};
use cloister_tensor::{Digest, Tensor, TensorMap};
use tokio_util::sync::CancellationToken;

use crate::fakes::CountedQuotes;

/// The time at which everything happens, in seconds since 1970.
pub const NOW: u64 = 1_790_000_000;

/// What a federation looks like.
#[derive(Clone, Debug)]
pub struct WorldOptions {
    /// Workers, named `worker-a`, `worker-b`, ...
    pub workers: usize,
    /// Rounds.
    pub rounds: u32,
    /// Quorum and fewest workers an aggregate.
    pub quorum: u32,
    /// The policy's deadline, in seconds.
    pub deadline_s: u64,
    /// How updates come together.
    pub mode: RoundMode,
    /// Rounds from one that is sealed to the next.
    pub checkpoint_every: u32,
    /// Of the asynchronous mode: how far an update may be behind.
    pub max_staleness: u32,
    /// Lines added to the policy's `[attestation]`.
    pub attestation: String,
}

impl Default for WorldOptions {
    fn default() -> Self {
        Self {
            workers: 2,
            rounds: 3,
            quorum: 2,
            deadline_s: 60,
            mode: RoundMode::Averaging,
            checkpoint_every: 1,
            max_staleness: Rounds::MAX_STALENESS,
            attestation: String::new(),
        }
    }
}

/// What a test changes about a node before it shows itself.
pub struct NodeChange {
    /// What its TD reports.
    pub values: TdValues,
    /// What it claims.
    pub claims: NodeClaims,
    /// Its credential's text; empty for none.
    pub credential: String,
    /// Its key.
    pub key: SigningKey,
    /// What its TD extends into RTMR3 before it shows itself: under a policy that wants a log, what it runs.
    pub events: Vec<RuntimeEvent>,
    /// The log that it shows; that of its TD, if not given.
    pub log: Option<Bytes>,
}

/// A node ready to connect.
#[derive(Clone)]
pub struct WorldNode {
    /// What it brings into sessions.
    pub local: Local,
    /// Its certificate and quotes.
    pub side: NodeSide,
    /// Its key and credential.
    pub identity: Arc<NodeIdentity>,
}

/// Authority, participants and policy of one federation.
pub struct World {
    folder: PathBuf,
    /// Removes the folder at the end, in the process that made it.
    _owned: Option<tempfile::TempDir>,
    options: WorldOptions,
    authority: SimulatedAuthority,
    participants: BTreeMap<String, SigningKey>,
    /// The agreement.
    pub policy: Arc<Policy>,
    /// Verifies quotes under the authority's root.
    pub verifier: Arc<Verifier>,
    /// Where its nodes receive models: the heap, unless it is set.
    pub sink: Arc<dyn ModelSink>,
}

/// A running aggregator.
pub struct RunningAggregator {
    /// Where it listens, `127.0.0.1:PORT`.
    pub address: String,
    /// Ends it.
    pub cancel: CancellationToken,
    /// Its rounds.
    pub driver: Option<Driver>,
    /// Errors of connections that it refused, in words.
    pub refused: Arc<std::sync::Mutex<Vec<String>>>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for RunningAggregator {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Name of a worker by its index.
pub fn worker_name(index: usize) -> String {
    format!("worker-{}", char::from(b'a' + u8::try_from(index).unwrap()))
}

const PARTICIPANTS: [&str; 4] = ["alpha", "beta", "gamma", "delta"];

fn participant_of(index: usize) -> &'static str {
    PARTICIPANTS[index % PARTICIPANTS.len()]
}

/// The content that the policy names: kind, name, bytes.
pub fn contents() -> Vec<(ContentKind, &'static str, Bytes)> {
    vec![
        (ContentKind::Module, "train-sgd", Bytes::from_static(b"\0asm trainer")),
        (
            ContentKind::Module,
            "aggregate-fedavg",
            Bytes::from_static(b"\0asm aggregator"),
        ),
        (ContentKind::Graph, "train", Bytes::from_static(b"training graph")),
        (ContentKind::Graph, "evaluate", Bytes::from_static(b"evaluation graph")),
        (ContentKind::Weights, "model", Bytes::from(vec![7; 3 << 20])),
    ]
}

fn content_digest(name: &str) -> Digest {
    contents()
        .iter()
        .find(|content| content.1 == name)
        .map(|content| Digest::of(&content.2))
        .unwrap()
}

impl World {
    /// Makes a federation.
    pub fn new(options: WorldOptions) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = folder.path().join("authority");
        create_authority(&authority, NOW).unwrap();
        let root = TrustRoot::from_file(&authority.join("root.der")).unwrap();
        let mut participants = BTreeMap::new();
        for name in PARTICIPANTS {
            let key = SigningKey::generate().unwrap();
            std::fs::write(folder.path().join(name), key.to_pem().as_bytes()).unwrap();
            participants.insert(name.to_owned(), key);
        }
        let text = policy_text(&options, &participants, root.key_id());
        std::fs::write(folder.path().join("test.toml"), text).unwrap();
        let path = folder.path().to_path_buf();
        Self {
            _owned: Some(folder),
            ..Self::open(&path, options)
        }
    }

    /// Opens the federation that another process made in `folder`, with the same options.
    pub fn open(folder: &Path, options: WorldOptions) -> Self {
        let authority_folder = folder.join("authority");
        let authority = SimulatedAuthority::load(&authority_folder).unwrap();
        let root = TrustRoot::from_file(&authority_folder.join("root.der")).unwrap();
        let collateral = Collateral::from_file(&authority_folder.join("collateral.json")).unwrap();
        let participants = PARTICIPANTS.into_iter().map(|name| {
            let pem = std::fs::read_to_string(folder.join(name)).unwrap();
            (name.to_owned(), SigningKey::from_pem(&pem).unwrap())
        });
        let text = std::fs::read_to_string(folder.join("test.toml")).unwrap();
        let policy = Policy::parse(text.as_bytes(), "test.toml").unwrap_or_else(|error| panic!("{error:?}\n{text}"));
        Self {
            folder: folder.to_path_buf(),
            _owned: None,
            options,
            authority,
            participants: participants.collect(),
            policy: Arc::new(policy),
            verifier: Arc::new(Verifier::new(root, collateral)),
            sink: Arc::new(HeapSink),
        }
    }

    /// Where it lies, for [`World::open`] in another process.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The clock of this world.
    pub fn clock() -> Clock {
        Arc::new(|| NOW)
    }

    /// Key of a participant.
    pub fn participant_key(&self, name: &str) -> &SigningKey {
        &self.participants[name]
    }

    /// The names of its workers.
    pub fn workers(&self) -> Vec<String> {
        (0..self.options.workers).map(worker_name).collect()
    }

    /// A node as the policy wants it, in the state member.
    pub fn node(&self, name: &str) -> WorldNode {
        self.node_with(name, State::Member, |_| {})
    }

    /// A node that a test changed before it made its evidence.
    pub fn node_with(&self, name: &str, state: State, change: impl FnOnce(&mut NodeChange)) -> WorldNode {
        self.node_from(name, state, change, |td| Arc::new(td))
    }

    /// A node as the policy wants it, in the state member, whose quotes are counted and take this long.
    pub fn node_counted(&self, name: &str, latency_ms: u64) -> (WorldNode, Arc<AtomicUsize>) {
        let taken = Arc::new(AtomicUsize::new(0));
        let counted = CountedQuotes {
            taken: Arc::clone(&taken),
            latency_ms,
        };
        let node = self.node_from(name, State::Member, |_| {}, |td| Arc::new(counted.of(td)));
        (node, taken)
    }

    fn node_from(
        &self,
        name: &str,
        state: State,
        change: impl FnOnce(&mut NodeChange),
        provider: impl FnOnce(SimulatedTd) -> Arc<dyn QuoteProvider>,
    ) -> WorldNode {
        let node = self.policy.node(name).unwrap();
        let key = SigningKey::generate().unwrap();
        let fields = CredentialFields {
            federation: self.policy.name.clone(),
            participant: node.participant.clone(),
            node: name.to_owned(),
            role: node.role,
            node_key: key.public(),
            not_after_unix_s: NOW + 86_400,
        };
        let credential = endorse(&self.participants[&node.participant], fields).unwrap();
        let mut entries = self.policy.expected_entries(name, state).unwrap();
        entries.push(Entry::new(EntryRole::Host, "cloister", Digest::of(b"host")));
        let claims = NodeClaims {
            federation: self.policy.name.clone(),
            participant: node.participant.clone(),
            node: name.to_owned(),
            role: node.role,
            state,
            policy_digest: self.policy.digest(),
            node_key: key.public(),
            measurement: Measurement::new(entries).unwrap(),
        };
        let wanted = matches!(self.policy.attestation.rtmr3, Rtmr3::Log { .. });
        let runs = claims.measurement.entries().iter().filter(|_| wanted);
        let events = runs.filter_map(RuntimeEvent::before).collect();
        let mut changed = NodeChange {
            values: TdValues::default(),
            claims,
            credential: credential.to_text(),
            key,
            events,
            log: None,
        };
        change(&mut changed);
        let NodeChange {
            values,
            claims,
            credential: text,
            key,
            events,
            log,
        } = changed;
        let provider = provider(SimulatedTd::new(&self.authority, values).unwrap());
        events.iter().for_each(|event| provider.extend(event).unwrap());
        let log = log.unwrap_or_else(|| provider.event_log().unwrap().unwrap().to_bytes().into());
        let tls = RaTlsIdentity::from_claims(&*provider, &key, claims, Bytes::from(text), NOW).unwrap();
        let tls = tls.with_event_log(log);
        let side = NodeSide {
            identity: Arc::new(tls),
            quotes: QuoteService::new(provider),
        };
        let local = self.local(SelfSide::Node(side.clone()));
        WorldNode {
            local,
            side,
            identity: Arc::new(NodeIdentity { key, credential }),
        }
    }

    /// What one side brings into sessions of this federation.
    pub fn local(&self, own: SelfSide) -> Local {
        Local {
            own,
            verifier: Arc::clone(&self.verifier),
            policy: Arc::clone(&self.policy),
            clock: Self::clock(),
            memory: SessionMemory::default(),
        }
    }

    /// A command line, signed by a participant or by nobody.
    pub fn visitor(&self, participant: Option<&str>) -> Local {
        let signer = participant.map(|name| {
            let pem = self.participants[name].to_pem();
            (name.to_owned(), SigningKey::from_pem(&pem).unwrap())
        });
        self.local(SelfSide::Visitor(Arc::new(VisitorIdentity::new(signer, NOW).unwrap())))
    }

    /// The store of the aggregator, empty at first.
    pub async fn store(&self) -> ContentStore {
        let wanted = contents().into_iter().map(|(kind, name, content)| Wanted {
            kind,
            name: name.to_owned(),
            digest: Digest::of(&content),
        });
        ContentStore::open(self.folder.join("content"), wanted.collect(), 16 << 20)
            .await
            .unwrap()
    }

    /// The aggregator, listening, its rounds not yet running: take the driver and run it.
    pub async fn aggregator(&self, model: TensorMap, progress: Arc<dyn Progress>) -> RunningAggregator {
        let start = StartingPoint {
            model,
            next_round: 1,
            previous: None,
        };
        self.aggregator_from(start, progress).await
    }

    /// The same, as one that was started again goes on.
    pub async fn aggregator_from(&self, start: StartingPoint, progress: Arc<dyn Progress>) -> RunningAggregator {
        let node = self.node("aggregator");
        let cancel = CancellationToken::new();
        let (handle, driver) = aggregator::prepare(AggregatorOptions {
            policy: Arc::clone(&self.policy),
            node: node.side.clone(),
            identity: Arc::clone(&node.identity),
            verifier: Arc::clone(&self.verifier),
            clock: Self::clock(),
            start,
            gather_ms: Some(60_000),
            update_slots: 2,
            sink: Arc::clone(&self.sink),
            progress,
            cancel: cancel.clone(),
        })
        .unwrap();
        let mut running = self.serve(node.local, Some(handle)).await;
        running.cancel = cancel;
        running.driver = Some(driver);
        running
    }

    /// A listening node.
    pub async fn serve(&self, local: Local, aggregator: Option<AggregatorHandle>) -> RunningAggregator {
        self.serve_within(local, aggregator, ListenLimits::default()).await
    }

    /// A listening node that takes on this much.
    pub async fn serve_within(
        &self,
        local: Local,
        aggregator: Option<AggregatorHandle>,
        limits: ListenLimits,
    ) -> RunningAggregator {
        let refused: Arc<std::sync::Mutex<Vec<String>>> = Arc::default();
        let log = Arc::clone(&refused);
        let on_refused = Arc::new(move |error: &SessionError| log.lock().unwrap().push(error.to_string()));
        let listener = Listener::bind(local, "127.0.0.1:0", limits, on_refused).await.unwrap();
        let address = listener.address().to_string();
        let service = FederationService {
            policy: Arc::clone(&self.policy),
            clock: Self::clock(),
            store: self.store().await,
            aggregator,
        };
        let server = tokio::spawn(async move { serve(listener, service, std::future::pending()).await.unwrap() });
        RunningAggregator {
            address,
            cancel: CancellationToken::new(),
            driver: None,
            refused,
            server,
        }
    }

    /// What a worker runs with.
    pub fn worker_options(&self, node: &WorldNode, address: &str, progress: Arc<dyn Progress>) -> WorkerOptions {
        WorkerOptions {
            local: node.local.clone(),
            dial: dial(address),
            initial_model: None,
            model_limit_bytes: 1 << 30,
            backoff: Backoff {
                first: std::time::Duration::from_millis(20),
                most: std::time::Duration::from_millis(200),
                give_up: std::time::Duration::from_secs(20),
            },
            sink: Arc::clone(&self.sink),
            progress,
            cancel: CancellationToken::new(),
        }
    }
}

/// Straight to an aggregator.
pub fn dial(address: &str) -> DialOptions {
    DialOptions {
        address: address.to_owned(),
        proxy: None,
        role: Some(Role::Aggregator),
    }
}

/// A model of one weight matrix and one bias.
pub fn small_model(value: f32) -> TensorMap {
    TensorMap::from([
        ("bias".to_owned(), Tensor::from_f32(&[3], vec![value; 3]).unwrap()),
        ("weight".to_owned(), Tensor::from_f32(&[5, 3], vec![value; 15]).unwrap()),
    ])
}

fn policy_text(options: &WorldOptions, participants: &BTreeMap<String, SigningKey>, root: &[u8; 48]) -> String {
    let mut text = String::from("format = 1\nname = \"test\"\nversion = 1\n");
    for (name, key) in participants {
        let public = base64::engine::general_purpose::STANDARD.encode(key.public().as_bytes());
        write!(text, "[[participant]]\nname = \"{name}\"\npublic_key = \"{public}\"\n").unwrap();
    }
    text += "[[node]]\nname = \"aggregator\"\nrole = \"aggregator\"\nparticipant = \"alpha\"\n";
    for index in 0..options.workers {
        let (name, participant) = (worker_name(index), participant_of(index));
        write!(
            text,
            "[[node]]\nname = \"{name}\"\nrole = \"worker\"\nparticipant = \"{participant}\"\n"
        )
        .unwrap();
    }
    let digest = content_digest;
    write!(
        text,
        "[model]\nname = \"model\"\nweights = \"{}\"\n\
         [[module]]\nname = \"train-sgd\"\nrole = \"trainer\"\nsha256 = \"{}\"\n\
         [[module]]\nname = \"aggregate-fedavg\"\nrole = \"aggregator\"\nsha256 = \"{}\"\n\
         [[graph]]\nname = \"train\"\nsha256 = \"{}\"\nbatch = 32\n\
         [[graph]]\nname = \"evaluate\"\nsha256 = \"{}\"\nbatch = 32\n",
        digest("model"),
        digest("train-sgd"),
        digest("aggregate-fedavg"),
        digest("train"),
        digest("evaluate"),
    )
    .unwrap();
    let inputs = "inputs = { x = { columns = \"p0..p3\", shape = [4], dtype = \"f32\" }, labels = { column = \"label\", dtype = \"i64\" } }";
    for index in 0..options.workers {
        let name = worker_name(index);
        let commitment = Digest::of(name.as_bytes());
        write!(
            text,
            "[[dataset]]\nname = \"train\"\nnode = \"{name}\"\ncommitment = \"{commitment}\"\n{inputs}\n"
        )
        .unwrap();
    }
    let commitment = Digest::of(b"test set");
    write!(
        text,
        "[[dataset]]\nname = \"test\"\nnode = \"aggregator\"\ncommitment = \"{commitment}\"\n{inputs}\n"
    )
    .unwrap();
    write!(
        text,
        "[rounds]\nmode = \"{}\"\ncount = {}\nquorum = {}\ndeadline_s = {}\nmin_workers_per_aggregate = {}\ncheckpoint_every = {}\n{}\n\
         [attestation]\nsimulated = true\nroot_key_id = \"{}\"\n{}\n\
         [release]\nmodel = \"final\"\nrecipients = [\"alpha\"]\n",
        options.mode.as_str(),
        options.rounds,
        options.quorum,
        options.deadline_s,
        match options.mode {
            RoundMode::Asynchronous => 1,
            RoundMode::Averaging | RoundMode::Synchronous => options.quorum,
        },
        options.checkpoint_every,
        match options.mode {
            RoundMode::Asynchronous => format!("max_staleness = {}", options.max_staleness),
            RoundMode::Averaging | RoundMode::Synchronous => String::new(),
        },
        hex(root),
        options.attestation,
    )
    .unwrap();
    text
}
