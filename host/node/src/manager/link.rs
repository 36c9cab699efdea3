//! A node's link to its manager, for as long as the node runs: keys at the start, the lease that makes it the one live instance of
//! its name, the counter of its vault, and what it remembers of the manager's state.
//!
//! The link has a thread and a runtime of its own: a node that computes, or waits for a disk, keeps its lease.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cloister_manager::{
    Commit, CounterId, ExportNote, Lease, Mark, ReleaseRequest, Released, RoundNote, SealingKey, Step, Wanted, Witness,
    open_release,
};
use cloister_session::{DialOptions, Local, connect};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::client::{Client, Grants};
use super::error::ManagerError;
use crate::process::until_signal;

/// How long a call goes on trying while the manager is not there.
const PATIENCE: Duration = Duration::from_secs(120);
/// The pause before it tries again.
const PAUSE: Duration = Duration::from_millis(500);
/// The pause before the manager's states are watched anew.
const WATCH_PAUSE: Duration = Duration::from_secs(1);
/// A lease is renewed after this part of its time.
const RENEW_AFTER: u32 = 3;

/// A node's link. Clones share it.
#[derive(Clone)]
pub struct Link {
    shared: Arc<Shared>,
    runtime: Arc<Runtime>,
}

struct Shared {
    /// The node's evidence: what it showed first is not what it shows once it has loaded more.
    local: Mutex<Local>,
    /// All managers: whichever leads answers.
    dials: Vec<DialOptions>,
    /// Which of them is dialled.
    at: AtomicUsize,
    node: String,
    /// Random, of this start of the node.
    instance: [u8; 16],
    session: tokio::sync::Mutex<Option<Session>>,
    /// Counts sessions that were given up: whoever uses one of before dials anew, since another manager may lead.
    given_up: watch::Sender<u64>,
    seen: Mutex<Seen>,
    lost: CancellationToken,
    /// The node was asked to end: it stands by for nobody.
    asked_to_end: AtomicBool,
}

struct Session {
    client: Client,
    /// Number of the last call on this connection, which releases go by.
    sequence: u64,
}

#[derive(Default)]
struct Seen {
    witness: Witness,
    lease: Option<Lease>,
    /// Until when the lease is known to be held: its time, counted from when it was asked for, by this TD's monotonic clock.
    held_until: Option<Instant>,
    lost: Option<Lost>,
    /// What the next commit seals.
    round: Option<RoundNote>,
}

/// Why an instance must not go on.
#[derive(Clone, Debug)]
pub struct Lost {
    /// In words.
    pub why: String,
    /// Nobody refused it: the manager did not answer in time. Then this node may still be needed, to say what it saw of it.
    pub unanswered: bool,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Link({} to {})", self.shared.node, self.address())
    }
}

impl Link {
    /// A link of this node, showing the evidence in `local`; nothing is dialled yet.
    ///
    /// # Errors
    /// The system gives no thread or no randomness.
    pub fn new(local: Local, dials: Vec<DialOptions>, node: &str) -> Result<Self, ManagerError> {
        let ended = |error: String| ManagerError::Ended(error);
        let mut instance = [0; 16];
        getrandom::fill(&mut instance).map_err(|error| ended(error.to_string()))?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("manager-link")
            .enable_all()
            .build()
            .map_err(|error| ended(error.to_string()))?;
        Ok(Self {
            shared: Arc::new(Shared {
                local: Mutex::new(local),
                dials,
                at: AtomicUsize::new(0),
                node: node.to_owned(),
                instance,
                session: tokio::sync::Mutex::new(None),
                given_up: watch::Sender::new(0),
                seen: Mutex::default(),
                lost: CancellationToken::new(),
                asked_to_end: AtomicBool::new(false),
            }),
            runtime: Arc::new(runtime),
        })
    }

    /// Where the manager is.
    pub fn address(&self) -> String {
        let all: Vec<_> = self.shared.dials.iter().map(|dial| dial.address.as_str()).collect();
        all.join(", ")
    }

    /// New sessions show this evidence from now on: a TD whose registers were extended no longer fits its earlier certificate.
    pub fn show(&self, local: Local) {
        *self.shared.local.lock().unwrap_or_else(PoisonError::into_inner) = local;
    }

    /// Cancelled when this instance must not go on: another one lives, or another policy is in force.
    pub fn lost(&self) -> CancellationToken {
        self.shared.lost.clone()
    }

    /// Why it must not go on.
    pub fn why_lost(&self) -> Option<Lost> {
        self.shared.seen().lost.clone()
    }

    /// The node was asked to end.
    pub fn ask_to_end(&self) {
        self.shared.asked_to_end.store(true, Ordering::Relaxed);
    }

    /// Says what was seen of the manager to one that is started again, until it runs: it may need this node's word, which no other
    /// instance of this node could give. Ends also where the node is asked to end, or is refused.
    pub fn stand_by(&self) {
        if self.shared.asked_to_end.load(Ordering::Relaxed) {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let stand_by = async move {
            loop {
                shared.give_up().await;
                shared.at.fetch_add(1, Ordering::Relaxed);
                match shared.dialled().await {
                    Err(error) if error.passing() || error.put_back() => tracing::debug!("standing by: {error}"),
                    Err(error) => return tracing::warn!("standing by no longer: {error}"),
                    Ok(_) => return,
                }
                tokio::time::sleep(WATCH_PAUSE).await;
            }
        };
        let stand_by = async move {
            tokio::select! {
                () = stand_by => {}
                () = until_signal(CancellationToken::new()) => {}
            }
        };
        // Where the link's thread is gone there is nothing to say it with.
        let _ = self.block(stand_by);
    }

    /// What the manager would give this node.
    pub fn grants(&self) -> Result<Grants, ManagerError> {
        self.wait(|shared| async move { shared.call(|mut client, _| async move { client.grants().await }).await })
    }

    /// The keys asked for, opened.
    pub fn release(&self, wanted: Vec<Wanted>) -> Result<Vec<Released>, ManagerError> {
        self.wait(|shared| async move {
            let (opened, mark) = shared
                .call(|client, sequence| ask_for_keys(client, sequence, wanted.clone(), shared.node.clone()))
                .await?;
            shared.observe(mark)?;
            Ok(opened)
        })
    }

    /// Takes the lease, waiting for one that an instance before left to end, and keeps it renewed from then on.
    pub fn hold_lease(&self) -> Result<(), ManagerError> {
        let lease_s = self.wait(|shared| async move {
            let since = Instant::now();
            loop {
                match shared.renew().await {
                    Err(error) if error.is("lease-held") && since.elapsed() < PATIENCE => {
                        tracing::info!("waiting for the lease of an earlier instance to end: {error}");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                    done => return done,
                }
            }
        })?;
        self.runtime.spawn(Arc::clone(&self.shared).witness());
        let shared = Arc::clone(&self.shared);
        self.runtime.spawn(async move {
            let pause = Duration::from_secs(lease_s.max(1)) / RENEW_AFTER;
            loop {
                tokio::time::sleep(pause).await;
                let until = shared.seen().held_until.unwrap_or_else(Instant::now);
                match tokio::time::timeout_at(until.into(), shared.renew()).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => return shared.lose(&error),
                    Err(_) => return shared.lose_unanswered(lease_s),
                }
            }
        });
        Ok(())
    }

    /// Ends the lease, so that the next instance need not wait. What fails is of no use to anybody.
    pub fn give_back(&self) {
        let token = self.shared.seen().lease.map(|lease| lease.token);
        if let (Some(token), false) = (token, self.shared.lost.is_cancelled()) {
            let shared = Arc::clone(&self.shared);
            let told = async move {
                let client = shared
                    .session
                    .lock()
                    .await
                    .as_ref()
                    .map(|session| session.client.clone());
                if let Some(mut client) = client {
                    let _ = client.give_back(token).await;
                }
            };
            let bounded = async move { tokio::time::timeout(Duration::from_secs(2), told).await };
            let _ = self.block(bounded);
        }
    }

    /// The newest version of a vault that was confirmed, for a node that holds `holds`.
    pub fn counter(&self, vault: [u8; 16], holds: Option<Commit>) -> Result<Option<Commit>, ManagerError> {
        self.wait(|shared| async move {
            let ask = |mut client: Client, _| async move { client.counter(&vault, holds.as_ref()).await };
            shared.call(ask).await
        })
    }

    /// The next commit seals this round, which the manager writes down.
    pub fn note_round(&self, round: RoundNote) {
        self.shared.seen().round = Some(round);
    }

    /// Has the manager write down that a model leaves.
    pub fn note_export(&self, export: ExportNote) -> Result<(), ManagerError> {
        self.wait(|shared| async move {
            let ask = |mut client: Client, _| {
                let export = export.clone();
                async move { client.note_export(&export).await }
            };
            let mark = shared.call(ask).await?;
            shared.observe(mark)
        })
    }

    /// Begins to count a vault up; the answer comes by the receiver.
    pub fn begin_commit(
        &self,
        vault: [u8; 16],
        (expected, next): (Option<Commit>, Commit),
    ) -> std::sync::mpsc::Receiver<Result<(), ManagerError>> {
        let (sender, receiver) = std::sync::mpsc::channel();
        let shared = Arc::clone(&self.shared);
        let round = shared.seen().round.take();
        self.runtime.spawn(async move {
            // Who waited may have gone.
            let _ = sender.send(shared.commit(vault, (expected, next), round).await);
        });
        receiver
    }

    /// Waits on this thread, which may be one of another runtime, for what the link's thread does.
    fn wait<T: Send + 'static, F>(&self, work: impl FnOnce(Arc<Shared>) -> F) -> Result<T, ManagerError>
    where
        F: Future<Output = Result<T, ManagerError>> + Send + 'static,
    {
        self.block(work(Arc::clone(&self.shared)))
            .unwrap_or_else(|| Err(ManagerError::Ended("its thread ended".to_owned())))
    }

    fn block<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Option<T> {
        let (sender, receiver) = std::sync::mpsc::channel();
        self.runtime.spawn(async move {
            let _ = sender.send(work.await);
        });
        receiver.recv().ok()
    }
}

impl Shared {
    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        // Plain values: they are whole at any time.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the state that an answer stands in.
    fn observe(&self, mark: Option<Mark>) -> Result<(), ManagerError> {
        let Some(mark) = mark else { return Ok(()) };
        let seen = self.seen().witness.observe_answer(&mark);
        seen.map_err(|error| ManagerError::NotTheNewest(error.to_string()))
    }

    fn lose(&self, error: &ManagerError) {
        self.stop(Lost {
            why: error.to_string(),
            // A manager that was put back is no answer of the one that this node knows.
            unanswered: error.put_back(),
        });
    }

    /// Another instance may get the lease from here on, whatever the manager would still answer to this one.
    fn lose_unanswered(&self, lease_s: u64) {
        let address: Vec<_> = self.dials.iter().map(|dial| dial.address.as_str()).collect();
        self.stop(Lost {
            why: format!(
                "the manager at {} did not renew the lease within its {lease_s} s, so another instance may run",
                address.join(", ")
            ),
            unanswered: true,
        });
    }

    fn stop(&self, lost: Lost) {
        tracing::error!("this instance must not go on: {}", lost.why);
        self.seen().lost = Some(lost);
        self.lost.cancel();
    }

    /// Calls the manager, over a new session where the last one broke or its permit ended, until it answers or refuses. What is
    /// asked gets the client, and a number that grows from call to call of a connection.
    async fn call<T, F>(&self, ask: impl Fn(Client, u64) -> F) -> Result<T, ManagerError>
    where
        F: Future<Output = Result<T, ManagerError>>,
    {
        let since = Instant::now();
        loop {
            let answer = async {
                let (client, sequence) = self.dialled().await?;
                ask(client, sequence).await
            };
            let answer = tokio::select! {
                answer = answer => answer,
                () = self.lost.cancelled() => Err(ManagerError::Ended("this instance must not go on".to_owned())),
            };
            let error = match answer {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let ended = error.is("permit-ended");
            if !error.passing() && !ended || since.elapsed() >= PATIENCE {
                return Err(error);
            }
            self.give_up().await;
            self.at.fetch_add(1, Ordering::Relaxed);
            tracing::debug!("the manager's answer is late: {error}");
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Leaves the session.
    async fn give_up(&self) {
        *self.session.lock().await = None;
        self.given_up.send_modify(|sessions| *sessions += 1);
    }

    /// The session, new where there is none: then the manager is told what was seen of it, and has to be running.
    async fn dialled(&self) -> Result<(Client, u64), ManagerError> {
        let mut place = self.session.lock().await;
        if let Some(session) = place.as_mut() {
            session.sequence += 1;
            return Ok((session.client.clone(), session.sequence));
        }
        let dial = self
            .dials
            .get(self.at.load(Ordering::Relaxed) % self.dials.len().max(1));
        let dial = dial.ok_or_else(|| ManagerError::Ended("it has no address".to_owned()))?;
        let local = self.local.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut client = Client::new(connect(&local, dial).await?).await?;
        // A manager that is dialled anew is the one that may have been put back: what counts is what was seen before it was asked.
        let mut before = self.seen().witness.clone();
        let (running, mark) = client.witness(before.newest()).await?;
        if let Some(mark) = &mark {
            let older = before.observe(mark);
            older.map_err(|error| ManagerError::NotTheNewest(error.to_string()))?;
        }
        self.observe(mark)?;
        if !running {
            return Err(ManagerError::Later {
                what: "a node",
                message: "it follows another one, or waits for recovery shares or for nodes that confirm its state"
                    .to_owned(),
            });
        }
        let opened = client.clone();
        *place = Some(Session { client, sequence: 1 });
        Ok((opened, 1))
    }

    /// Remembers each state that the manager announces, and says so, as long as this instance lives. A manager that shows an older one is
    /// left.
    async fn witness(self: Arc<Self>) {
        loop {
            let ended = tokio::select! {
                ended = self.watch() => ended,
                () = self.lost.cancelled() => return,
            };
            match ended {
                Err(error @ ManagerError::NotTheNewest(_)) => return self.lose(&error),
                Err(error) => {
                    tracing::debug!("the manager's states are not watched for a moment: {error}");
                    self.give_up().await;
                }
                // Another session is there, maybe with another manager.
                Ok(()) => {}
            }
            tokio::time::sleep(WATCH_PAUSE).await;
        }
    }

    /// Ends with the session that it began on.
    async fn watch(&self) -> Result<(), ManagerError> {
        let mut given_up = self.given_up.subscribe();
        let (mut client, _) = self.dialled().await?;
        let (say, saw) = mpsc::channel(1);
        let mut announced = client.watch(saw).await?;
        loop {
            let mark = tokio::select! {
                mark = announced.next() => mark?,
                _ = given_up.changed() => return Ok(()),
            };
            self.observe(Some(mark))?;
            let newest = self.seen().witness.newest().copied().unwrap_or(mark);
            if say.send(newest).await.is_err() {
                return Ok(());
            }
        }
    }

    /// Takes or renews the lease; gives for how long it is.
    async fn renew(&self) -> Result<u64, ManagerError> {
        let instance = self.instance;
        let ask = |mut client: Client, _| async move {
            let asked = Instant::now();
            client.lease(&instance).await.map(|granted| (granted, asked))
        };
        let ((lease, lease_s, mark), asked) = self.call(ask).await?;
        self.observe(mark)?;
        let before = {
            let mut seen = self.seen();
            seen.held_until = Some(asked + Duration::from_secs(lease_s));
            seen.lease.replace(lease)
        };
        if before.is_some_and(|before| before.token != lease.token) {
            return Err(ManagerError::Ended(
                "the lease ended before it was renewed, so another instance may have run meanwhile".to_owned(),
            ));
        }
        Ok(lease_s)
    }

    async fn commit(
        &self,
        vault: [u8; 16],
        (expected, next): (Option<Commit>, Commit),
        round: Option<RoundNote>,
    ) -> Result<(), ManagerError> {
        let token = self.seen().lease.map(|lease| lease.token);
        let step = Step {
            counter: CounterId {
                node: self.node.clone(),
                vault,
            },
            token: token.ok_or_else(|| ManagerError::Ended("there is no lease to count by".to_owned()))?,
            expected,
            next,
        };
        let ask = |mut client: Client, _| {
            let step = step.clone();
            async move { client.commit(&vault, &step, round.as_ref()).await }
        };
        let mark = self.call(ask).await?;
        self.observe(mark)
    }
}

/// Asks for keys, sealed to a key of this one request, and opens them.
async fn ask_for_keys(
    mut client: Client,
    sequence: u64,
    wanted: Vec<Wanted>,
    node: String,
) -> Result<(Vec<Released>, Option<Mark>), ManagerError> {
    let broken = |cause: String| ManagerError::Message { what: "keys", cause };
    let key = SealingKey::generate().map_err(|error| broken(error.to_string()))?;
    let request = ReleaseRequest {
        sequence,
        recipient: key.public(),
        wanted,
    };
    let connection = *client.peer().connection();
    let (sealed, mark) = client.release(&request).await?;
    let opened = open_release(&key, &connection, &node, &sealed).map_err(|error| broken(error.to_string()))?;
    Ok((opened, mark))
}
