use cloister_attestation::identity::{CredentialFields, SigningKey, endorse};
use cloister_testkit::wards::{NOW, Wards, WardsPolicy};
use cloister_vault::{Access, Vault};

use super::*;

/// A federation that releases its model to alpha, with a vault of its aggregator's.
struct House {
    wards: Wards,
    policy: Policy,
    hub: NodeIdentity,
    vault: Vault,
}

fn identity(wards: &Wards, policy: &Policy, node: &str, signer: &str) -> NodeIdentity {
    let key = SigningKey::generate().unwrap();
    let known = policy.node(node).unwrap();
    let fields = CredentialFields {
        federation: policy.name.clone(),
        participant: known.participant.clone(),
        node: known.name.clone(),
        role: known.role,
        node_key: key.public(),
        not_after_unix_s: NOW,
    };
    let credential = endorse(wards.key(signer), fields).unwrap();
    NodeIdentity { key, credential }
}

impl House {
    fn new() -> Self {
        let wards = Wards::new();
        let servers = "[[node]]\nname = \"reader\"\nrole = \"server\"\nparticipant = \"alpha\"\n\
                       [[node]]\nname = \"stray\"\nrole = \"server\"\nparticipant = \"beta\"\n";
        let text = wards.text(&WardsPolicy::default());
        let text = text.replacen("[model]", &format!("{servers}[model]"), 1);
        let policy = Policy::parse(text.as_bytes(), "wards.toml").unwrap();
        let (folder, key) = (wards.folder().join("vault"), VaultKey::from_bytes([7; 32]));
        let mut vault = Vault::create(&folder, key.clone(), None).unwrap();
        for (name, content) in [("model.safetensors", &b"weights"[..]), ("receipt.bin", b"receipt")] {
            vault.put(&name.parse().unwrap(), &mut &*content).unwrap();
        }
        drop(vault);
        Self {
            hub: identity(&wards, &policy, "hub", "alpha"),
            vault: Vault::open(&folder, key, None, Access::Read).unwrap(),
            wards,
            policy,
        }
    }

    fn sealed_by(&self, by: &NodeIdentity, to: &Recipient, key: &SealingPublicKey) -> Result<Vec<u8>, ExportError> {
        let names = self.vault.index().files.keys();
        let files = names.map(|name| (name.clone(), self.vault.get(name, Cipher::Bulk).unwrap()));
        let from = (&self.policy, by);
        let which = (3, Digest::of(b"model"));
        let (file, _) = write(from, (to, key), which, files.collect(), self.wards.folder())?;
        Ok(std::fs::read(file.path()).unwrap())
    }

    fn sealed(&self, to: &Recipient, key: &SealingPublicKey) -> Vec<u8> {
        self.sealed_by(&self.hub, to, key).unwrap()
    }

    /// Opens into a new folder; what is refused leaves nothing there.
    fn opened(&self, bytes: &[u8], to: &Recipient, key: &SealingKey) -> Result<Vec<PathBuf>, ExportError> {
        let folder = tempfile::tempdir_in(self.wards.folder()).unwrap();
        let opened = open(&mut &*bytes, &self.policy, (to, key), folder.path());
        if opened.is_err() {
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        }
        let (statement, paths) = opened?;
        assert_eq!((statement.round, statement.model), (3, Digest::of(b"model")));
        let _ = folder.keep();
        Ok(paths)
    }

    fn key(&self, participant: &str) -> SealingKey {
        SealingKey::of(self.wards.key(participant)).unwrap()
    }
}

fn alpha() -> Recipient {
    Recipient::Participant("alpha".into())
}

fn node(name: &str, connection: u8) -> Recipient {
    Recipient::Node {
        name: name.into(),
        connection: [connection; 32],
    }
}

#[test]
fn whom_the_policy_names_opens_it_and_gets_what_was_in_the_vault() {
    let house = House::new();
    let key = house.key("alpha");
    let paths = house
        .opened(&house.sealed(&alpha(), &key.public()), &alpha(), &key)
        .unwrap();
    let read: Vec<_> = paths.iter().map(|path| std::fs::read(path).unwrap()).collect();
    assert_eq!(read, [b"weights".to_vec(), b"receipt".to_vec()]);
    let td = SealingKey::generate().unwrap();
    let reader = node("reader", 1);
    house
        .opened(&house.sealed(&reader, &td.public()), &reader, &td)
        .unwrap();
}

#[test]
fn whom_the_policy_does_not_name_gets_nothing() {
    let house = House::new();
    let key = SealingKey::generate().unwrap();
    let beta = Recipient::Participant("beta".into());
    // A participant that is no recipient, its server, nodes of other roles, and nobody.
    for to in [
        beta,
        node("stray", 1),
        node("hub", 1),
        node("alpha-worker", 1),
        node("nobody", 1),
    ] {
        let refused = house.sealed_by(&house.hub, &to, &key.public());
        let words = refused.unwrap_err().to_string();
        assert!(words.contains(&to.to_string()) && words.contains("alpha"), "{words}");
    }
}

#[test]
fn another_recipient_key_or_connection_does_not_open_it() {
    let house = House::new();
    let (key, td) = (house.key("alpha"), SealingKey::generate().unwrap());
    let bytes = house.sealed(&alpha(), &key.public());
    assert!(matches!(
        house.opened(&bytes, &alpha(), &house.key("beta")),
        Err(ExportError::Sealing(_))
    ));
    assert!(matches!(
        house.opened(&bytes, &node("reader", 1), &key),
        Err(ExportError::NotOurs(_))
    ));
    let bytes = house.sealed(&node("reader", 1), &td.public());
    assert!(matches!(
        house.opened(&bytes, &node("reader", 2), &td),
        Err(ExportError::Sealing(_))
    ));
}

#[test]
fn nobody_but_an_aggregator_of_the_policy_makes_one() {
    let house = House::new();
    let key = house.key("alpha");
    let worker = identity(&house.wards, &house.policy, "alpha-worker", "alpha");
    let stranger = identity(&house.wards, &house.policy, "hub", "beta");
    // The aggregator's credential beside another key.
    let stolen = NodeIdentity {
        key: SigningKey::generate().unwrap(),
        credential: house.hub.credential.clone(),
    };
    for by in [&worker, &stranger, &stolen] {
        let bytes = house.sealed_by(by, &alpha(), &key.public()).unwrap();
        assert!(matches!(
            house.opened(&bytes, &alpha(), &key),
            Err(ExportError::NotOne(_))
        ));
    }
    let other = WardsPolicy {
        comment: "another policy".into(),
        ..WardsPolicy::default()
    };
    let other = house.wards.policy(&other);
    let bytes = house.sealed(&alpha(), &key.public());
    let refused = open(&mut &*bytes, &other, (&alpha(), &key), house.wards.folder());
    assert!(matches!(refused, Err(ExportError::NotOurs(_))));
}

#[test]
fn one_changed_byte_a_cut_and_an_addition_are_refused() {
    let house = House::new();
    let key = house.key("alpha");
    let bytes = house.sealed(&alpha(), &key.public());
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        assert!(house.opened(&changed, &alpha(), &key).is_err(), "byte {at}");
    }
    for cut in [0, 1, 16, 19, 20, bytes.len() / 2, bytes.len() - 1] {
        assert!(house.opened(&bytes[..cut], &alpha(), &key).is_err(), "cut at {cut}");
    }
    let more = [&bytes[..], b"x"].concat();
    assert!(house.opened(&more, &alpha(), &key).is_err());
    // A length that no statement has is not read for.
    let endless = [&MAGIC[..], &u32::MAX.to_be_bytes()].concat();
    assert!(house.opened(&endless, &alpha(), &key).is_err());
}

#[test]
fn what_lies_there_is_not_overwritten() {
    let house = House::new();
    let key = house.key("alpha");
    let folder = tempfile::tempdir().unwrap();
    let there = folder.path().join("model.safetensors");
    std::fs::write(&there, b"mine").unwrap();
    let bytes = house.sealed(&alpha(), &key.public());
    let refused = open(&mut &*bytes, &house.policy, (&alpha(), &key), folder.path());
    assert!(matches!(refused, Err(ExportError::Io { .. })));
    assert_eq!(std::fs::read(there).unwrap(), b"mine");
}
