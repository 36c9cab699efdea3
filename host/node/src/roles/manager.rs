//! `cloister manager --config FILE`: the federation's manager in its TD.
//!
//! It works under the policy in force, or under the one that is proposed to the founders while none is: whoever dials it verifies
//! it by that. When another one takes effect it is measured anew, and sessions under the old one are refused.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cloister_attestation::identity::{Role, SigningKey};
use cloister_attestation::{NodeIdentity, QuoteProvider, State};
use cloister_manager::{Locked, Manager, Settings};
use cloister_policy::{Policy, follow};
use cloister_replica::Member;
use cloister_session::{Clock, ListenLimits, Listener, OnRefused, PolicyBook, PolicyFile, Proxy};
use cloister_tensor::Digest;
use serde_json::json;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::events::{Event, Teller};
use crate::files;
use crate::keeper::audit::Refusals;
use crate::keeper::config::{NodeConfig, StoreFiles};
use crate::keeper::ground::Ground;
use crate::keeper::lineage::policies_in;
use crate::keeper::measured::Loaded;
use crate::keeper::references::{self, Watch};
use crate::keeper::{check_own_place, load_identity, provider, trust};
use crate::manager::recipients;
use crate::manager::replication::{Others, Replication};
use crate::manager::service::ManagerService;
use crate::manager::standing::{FOLLOWING, LOCKED, RUNNING, Standing, UNCONFIRMED};
use crate::process::{self, until_signal};
use crate::ui::{Exit, Ui, fail, failed, now_unix_s, root_in_words, unreadable};

/// How long a lease is: an instance that is cut off from the manager goes on as long, and ends by its own clock.
const LEASE_S: u64 = 30;
/// How long calls may take to end when the manager is measured anew.
const FAREWELL: Duration = Duration::from_secs(2);
/// How often a manager that does not answer yet looks whether it does.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// No policy file is larger than this.
const MAX_POLICY_BYTES: u64 = 1 << 20;
/// Refused sessions that wait to be written down.
const REFUSED_QUEUE: usize = 64;

/// Runs the manager until it is asked to end.
pub fn run(config_path: &Path, json: bool, _out: &mut Ui) -> Result<Exit, miette::Report> {
    process::harden().map_err(|error| fail(Exit::Failed, error))?;
    let config = NodeConfig::load(config_path).map_err(unreadable)?;
    let store = config.store.clone().ok_or_else(|| {
        failed(
            Exit::Usage,
            "a manager's node file wants a section [store] with `path`, `anchor` and `recipients`",
            None,
        )
    })?;
    let address = config
        .listen
        .ok_or_else(|| failed(Exit::Usage, "a manager's node file wants `listen`", None))?;
    let anchor = store.anchor().unwrap_or_else(|| Digest::of(b""));
    let policy = starting_policy(&config, &store, &anchor)?;
    let identity = load_identity(&config)?;
    let provider = provider::choose(&config)?;
    let clock = trust::clock(0, policy.attestation.max_clock_skew_s)?;
    let (standing, replication) = standing(&config, &store, (&policy, anchor), &clock)?;
    let role = ManagerRole {
        identity,
        provider,
        standing,
        replication,
        anchor,
        teller: Teller::new(json),
        config,
        store,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| failed(Exit::Failed, format!("the async runtime cannot start: {error}"), None))?;
    runtime.block_on(async {
        let cancel = CancellationToken::new();
        tokio::spawn(until_signal(cancel.clone()));
        role.serve(policy, address, cancel).await
    })
}

/// The newest policy that was in force here, by the signatures in the folder; before there is one, that which is proposed.
fn starting_policy(config: &NodeConfig, store: &StoreFiles, anchor: &Digest) -> Result<Arc<Policy>, miette::Report> {
    let folder = store.path.join("policies");
    if folder.is_dir() {
        let mut versions = policies_in(&folder, &mut |_| ())?;
        let history = follow(&mut versions, Some(*anchor));
        if let Some(newest) = history.chain.last().and_then(|index| versions.get(*index)) {
            return Ok(Arc::new(newest.policy.clone()));
        }
    }
    let path = config.policy.as_deref().unwrap_or(Path::new("policy.toml"));
    let proposed =
        Policy::parse(&files::read(path, MAX_POLICY_BYTES)?, &path.display().to_string()).map_err(unreadable)?;
    match proposed.anchor() {
        Some(seen) if seen == *anchor => Ok(Arc::new(proposed)),
        seen => Err(failed(
            Exit::Denied,
            format!(
                "{} has {}; the node file wants the federation {anchor}",
                path.display(),
                seen.map_or("a predecessor, so it founds none".to_owned(), |seen| format!(
                    "the anchor {seen}"
                ))
            ),
            Some("name the founding policy, or the anchor that `cloister policy status` tells of it".into()),
        )),
    }
}

/// Opens the store, or makes it with the founders as holders of its key.
fn standing(
    config: &NodeConfig,
    store: &StoreFiles,
    (policy, anchor): (&Policy, Digest),
    clock: &Clock,
) -> Result<(Arc<Standing>, Option<Arc<Replication>>), miette::Report> {
    let settings = Settings {
        federation: policy.name.clone(),
        node: config.name.clone(),
        anchor,
        lease_s: LEASE_S,
    };
    let key = Arc::new(signing_key(config)?);
    let state = store.path.join("state.redb");
    let make = {
        let (recipients, policy) = (store.recipients.clone(), policy.clone());
        let (state, settings, key, clock) = (state.clone(), settings.clone(), Arc::clone(&key), Arc::clone(clock));
        move || {
            let plan = recipients::plan(&recipients, &policy)?;
            if let Some(folder) = state.parent() {
                std::fs::create_dir_all(folder).map_err(|cause| {
                    failed(
                        Exit::Failed,
                        format!("{}: {cause}", folder.display()),
                        files::help(cause.kind()),
                    )
                })?;
            }
            Manager::create(&state, settings.clone(), Arc::clone(&key), &plan, clock())
                .map_err(|error| fail(Exit::Failed, error))
        }
    };
    refuse_to_forget(&state, store)?;
    let made = if state.exists() {
        let locked = Locked::open(&state).map_err(|error| fail(Exit::Failed, error))?;
        Standing::locked(locked, settings, key, Arc::clone(clock))
    } else if store.replicas.is_some() {
        Standing::apart(settings, key, Arc::clone(clock))
    } else {
        Standing::running(make()?, settings, key, Arc::clone(clock))
    };
    let standing = made.map_err(|error| fail(Exit::Failed, error))?;
    let replication = store.replicas.as_ref().map(|places| {
        let proxy = config.proxy.as_deref().map(str::parse::<Proxy>).transpose();
        let others = Others {
            own: Member {
                name: config.name.clone(),
                address: places.address.clone(),
            },
            peers: places.peers.clone(),
            proxy: proxy.map_err(unreadable)?,
            state,
            anchor,
        };
        let replication = Replication::new(others, Box::new(move || make().map_err(|error| error.to_string())));
        standing.replicate_by(Arc::clone(&replication));
        Ok::<_, miette::Report>(replication)
    });
    Ok((standing, replication.transpose()?))
}

/// A store that is gone is no first start: a new one would know nothing of what was agreed, and go by the founding policy again.
fn refuse_to_forget(state: &Path, store: &StoreFiles) -> Result<(), miette::Report> {
    let policies = store.path.join("policies");
    let ran = std::fs::read_dir(&policies).is_ok_and(|mut files| files.next().is_some());
    if state.exists() || !ran || store.replicas.is_some() {
        return Ok(());
    }
    Err(failed(
        Exit::Failed,
        format!(
            "{} is gone, and {} says that a manager has run here: a new one would have forgotten what was agreed",
            state.display(),
            policies.display()
        ),
        Some(
            "put a backup back with `cloister manager restore`; where all is lost, found the federation anew in another folder: \
             nodes and participants who remember this one refuse the new manager"
                .into(),
        ),
    ))
}

fn signing_key(config: &NodeConfig) -> Result<SigningKey, miette::Report> {
    files::read_key(&config.node_key.clone().unwrap_or_default())
}

struct ManagerRole {
    config: NodeConfig,
    store: StoreFiles,
    anchor: Digest,
    identity: NodeIdentity,
    provider: Arc<dyn QuoteProvider>,
    standing: Arc<Standing>,
    /// The other managers, where there are several.
    replication: Option<Arc<Replication>>,
    teller: Teller,
}

impl ManagerRole {
    /// Serves under one policy after the other.
    async fn serve(
        self,
        mut policy: Arc<Policy>,
        mut address: SocketAddr,
        cancel: CancellationToken,
    ) -> Result<Exit, miette::Report> {
        let mut in_force = self.standing.in_force();
        let refused = self.write_refusals_down();
        let mut among = self.take_part();
        let mut before = None;
        while !cancel.is_cancelled() {
            let known = *in_force.borrow_and_update();
            let told = self.standing.policies().await;
            if let Some(newest) = told.last() {
                policy = Arc::clone(&newest.policy);
                self.keep(&told)?;
            }
            let ground = Ground::under(&self.config, Arc::clone(&policy), Arc::clone(&self.provider))?;
            check_own_place(&self.config, &ground.policy, &self.identity, Role::Manager)?;
            self.check_others(&policy)?;
            let _references = self.watch_references(&ground)?;
            let certificate = ground.certificate(&self.identity, State::Member, &Loaded::default())?;
            self.teller.tell(&Event::Started {
                node: self.config.name.clone(),
                role: Role::Manager.to_string(),
                simulated: ground.quotes.simulated(),
                engine: "no engine".to_owned(),
                policy: policy.digest().to_string(),
            });
            self.teller.tell(&Event::measured("member", &certificate));
            let file = |file: &Arc<cloister_manager::PolicyFile>| PolicyFile {
                policy: file.bytes.to_vec().into(),
                signatures: file.signatures.to_text().into(),
            };
            let book = PolicyBook::new(self.anchor, told.iter().map(file).collect());
            let listener = Listener::bind_telling(
                ground.local(&certificate),
                &address.to_string(),
                ListenLimits::default(),
                on_refused(refused.clone(), ground.quotes.simulated()),
                Some(book),
            )
            .await
            .map_err(|error| fail(Exit::Failed, error))?;
            address = listener.address();
            self.teller.tell(&Event::Listening {
                address: address.to_string(),
            });
            if let Some(replication) = &self.replication {
                replication.show(ground.local(&certificate));
            }
            self.say_what_is_waited_for(&policy, known);
            let service = ManagerService::new(
                Arc::clone(&ground.policy),
                Arc::clone(&ground.verifier),
                ground.clock(),
                Arc::clone(&self.standing),
                self.store.path.clone(),
            );
            let stop = CancellationToken::new();
            let serving = tokio::spawn(service.serve(listener, stop.clone().cancelled_owned()));
            let predecessor = before.replace(Arc::clone(&policy));
            tokio::select! {
                changed = in_force.wait_for(|now| *now != known) => drop(changed),
                () = cancel.cancelled() => {}
                () = self.share_out(&policy, predecessor.as_deref()) => {}
                why = &mut among => {
                    let why = why.unwrap_or_else(|error| error.to_string());
                    return Err(failed(
                        Exit::Failed,
                        format!("this manager takes part no more: {why}"),
                        Some("start it again; it takes the state from the others".into()),
                    ));
                }
            }
            stop.cancel();
            // Who is still connected was let in under the policy before.
            let _ = tokio::time::timeout(FAREWELL, serving).await;
        }
        Ok(Exit::Done)
    }

    /// Takes part with the other managers, where there are any; without it never ends.
    fn take_part(&self) -> JoinHandle<String> {
        match &self.replication {
            Some(replication) => tokio::spawn(Arc::clone(replication).run(Arc::clone(&self.standing))),
            None => tokio::spawn(std::future::pending()),
        }
    }

    /// Several managers that do not know of each other would be several federations.
    fn check_others(&self, policy: &Policy) -> Result<(), miette::Report> {
        let managers = policy.nodes.iter().filter(|node| node.role == Role::Manager).count();
        if managers <= 1 || self.replication.is_some() {
            return Ok(());
        }
        Err(failed(
            Exit::Usage,
            format!("the policy names {managers} managers, and this one's node file none of the others"),
            Some("add [store.replicas] with `address` and `peers` to the node file of each".into()),
        ))
    }

    /// Reference values count for those who dial a manager as they do at any node; which ones stands in its log.
    fn watch_references(&self, ground: &Ground) -> Result<Option<Watch>, miette::Report> {
        let (runtime, standing) = (Handle::current(), Arc::clone(&self.standing));
        let tell = move |what| {
            let standing = Arc::clone(&standing);
            // A manager that can't write yet has told it in its own log.
            runtime.spawn(async move { standing.turn(move |turn| turn.note(references::EVENT, what)).await });
        };
        if let Some(references) = ground.policy.references() {
            tell(references::written_down(&references));
        }
        ground.watch_references(&self.config, tell)
    }

    /// Whoever holds shares of the state's key is whom the policy in force names: another policy may have other participants, other keys of
    /// them, or ask for more of them. Waits until this manager answers, which it may do long after its start; never ends.
    async fn share_out(&self, policy: &Policy, before: Option<&Policy>) {
        while self.standing.phase() != RUNNING || self.standing.in_force().borrow().is_none() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        let anew = before.is_some_and(|before| before.participants != policy.participants);
        let split = match recipients::plan(&self.store.recipients, policy) {
            Ok(plan) => self
                .standing
                .split_for(plan, anew)
                .await
                .map_err(|status| status.message().to_owned()),
            Err(error) => Err(error.to_string()),
        };
        match split {
            Ok(true) => tracing::info!("the recovery key is split anew; shares of before are stale"),
            Ok(false) => {}
            Err(why) => tracing::warn!(
                "recovery shares are still those of before: {why}; with the files in {} complete, start the manager again",
                self.store.recipients.display()
            ),
        }
        std::future::pending().await
    }

    fn say_what_is_waited_for(&self, policy: &Policy, in_force: Option<Digest>) {
        let what = match (self.standing.phase(), in_force) {
            (LOCKED, _) => "recovery shares (cloister manager recover)".to_owned(),
            (RUNNING | FOLLOWING, Some(_)) => {
                return self.teller.tell(&Event::InForce {
                    policy: policy.digest().to_string(),
                    version: policy.version,
                });
            }
            (RUNNING, None) => format!(
                "the founders' signatures under {} (cloister policy publish)",
                policy.digest().short()
            ),
            (UNCONFIRMED, _) => "nodes that confirm the state".to_owned(),
            _ => "the other managers".to_owned(),
        };
        self.teller.tell(&Event::Waiting { what });
    }

    /// Keeps the policies that were in force as files: they are no secret, and after a restart they say by what the manager is to be
    /// judged before it can read its state.
    fn keep(&self, told: &[Arc<cloister_manager::PolicyFile>]) -> Result<(), miette::Report> {
        let folder = self.store.path.join("policies");
        std::fs::create_dir_all(&folder).map_err(|cause| {
            failed(
                Exit::Failed,
                format!("{}: {cause}", folder.display()),
                files::help(cause.kind()),
            )
        })?;
        for file in told {
            let path = folder.join(format!("{:04}.toml", file.policy.version));
            files::write(&path, &file.bytes)?;
            files::write(
                &files::with_suffix(&path, ".sigs"),
                file.signatures.to_text().as_bytes(),
            )?;
        }
        Ok(())
    }

    /// Where refused sessions are handed in; they are written into the audit log within a rate.
    fn write_refusals_down(&self) -> tokio::sync::mpsc::Sender<String> {
        let (sender, mut refused) = tokio::sync::mpsc::channel::<String>(REFUSED_QUEUE);
        let standing = Arc::clone(&self.standing);
        tokio::spawn(async move {
            let mut counted = Refusals::default();
            while let Some(reason) = refused.recv().await {
                if let Some(left_out) = counted.one_more(now_unix_s()) {
                    let what = json!({ "reason": reason, "left_out_before": left_out });
                    // A manager that can't write yet has told it in its own log.
                    let _ = standing.turn(move |turn| turn.note("session-refused", what)).await;
                }
            }
        });
        sender
    }
}

fn on_refused(refused: tokio::sync::mpsc::Sender<String>, simulated: bool) -> OnRefused {
    let root = root_in_words(simulated);
    Arc::new(move |error| match error.refusal() {
        Some(_) => {
            tracing::warn!("not let in{root}: {error}");
            let reason: String = error.to_string().chars().take(4096).collect();
            // A flood leaves the rest out.
            let _ = refused.try_send(reason);
        }
        None => tracing::warn!("not let in: {error}"),
    })
}
