//! Three hospitals with an aggregator and a manager: their policies as text, and permits and visits of it without a network.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cloister_attestation::claims::make;
use cloister_attestation::encoding::hex;
use cloister_attestation::identity::{CredentialFields, PublicKey, SigningKey, endorse};
use cloister_attestation::measurement::{Entry, EntryRole, Measurement};
use cloister_attestation::ratls::VisitorIdentity;
use cloister_attestation::session::{
    Action, BatchPath, Handshake, HandshakeInput, SelfInfo, Side, applicant_report_data, roster_report_data,
};
use cloister_attestation::simulated::{SimulatedAuthority, SimulatedTd, TdValues, create_authority};
use cloister_attestation::{
    Appraise, Claims, Collateral, DetachedEvidence, FailedRule, NodeClaims, NodeIdentity, PeerEvidence,
    QuoteProvider as _, RaTlsIdentity, State, TrustRoot, VerifiedEvidence, Verifier, verify_applicant, verify_detached,
};
use cloister_policy::{Admission, Permit, Policy, Signature, Visit};
use cloister_tensor::Digest;

/// The time at which everything begins, in seconds since 1970.
pub const NOW: u64 = 1_790_000_000;
/// The participants, each with a worker of the name and `-worker` behind it.
pub const HOSPITALS: [&str; 3] = ["alpha", "beta", "gamma"];
/// The modules: a trainer and an aggregator.
pub const MODULES: [(&str, &str); 2] = [("train-sgd", "trainer"), ("fedavg", "aggregator")];

/// What a policy says where the tests differ.
#[derive(Clone, Debug)]
pub struct WardsPolicy {
    /// Its version.
    pub version: u64,
    /// The policy that it follows.
    pub predecessor: Option<Digest>,
    /// How many sign.
    pub threshold: usize,
    /// Whether successors are forbidden.
    pub immutable: bool,
    /// What the trainer may do with tensors.
    pub access: &'static str,
    /// A text setting of the trainer.
    pub setting: String,
    /// Anything that makes its digest another one.
    pub comment: String,
}

impl Default for WardsPolicy {
    fn default() -> Self {
        Self {
            version: 1,
            predecessor: None,
            threshold: 3,
            immutable: false,
            access: "handles",
            setting: "none".to_owned(),
            comment: String::new(),
        }
    }
}

/// The hospitals, and the authority of their simulated TDs.
pub struct Wards {
    folder: PathBuf,
    /// Removes the folder at the end, in the process that made it.
    _owned: Option<tempfile::TempDir>,
    authority: SimulatedAuthority,
    verifier: Arc<Verifier>,
    keys: BTreeMap<String, SigningKey>,
}

impl Default for Wards {
    fn default() -> Self {
        Self::new()
    }
}

impl Wards {
    /// Makes keys and authority.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        create_authority(&folder.path().join("authority"), NOW - 60).unwrap();
        for name in HOSPITALS {
            let key = SigningKey::generate().unwrap();
            std::fs::write(folder.path().join(name), key.to_pem().as_bytes()).unwrap();
        }
        let path = folder.path().to_path_buf();
        Self {
            _owned: Some(folder),
            ..Self::open(&path)
        }
    }

    /// Opens what another process made in `folder`.
    pub fn open(folder: &Path) -> Self {
        let authority = folder.join("authority");
        let root = TrustRoot::from_file(&authority).unwrap();
        let collateral = Collateral::from_file(&authority).unwrap();
        let keys = HOSPITALS.map(|name| {
            let pem = std::fs::read_to_string(folder.join(name)).unwrap();
            (name.to_owned(), SigningKey::from_pem(&pem).unwrap())
        });
        Self {
            folder: folder.to_path_buf(),
            _owned: None,
            authority: SimulatedAuthority::load(&authority).unwrap(),
            verifier: Arc::new(Verifier::new(root, collateral)),
            keys: keys.into(),
        }
    }

    /// Where everything lies.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A participant's key.
    pub fn key(&self, participant: &str) -> &SigningKey {
        &self.keys[participant]
    }

    /// A policy's file.
    pub fn text(&self, policy: &WardsPolicy) -> String {
        let WardsPolicy {
            version,
            predecessor,
            threshold,
            immutable,
            access,
            setting,
            comment,
        } = policy;
        let mut text = format!("# {comment}\nformat = 1\nname = \"wards\"\nversion = {version}\n");
        if let Some(predecessor) = predecessor {
            writeln!(text, "predecessor = \"{predecessor}\"").unwrap();
        }
        writeln!(text, "[agreement]\nthreshold = {threshold}\nimmutable = {immutable}").unwrap();
        for (name, key) in &self.keys {
            let public = key.public();
            writeln!(text, "[[participant]]\nname = \"{name}\"\npublic_key = \"{public}\"").unwrap();
        }
        let mut node = |name: &str, role: &str, participant: &str| {
            let lines = format!("[[node]]\nname = \"{name}\"\nrole = \"{role}\"\nparticipant = \"{participant}\"\n");
            text.push_str(&lines);
        };
        node("hub", "aggregator", "alpha");
        node("safe", "manager", "alpha");
        for name in HOSPITALS {
            node(&format!("{name}-worker"), "worker", name);
        }
        writeln!(
            text,
            "[model]\nname = \"model\"\nweights = \"{}\"",
            Digest::of(b"weights")
        )
        .unwrap();
        for (name, role) in MODULES {
            let digest = Digest::of(name.as_bytes());
            writeln!(
                text,
                "[[module]]\nname = \"{name}\"\nrole = \"{role}\"\nsha256 = \"{digest}\""
            )
            .unwrap();
            if role == "trainer" {
                writeln!(
                    text,
                    "tensor_access = \"{access}\"\nsettings = {{ token = \"{setting}\" }}"
                )
                .unwrap();
            }
        }
        for name in ["train", "evaluate"] {
            let digest = Digest::of(name.as_bytes());
            writeln!(text, "[[graph]]\nname = \"{name}\"\nsha256 = \"{digest}\"\nbatch = 32").unwrap();
        }
        let inputs = "inputs = { x = { columns = \"p0..p3\", shape = [4], dtype = \"f32\" }, labels = { column = \"label\", dtype = \"i64\" } }";
        let workers = HOSPITALS.map(|name| ("train", format!("{name}-worker")));
        for (dataset, node) in workers.into_iter().chain([("test", "hub".to_owned())]) {
            let commitment = Digest::of(node.as_bytes());
            writeln!(
                text,
                "[[dataset]]\nname = \"{dataset}\"\nnode = \"{node}\"\ncommitment = \"{commitment}\"\n{inputs}"
            )
            .unwrap();
        }
        let root = hex(self.authority.root().key_id());
        writeln!(
            text,
            "[rounds]\nmode = \"averaging\"\ncount = 3\nquorum = 3\ndeadline_s = 5\n\
             [attestation]\nsimulated = true\nroot_key_id = \"{root}\"\n\
             [release]\nmodel = \"final\"\nrecipients = [\"alpha\"]"
        )
        .unwrap();
        text
    }

    /// A policy, parsed.
    pub fn policy(&self, policy: &WardsPolicy) -> Arc<Policy> {
        let text = self.text(policy);
        let parsed = Policy::parse(text.as_bytes(), "wards.toml");
        Arc::new(parsed.unwrap_or_else(|error| panic!("{error:?}\n{text}")))
    }

    /// A participant's signature under a policy.
    pub fn signature(&self, policy: &Policy, participant: &str) -> Signature {
        Signature::sign(policy, participant, self.key(participant)).unwrap()
    }

    fn claims(policy: &Policy, name: &str, node_key: PublicKey) -> NodeClaims {
        let node = policy.node(name).unwrap();
        let mut entries = policy.expected_entries(name, State::Member).unwrap();
        entries.push(Entry::new(EntryRole::Host, "cloister", Digest::of(b"host")));
        NodeClaims {
            federation: policy.name.clone(),
            participant: node.participant.clone(),
            node: name.to_owned(),
            role: node.role,
            state: State::Member,
            policy_digest: policy.digest(),
            node_key,
            measurement: Measurement::new(entries).unwrap(),
        }
    }

    fn identity(&self, policy: &Policy, name: &str) -> (NodeIdentity, NodeClaims) {
        let key = SigningKey::generate().unwrap();
        let claims = Self::claims(policy, name, key.public());
        let fields = CredentialFields {
            federation: claims.federation.clone(),
            participant: claims.participant.clone(),
            node: claims.node.clone(),
            role: claims.role,
            node_key: claims.node_key,
            not_after_unix_s: NOW + 1_000_000,
        };
        let credential = endorse(self.key(&claims.participant), fields).unwrap();
        (NodeIdentity { key, credential }, claims)
    }

    /// A permit of a node over that connection, out of evidence that verified. It ends an hour after [`NOW`].
    pub fn permit(&self, policy: &Policy, node: &str, connection: [u8; 32]) -> Permit {
        self.evidence(policy, node).permit(connection, NOW)
    }

    /// What a node shows, to be given any number of permits by.
    pub fn evidence<'a>(&self, policy: &'a Policy, node: &str) -> Shown<'a> {
        let (identity, claims) = self.identity(policy, node);
        let root = claims.measurement.root();
        let claims = make(&identity.key, &[5; 32], &claims).unwrap();
        let digest = Claims::parse(&claims).unwrap().digest();
        let report_data = roster_report_data(&[1; 32], &digest, &root);
        let td = SimulatedTd::new(&self.authority, TdValues::default()).unwrap();
        let quote = td.quote(&report_data).unwrap();
        let credential = identity.credential.to_text();
        let shown = DetachedEvidence {
            quote: &quote,
            claims: &claims,
            credential: credential.as_bytes(),
            event_log: &[],
        };
        let evidence = verify_detached(&shown, &report_data, &self.verifier, &Open(policy.clone()), NOW);
        Shown {
            policy,
            evidence: evidence.unwrap(),
        }
    }

    /// Leave for a TD that shows no credential to be that node, over that connection.
    pub fn admission(&self, policy: &Policy, node: &str, connection: [u8; 32]) -> Admission {
        let key = SigningKey::generate().unwrap();
        let mut claims = Self::claims(policy, node, key.public());
        let mut entries = policy.expected_entries(node, State::Applicant).unwrap();
        entries.push(Entry::new(EntryRole::Host, "cloister", Digest::of(b"host")));
        (claims.state, claims.measurement) = (State::Applicant, Measurement::new(entries).unwrap());
        let root = claims.measurement.root();
        let claims = Claims::parse(&make(&key, &[5; 32], &claims).unwrap()).unwrap();
        let report_data = applicant_report_data(&connection, &claims.digest(), &root, &[8; 32]);
        let td = SimulatedTd::new(&self.authority, TdValues::default()).unwrap();
        let quote = td.quote(&report_data).unwrap();
        let shown = verify_applicant(&quote, claims, &[], &report_data, &self.verifier, NOW).unwrap();
        policy.admit(&shown, connection, NOW).unwrap()
    }

    /// A participant's visit, or nobody's, by the handshake in memory.
    pub fn visit(&self, policy: &Policy, participant: Option<&str>) -> Visit {
        let td = SimulatedTd::new(&self.authority, TdValues::default()).unwrap();
        let (identity, claims) = self.identity(policy, "safe");
        let credential = identity.credential.to_text().into();
        let node = RaTlsIdentity::from_claims(&td, &identity.key, claims, credential, NOW).unwrap();
        let signer = participant.map(|name| {
            let key = SigningKey::from_pem(&self.key(name).to_pem()).unwrap();
            (name.to_owned(), key)
        });
        let visitor = VisitorIdentity::new(signer, NOW).unwrap();
        let (node_certificate, visitor_certificate) = (node.cert_der.clone(), visitor.cert_der.clone());
        let own = SelfInfo::Visitor(Arc::new(visitor), *policy.digest().as_bytes());
        let mut dialler = End::new(self, policy, Side::Client, own, &node_certificate);
        let own = SelfInfo::Node(Arc::new(node));
        let mut listener = End::new(self, policy, Side::Server, own, &visitor_certificate);
        for _ in 0..8 {
            let (there, back) = (dialler.pump(&td), listener.pump(&td));
            there.iter().for_each(|frame| listener.take(frame));
            back.iter().for_each(|frame| dialler.take(frame));
        }
        match listener.peer {
            Some(PeerEvidence::Visitor(visitor)) => policy.visit(&visitor).unwrap(),
            _ => panic!("the handshake ends with a visitor"),
        }
    }
}

/// Lets every node and visitor of a policy in.
/// Evidence of a node that verified.
pub struct Shown<'a> {
    policy: &'a Policy,
    evidence: VerifiedEvidence,
}

impl Shown<'_> {
    /// A permit over that connection, which ends an hour after `now_unix_s`.
    pub fn permit(&self, connection: [u8; 32], now_unix_s: u64) -> Permit {
        self.policy.permit(&self.evidence, connection, now_unix_s).unwrap()
    }
}

struct Open(Policy);

impl Appraise for Open {
    fn basis(&self) -> [u8; 32] {
        [0; 32]
    }

    fn participant_key(&self, participant: &str) -> Option<PublicKey> {
        self.0.participant_key(participant)
    }

    fn appraise(&self, _evidence: &VerifiedEvidence, _now_unix_s: u64) -> Vec<FailedRule> {
        Vec::new()
    }

    fn appraise_visitor(&self, _participant: Option<&str>, _now_unix_s: u64) -> Vec<FailedRule> {
        Vec::new()
    }
}

struct End {
    handshake: Handshake,
    due: VecDeque<Action>,
    peer: Option<PeerEvidence>,
}

impl End {
    fn new(wards: &Wards, policy: &Policy, side: Side, own: SelfInfo, peer_certificate: &[u8]) -> Self {
        let input = HandshakeInput {
            side,
            own,
            exporter: [9; 32],
            peer_certificate,
            verifier: Arc::clone(&wards.verifier),
            verdicts: Arc::default(),
            appraiser: Arc::new(Open(policy.clone())),
        };
        let (handshake, actions) = Handshake::new(input).unwrap();
        let (due, peer) = (actions.into(), None);
        Self { handshake, due, peer }
    }

    fn pump(&mut self, td: &SimulatedTd) -> Vec<bytes::Bytes> {
        let mut frames = Vec::new();
        while let Some(action) = self.due.pop_front() {
            match action {
                Action::Send(frame) => frames.push(frame),
                Action::NeedQuote(report_data) => {
                    let quote = td.quote(&report_data).unwrap();
                    let next = self.handshake.provide_quote(&quote, &BatchPath::default());
                    self.due.extend(next.unwrap());
                }
                Action::Done(peer) => self.peer = Some(*peer),
                Action::Refused(refusal) => panic!("{refusal}"),
            }
        }
        frames
    }

    fn take(&mut self, frame: &[u8]) {
        let actions = self.handshake.on_frame(&frame[4..], NOW);
        self.due.extend(actions.unwrap());
    }
}
