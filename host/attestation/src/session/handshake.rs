//! The handshake's state machine.

use std::sync::Arc;

use bytes::Bytes;
use cloister_wire::session::{Evidence, Hello, Verdict};
use cloister_wire::{FrameError, decode, encode_frame};

use super::batch::BatchPath;
use super::binding::{Binding, Side};
use super::{VERSION, peer};
use crate::evidence::{Appraise, PeerEvidence};
use crate::ratls::{CertificateError, PeerCertificate, RaTlsIdentity, VisitorIdentity};
use crate::refusal::Refusal;
use crate::verify::{VerdictCache, Verifier};

/// What this end shows.
#[derive(Clone, Debug)]
pub enum SelfInfo {
    /// A node in a TD.
    Node(Arc<RaTlsIdentity>),
    /// A command line, which dials only, and the digest of the policy it works under (zeros without one).
    Visitor(Arc<VisitorIdentity>, [u8; 32]),
}

impl SelfInfo {
    fn spki_sha256(&self) -> &[u8; 32] {
        match self {
            Self::Node(identity) => &identity.spki_sha256,
            Self::Visitor(identity, _) => &identity.spki_sha256,
        }
    }
}

/// What a handshake starts with.
pub struct HandshakeInput<'a> {
    /// Which end this is.
    pub side: Side,
    /// What this end shows.
    pub own: SelfInfo,
    /// The TLS exporter with [`super::EXPORTER_LABEL`], empty context.
    pub exporter: [u8; 32],
    /// The peer's TLS certificate, DER; TLS has checked that the peer holds its key.
    pub peer_certificate: &'a [u8],
    /// Verifies the peer's quotes.
    pub verifier: Arc<Verifier>,
    /// Remembers which certificates' quotes verified.
    pub verdicts: Arc<VerdictCache>,
    /// The policy that decides about the peer.
    pub appraiser: Arc<dyn Appraise>,
}

/// What the caller does next.
#[derive(Debug)]
pub enum Action {
    /// Send this frame (length and message).
    Send(Bytes),
    /// Have a quote made over this report data, and hand it in by [`Handshake::provide_quote`].
    NeedQuote(Box<[u8; 64]>),
    /// Both ends accepted: HTTP/2 may begin.
    Done(Box<PeerEvidence>),
    /// This end refused the peer: close after sending what is to be sent.
    Refused(Refusal),
}

/// Why a handshake failed, other than by this end's refusal.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// A frame can't be read.
    #[error("attestation handshake: {0}")]
    Frame(#[from] FrameError),
    /// The peer's certificate can't be read.
    #[error("attestation handshake: {0}")]
    Certificate(#[from] CertificateError),
    /// The system gave no randomness for the nonce.
    #[error("attestation handshake: the system gave no randomness")]
    Random,
    /// A frame or a quote came when none was due.
    #[error("attestation handshake: {got}, wanted {wanted}")]
    OutOfTurn {
        /// What came.
        got: &'static str,
        /// What was due.
        wanted: &'static str,
    },
    /// The peer refused this end: what it says failed.
    #[error("the peer refused this node's evidence: {0}")]
    PeerRefused(Refusal),
}

enum State {
    /// The peer's Hello is due.
    Hello,
    /// The peer's Evidence is due (or its refusal).
    Evidence,
    /// Our quote is due from the caller; the listener has verified its peer by then.
    Quote(Option<PeerEvidence>),
    /// The peer's Verdict is due; we have verified it.
    Verdict(PeerEvidence),
    /// Done or failed.
    Over,
}

/// One end of a handshake.
pub struct Handshake {
    side: Side,
    own: SelfInfo,
    exporter: [u8; 32],
    nonce: [u8; 32],
    peer: PeerCertificate,
    peer_hello: Option<peer::PeerHello>,
    verifier: Arc<Verifier>,
    verdicts: Arc<VerdictCache>,
    appraiser: Arc<dyn Appraise>,
    state: State,
}

impl Handshake {
    /// Starts a handshake. Gives the first actions: this end's `Hello`.
    ///
    /// # Errors
    /// [`HandshakeError`] if the peer's certificate can't be read, or a visitor is told to listen.
    pub fn new(input: HandshakeInput<'_>) -> Result<(Self, Vec<Action>), HandshakeError> {
        let HandshakeInput {
            side,
            own,
            exporter,
            peer_certificate,
            verifier,
            verdicts,
            appraiser,
        } = input;
        if side == Side::Server && matches!(own, SelfInfo::Visitor(..)) {
            return Err(HandshakeError::OutOfTurn {
                got: "a visitor that listens",
                wanted: "a node",
            });
        }
        let mut nonce = [0; 32];
        aws_lc_rs::rand::fill(&mut nonce).map_err(|_| HandshakeError::Random)?;
        let peer = PeerCertificate::parse(peer_certificate)?;
        let hello = own_hello(&own, &nonce);
        let handshake = Self {
            side,
            own,
            exporter,
            nonce,
            peer,
            peer_hello: None,
            verifier,
            verdicts,
            appraiser,
            state: State::Hello,
        };
        let frame = encode_frame(&hello)?;
        Ok((handshake, vec![Action::Send(frame)]))
    }

    /// Takes the body of a frame (without its length) that arrived.
    ///
    /// # Errors
    /// [`HandshakeError`] if the frame is not what was due, or the peer refused. The handshake is over then.
    pub fn on_frame(&mut self, body: &[u8], now_unix_s: u64) -> Result<Vec<Action>, HandshakeError> {
        let body = Bytes::copy_from_slice(body);
        match std::mem::replace(&mut self.state, State::Over) {
            State::Hello => self.on_hello(decode(&body, "Hello")?),
            State::Evidence => self.on_evidence(&body, now_unix_s),
            State::Verdict(peer) => self.on_verdict(peer, &decode(&body, "Verdict")?),
            State::Quote(_) => {
                unless_refused(&body)?;
                Err(HandshakeError::OutOfTurn {
                    got: "a frame",
                    wanted: "nothing until our evidence",
                })
            }
            State::Over => Err(HandshakeError::OutOfTurn {
                got: "a frame",
                wanted: "nothing: the handshake is over",
            }),
        }
    }

    /// Who is at the other end, as soon as its evidence verified: what the listener goes by before it takes a quote.
    pub fn verified_peer(&self) -> Option<&PeerEvidence> {
        match &self.state {
            State::Quote(peer) => peer.as_ref(),
            State::Verdict(peer) => Some(peer),
            State::Hello | State::Evidence | State::Over => None,
        }
    }

    /// Ends the handshake by this end's own word, such as too many sessions: gives what is to be sent.
    ///
    /// # Errors
    /// [`HandshakeError::Frame`] if the refusal does not fit a frame.
    pub fn refuse(&mut self, refusal: Refusal) -> Result<Vec<Action>, HandshakeError> {
        self.state = State::Over;
        refuse(refusal)
    }

    /// Hands in the quote that [`Action::NeedQuote`] asked for and, where the quote serves more sessions, this session's path.
    ///
    /// # Errors
    /// [`HandshakeError`] if none was asked for, or the evidence does not fit a frame.
    pub fn provide_quote(&mut self, quote: &[u8], path: &BatchPath) -> Result<Vec<Action>, HandshakeError> {
        let State::Quote(peer) = std::mem::replace(&mut self.state, State::Over) else {
            return Err(HandshakeError::OutOfTurn {
                got: "a quote",
                wanted: "one after NeedQuote",
            });
        };
        let SelfInfo::Node(identity) = &self.own else {
            return Err(HandshakeError::OutOfTurn {
                got: "a quote",
                wanted: "none: a visitor has no TD",
            });
        };
        let evidence = Evidence {
            quote: Bytes::copy_from_slice(quote),
            claims: identity.claims.clone(),
            credential: identity.credential.clone(),
            event_log: identity.event_log.clone(),
            batch_index: path.index(),
            batch_path: path
                .siblings()
                .iter()
                .map(|hash| Bytes::copy_from_slice(hash))
                .collect(),
            ..Evidence::default()
        };
        self.send_evidence(&evidence, peer)
    }

    /// Sends our evidence. The listener has verified the dialler by now and says so at once.
    fn send_evidence(
        &mut self,
        evidence: &Evidence,
        peer: Option<PeerEvidence>,
    ) -> Result<Vec<Action>, HandshakeError> {
        let mut actions = vec![Action::Send(encode_frame(evidence)?)];
        self.state = match peer {
            None => State::Evidence,
            Some(peer) => {
                actions.push(accept()?);
                State::Verdict(peer)
            }
        };
        Ok(actions)
    }

    fn on_hello(&mut self, hello: Hello) -> Result<Vec<Action>, HandshakeError> {
        let peer_hello = match peer::check_hello(&hello, self.side, &self.nonce, self.own_policy_digest()) {
            Ok(peer_hello) => peer_hello,
            Err(refusal) => return refuse(refusal),
        };
        self.peer_hello = Some(peer_hello);
        match self.side {
            Side::Server => {
                self.state = State::Evidence;
                Ok(Vec::new())
            }
            Side::Client => self.show(None),
        }
    }

    /// Begins to show our evidence: asks for the quote, or, as a visitor, signs.
    fn show(&mut self, peer: Option<PeerEvidence>) -> Result<Vec<Action>, HandshakeError> {
        let Some(peer_hello) = &self.peer_hello else {
            return Err(HandshakeError::OutOfTurn {
                got: "evidence",
                wanted: "a Hello before it",
            });
        };
        let binding = Binding {
            side: self.side,
            exporter: &self.exporter,
            own_spki: self.own.spki_sha256(),
            peer_spki: self.peer.spki_sha256(),
            peer_nonce: &peer_hello.nonce,
        };
        match &self.own {
            SelfInfo::Node(identity) => {
                let claims_digest = cloister_tensor::Digest::of(&identity.claims);
                let report_data = binding.report_data(&claims_digest, &identity.node.measurement.root());
                self.state = State::Quote(peer);
                Ok(vec![Action::NeedQuote(Box::new(report_data))])
            }
            SelfInfo::Visitor(identity, _) => {
                let mut evidence = Evidence::default();
                if let Some((participant, key)) = &identity.signer {
                    evidence.participant.clone_from(participant);
                    evidence.signature = Bytes::copy_from_slice(&key.sign(&binding.visitor_message()));
                }
                self.send_evidence(&evidence, peer)
            }
        }
    }

    fn on_evidence(&mut self, body: &Bytes, now_unix_s: u64) -> Result<Vec<Action>, HandshakeError> {
        unless_refused(body)?;
        let evidence: Evidence = decode(body, "Evidence")?;
        let Some(hello) = &self.peer_hello else {
            return Err(HandshakeError::OutOfTurn {
                got: "evidence",
                wanted: "a Hello before it",
            });
        };
        let binding = Binding {
            side: self.side.other(),
            exporter: &self.exporter,
            own_spki: self.peer.spki_sha256(),
            peer_spki: self.own.spki_sha256(),
            peer_nonce: &self.nonce,
        };
        let showing = peer::Shown {
            hello,
            evidence: &evidence,
            certificate: &self.peer,
            binding: &binding,
        };
        let judges = peer::Judges {
            verifier: &self.verifier,
            verdicts: &self.verdicts,
            appraiser: &*self.appraiser,
        };
        let peer = match showing.verify(&judges, now_unix_s) {
            Ok(peer) => peer,
            Err(refusal) => return refuse(refusal),
        };
        match self.side {
            Side::Server => self.show(Some(peer)),
            Side::Client => {
                self.state = State::Verdict(peer);
                Ok(vec![accept()?])
            }
        }
    }

    fn on_verdict(&mut self, peer: PeerEvidence, verdict: &Verdict) -> Result<Vec<Action>, HandshakeError> {
        if verdict.accepted {
            Ok(vec![Action::Done(Box::new(peer))])
        } else {
            Err(HandshakeError::PeerRefused(Refusal::from_wire(verdict)))
        }
    }

    fn own_policy_digest(&self) -> [u8; 32] {
        match &self.own {
            SelfInfo::Node(identity) => *identity.node.policy_digest.as_bytes(),
            SelfInfo::Visitor(_, digest) => *digest,
        }
    }
}

fn own_hello(own: &SelfInfo, nonce: &[u8; 32]) -> Hello {
    let nonce = Bytes::copy_from_slice(nonce);
    match own {
        SelfInfo::Node(identity) => Hello {
            version: VERSION,
            role: identity.node.role.to_string(),
            node: identity.node.node.clone(),
            nonce,
            policy_digest: Bytes::copy_from_slice(identity.node.policy_digest.as_bytes()),
            visitor: false,
        },
        SelfInfo::Visitor(_, policy_digest) => Hello {
            version: VERSION,
            nonce,
            policy_digest: Bytes::copy_from_slice(policy_digest),
            visitor: true,
            ..Hello::default()
        },
    }
}

fn accept() -> Result<Action, HandshakeError> {
    Ok(Action::Send(encode_frame(&Verdict {
        accepted: true,
        rules: Vec::new(),
    })?))
}

/// A peer that refuses our Hello sends its Verdict where its Evidence was due; the two have no field in common.
fn unless_refused(body: &Bytes) -> Result<(), HandshakeError> {
    let verdict: Verdict = decode(body, "Evidence or Verdict")?;
    if verdict.rules.is_empty() {
        Ok(())
    } else {
        Err(HandshakeError::PeerRefused(Refusal::from_wire(&verdict)))
    }
}

fn refuse(refusal: Refusal) -> Result<Vec<Action>, HandshakeError> {
    let frame = encode_frame(&refusal.to_wire())?;
    Ok(vec![Action::Send(frame), Action::Refused(refusal)])
}
