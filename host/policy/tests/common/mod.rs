//! A small federation, to be broken by the tests.

use std::collections::BTreeMap;

use cloister_attestation::identity::{Role, SigningKey};
use cloister_policy::agreement::{
    Agreement, AttestationRules, Compute, Consent, Dataset, Graph, Limits, Model, Module, Node, Participant, Release,
    RoundMode, Rounds, ScalarRange,
};
use cloister_policy::{Damaged, DatasetSpec, InputSpec, InputType, ModuleRole, Scalar, TensorAccess};
use cloister_tensor::Digest;

/// Two workers and an aggregator under a simulated root.
pub(crate) fn digits(alpha: &SigningKey, beta: &SigningKey) -> Agreement {
    let participant = |name: &str, key: &SigningKey| Participant {
        name: name.to_owned(),
        public_key: key.public(),
    };
    let node = |name: &str, role, owner: &str| Node {
        name: name.to_owned(),
        role,
        participant: owner.to_owned(),
    };
    Agreement {
        name: "digits".to_owned(),
        version: 1,
        predecessor: None,
        consent: Consent::of_all(2),
        participants: vec![participant("alpha", alpha), participant("beta", beta)],
        nodes: vec![
            node("hub", Role::Aggregator, "alpha"),
            node("worker-a", Role::Worker, "alpha"),
            node("worker-b", Role::Worker, "beta"),
        ],
        model: Model {
            name: "mlp".to_owned(),
            weights: Digest::of(b"weights"),
        },
        modules: vec![
            Module {
                settings: BTreeMap::from([
                    ("batch".to_owned(), Scalar::Integer(32)),
                    ("learning_rate".to_owned(), Scalar::Float(0.1)),
                    ("schedule".to_owned(), Scalar::Text("co\"sine".to_owned())),
                    ("shuffle".to_owned(), Scalar::Boolean(true)),
                ]),
                scalars: BTreeMap::from([("learning_rate".to_owned(), ScalarRange { min: 0.0, max: 1.0 })]),
                reads: vec!["loss".to_owned()],
                ..module("train-sgd", ModuleRole::Trainer)
            },
            module("fedavg", ModuleRole::Aggregator),
        ],
        graphs: vec![
            graph("train", 32),
            graph("train@23", 23),
            graph("evaluate", 32),
            graph("evaluate@23", 23),
        ],
        datasets: vec![
            dataset("train", "worker-a"),
            dataset("train", "worker-b"),
            dataset("test", "hub"),
        ],
        rounds: Rounds {
            mode: RoundMode::Averaging,
            count: 20,
            quorum: 2,
            deadline_s: 60,
            min_workers_per_aggregate: 2,
            seed: 7,
            checkpoint_every: Rounds::EVERY,
            evaluate_every: Rounds::EVERY,
            max_staleness: Rounds::MAX_STALENESS,
        },
        compute: Compute::default(),
        limits: Limits::default(),
        attestation: AttestationRules::with_root(true, [7; 48]),
        release: Release {
            recipients: vec!["alpha".to_owned()],
            ..Release::default()
        },
    }
}

fn module(name: &str, role: ModuleRole) -> Module {
    Module {
        name: name.to_owned(),
        role,
        sha256: Digest::of(name.as_bytes()),
        tensor_access: TensorAccess::Handles,
        settings: BTreeMap::new(),
        scalars: BTreeMap::new(),
        reads: Vec::new(),
        nodes: None,
    }
}

fn graph(name: &str, batch: u32) -> Graph {
    Graph {
        name: name.to_owned(),
        sha256: Digest::of(name.as_bytes()),
        batch,
        nodes: None,
    }
}

fn dataset(name: &str, node: &str) -> Dataset {
    let pixels = InputSpec {
        columns: (0..64).map(|column| format!("p{column}")).collect(),
        shape: vec![64],
        dtype: InputType::F32,
        scale: vec![0.0625; 64],
        offset: vec![0.0; 64],
    };
    let label = InputSpec {
        columns: vec!["label".to_owned()],
        shape: Vec::new(),
        dtype: InputType::I64,
        scale: vec![1.0],
        offset: vec![0.0],
    };
    Dataset {
        node: node.to_owned(),
        commitment: Digest::of(format!("{name} of {node}").as_bytes()),
        rows: Some(599),
        spec: DatasetSpec {
            name: name.to_owned(),
            inputs: BTreeMap::from([("x".to_owned(), pixels), ("labels".to_owned(), label)]),
            slice: None,
            transform: None,
            damaged: Damaged::Stop,
        },
    }
}
