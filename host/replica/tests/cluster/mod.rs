//! Replicas in one process, over a network that loses, repeats and cuts.
#![allow(clippy::unwrap_used, clippy::panic, dead_code, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cloister_attestation::identity::SigningKey;
use cloister_manager::*;
use cloister_replica::{Links, Member, Pace, Place, Replica, ReplicaError, Sent};
use cloister_testkit::wards::NOW;

use crate::support::House;

/// Steele, Lea, Flood: SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// The network.
pub(crate) struct Net {
    there: Mutex<BTreeMap<String, Arc<Replica>>>,
    /// Who is cut off from all others.
    pub(crate) cut: Mutex<BTreeSet<String>>,
    random: Mutex<Random>,
    /// Of a hundred messages, how many are lost, how many of the answers are, and how many come twice.
    pub(crate) faults: AtomicU64,
}

impl Net {
    fn fault(&self) -> bool {
        self.random.lock().unwrap().below(100) < self.faults.load(Ordering::Relaxed)
    }

    fn reaches(&self, from: &str, to: &str) -> bool {
        let cut = self.cut.lock().unwrap();
        !cut.contains(from) && !cut.contains(to)
    }
}

struct From {
    net: Arc<Net>,
    own: String,
}

impl Links for From {
    fn send(&self, to: &Member, message: Vec<u8>) -> Sent {
        let (net, own, to) = (Arc::clone(&self.net), self.own.clone(), to.address.clone());
        Box::pin(async move {
            let lost = || Err("lost".to_owned());
            tokio::task::yield_now().await;
            if !net.reaches(&own, &to) || net.fault() {
                return lost();
            }
            let there = net.there.lock().unwrap().get(&to).cloned();
            let Some(there) = there else { return lost() };
            if net.fault() {
                let (there, again) = (Arc::clone(&there), message.clone());
                tokio::spawn(async move { there.receive(&again).await.map(drop) });
            }
            let answer = there.receive(&message).await.map_err(|error| error.to_string());
            if !net.reaches(&own, &to) || net.fault() {
                return lost();
            }
            answer
        })
    }
}

/// A replica, with the manager that it is while it leads.
pub(crate) struct Seat {
    pub(crate) replica: Arc<Replica>,
    manager: tokio::sync::Mutex<Option<Manager>>,
    key: Arc<SigningKey>,
}

/// All of them.
pub(crate) struct Cluster {
    pub(crate) house: House,
    pub(crate) net: Arc<Net>,
    pub(crate) names: Vec<String>,
    pub(crate) seats: Mutex<BTreeMap<String, Arc<Seat>>>,
}

impl Cluster {
    /// The founder alone: the first of the names.
    pub(crate) async fn found(house: House, manager: Manager, names: &[&str], seed: u64) -> Self {
        let net = Arc::new(Net {
            there: Mutex::default(),
            cut: Mutex::default(),
            random: Mutex::new(Random(seed)),
            faults: AtomicU64::new(0),
        });
        let cluster = Self {
            house,
            net,
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            seats: Mutex::default(),
        };
        let ledger = Ledger::of(manager).unwrap();
        let replica = Replica::found(ledger, cluster.place(names[0])).await.unwrap();
        cluster.sit(names[0], replica);
        cluster
    }

    fn place(&self, name: &str) -> Place {
        let folder = self.folder(name);
        std::fs::create_dir_all(&folder).unwrap();
        Place {
            own: member(name),
            folder,
            links: Arc::new(From {
                net: Arc::clone(&self.net),
                own: name.to_owned(),
            }),
            pace: Pace {
                heartbeat_ms: 100,
                silence_ms: 400,
            },
        }
    }

    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        self.house.wards.folder().join("replicas").join(name)
    }

    pub(crate) fn disk(&self, name: &str) -> PathBuf {
        // The founder's store lies where the manager made it.
        let own = self.folder(name).join("state.redb");
        if name == self.names[0] && !own.exists() && self.house.path.exists() {
            self.house.path.clone()
        } else {
            own
        }
    }

    fn sit(&self, name: &str, replica: Replica) {
        let replica = Arc::new(replica);
        let seat = Seat {
            replica: Arc::clone(&replica),
            manager: tokio::sync::Mutex::new(None),
            key: Arc::new(SigningKey::generate().unwrap()),
        };
        self.net.there.lock().unwrap().insert(name.to_owned(), replica);
        self.seats.lock().unwrap().insert(name.to_owned(), Arc::new(seat));
    }

    pub(crate) fn seats(&self) -> Vec<(String, Arc<Seat>)> {
        let seats = self.seats.lock().unwrap();
        seats
            .iter()
            .map(|(name, seat)| (name.clone(), Arc::clone(seat)))
            .collect()
    }

    /// Starts a replica on what lies on its disk, and has it admitted by who leads. Gives the state that lay there.
    pub(crate) async fn join(&self, name: &str) -> Option<Position> {
        let lay = self.start(name).await;
        self.admit(name).await;
        lay
    }

    /// Starts a replica that nobody admits yet.
    pub(crate) async fn start(&self, name: &str) -> Option<Position> {
        let own = SealingKey::generate().unwrap();
        let (_, leader) = self.leader().await;
        let handed = leader.replica.ledger().hand_over(&own.public(), name.as_bytes());
        let handed = (own, handed.unwrap());
        let place = self.place(name);
        let ledger = Ledger::receive(&self.disk(name), "wards", &handed.1, (&handed.0, name.as_bytes())).unwrap();
        let lay = ledger.lies_at().unwrap();
        self.sit(name, Replica::follow(ledger, place).await.unwrap());
        lay
    }

    pub(crate) async fn admit(&self, name: &str) {
        let id = self.seat(name).replica.id();
        let mut last = String::new();
        for _ in 0..2000 {
            for (_, seat) in self.seats().into_iter().filter(|(_, seat)| seat.replica.leads()) {
                match seat.replica.admit(id, member(name), &self.names).await {
                    Ok(()) => return,
                    Err(error) => last = error.to_string(),
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{name} was not admitted: {last}");
    }

    /// Waits until a replica's disk holds the state of this version: what most have confirmed reaches the last one later.
    pub(crate) async fn held(&self, name: &str, version: u64) {
        let held = |at: Position| at.version >= version;
        while !self.seat(name).replica.ledger().lies_at().unwrap().is_some_and(held) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn seat(&self, name: &str) -> Arc<Seat> {
        Arc::clone(&self.seats.lock().unwrap()[name])
    }

    /// Who leads, as soon as somebody does.
    pub(crate) async fn leader(&self) -> (String, Arc<Seat>) {
        loop {
            if let Some(leader) = self.seats().into_iter().find(|(_, seat)| seat.replica.leads()) {
                return leader;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends a replica at once: its memory is gone, its disk stays.
    pub(crate) async fn kill(&self, name: &str) {
        self.net.there.lock().unwrap().remove(name);
        let seat = self.seats.lock().unwrap().remove(name).unwrap();
        seat.replica.end().await;
        *seat.manager.lock().await = None;
        drop(seat);
        // Until its last task let go of the file: a process that is killed leaves nobody behind.
        while matches!(Locked::open(&self.disk(name)), Err(OpenError::InUse)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Does a turn at whoever leads, again and again until it is committed.
    pub(crate) async fn surely<T: Send + 'static>(
        &self,
        work: impl Fn(&mut Turn<'_>) -> T + Clone + Send + 'static,
    ) -> (T, Mark) {
        let mut last = String::new();
        for _ in 0..4000 {
            for (_, seat) in self.seats() {
                match seat.turn(&self.house, work.clone()).await {
                    Ok(done) => return done,
                    Err(error) => last = error,
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("nobody leads: {last}");
    }
}

impl Seat {
    /// Something with the manager that this replica is, if it leads.
    pub(crate) async fn with<T: Send + 'static>(
        &self,
        house: &House,
        work: impl FnOnce(&mut Manager) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, String> {
        let mut place = self.manager.lock().await;
        let mut manager = match place.take() {
            Some(manager) => manager,
            None if !self.replica.leads() => return Err("it follows".to_owned()),
            None => {
                let settings = house.settings();
                let led: Result<Manager, ReplicaError> = self.replica.lead(settings, Arc::clone(&self.key), 2).await;
                led.map_err(|error| error.to_string())?
            }
        };
        let done = tokio::task::spawn_blocking(move || {
            let done = work(&mut manager);
            (manager, done)
        });
        let (manager, done) = done.await.unwrap();
        if done.is_ok() {
            *place = Some(manager);
        }
        done.map_err(|error| error.to_string())
    }

    pub(crate) async fn turn<T: Send + 'static>(
        &self,
        house: &House,
        work: impl FnOnce(&mut Turn<'_>) -> T + Send + 'static,
    ) -> Result<(T, Mark), String> {
        self.with(house, move |manager| manager.turn(NOW, work)).await
    }
}

pub(crate) fn member(name: &str) -> Member {
    Member {
        name: name.to_owned(),
        address: name.to_owned(),
    }
}

pub(crate) fn copied(from: &Path, to: &Path) {
    std::fs::create_dir_all(to.parent().unwrap()).unwrap();
    std::fs::copy(from, to).unwrap();
}
