use cloister_policy::{Damaged, DatasetSpec, TensorAccess};

use super::*;

fn node(name: &str, role: Role) -> Node {
    Node {
        name: name.to_owned(),
        role,
        participant: "alpha".to_owned(),
    }
}

fn trainer(drop_last: Option<bool>) -> Module {
    let setting = drop_last.map(|flag| (DROP_LAST.to_owned(), Scalar::Boolean(flag)));
    Module {
        name: "train-sgd".to_owned(),
        role: ModuleRole::Trainer,
        sha256: Digest::of(b"module"),
        tensor_access: TensorAccess::Handles,
        settings: setting.into_iter().collect(),
        scalars: BTreeMap::new(),
        reads: Vec::new(),
        nodes: None,
    }
}

/// A dataset on each of the workers `a`, `b`, ... and on the aggregator, in the order of `rows`.
struct Case {
    nodes: Vec<Node>,
    modules: Vec<Module>,
    datasets: Vec<Dataset>,
}

impl Case {
    fn new(workers: &[Option<u64>], aggregator: &[Option<u64>], modules: Vec<Module>) -> Self {
        let mut case = Self {
            nodes: Vec::new(),
            modules,
            datasets: Vec::new(),
        };
        for (role, all) in [(Role::Worker, workers), (Role::Aggregator, aggregator)] {
            for (index, rows) in all.iter().enumerate() {
                let name = format!("{role}-{index}");
                case.nodes.push(node(&name, role));
                case.datasets.push(Dataset {
                    node: name,
                    commitment: Digest::of(b"rows"),
                    rows: *rows,
                    spec: DatasetSpec {
                        name: "train".to_owned(),
                        inputs: BTreeMap::new(),
                        slice: None,
                        transform: None,
                        damaged: Damaged::Stop,
                    },
                });
            }
        }
        case
    }

    fn parties(&self) -> Parties<'_> {
        Parties {
            nodes: &self.nodes,
            modules: &self.modules,
            datasets: &self.datasets,
        }
    }

    fn training(&self) -> Vec<u32> {
        self.parties().training_sizes(32).unwrap().into_iter().collect()
    }

    fn evaluation(&self) -> Vec<u32> {
        self.parties().evaluation_sizes(200).unwrap().into_iter().collect()
    }

    fn refusal(&self) -> String {
        self.parties().training_sizes(32).unwrap_err().to_string()
    }
}

#[test]
fn remainders_get_batch_sizes_of_their_own() {
    let sizes = |rows: &[Option<u64>]| Case::new(rows, &[], vec![trainer(None)]).training();
    assert_eq!(sizes(&[Some(64), Some(96)]), [32]);
    assert_eq!(sizes(&[Some(599), Some(599)]), [23, 32]);
    assert_eq!(sizes(&[Some(5), Some(600)]), [5, 24, 32]);
}

#[test]
fn training_asks_workers_and_evaluation_the_aggregator() {
    let case = Case::new(&[Some(40)], &[Some(599)], vec![trainer(Some(false))]);
    assert_eq!(case.training(), [8, 32]);
    assert_eq!(case.evaluation(), [199, 200]);
    assert!(Case::new(&[Some(40)], &[], Vec::new()).evaluation().is_empty());
}

#[test]
fn a_dropped_last_batch_needs_no_graph_but_an_evaluation_drops_nothing() {
    let case = Case::new(&[Some(599), None], &[Some(599)], vec![trainer(Some(true))]);
    assert_eq!(case.training(), [32]);
    assert_eq!(case.evaluation(), [199, 200]);
    let mut other = trainer(None);
    other.nodes = Some(vec!["worker-1".to_owned()]);
    let case = Case::new(&[Some(599), Some(600)], &[], vec![trainer(Some(true)), other]);
    assert_eq!(
        case.training(),
        [24, 32],
        "one of two trainers of worker-1 keeps its last batch"
    );
}

#[test]
fn what_is_not_known_or_leaves_no_rows_is_refused() {
    let unknown = Case::new(&[None], &[], vec![trainer(None)]).refusal();
    assert!(unknown.contains("worker-0") && unknown.contains("`rows`"), "{unknown}");
    let none = Case::new(&[Some(31)], &[], vec![trainer(Some(true))]).refusal();
    assert!(none.contains("31 rows") && none.contains("batch of 32"), "{none}");
    let held_out = Case::new(&[Some(64)], &[None], vec![trainer(Some(true))]);
    let held_out = held_out.parties().evaluation_sizes(32).unwrap_err().to_string();
    assert!(
        !held_out.contains("drop_last"),
        "it is set, and would not help: {held_out}"
    );
    let nobody = Case::new(&[], &[Some(10)], vec![trainer(None)]).refusal();
    assert!(nobody.contains("no worker"), "{nobody}");
}
