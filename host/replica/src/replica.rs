//! One replica, from its start to its end.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cloister_attestation::identity::SigningKey;
use cloister_manager::{Ledger, Manager, Settings};
use openraft::error::{ClientWriteError, RaftError};
use openraft::{ChangeMembers, Config, ServerState, SnapshotPolicy};
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::commits::ToReplicas;
use crate::error::ReplicaError;
use crate::link::{Links, Network};
use crate::log::Log;
use crate::machine::Machine;
use crate::member::{Member, Raft, ReplicaId, Shown, Standing};
use crate::message::{Envelope, Message, Reply, decode, encode};

/// Entries after which the log in memory is cut, and what is kept for replicas that are a little behind.
const LOG_ENTRIES: u64 = 1024;
const LOG_KEPT: u64 = 256;
/// Entries of one message.
const MESSAGE_ENTRIES: u64 = 64;
/// A part of a copy.
const PART_BYTES: u64 = 1 << 20;
/// How long a new replica may take to get the state, or the others to agree to it.
const ADMISSION: Duration = Duration::from_secs(60);
/// How long it may take to learn whether a replica still leads.
const ASKED: Duration = Duration::from_secs(10);

/// How fast replicas notice that one is gone.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two signs of life of the leader; also how long an answer may take.
    pub heartbeat_ms: u64,
    /// Silence after which another one stands for election: a random time from this one to twice as long.
    pub silence_ms: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            heartbeat_ms: 500,
            silence_ms: 2000,
        }
    }
}

/// Where and how a replica runs.
pub struct Place {
    /// Its node and where the others dial it.
    pub own: Member,
    /// The folder of its store: copies of the state pass through it, sealed.
    pub folder: PathBuf,
    /// How it reaches the others.
    pub links: Arc<dyn Links>,
    /// How fast they notice each other's end.
    pub pace: Pace,
}

/// A replica that runs. It ends with this value.
pub struct Replica {
    id: ReplicaId,
    raft: Raft,
    ledger: Arc<Ledger>,
    log: Log,
    /// One change of who takes part at a time.
    admitting: Mutex<()>,
}

impl std::fmt::Debug for Replica {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Replica({})", self.id)
    }
}

impl Replica {
    /// The first replica: it goes on from the state in the ledger, which participants and witnesses confirmed, and admits the others.
    ///
    /// # Errors
    /// [`ReplicaError::Ended`].
    pub async fn found(ledger: Ledger, place: Place) -> Result<Self, ReplicaError> {
        let own = place.own.clone();
        let replica = Self::start(ledger, place).await?;
        let members = std::collections::BTreeMap::from([(replica.id.0, own)]);
        replica.raft.initialize(members).await.map_err(ended)?;
        // Whoever joins gets the state itself and not the log alone, which began upon it: so the log's beginning has to go.
        let founded = replica.raft.wait(Some(ADMISSION));
        let founded = founded.state(ServerState::Leader, "founded").await.map_err(ended)?;
        let first = founded.last_log_index.unwrap_or(0);
        let applied = replica.raft.wait(Some(ADMISSION));
        applied
            .applied_index_at_least(Some(first), "founded")
            .await
            .map_err(ended)?;
        replica.raft.trigger().snapshot().await.map_err(ended)?;
        let cut = replica.raft.wait(Some(ADMISSION));
        cut.metrics(|metrics| metrics.snapshot.is_some_and(|cut| cut.index >= first), "cut")
            .await
            .map_err(ended)?;
        replica.raft.trigger().purge_log(first).await.map_err(ended)?;
        let cut = replica.raft.wait(Some(ADMISSION));
        cut.metrics(|metrics| metrics.purged.is_some_and(|cut| cut.index >= first), "cut")
            .await
            .map_err(ended)?;
        Ok(replica)
    }

    /// A replica that has nothing yet: the leader admits it, by its id.
    ///
    /// # Errors
    /// [`ReplicaError::Ended`].
    pub async fn follow(ledger: Ledger, place: Place) -> Result<Self, ReplicaError> {
        Self::start(ledger, place).await
    }

    async fn start(ledger: Ledger, place: Place) -> Result<Self, ReplicaError> {
        let mut id = [0; 8];
        getrandom::fill(&mut id).map_err(ended)?;
        let id = ReplicaId(u64::from_be_bytes(id));
        let ledger = Arc::new(ledger);
        let Pace {
            heartbeat_ms,
            silence_ms,
        } = place.pace;
        let config = Config {
            cluster_name: "managers".to_owned(),
            heartbeat_interval: heartbeat_ms,
            election_timeout_min: silence_ms,
            election_timeout_max: silence_ms.saturating_mul(2),
            install_snapshot_timeout: 30_000,
            max_payload_entries: MESSAGE_ENTRIES,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(LOG_ENTRIES),
            max_in_snapshot_log_to_keep: LOG_KEPT,
            snapshot_max_chunk_size: PART_BYTES,
            ..Config::default()
        };
        let config = Arc::new(config.validate().map_err(ended)?);
        let log = Log::new(Arc::clone(&ledger));
        let network = Network {
            links: place.links,
            own: id.0,
        };
        let machine = Machine::new(Arc::clone(&ledger), &place.folder);
        let raft = Raft::new(id.0, config, network, log.clone(), machine).await;
        Ok(Self {
            id,
            raft: raft.map_err(ended)?,
            ledger,
            log,
            admitting: Mutex::new(()),
        })
    }

    /// Which start of this replica it is.
    pub fn id(&self) -> ReplicaId {
        self.id
    }

    /// Its store.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// Takes a message of another replica, and gives the answer to it.
    ///
    /// # Errors
    /// [`ReplicaError::Message`]: it can't be read, or is for an earlier start of this replica, which made promises that this one knows
    /// nothing of.
    pub async fn receive(&self, bytes: &[u8]) -> Result<Vec<u8>, ReplicaError> {
        let envelope: Envelope = decode(bytes)?;
        if envelope.to != self.id.0 {
            return Err(ReplicaError::Message(format!(
                "it is for the replica {}, and this start of it is {}",
                ReplicaId(envelope.to),
                self.id
            )));
        }
        encode(&match envelope.message {
            Message::Append(request) => Reply::Append(self.raft.append_entries(request).await),
            Message::Vote(request) => Reply::Vote(self.raft.vote(request).await),
            Message::Copy(part) => Reply::Copy(self.raft.install_snapshot(part.into()).await),
        })
    }

    /// Lets a replica take part, by the one that leads: it is sent the whole state, then takes the place of any earlier start of the same
    /// node. Most of those that take part now have to agree to that. Those whose names are not in `names` go.
    ///
    /// # Errors
    /// [`ReplicaError::NotLeading`], [`ReplicaError::NoQuorum`], [`ReplicaError::Ended`].
    pub async fn admit(&self, id: ReplicaId, member: Member, names: &[String]) -> Result<(), ReplicaError> {
        let _one = self.admitting.lock().await;
        let metrics = self.raft.metrics().borrow().clone();
        let membership = metrics.membership_config.membership().clone();
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        if voters.contains(&id.0) {
            return Ok(());
        }
        let stale: BTreeSet<u64> = membership.learner_ids().filter(|learner| *learner != id.0).collect();
        if !stale.is_empty() {
            self.change(ChangeMembers::RemoveNodes(stale)).await?;
        }
        let added = timeout(ADMISSION, self.raft.add_learner(id.0, member.clone(), true)).await;
        let added = added.map_err(|_| ReplicaError::NoQuorum("the new replica got no state in time".to_owned()))?;
        added.map_err(refused)?;
        let stays = |voter: &u64| {
            let known = membership.get_node(voter);
            known.is_some_and(|known| known.name != member.name && names.contains(&known.name))
        };
        let next: BTreeSet<u64> = voters.into_iter().filter(stays).chain([id.0]).collect();
        self.change(ChangeMembers::ReplaceAllVoters(next)).await
    }

    async fn change(&self, change: ChangeMembers<u64, Member>) -> Result<(), ReplicaError> {
        let changed = timeout(ADMISSION, self.raft.change_membership(change, false)).await;
        let changed = changed.map_err(|_| ReplicaError::NoQuorum("they did not agree in time".to_owned()))?;
        changed.map(drop).map_err(refused)
    }

    /// Becomes the manager, if this replica leads, most of the others say so, and `wanted` of them take part: reads and checks the whole state.
    /// It is given up with its first failed turn.
    ///
    /// # Errors
    /// [`ReplicaError`] says what is missing.
    pub async fn lead(&self, settings: Settings, key: Arc<SigningKey>, wanted: usize) -> Result<Manager, ReplicaError> {
        self.ask_whether_leading().await?;
        let have = self.raft.metrics().borrow().membership_config.voter_ids().count();
        if have < wanted {
            return Err(ReplicaError::TooFew { have, wanted });
        }
        let commits = ToReplicas {
            raft: self.raft.clone(),
            ledger: Arc::clone(&self.ledger),
            log: self.log.clone(),
            runtime: Handle::current(),
        };
        let ledger = Arc::clone(&self.ledger);
        let read = tokio::task::spawn_blocking(move || ledger.lead(settings, key, Box::new(commits)));
        Ok(read.await.map_err(ended)??)
    }

    async fn ask_whether_leading(&self) -> Result<(), ReplicaError> {
        let asked = timeout(ASKED, self.raft.ensure_linearizable()).await;
        let asked = asked.map_err(|_| ReplicaError::NoQuorum("most do not answer".to_owned()))?;
        match asked {
            Ok(_) => Ok(()),
            Err(RaftError::Fatal(error)) => Err(ended(error)),
            Err(RaftError::APIError(error)) => match self.standing().leader {
                Some(leader) if !self.leads() => Err(ReplicaError::NotLeading {
                    leader: format!("{} at {}", leader.name, leader.address),
                }),
                _ => Err(ReplicaError::NoQuorum(error.to_string())),
            },
        }
    }

    /// Whether this replica believes that it leads; whether it is true, [`Replica::lead`] and each commit find out.
    pub fn leads(&self) -> bool {
        self.raft.metrics().borrow().state == ServerState::Leader
    }

    /// Waits until this replica begins or ceases to lead.
    ///
    /// # Errors
    /// [`ReplicaError::Ended`].
    pub async fn until(&self, leads: bool) -> Result<(), ReplicaError> {
        let mut metrics = self.raft.metrics();
        let changed = metrics.wait_for(|now| now.running_state.is_err() || (now.state == ServerState::Leader) == leads);
        let now = changed.await.map_err(ended)?;
        now.running_state.clone().map_err(ended)
    }

    /// What this replica knows of all of them.
    pub fn standing(&self) -> Standing {
        let metrics = self.raft.metrics().borrow().clone();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let last = metrics.last_log_index.unwrap_or(0);
        let lag = |id: &u64| {
            let known = metrics.replication.as_ref()?.get(id)?;
            Some(last.saturating_sub(known.map_or(0, |known| known.index)))
        };
        let leader = metrics.current_leader.and_then(|leader| membership.get_node(&leader));
        Standing {
            id: self.id,
            leader: leader.cloned(),
            replicas: membership
                .nodes()
                .map(|(id, member)| Shown {
                    id: ReplicaId(*id),
                    member: member.clone(),
                    votes: voters.contains(id),
                    lag: lag(id),
                })
                .collect(),
        }
    }

    /// Ends it; the others notice that it is silent.
    pub async fn end(&self) {
        // It ends in any case.
        let _ = self.raft.shutdown().await;
    }
}

fn ended(error: impl std::fmt::Display) -> ReplicaError {
    ReplicaError::Ended(error.to_string())
}

fn refused(error: RaftError<u64, ClientWriteError<u64, Member>>) -> ReplicaError {
    match error {
        RaftError::Fatal(error) => ended(error),
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
            let leader = forward
                .leader_node
                .map(|leader| format!("{} at {}", leader.name, leader.address));
            ReplicaError::NotLeading {
                leader: leader.unwrap_or_else(|| "nobody".to_owned()),
            }
        }
        RaftError::APIError(error) => ReplicaError::NoQuorum(error.to_string()),
    }
}
