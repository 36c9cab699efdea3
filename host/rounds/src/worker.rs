//! A member's side: in which order it may hear and say things, and what it holds the aggregator to.

mod chain;
mod config;
mod fault;

use cloister_tensor::Digest;

use crate::aggregator::Pace;
use crate::receipt::{Receipt, ReceiptUpdate};
use crate::roster::{self, RosterEntry};
use chain::require;
pub use chain::{Chain, Mark};
pub use config::WorkerConfig;
pub use fault::AggregatorFault;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Joining,
    Challenged,
    Member,
    Training,
    Ready,
    Uploaded,
    Finished,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Challenged => "challenged",
            Self::Member => "waiting for a round",
            Self::Training => "training",
            Self::Ready => "waiting for a slot",
            Self::Uploaded => "waiting for the round's result",
            Self::Finished => "finished",
        }
    }
}

/// The head of a round as the aggregator sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundHead {
    /// Which round, from 1.
    pub round: u64,
    /// Which attempt, from 1.
    pub attempt: u32,
    /// Roster in force.
    pub roster_digest: Digest,
    /// Model that the round starts from.
    pub model_digest: Digest,
    /// Digest of the receipt before.
    pub previous: Option<Digest>,
}

/// The member's machine for one connection.
#[derive(Debug)]
pub struct Worker {
    config: WorkerConfig,
    nonce: [u8; 32],
    state: State,
    epoch: u64,
    challenged: Vec<String>,
    challenge: [u8; 32],
    roster: Option<Digest>,
    /// Digest of the aggregator's claims.
    instance: Option<Digest>,
    head: Option<RoundHead>,
    update: Option<Digest>,
    chain: Chain,
    /// Whether this connection has given a task, since when it tells of every round.
    told: bool,
}

impl Worker {
    /// A member that is about to send its join with this fresh nonce.
    pub fn new(config: WorkerConfig, nonce: [u8; 32], chain: Chain) -> Self {
        Self {
            config,
            nonce,
            state: State::Joining,
            epoch: 0,
            challenged: Vec::new(),
            challenge: [0; 32],
            roster: None,
            instance: None,
            head: None,
            update: None,
            chain,
            told: false,
        }
    }

    /// What the member holds on to, for its next connection.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// The round that runs.
    pub fn head(&self) -> Option<&RoundHead> {
        self.head.as_ref()
    }

    /// A challenge came: gives the 32 bytes that the roster quote commits to.
    pub fn challenged(&mut self, epoch: u64, nonces: &[(String, [u8; 32])]) -> Result<[u8; 32], AggregatorFault> {
        if !matches!(
            self.state,
            State::Joining | State::Challenged | State::Member | State::Uploaded | State::Ready
        ) {
            return Err(self.out_of_turn("a roster challenge"));
        }
        if epoch <= self.epoch {
            return Err(AggregatorFault::Backwards {
                what: "roster epoch",
                seen: epoch,
                last: self.epoch,
            });
        }
        let mine = nonces
            .iter()
            .any(|(node, nonce)| *node == self.config.node && *nonce == self.nonce);
        let challenge = roster::challenge(epoch, nonces).filter(|_| mine);
        self.challenge = challenge.ok_or(AggregatorFault::Challenge { epoch })?;
        self.challenged = nonces.iter().map(|(node, _)| node.clone()).collect();
        self.epoch = epoch;
        self.state = State::Challenged;
        Ok(self.challenge)
    }

    /// The challenge in force.
    pub fn challenge(&self) -> &[u8; 32] {
        &self.challenge
    }

    /// All members' evidence came and was verified one by one: gives the digest to accept. `aggregator` is what the
    /// member's own session showed.
    pub fn roster(
        &mut self,
        epoch: u64,
        aggregator: &RosterEntry,
        members: &[RosterEntry],
    ) -> Result<Digest, AggregatorFault> {
        if self.state != State::Challenged || epoch != self.epoch {
            return Err(self.out_of_turn("a roster"));
        }
        if let Some(stranger) = members.iter().find(|entry| !self.challenged.contains(&entry.node)) {
            return Err(AggregatorFault::Members {
                epoch,
                node: stranger.node.clone(),
            });
        }
        if !members.iter().any(|entry| entry.node == self.config.node) {
            return Err(AggregatorFault::LeftOut { epoch });
        }
        let digest = roster::digest(epoch, &self.challenge, aggregator, members).ok_or_else(|| {
            let node = members.windows(2).find(|pair| pair[0].node >= pair[1].node);
            AggregatorFault::Members {
                epoch,
                node: node.map_or_else(String::new, |pair| pair[1].node.clone()),
            }
        })?;
        self.roster = Some(digest);
        self.instance = Some(aggregator.claims_digest);
        self.state = State::Member;
        Ok(digest)
    }

    /// A round, or a task of this member, starts. While one runs, only a later attempt at it may start. Gives how many rounds of which
    /// this member has receipts are undone with it: none, but where the aggregator was started anew.
    pub fn round_start(&mut self, head: RoundHead) -> Result<u64, AggregatorFault> {
        let amid = match self.config.pace {
            Pace::Together => self.state == State::Training,
            // A task is given after the answer to the one before.
            Pace::Alone { .. } => false,
        };
        if !amid && !matches!(self.state, State::Member | State::Ready | State::Uploaded) {
            return Err(self.out_of_turn("a round's start"));
        }
        let round = head.round;
        if let Some(last) = &self.head
            && (round, head.attempt) <= (last.round, last.attempt)
        {
            return Err(AggregatorFault::Backwards {
                what: "round",
                seen: round,
                last: last.round,
            });
        }
        require(round, "the roster", Some(head.roster_digest), self.roster)?;
        let undone = self.chain.go_on(&self.config, &head, self.instance)?;
        if let Pace::Alone { .. } = self.config.pace {
            // Of every round after the first task of a connection there was a receipt.
            if self.told && round != self.chain.last.round + 1 {
                return Err(AggregatorFault::Skipped {
                    seen: round,
                    wanted: self.chain.last.round + 1,
                });
            }
            self.told = true;
            self.chain.anchor(&self.config, &head);
        }
        self.head = Some(head);
        self.update = None;
        self.state = State::Training;
        Ok(undone)
    }

    /// The member's own update is computed and announced.
    pub fn trained(&mut self, update: Digest) {
        self.update = Some(update);
        self.state = State::Ready;
    }

    /// The member's own module failed, and it said so.
    pub fn failed(&mut self) {
        self.update = None;
        self.state = State::Uploaded;
    }

    /// The upload may begin.
    pub fn granted(&mut self, round: u64, attempt: u32) -> Result<(), AggregatorFault> {
        let current = self
            .head
            .is_some_and(|head| (head.round, head.attempt) == (round, attempt));
        if self.state != State::Ready || !current {
            return Err(self.out_of_turn("a grant"));
        }
        self.state = State::Uploaded;
        Ok(())
    }

    /// A round is done. The caller has checked the receipt's signature against the aggregator's node key.
    pub fn result(&mut self, receipt: &Receipt) -> Result<(), AggregatorFault> {
        let round = receipt.round;
        if receipt.federation != self.config.federation {
            return Err(AggregatorFault::Digest {
                round,
                what: "the federation",
                seen: receipt.federation.clone(),
                wanted: self.config.federation.clone(),
            });
        }
        require(
            round,
            "the policy",
            Some(receipt.policy_digest),
            Some(self.config.policy_digest),
        )?;
        let most = self.config.most_behind();
        let base = |update: &&ReceiptUpdate| update.base >= round || round - 1 - update.base > most;
        if let Some(update) = receipt.updates.iter().find(base) {
            return Err(AggregatorFault::Base {
                round,
                node: update.node.clone(),
                base: update.base,
                most,
            });
        }
        match self.config.pace {
            Pace::Together => self.round_result(receipt)?,
            Pace::Alone { .. } => self.step_result(receipt)?,
        }
        let mark = Mark {
            round,
            receipt: Some(receipt.digest()),
            model: Some(receipt.model_after),
        };
        self.chain.done(&self.config, mark);
        Ok(())
    }

    /// The round that this member sent its update for.
    fn round_result(&mut self, receipt: &Receipt) -> Result<(), AggregatorFault> {
        let round = receipt.round;
        let Some(head) = self
            .head
            .filter(|head| (head.round, head.attempt) == (round, receipt.attempt))
        else {
            return Err(self.out_of_turn("a result of another round"));
        };
        if self.state != State::Uploaded {
            return Err(self.out_of_turn("a round's result"));
        }
        let roster = Some(receipt.roster_digest);
        require(round, "the roster", roster, Some(head.roster_digest))?;
        let before = Some(receipt.model_before);
        require(round, "the model before", before, Some(head.model_digest))?;
        require(round, "the receipt before", receipt.previous, head.previous)?;
        if receipt.updates.len() < self.config.needed {
            return Err(AggregatorFault::TooFew {
                round,
                seen: receipt.updates.len(),
                wanted: self.config.needed,
            });
        }
        if !self.own(receipt).eq(self.update) {
            return Err(AggregatorFault::Update { round });
        }
        self.head = None;
        self.state = State::Member;
        Ok(())
    }

    /// Anybody's update, whatever this member is at: the next in order, on the model before.
    fn step_result(&mut self, receipt: &Receipt) -> Result<(), AggregatorFault> {
        let round = receipt.round;
        if !self.told || self.state == State::Challenged || self.state == State::Finished {
            return Err(self.out_of_turn("a round's result"));
        }
        let last = &self.chain.last;
        if round != last.round + 1 {
            return Err(AggregatorFault::Skipped {
                seen: round,
                wanted: last.round + 1,
            });
        }
        require(round, "the roster", Some(receipt.roster_digest), self.roster)?;
        require(round, "the model before", Some(receipt.model_before), last.model)?;
        require(round, "the receipt before", receipt.previous, last.receipt)?;
        let [update] = receipt.updates.as_slice() else {
            return Err(AggregatorFault::NotAlone {
                round,
                seen: receipt.updates.len(),
            });
        };
        if update.node != self.config.node {
            return Ok(());
        }
        // One's own is there once, as it was sent, on the model that it was computed on.
        let base = self.head.map(|head| head.round - 1);
        if self.state != State::Uploaded || Some(update.digest) != self.update || Some(update.base) != base {
            return Err(AggregatorFault::Update { round });
        }
        self.update = None;
        self.state = State::Member;
        Ok(())
    }

    fn own(&self, receipt: &Receipt) -> impl Iterator<Item = Digest> {
        let own = receipt.updates.iter().filter(|update| update.node == self.config.node);
        own.map(|update| update.digest)
    }

    /// All rounds are done.
    pub fn finished(&mut self, receipt: Option<Digest>) -> Result<(), AggregatorFault> {
        let here = match self.config.pace {
            Pace::Together => self.state == State::Member,
            // What this member is at is of no use any more.
            Pace::Alone { .. } => matches!(
                self.state,
                State::Member | State::Training | State::Ready | State::Uploaded
            ),
        };
        if !here || self.chain.last.round != self.config.rounds {
            return Err(self.out_of_turn("the end"));
        }
        require(
            self.chain.last.round,
            "the last receipt",
            receipt,
            self.chain.last.receipt,
        )?;
        self.state = State::Finished;
        Ok(())
    }

    fn out_of_turn(&self, seen: &'static str) -> AggregatorFault {
        AggregatorFault::OutOfTurn {
            seen,
            state: self.state.name(),
        }
    }
}
