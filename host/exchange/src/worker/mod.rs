//! A worker: dials the aggregator, takes part, and dials again when the connection ends before the rounds do.

mod attesting;
mod bootstrap;
mod result;
mod session;
mod step;

use std::sync::Arc;
use std::time::Duration;

use cloister_rounds::worker::{Chain, WorkerConfig};
use cloister_session::{DialOptions, Local, NodeSide, SelfSide, SessionError};
use cloister_tensor::Digest;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::aggregator::{needed, pace};
use crate::error::{ExchangeError, RoundFailure};
use crate::progress::{Happening, Progress};
use crate::sink::ModelSink;
use crate::work::{Ledger, WorkError, WorkerWork};

pub use bootstrap::{Fetched, fetch_all};

/// How long to wait between two attempts to connect.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// After the first failure; doubles from there.
    pub first: Duration,
    /// At most.
    pub most: Duration,
    /// Give up after this long without a session.
    pub give_up: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(200),
            most: Duration::from_secs(10),
            give_up: Duration::from_secs(600),
        }
    }
}

/// What a worker runs with.
#[derive(Clone)]
pub struct WorkerOptions {
    /// What it brings into sessions; its own side is a node in the state member.
    pub local: Local,
    /// The aggregator.
    pub dial: DialOptions,
    /// Digest (of manifest and bytes) of the initial weights, where the worker holds them.
    pub initial_model: Option<Digest>,
    /// Most bytes of a model.
    pub model_limit_bytes: u64,
    /// Waiting between connections.
    pub backoff: Backoff,
    /// Buffers for models.
    pub sink: Arc<dyn ModelSink>,
    /// Shows what happens.
    pub progress: Arc<dyn Progress>,
    /// Makes the worker leave.
    pub cancel: CancellationToken,
}

/// How a worker's part ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerEnd {
    /// Rounds whose receipts it has seen.
    pub rounds: u64,
    /// Digest of the model after the last of them.
    pub model: Option<Digest>,
    /// Whether the federation came to its end, or the worker left.
    pub finished: bool,
}

/// What outlives a connection.
pub(crate) struct Lasting {
    chain: Chain,
    /// Where receipts are written down.
    ledger: Arc<dyn Ledger>,
    /// The last failure of the training here.
    failure: Option<RoundFailure>,
}

/// How one connection ended.
pub(crate) enum SessionEnd {
    Finished,
    Left,
    /// Try again.
    Again {
        why: String,
    },
}

/// Takes part until the last round, a refusal, or the node's own end. Refusals are not tried again: they would come
/// again, and the log should end with them.
pub async fn run(options: WorkerOptions, work: Box<dyn WorkerWork>) -> Result<WorkerEnd, ExchangeError> {
    let SelfSide::Node(node) = options.local.own.clone() else {
        return Err(SessionError::Own {
            cause: "a visitor takes no part in rounds".to_owned(),
        }
        .into());
    };
    let config = worker_config(&options, &node);
    let mut state = Lasting {
        chain: Chain::default(),
        ledger: work.ledger(),
        failure: None,
    };
    let mut work = Some(work);
    let mut backoff = Retry::new(options.backoff);
    loop {
        let attempt = session::run(&options, &node, &config, &mut state, &mut work, &mut backoff);
        let why = match attempt.await {
            Ok(SessionEnd::Finished) => return Ok(end(&state.chain, true)),
            Ok(SessionEnd::Left) => return Ok(end(&state.chain, false)),
            Ok(SessionEnd::Again { why }) => why,
            Err(error) if retryable(&error) => error.to_string(),
            Err(ExchangeError::Dropped { code, reason, .. }) => {
                let failure = state.failure;
                return Err(ExchangeError::Dropped { code, reason, failure });
            }
            Err(error) => return Err(error),
        };
        if work.is_none() {
            return Err(WorkError::new("training", "its thread panicked").into());
        }
        let pause = backoff.next(&why)?;
        options.progress.happened(&Happening::Reconnecting {
            why,
            after_s: pause.as_secs_f64(),
        });
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = options.cancel.cancelled() => return Ok(end(&state.chain, false)),
        }
    }
}

fn end(chain: &Chain, finished: bool) -> WorkerEnd {
    WorkerEnd {
        rounds: chain.last.round,
        model: chain.last.model,
        finished,
    }
}

fn worker_config(options: &WorkerOptions, node: &NodeSide) -> WorkerConfig {
    let policy = &options.local.policy;
    WorkerConfig {
        node: node.identity.node.node.clone(),
        federation: policy.name.clone(),
        policy_digest: policy.digest(),
        needed: needed(policy),
        rounds: u64::from(policy.rounds.count),
        pace: pace(policy),
        checkpoint_every: u64::from(policy.rounds.checkpoint_every),
        initial_model: options.initial_model,
    }
}

/// Whether trying again can help: networks and starting aggregators, yes; verdicts, no.
pub(crate) fn retryable(error: &ExchangeError) -> bool {
    match error {
        ExchangeError::Session(error) => error.passing(),
        ExchangeError::Call { code, .. } => {
            matches!(
                code,
                tonic::Code::Unavailable
                    | tonic::Code::Unknown
                    | tonic::Code::Cancelled
                    | tonic::Code::Internal
                    | tonic::Code::NotFound
                    | tonic::Code::DeadlineExceeded
            )
        }
        _ => false,
    }
}

/// The pauses between attempts, and the end of patience.
pub(crate) struct Retry {
    backoff: Backoff,
    pause: Duration,
    since: Instant,
}

impl Retry {
    pub(crate) fn new(backoff: Backoff) -> Self {
        Self {
            pause: backoff.first,
            since: Instant::now(),
            backoff,
        }
    }

    /// A session came up: patience begins anew.
    pub(crate) fn succeeded(&mut self) {
        *self = Self::new(self.backoff);
    }

    pub(crate) fn next(&mut self, why: &str) -> Result<Duration, ExchangeError> {
        if self.since.elapsed() >= self.backoff.give_up {
            return Err(ExchangeError::GaveUp {
                seconds: self.backoff.give_up.as_secs(),
                last: why.to_owned(),
            });
        }
        let pause = self.pause;
        self.pause = (self.pause * 2).min(self.backoff.most);
        Ok(pause)
    }
}
