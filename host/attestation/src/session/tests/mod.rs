//! Two ends in memory; what they are made of stands here.

mod attacks;
mod honest;
mod strangers;

use std::collections::VecDeque;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use cloister_tensor::Digest;
use cloister_wire::session::{Evidence, Hello};
use cloister_wire::{decode, encode_frame};

use super::*;
use crate::claims::{NodeClaims, State};
use crate::evidence::{Appraise, DetachedEvidence, PeerEvidence, VerifiedEvidence, verify_detached};
use crate::identity::{CredentialFields, PublicKey, Role, SigningKey, endorse};
use crate::measurement::{Entry, EntryRole, Measurement};
use crate::provider::QuoteProvider as _;
use crate::ratls::{NodeIdentity, RaTlsIdentity, VisitorIdentity};
use crate::refusal::{FailedRule, Refusal};
use crate::simulated::{SimulatedAuthority, SimulatedTd, TdValues, create_authority};
use crate::verify::{Collateral, Verifier};

const NOW: u64 = 1_795_132_800;
const EXPORTER: [u8; 32] = [9; 32];

/// One authority, one participant, for all tests.
struct World {
    authority: SimulatedAuthority,
    verifier: Arc<Verifier>,
    alpha: SigningKey,
}

static WORLD: LazyLock<World> = LazyLock::new(World::new);

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("authority");
        create_authority(&path, NOW).unwrap();
        let authority = SimulatedAuthority::load(&path).unwrap();
        let collateral = Collateral::from_file(&path).unwrap();
        let verifier = Arc::new(Verifier::new(authority.root().clone(), collateral));
        Self {
            authority,
            verifier,
            alpha: SigningKey::generate().unwrap(),
        }
    }

    fn td(&self, change: impl FnOnce(&mut TdValues)) -> SimulatedTd {
        let mut values = TdValues::default();
        change(&mut values);
        SimulatedTd::new(&self.authority, values).unwrap()
    }
}

/// Knows participant alpha; wants the default MRTD.
struct TestPolicy {
    alpha: PublicKey,
}

impl Appraise for TestPolicy {
    fn basis(&self) -> [u8; 32] {
        [0; 32]
    }

    fn participant_key(&self, participant: &str) -> Option<PublicKey> {
        (participant == "alpha").then_some(self.alpha)
    }

    fn appraise(&self, evidence: &VerifiedEvidence, _now: u64) -> Vec<FailedRule> {
        if evidence.td().mrtd == TdValues::default().mrtd {
            Vec::new()
        } else {
            vec![FailedRule::new("attestation.mrtd", "another", "the default")]
        }
    }

    fn appraise_visitor(&self, _participant: Option<&str>, _now: u64) -> Vec<FailedRule> {
        Vec::new()
    }
}

fn policy() -> Arc<dyn Appraise> {
    Arc::new(TestPolicy {
        alpha: WORLD.alpha.public(),
    })
}

fn claims_of(key: &SigningKey, node: &str, role: Role) -> NodeClaims {
    NodeClaims {
        federation: "digits".into(),
        participant: "alpha".into(),
        node: node.into(),
        role,
        state: State::Member,
        policy_digest: Digest::of(b"policy"),
        node_key: key.public(),
        measurement: Measurement::new(vec![Entry::new(EntryRole::Host, "cloister", Digest::of(b"host"))]).unwrap(),
    }
}

fn credential_fields(claims: &NodeClaims) -> CredentialFields {
    CredentialFields {
        federation: claims.federation.clone(),
        participant: claims.participant.clone(),
        node: claims.node.clone(),
        role: claims.role,
        node_key: claims.node_key,
        not_after_unix_s: NOW + 1000,
    }
}

/// A node of alpha, after somebody changed its claims and its credential.
fn node_with(
    td: &SimulatedTd,
    name: &str,
    role: Role,
    change_claims: impl FnOnce(&mut NodeClaims),
    change_credential: impl FnOnce(&mut CredentialFields),
) -> Arc<RaTlsIdentity> {
    let key = SigningKey::generate().unwrap();
    let mut claims = claims_of(&key, name, role);
    let mut fields = credential_fields(&claims);
    change_claims(&mut claims);
    change_credential(&mut fields);
    let credential = endorse(&WORLD.alpha, fields).unwrap().to_text();
    Arc::new(RaTlsIdentity::from_claims(td, &key, claims, credential.into(), NOW).unwrap())
}

fn node(td: &SimulatedTd, name: &str, role: Role) -> Arc<RaTlsIdentity> {
    node_with(td, name, role, |_| (), |_| ())
}

struct End {
    handshake: Handshake,
    queue: VecDeque<Action>,
    td: SimulatedTd,
    result: Option<Result<PeerEvidence, String>>,
}

impl End {
    fn new(side: Side, own: SelfInfo, td: SimulatedTd, peer_certificate: &[u8], exporter: [u8; 32]) -> Self {
        let (handshake, actions) = Handshake::new(HandshakeInput {
            side,
            own,
            exporter,
            peer_certificate,
            verifier: WORLD.verifier.clone(),
            verdicts: Arc::default(),
            appraiser: policy(),
        })
        .unwrap();
        Self {
            handshake,
            queue: actions.into(),
            td,
            result: None,
        }
    }

    /// Works off the actions; gives what goes to the peer.
    fn pump(&mut self) -> Vec<Bytes> {
        let mut out = Vec::new();
        while let Some(action) = self.queue.pop_front() {
            match action {
                Action::Send(frame) => out.push(frame),
                Action::NeedQuote(data) => {
                    let quote = self.td.quote(&data).unwrap();
                    self.queue
                        .extend(self.handshake.provide_quote(&quote, &BatchPath::default()).unwrap());
                }
                Action::Done(peer) => self.result = Some(Ok(*peer)),
                Action::Refused(refusal) => self.result = Some(Err(refusal.to_string())),
            }
        }
        out
    }

    fn take(&mut self, frame: &Bytes) {
        if self.result.as_ref().is_some_and(Result::is_err) {
            return;
        }
        match self.handshake.on_frame(&frame[4..], NOW) {
            Ok(actions) => self.queue.extend(actions),
            Err(error) => self.result = Some(Err(error.to_string())),
        }
    }
}

/// Lets two ends talk; `meddle` sees every frame (true: from the client) and may change it.
fn talk(
    client: &mut End,
    server: &mut End,
    mut meddle: impl FnMut(bool, usize, Bytes) -> Bytes,
) -> [Result<PeerEvidence, String>; 2] {
    let (mut sent_by_client, mut sent_by_server) = (0, 0);
    for _ in 0..10 {
        let (to_server, to_client) = (client.pump(), server.pump());
        for frame in to_server {
            server.take(&meddle(true, sent_by_client, frame));
            sent_by_client += 1;
        }
        for frame in to_client {
            client.take(&meddle(false, sent_by_server, frame));
            sent_by_server += 1;
        }
    }
    let end = |end: &mut End| end.result.take().unwrap_or_else(|| Err("hangs".into()));
    [end(client), end(server)]
}

fn pair(client: &Arc<RaTlsIdentity>, server: &Arc<RaTlsIdentity>) -> (End, End) {
    let td = || WORLD.td(|_| ());
    (
        End::new(
            Side::Client,
            SelfInfo::Node(client.clone()),
            td(),
            &server.cert_der,
            EXPORTER,
        ),
        End::new(
            Side::Server,
            SelfInfo::Node(server.clone()),
            td(),
            &client.cert_der,
            EXPORTER,
        ),
    )
}

fn two_nodes() -> (Arc<RaTlsIdentity>, Arc<RaTlsIdentity>) {
    let td = WORLD.td(|_| ());
    (
        node(&td, "worker-a", Role::Worker),
        node(&td, "aggregator", Role::Aggregator),
    )
}

fn honest(client: &Arc<RaTlsIdentity>, server: &Arc<RaTlsIdentity>) -> [Result<PeerEvidence, String>; 2] {
    let (mut client, mut server) = pair(client, server);
    talk(&mut client, &mut server, |_, _, frame| frame)
}

fn refused(result: &Result<PeerEvidence, String>, says: &str) {
    let error = result.as_ref().unwrap_err();
    assert!(error.contains(says), "wanted {says:?} in: {error}");
}
