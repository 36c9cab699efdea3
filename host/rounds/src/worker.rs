//! A member's side: in which order it may hear and say things, and what it holds the aggregator to.

mod fault;

use cloister_tensor::Digest;

use crate::receipt::Receipt;
use crate::roster::{self, RosterEntry};
pub use fault::AggregatorFault;

/// What the member knows before it joins.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Its own name.
    pub node: String,
    /// Name of the federation.
    pub federation: String,
    /// Digest of its policy.
    pub policy_digest: Digest,
    /// Fewest updates of an aggregate.
    pub needed: usize,
    /// Number of rounds.
    pub rounds: u64,
    /// The digest that the model of round 1 has to have, where the member holds the initial weights.
    pub initial_model: Option<Digest>,
}

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

/// The chain that a member holds on to. It outlives a connection: after a reconnect the aggregator still can't go back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Last round with a receipt.
    pub round: u64,
    /// Digest of its receipt.
    pub receipt: Option<Digest>,
    /// Model after it.
    pub model: Option<Digest>,
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
    head: Option<RoundHead>,
    update: Option<Digest>,
    chain: Chain,
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
            head: None,
            update: None,
            chain,
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
        self.state = State::Member;
        Ok(digest)
    }

    /// A round starts. While a round runs, only a later attempt at it may start.
    pub fn round_start(&mut self, head: RoundHead) -> Result<(), AggregatorFault> {
        if !matches!(
            self.state,
            State::Member | State::Training | State::Ready | State::Uploaded
        ) {
            return Err(self.out_of_turn("a round's start"));
        }
        let round = head.round;
        if round <= self.chain.round || round > self.config.rounds {
            return Err(AggregatorFault::Backwards {
                what: "round",
                seen: round,
                last: self.chain.round,
            });
        }
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
        if round == self.chain.round + 1 && self.chain.round > 0 {
            require(round, "the receipt before", head.previous, self.chain.receipt)?;
            require(round, "the model", Some(head.model_digest), self.chain.model)?;
        }
        if round == 1 && self.config.initial_model.is_some() {
            require(
                round,
                "the initial model",
                Some(head.model_digest),
                self.config.initial_model,
            )?;
        }
        self.head = Some(head);
        self.update = None;
        self.state = State::Training;
        Ok(())
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
        let Some(head) = self
            .head
            .filter(|head| (head.round, head.attempt) == (round, receipt.attempt))
        else {
            return Err(self.out_of_turn("a result of another round"));
        };
        if self.state != State::Uploaded {
            return Err(self.out_of_turn("a round's result"));
        }
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
        require(
            round,
            "the roster",
            Some(receipt.roster_digest),
            Some(head.roster_digest),
        )?;
        require(
            round,
            "the model before",
            Some(receipt.model_before),
            Some(head.model_digest),
        )?;
        require(round, "the receipt before", receipt.previous, head.previous)?;
        if receipt.updates.len() < self.config.needed {
            return Err(AggregatorFault::TooFew {
                round,
                seen: receipt.updates.len(),
                wanted: self.config.needed,
            });
        }
        let mine = receipt
            .updates
            .iter()
            .filter(|update| update.node == self.config.node)
            .map(|update| update.digest);
        if !mine.eq(self.update) {
            return Err(AggregatorFault::Update { round });
        }
        self.chain = Chain {
            round,
            receipt: Some(receipt.digest()),
            model: Some(receipt.model_after),
        };
        self.head = None;
        self.state = State::Member;
        Ok(())
    }

    /// All rounds are done.
    pub fn finished(&mut self, receipt: Option<Digest>) -> Result<(), AggregatorFault> {
        if self.state != State::Member || self.chain.round != self.config.rounds {
            return Err(self.out_of_turn("the end"));
        }
        require(self.chain.round, "the last receipt", receipt, self.chain.receipt)?;
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

fn require(
    round: u64,
    what: &'static str,
    seen: Option<Digest>,
    wanted: Option<Digest>,
) -> Result<(), AggregatorFault> {
    if seen == wanted {
        return Ok(());
    }
    let show = |digest: Option<Digest>| digest.map_or_else(|| "none".to_owned(), |digest| digest.to_string());
    Err(AggregatorFault::Digest {
        round,
        what,
        seen: show(seen),
        wanted: show(wanted),
    })
}
