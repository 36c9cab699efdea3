//! The evaluation graph over a dataset: the host's own loop, no module in it.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use cloister_data::{Batch, BatchOrder};
use cloister_engine::Compiled;
use cloister_graph::PortKind;
use cloister_sandbox::{CallLimits, PassOrder, PassSeed, Rows, RowsError, SharedGraph};
use cloister_tensor::{Tensor, TensorMap};

use super::workshop::bad_request;
use crate::message::Failure;

/// Name of the dataset's input that goes to a graph's labels.
pub(super) const LABELS: &str = "labels";

/// Sums over the rows.
#[derive(Clone, Debug)]
pub(super) struct Evaluation {
    /// Each batch's mean loss times its rows.
    pub(super) loss_sum: f64,
    /// None once a graph has counted no hits: its loss has no classes.
    pub(super) correct: Option<u64>,
    pub(super) rows: u64,
    /// What a transform logged, as far as the limit lets it.
    pub(super) log: Vec<String>,
}

/// Runs whole batches on the graph with the largest batch, and the rows that are left on the graph that fits them.
pub(super) fn evaluate(
    graphs: &BTreeMap<String, SharedGraph>,
    (name, dataset): (&str, &dyn Rows),
    model: &TensorMap,
    limits: &CallLimits,
) -> Result<Evaluation, Failure> {
    let mut by_batch: BTreeMap<usize, (&str, &SharedGraph)> = BTreeMap::new();
    for (name, graph) in graphs {
        let batch = batch_of(graph.lock().unwrap_or_else(PoisonError::into_inner).as_ref())
            .ok_or_else(|| refuse(name, "it has no labels, wanted an evaluation graph"))?;
        by_batch.insert(batch, (name, graph));
    }
    let rows = usize::try_from(dataset.rows()).unwrap_or(usize::MAX);
    // The largest that the rows fill at least once.
    let Some((&batch, _)) = by_batch.range(..=rows).next_back() else {
        return Err(bad_request(format!("no evaluation graph for {rows} rows is given")));
    };
    let order = BatchOrder::of(batch);
    let ahead = dataset.ahead_bytes(order);
    if ahead > limits.tensor_memory_bytes {
        return Err(bad_request(format!(
            "batches drawn ahead take {ahead} bytes, wanted at most {}: evaluate on a smaller batch, or raise `tensor_memory_mib`",
            limits.tensor_memory_bytes
        )));
    }
    let pass = PassOrder {
        order,
        // The same rows for every model, whatever the round.
        seed: PassSeed {
            round: 0,
            dataset: Arc::from(name),
            pass: 0,
        },
        end: None,
        ahead: true,
    };
    let mut sums = Evaluation {
        loss_sum: 0.0,
        correct: Some(0),
        rows: 0,
        log: Vec::new(),
    };
    let mut log_bytes = limits.log_bytes;
    let unreadable = |error| unreadable(name, error);
    for rows in dataset.batches(&pass).map_err(unreadable)? {
        let drawn = rows.map_err(unreadable)?;
        for line in drawn.log {
            let left = log_bytes.checked_sub(line.len());
            if let Some(left) = left {
                log_bytes = left;
                sums.log.push(line);
            }
        }
        let rows = drawn.batch;
        let Some((name, graph)) = by_batch.get(&rows.rows) else {
            let problem = format!(
                "{} rows are left at the end, and no evaluation graph of that batch size is given",
                rows.rows
            );
            return Err(bad_request(problem));
        };
        let mut graph = graph.lock().unwrap_or_else(PoisonError::into_inner);
        let (loss, correct) =
            run(graph.as_mut(), &rows, model, limits.compute).map_err(|problem| refuse(name, problem))?;
        sums.loss_sum += loss * rows.rows as f64;
        sums.correct = sums.correct.zip(correct).map(|(sum, correct)| sum + correct);
        sums.rows += rows.rows as u64;
    }
    Ok(sums)
}

fn unreadable(dataset: &str, error: RowsError) -> Failure {
    match error {
        RowsError::Transform(error) => Failure::Module(*error),
        RowsError::Unreadable(message) => Failure::Dataset {
            name: dataset.to_owned(),
            message,
        },
        other => bad_request(other.to_string()),
    }
}

fn refuse(name: &str, message: impl Into<String>) -> Failure {
    Failure::Graph {
        name: name.to_owned(),
        message: message.into(),
    }
}

/// Rows of a batch, as the graph's labels have them.
fn batch_of(graph: &dyn Compiled) -> Option<usize> {
    let labels = graph.inputs().iter().find(|port| port.kind == PortKind::Labels)?;
    labels.shape.first().copied()
}

/// Loss of one batch, and hits where the loss has classes.
fn run(
    graph: &mut dyn Compiled,
    batch: &Batch,
    model: &TensorMap,
    compute: Duration,
) -> Result<(f64, Option<u64>), String> {
    let mut inputs: Vec<(String, Tensor)> = Vec::with_capacity(graph.inputs().len());
    for port in graph.inputs() {
        let (source, name) = match &port.kind {
            PortKind::Data(name) => (&batch.tensors, name.as_str()),
            PortKind::Labels => (&batch.tensors, LABELS),
            PortKind::Parameter(name) | PortKind::Statistic(name) => (model, name.as_str()),
            other => {
                return Err(format!(
                    "its input {:?} is {other:?}, wanted an evaluation graph",
                    port.name
                ));
            }
        };
        let tensor = source
            .get(name)
            .ok_or_else(|| format!("its input {:?} needs {name:?}, which is not there", port.name))?;
        inputs.push((port.name.clone(), tensor.clone()));
    }
    let named: Vec<(&str, Tensor)> = inputs
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor.clone()))
        .collect();
    let outputs = graph.run(&named, Some(compute)).map_err(|error| error.to_string())?;
    let value = |kind: &PortKind| {
        let port = graph.outputs().iter().find(|port| port.kind == *kind)?;
        outputs.iter().find(|(name, _)| *name == port.name)?.1.first_f64()
    };
    let loss = value(&PortKind::Loss).ok_or("it gives no loss, wanted an evaluation graph")?;
    if !loss.is_finite() {
        return Err(format!("seen a loss of {loss}, wanted a finite number"));
    }
    let rows = batch.rows as f64;
    match value(&PortKind::Correct) {
        None => Ok((loss, None)),
        Some(correct) if (0.0..=rows).contains(&correct) => Ok((loss, Some(correct as u64))),
        Some(correct) => Err(format!("seen {correct} hits among {rows} rows")),
    }
}
