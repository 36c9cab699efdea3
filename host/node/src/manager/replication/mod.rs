//! One of several managers: how it begins, joins, leads and follows (`cloister_replica` has the agreement among them).
//!
//! ```text
//! no store, or locked --a leader hands the key over--> joining --state sent--> following <--elected--> running
//!        |                                                                        ^
//!        '--all are new; or shares and witnesses--> founding (alone) --most take part--+
//! ```
//!
//! A manager that starts asks the others first. While one of them leads it joins that one, and nothing of its own disk counts. Only where
//! none does, its shares or, where nobody has a store, the first of the policy's managers begin.

mod links;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use cloister_attestation::encoding::Layout;
use cloister_attestation::identity::Role;
use cloister_attestation::ratls::VisitorIdentity;
use cloister_manager::{Ledger, Locked, Manager, OpenError, PolicyFile, SealedBox, SealingKey};
use cloister_policy::{Policy, Signatures, Version, follow};
use cloister_replica::{Member, Pace, Place, Replica, ReplicaError};
use cloister_session::{Local, Proxy, fetch_policies};
use cloister_tensor::Digest;
use cloister_wire::manager as wire;
use serde_json::json;
use tokio::sync::{Notify, watch};

use self::links::{Sessions, Ways};
use super::standing::{FOLLOWING, FOUNDING, JOINING, NEW, RUNNING, Standing};
use crate::ui::now_unix_s;

/// The pause before the others are asked again.
const PAUSE: Duration = Duration::from_secs(1);
/// The pause before a leader that lacks others tries again.
const MOMENT: Duration = Duration::from_millis(300);
/// How long one of the others may take to say which policies it knows.
const TOLD: Duration = Duration::from_secs(5);

/// Makes the first store.
pub type Make = Box<dyn Fn() -> Result<Manager, String> + Send + Sync>;

/// Where this manager and the others are.
pub struct Others {
    /// This manager's node, and where the others dial it.
    pub own: Member,
    /// Where the others are dialled.
    pub peers: Vec<String>,
    /// Out through this proxy.
    pub proxy: Option<Proxy>,
    /// The file of this manager's store.
    pub state: PathBuf,
    /// The founders' keys and threshold.
    pub anchor: Digest,
}

/// This manager among the others.
pub struct Replication {
    others: Others,
    make: Make,
    local: watch::Sender<Option<Local>>,
    sessions: Arc<Sessions>,
    replica: OnceLock<Arc<Replica>>,
    /// A state that was confirmed, to begin with.
    confirmed: Mutex<Option<Manager>>,
    stepped_down: Notify,
}

impl Replication {
    /// Nothing is dialled before there is evidence to show ([`Replication::show`]).
    pub fn new(others: Others, make: Make) -> Arc<Self> {
        let (local, shown) = watch::channel(None);
        let sessions = Sessions::new(shown, others.proxy.clone());
        Arc::new(Self {
            others,
            make,
            local,
            sessions,
            replica: OnceLock::new(),
            confirmed: Mutex::default(),
            stepped_down: Notify::new(),
        })
    }

    /// The evidence that is shown to the others from now on.
    pub fn show(&self, local: Local) {
        self.local.send_replace(Some(local));
    }

    /// The replica, once it takes part.
    pub(super) fn replica(&self) -> Option<&Arc<Replica>> {
        self.replica.get()
    }

    /// Who leads, as far as this one knows.
    pub(super) fn leader(&self) -> Option<Member> {
        let leader = self.replica.get()?.standing().leader?;
        (leader != self.others.own).then_some(leader)
    }

    /// Begins with a state that is confirmed.
    pub(super) fn found(&self, manager: Manager) {
        *self.confirmed.lock().unwrap_or_else(PoisonError::into_inner) = Some(manager);
    }

    /// A turn failed: whether this one still leads is to be asked anew.
    pub(super) fn step_down(&self) {
        self.stepped_down.notify_one();
    }

    /// Who takes part, for people.
    pub(super) fn tell(&self, reply: &mut wire::StatusReply) {
        let Some(replica) = self.replica.get() else { return };
        let standing = replica.standing();
        reply.leader = standing.leader.map(|leader| leader.name).unwrap_or_default();
        let shown = standing.replicas.into_iter().map(|one| wire::Replica {
            replica: one.id.0,
            node: one.member.name,
            address: one.member.address,
            votes: one.votes,
            lag: one.lag,
        });
        reply.replicas = shown.collect();
    }

    /// Runs until this replica is at its end, and says why.
    pub async fn run(self: Arc<Self>, standing: Arc<Standing>) -> String {
        let learning = tokio::spawn(Arc::clone(&self).learn(Arc::clone(&standing)));
        let ended = match self.begin(&standing).await {
            Ok(()) => self.lead_and_follow(&standing).await,
            Err(error) => Err(error),
        };
        learning.abort();
        ended.err().unwrap_or_default()
    }

    /// Policies prove themselves: one that leads nobody hears of a new one from the others, with whom it may have no session any more.
    async fn learn(self: Arc<Self>, standing: Arc<Standing>) {
        loop {
            if standing.phase() != RUNNING {
                for peer in &self.others.peers {
                    let Ok(visitor) = VisitorIdentity::new(None, now_unix_s()) else {
                        continue;
                    };
                    let dial = self.sessions.dial(peer);
                    let told = fetch_policies(&dial, &self.others.anchor, &visitor);
                    if let Ok(Ok(told)) = tokio::time::timeout(TOLD, told).await {
                        standing.learn(chain(&told, &self.others.anchor));
                    }
                }
            }
            tokio::time::sleep(PAUSE * 2).await;
        }
    }

    /// Until this one takes part: with a state that was confirmed here, or with that of the one that leads.
    async fn begin(&self, standing: &Standing) -> Result<(), String> {
        let mut said = String::new();
        loop {
            let confirmed = self.confirmed.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(manager) = confirmed {
                let ledger = Ledger::of(manager).map_err(|error| error.to_string())?;
                let replica = Replica::found(ledger, self.place()).await;
                return self.takes_part(replica.map_err(|error| error.to_string())?);
            }
            let local = self.local.borrow().clone();
            if let Some(local) = local {
                let mut new = 0;
                for peer in &self.others.peers {
                    match self.join(peer, standing).await {
                        Ok(true) => return Ok(()),
                        Ok(false) => {}
                        Err(error) if said != error => {
                            tracing::info!("{peer} hands no state over: {error}");
                            said = error;
                        }
                        Err(_) => {}
                    }
                    let asked = self
                        .sessions
                        .call(peer, |mut client| async move { client.status().await });
                    new += usize::from(asked.await.is_ok_and(|status| status.phase == NEW));
                }
                let first = managers(&local.policy).into_iter().min();
                let first = first.as_ref() == Some(&self.others.own.name);
                if new == self.others.peers.len() && first && standing.phase() == NEW {
                    // Nobody has a store, and every one of them said so.
                    let manager = (self.make)()?;
                    standing.set_apart(FOUNDING);
                    self.found(manager);
                    continue;
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn place(&self) -> Place {
        let folder = self.others.state.parent().map(PathBuf::from).unwrap_or_default();
        Place {
            own: self.others.own.clone(),
            folder,
            links: Arc::new(Ways(Arc::clone(&self.sessions))),
            pace: Pace::default(),
        }
    }

    fn takes_part(&self, replica: Replica) -> Result<(), String> {
        let set = self.replica.set(Arc::new(replica));
        set.map_err(|_| "it takes part already".to_owned())
    }

    /// Joins the one at that address, if it leads.
    async fn join(&self, peer: &str, standing: &Standing) -> Result<bool, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let key = Arc::new(SealingKey::generate().map_err(|error| text(&error))?);
        let recipient = key.public();
        let asked = self.sessions.call(peer, |mut client| async move {
            let connection = *client.peer().connection();
            client.join(&recipient).await.map(|reply| (reply, connection))
        });
        let (reply, connection) = asked.await.map_err(|error| text(&error))?;
        let handed = SealedBox::from_bytes(&reply.sealed).map_err(|error| text(&error))?;
        if !standing.set_apart(JOINING) {
            return Ok(false);
        }
        let (federation, state) = (standing.settings().0.federation, self.others.state.clone());
        let context = handed_to(&self.others.own.name, &connection);
        let opened = tokio::task::spawn_blocking(move || {
            if let Some(folder) = state.parent() {
                std::fs::create_dir_all(folder).map_err(|error| error.to_string())?;
            }
            let ledger = Ledger::receive(&state, &federation, &handed, (&key, &context));
            let ledger = ledger.map_err(|error| error.to_string())?;
            let lies = ledger.lies_at().map_err(|error| error.to_string())?;
            Ok::<_, String>((ledger, lies))
        });
        let opened = opened.await.map_err(|error| text(&error))?;
        let (ledger, lies) = match opened {
            Ok(opened) => opened,
            Err(error) => return self.left(standing, error),
        };
        if let Some(lies) = lies
            && !reply.serving
            && lies.version > reply.version
        {
            drop(ledger);
            return self.left(
                standing,
                format!(
                    "it begins with version {} of the state, and version {} lies here: recover this manager instead, and start that one again",
                    reply.version, lies.version
                ),
            );
        }
        let replica = Replica::follow(ledger, self.place())
            .await
            .map_err(|error| text(&error))?;
        let id = replica.id();
        self.takes_part(replica)?;
        standing.set_apart(FOLLOWING);
        let mut said = String::new();
        loop {
            for peer in &self.others.peers {
                let address = &self.others.own.address;
                let part = self
                    .sessions
                    .call(peer, |mut client| async move { client.take_part(id.0, address).await });
                match part.await {
                    Ok(()) => return Ok(true),
                    Err(error) if error.to_string() != said => {
                        said = error.to_string();
                        tracing::info!("not taking part yet: {said}");
                    }
                    Err(_) => {}
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// What was left for another manager's state goes back to where it was.
    fn left(&self, standing: &Standing, why: String) -> Result<bool, String> {
        match Locked::open(&self.others.state) {
            Ok(locked) => standing.lock_again(locked),
            Err(OpenError::Missing) => {
                standing.set_apart(NEW);
            }
            Err(error) => return Err(format!("{why}; and this manager's own store: {error}")),
        }
        Err(why)
    }

    async fn lead_and_follow(&self, standing: &Standing) -> Result<(), String> {
        let Some(replica) = self.replica.get() else {
            return Ok(());
        };
        let end = |error: &ReplicaError| error.to_string();
        loop {
            replica.until(true).await.map_err(|error| end(&error))?;
            let names = self.local.borrow().as_ref().map(|local| managers(&local.policy));
            let wanted = names.map_or(usize::MAX, |names| names.len() / 2 + 1);
            let (settings, key) = standing.settings();
            let signer = key.public();
            match replica.lead(settings, key, wanted).await {
                Ok(manager) => {
                    standing.serve(manager);
                    let what = json!({ "node": self.others.own.name, "public_key": signer });
                    // Who can't write it down does not lead.
                    let told = standing.turn(move |turn| turn.note("replica-leads", what)).await;
                    if told.is_ok() {
                        tracing::info!("this manager leads");
                        tokio::select! {
                            ended = replica.until(false) => ended.map_err(|error| end(&error))?,
                            () = self.stepped_down.notified() => {}
                        }
                        tracing::info!("this manager follows");
                    }
                    standing.set_apart(FOLLOWING);
                }
                Err(error @ ReplicaError::TooFew { .. }) => {
                    tracing::debug!("{error}");
                    standing.set_apart(FOUNDING);
                }
                Err(error @ (ReplicaError::NotLeading { .. } | ReplicaError::NoQuorum(_))) => {
                    tracing::debug!("{error}");
                }
                Err(error) => return Err(end(&error)),
            }
            tokio::time::sleep(MOMENT).await;
        }
    }
}

/// The managers of a policy.
pub(super) fn managers(policy: &Policy) -> Vec<String> {
    let managers = policy.nodes.iter().filter(|node| node.role == Role::Manager);
    managers.map(|node| node.name.clone()).collect()
}

/// Whom the state's key is for: a node, over one connection.
pub(super) fn handed_to(node: &str, connection: &[u8; 32]) -> Vec<u8> {
    Layout::new("").lp(node.as_bytes()).raw(connection).into_bytes()
}

/// The policies that follow each other from the founders' on, of what somebody told.
fn chain(told: &[cloister_session::PolicyFile], anchor: &Digest) -> Vec<Arc<PolicyFile>> {
    let read = told.iter().filter_map(|file| {
        Some(Version {
            policy: Policy::parse(&file.policy, "a policy").ok()?,
            signatures: Signatures::parse(&file.signatures, "its signatures").ok()?,
            file: String::new(),
        })
    });
    let mut versions: Vec<_> = read.collect();
    let history = follow(&mut versions, Some(*anchor));
    if history.fork.is_some() {
        return Vec::new();
    }
    let known = history.chain.iter().filter_map(|index| {
        let version = versions.get(*index)?;
        let told = told
            .iter()
            .find(|file| Digest::of(&file.policy) == version.policy.digest())?;
        Some(Arc::new(PolicyFile {
            policy: Arc::new(version.policy.clone()),
            bytes: told.policy.to_vec().into(),
            signatures: version.signatures.clone(),
            in_force_unix_s: None,
        }))
    });
    known.collect()
}
