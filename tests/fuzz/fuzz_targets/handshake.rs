//! The session handshake with an attacker on the wire: two honest ends talk, and the input says what becomes of each
//! frame. Whatever it says, who is let in is who he is.
#![no_main]

use std::collections::VecDeque;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use cloister_attestation::identity::Role;
use cloister_attestation::session::{Action, BatchPath, Handshake, HandshakeInput, SelfInfo, Side};
use cloister_attestation::simulated::SimulatedTd;
use cloister_attestation::{PeerEvidence, QuoteProvider as _, RaTlsIdentity};
use cloister_fuzz::{NOW, WORLD, plant};
use cloister_wire::FrameReader;
use libfuzzer_sys::fuzz_target;

type Node = (SimulatedTd, Arc<RaTlsIdentity>);
static WORKER: LazyLock<Node> = LazyLock::new(|| WORLD.node("worker-a", Role::Worker));
static AGGREGATOR: LazyLock<Node> = LazyLock::new(|| WORLD.node("aggregator", Role::Aggregator));

/// Most frames that are carried in one run.
const MAX_FRAMES: usize = 16;

fn seeds() -> Vec<Vec<u8>> {
    vec![
        vec![],
        vec![PASS, PASS, PATCH, 1, 0, 0xff, PASS],
        vec![PASS, PATCH, 0, 9, 1, TWICE, DROP],
        [&[PASS, REPLACE, 8][..], b"\x08\x01\x12\x06worker"].concat(),
        vec![SWAP, PASS, SWAP, PASS, PASS],
    ]
}

const PASS: u8 = 0;
const PATCH: u8 = 1;
const REPLACE: u8 = 2;
const DROP: u8 = 3;
const TWICE: u8 = 4;
const SWAP: u8 = 5;

/// What the attacker still has to say.
struct Attacker<'a> {
    script: &'a [u8],
    held: Option<Bytes>,
}

impl Attacker<'_> {
    fn byte(&mut self) -> u8 {
        self.script.split_off_first().copied().unwrap_or(PASS)
    }

    /// What arrives in place of a frame.
    fn carry(&mut self, frame: Bytes) -> Vec<Bytes> {
        match self.byte() % 6 {
            PATCH => {
                let mut frame = frame.to_vec();
                let at = usize::from(u16::from_be_bytes([self.byte(), self.byte()])) % frame.len();
                frame[at] ^= self.byte();
                vec![frame.into()]
            }
            REPLACE => {
                let len = usize::from(self.byte()).min(self.script.len());
                let body = self.script.split_off(..len).unwrap_or_default();
                vec![[&(body.len() as u32).to_be_bytes()[..], body].concat().into()]
            }
            DROP => Vec::new(),
            TWICE => vec![frame.clone(), frame],
            SWAP => match self.held.replace(frame) {
                Some(earlier) => vec![earlier],
                None => Vec::new(),
            },
            _ => vec![frame],
        }
    }
}

struct End {
    handshake: Option<Handshake>,
    reader: FrameReader,
    own: &'static Node,
    accepted: Option<PeerEvidence>,
}

impl End {
    fn new(side: Side, own: &'static Node, peer: &Node) -> (Self, Vec<Action>) {
        let input = HandshakeInput {
            side,
            own: SelfInfo::Node(own.1.clone()),
            exporter: [9; 32],
            peer_certificate: &peer.1.cert_der,
            verifier: WORLD.verifier.clone(),
            verdicts: Arc::default(),
            appraiser: WORLD.policy(),
        };
        let (handshake, actions) = Handshake::new(input).unwrap();
        let end = Self {
            handshake: Some(handshake),
            reader: FrameReader::new(),
            own,
            accepted: None,
        };
        (end, actions)
    }

    /// Works off actions; gives the frames to send.
    fn act(&mut self, actions: Vec<Action>) -> Vec<Bytes> {
        let mut frames = Vec::new();
        let mut actions = VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Send(frame) => frames.push(frame),
                Action::NeedQuote(report_data) => {
                    let quote = self.own.0.quote(&report_data).unwrap();
                    let more = self
                        .handshake
                        .as_mut()
                        .map(|handshake| handshake.provide_quote(&quote, &BatchPath::default()));
                    actions.extend(more.into_iter().flatten().flatten());
                }
                Action::Done(evidence) => self.accepted = Some(*evidence),
                Action::Refused(_) => self.handshake = None,
            }
        }
        frames
    }

    fn receive(&mut self, bytes: &[u8]) -> Vec<Bytes> {
        let mut frames = Vec::new();
        self.reader.feed(bytes);
        while let Some(handshake) = &mut self.handshake {
            let result = match self.reader.next_frame() {
                Ok(Some(frame)) => handshake.on_frame(&frame, NOW).ok(),
                Ok(None) => break,
                Err(_) => None,
            };
            match result {
                Some(actions) => frames.extend(self.act(actions)),
                None => self.handshake = None,
            }
        }
        frames
    }
}

fn run(script: &[u8]) {
    let mut attacker = Attacker { script, held: None };
    let (mut client, actions) = End::new(Side::Client, &WORKER, &AGGREGATOR);
    let mut wire: VecDeque<(bool, Bytes)> = client.act(actions).into_iter().map(|frame| (true, frame)).collect();
    let (mut server, actions) = End::new(Side::Server, &AGGREGATOR, &WORKER);
    wire.extend(server.act(actions).into_iter().map(|frame| (false, frame)));
    for _ in 0..MAX_FRAMES {
        let Some((from_client, frame)) = wire.pop_front() else {
            break;
        };
        for frame in attacker.carry(frame) {
            let end = if from_client { &mut server } else { &mut client };
            let answers = end.receive(&frame);
            wire.extend(answers.into_iter().map(|answer| (!from_client, answer)));
        }
    }
    for (end, peer) in [(&client, &AGGREGATOR), (&server, &WORKER)] {
        match &end.accepted {
            Some(PeerEvidence::Td(td)) => assert_eq!(td.node(), peer.1.node.node),
            // This policy lets no visitor in.
            Some(PeerEvidence::Visitor(visitor)) => panic!("{visitor:?}"),
            None => {}
        }
    }
}

fuzz_target!(init: plant("handshake", seeds()), |data: &[u8]| run(data));
