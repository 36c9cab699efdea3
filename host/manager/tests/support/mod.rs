//! A manager of the three wards, made, agreed upon and opened again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, dead_code, reason = "tests")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cloister_attestation::identity::SigningKey;
use cloister_manager::*;
use cloister_policy::{Admission, Permit, Policy, Visit};
use cloister_tensor::Digest;
use cloister_testkit::wards::{HOSPITALS, NOW, Wards, WardsPolicy};
use zeroize::Zeroizing;

pub(crate) const LEASE_S: u64 = 60;

pub(crate) struct House {
    pub(crate) wards: Wards,
    pub(crate) path: PathBuf,
    pub(crate) key: Arc<SigningKey>,
    pub(crate) policy: Arc<Policy>,
}

impl House {
    pub(crate) fn new() -> Self {
        Self::with(&WardsPolicy::default())
    }

    pub(crate) fn with(policy: &WardsPolicy) -> Self {
        let wards = Wards::new();
        let key = SigningKey::generate().unwrap();
        std::fs::write(wards.folder().join("safe"), key.to_pem().as_bytes()).unwrap();
        Self::of(wards, key, policy)
    }

    /// What another process made in `folder`, under the founding policy.
    pub(crate) fn open(folder: &Path) -> Self {
        let pem = std::fs::read_to_string(folder.join("safe")).unwrap();
        let key = SigningKey::from_pem(&pem).unwrap();
        Self::of(Wards::open(folder), key, &WardsPolicy::default())
    }

    fn of(wards: Wards, key: SigningKey, policy: &WardsPolicy) -> Self {
        Self {
            path: wards.folder().join("manager.redb"),
            key: Arc::new(key),
            policy: wards.policy(policy),
            wards,
        }
    }

    pub(crate) fn settings(&self) -> Settings {
        Settings {
            federation: "wards".into(),
            node: "safe".into(),
            anchor: self.policy.anchor().unwrap(),
            lease_s: LEASE_S,
        }
    }

    pub(crate) fn recipient(&self, participant: &str) -> Recipient {
        Recipient::sign("wards", participant, self.wards.key(participant)).unwrap()
    }

    pub(crate) fn plan(&self, threshold: u8) -> RecoveryPlan {
        let holders = HOSPITALS.map(|name| self.recipient(name)).to_vec();
        RecoveryPlan { threshold, holders }
    }

    /// A manager without a policy.
    pub(crate) fn made(&self) -> Manager {
        Manager::create(&self.path, self.settings(), self.key.clone(), &self.plan(2), NOW).unwrap()
    }

    /// A manager with the founding policy in force.
    pub(crate) fn manager(&self, founding: &WardsPolicy) -> Manager {
        let mut manager = self.made();
        self.agree(&mut manager, founding);
        manager
    }

    /// All participants sign.
    pub(crate) fn agree(&self, manager: &mut Manager, policy: &WardsPolicy) -> Arc<Policy> {
        let (text, policy) = (self.wards.text(policy), self.wards.policy(policy));
        for name in HOSPITALS {
            let signature = self.wards.signature(&policy, name);
            do_turn(manager, |turn| turn.propose(text.as_bytes(), signature)).unwrap();
        }
        assert_eq!(manager.policy().unwrap().digest(), policy.digest());
        policy
    }

    /// A holder's share as it arrives at a manager that starts.
    pub(crate) fn share(&self, locked: &Locked, participant: &str, remembered: &Remembered) -> RecoveryShare {
        let sealed = locked
            .shares()
            .iter()
            .find(|share| share.participant == participant)
            .unwrap();
        self.pass_on(sealed, remembered)
    }

    pub(crate) fn pass_on(&self, sealed: &SealedShare, remembered: &Remembered) -> RecoveryShare {
        let key = SealingKey::of(self.wards.key(&sealed.participant)).unwrap();
        let own = RecoveryShare::open("wards", sealed, &key).unwrap();
        let td = SealingKey::generate().unwrap();
        let passed = own.pass_on(&td.public(), remembered).unwrap();
        RecoveryShare::receive("wards", &passed, &td).unwrap()
    }

    /// The store, opened by two shares.
    pub(crate) fn loaded(&self, remembered: &Remembered) -> Loaded {
        let locked = Locked::open(&self.path).unwrap();
        let shares = ["alpha", "beta"].map(|name| self.share(&locked, name, remembered));
        locked.recover(&shares, self.settings(), self.key.clone()).unwrap()
    }

    /// Opened again by participants who remember the newest state.
    pub(crate) fn again(&self) -> Manager {
        let loaded = self.loaded(&Remembered::default());
        let newest = Some(loaded.mark());
        drop(loaded);
        let without_nodes = true;
        let loaded = self.loaded(&Remembered { newest, without_nodes });
        loaded.confirm_without_nodes(NOW).unwrap()
    }

    pub(crate) fn permit(&self, node: &str, connection: u8) -> Permit {
        self.wards.permit(&self.policy, node, [connection; 32])
    }

    pub(crate) fn admission(&self, node: &str, connection: u8) -> Admission {
        self.wards.admission(&self.policy, node, [connection; 32])
    }

    pub(crate) fn visit(&self, participant: &str) -> Visit {
        self.wards.visit(&self.policy, Some(participant))
    }

    /// The audit log's events from that line on.
    pub(crate) fn events(manager: &Manager, from: u64) -> Vec<(String, serde_json::Value)> {
        let lines = manager.lines(from, 4096).unwrap();
        let parsed = lines.iter().map(|line| {
            let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
            (line["event"].as_str().unwrap().to_owned(), line["what"].take())
        });
        parsed.collect()
    }
}

pub(crate) fn do_turn<T>(manager: &mut Manager, work: impl FnOnce(&mut Turn<'_>) -> T) -> T {
    manager.turn(NOW, work).unwrap().0
}

pub(crate) fn digest(content: &str) -> Digest {
    Digest::of(content.as_bytes())
}

pub(crate) fn commit(version: u64, content: &str) -> Commit {
    Commit {
        version,
        digest: digest(content),
    }
}

pub(crate) fn value(content: &str) -> SecretValue {
    SecretValue::new(Zeroizing::new(content.as_bytes().to_vec()))
}

/// The key of the sealed trainer, whose file is named by `file`.
pub(crate) fn module_key(content: &str, file: &str) -> NewSecret {
    NewSecret {
        name: "trainer".into(),
        kind: SecretKind::Module {
            module: "train-sgd".into(),
        },
        value: value(content),
        ciphertext: Some(digest(file)),
        plaintext: Some(digest("train-sgd")),
    }
}

pub(crate) fn data_key(participant: &str) -> NewSecret {
    NewSecret {
        name: "rows".into(),
        kind: SecretKind::Data {
            node: format!("{participant}-worker"),
            dataset: "train".into(),
        },
        value: value("data key"),
        ciphertext: Some(digest("sealed rows")),
        plaintext: None,
    }
}

pub(crate) fn vault_key(node: &str, content: &str) -> NewSecret {
    NewSecret {
        name: "vault".into(),
        kind: SecretKind::Vault { node: node.into() },
        value: value(content),
        ciphertext: None,
        plaintext: None,
    }
}

pub(crate) fn wanted(id: &str, file: Option<&str>) -> Wanted {
    Wanted {
        id: id.parse().unwrap(),
        ciphertext: file.map(digest),
    }
}

pub(crate) fn request(td: &SealingKey, sequence: u64, wanted: &[Wanted]) -> ReleaseRequest {
    ReleaseRequest {
        sequence,
        recipient: td.public(),
        wanted: wanted.to_vec(),
    }
}

/// A house whose manager has the founding policy and the usual keys.
pub(crate) struct Stocked {
    pub(crate) house: House,
    pub(crate) manager: Manager,
    pub(crate) td: SealingKey,
}

impl Stocked {
    pub(crate) fn new() -> Self {
        Self::with(&WardsPolicy::default())
    }

    pub(crate) fn with(founding: &WardsPolicy) -> Self {
        let house = House::with(founding);
        let mut manager = house.manager(founding);
        let (alpha, beta) = (house.visit("alpha"), house.visit("beta"));
        do_turn(&mut manager, |turn| {
            turn.put(&alpha, module_key("module key", "sealed module")).unwrap();
            turn.put(&beta, data_key("beta")).unwrap();
            turn.put(&alpha, vault_key("hub", "vault key")).unwrap();
        });
        let td = SealingKey::generate().unwrap();
        Self { house, manager, td }
    }

    pub(crate) fn ask(&mut self, node: &str, connection: u8, wants: &[Wanted]) -> Result<Vec<Released>, Refused> {
        let permit = self.house.permit(node, connection);
        let request = request(&self.td, 1, wants);
        let sealed = do_turn(&mut self.manager, |turn| turn.release(&permit, &request))?;
        Ok(open_release(&self.td, &[connection; 32], node, &sealed).unwrap())
    }

    pub(crate) fn refusal(&mut self, node: &str, wants: &[Wanted]) -> &'static str {
        self.ask(node, next_connection(), wants).unwrap_err().code()
    }
}

pub(crate) const MODULE: (&str, Option<&str>) = ("alpha/trainer", Some("sealed module"));

/// A connection that no other request of the tests had.
pub(crate) fn next_connection() -> u8 {
    use std::sync::atomic::{AtomicU8, Ordering};
    static NEXT: AtomicU8 = AtomicU8::new(100);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
