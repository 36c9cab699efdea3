//! What a trainer works with: the model, the dataset, the graphs.

use std::collections::{BTreeMap, BTreeSet};

use crate::bindings::trainer::cloister::federation::{dataset, handles, model, ports};
use crate::bindings::trainer::wasi::nn::graph::load_by_name;
use crate::bindings::trainer::wasi::nn::inference::GraphExecutionContext;
pub use crate::bindings::trainer::wasi::nn::tensor::{Tensor, TensorType};
use crate::failure::log_panics;
use crate::{Failure, Result, Round, UpdateKind};

pub use ports::{Port, PortKind};

/// Tensors under their names.
pub type NamedTensors = Vec<(String, Tensor)>;

/// Runs a trainer's function; [`export_trainer!`](crate::export_trainer) calls it.
pub fn call(round: Round, train: impl FnOnce(Round, &mut Model) -> Result<()>) -> Result<NamedTensors> {
    log_panics();
    let mut model = Model::current();
    train(round, &mut model)?;
    Ok(model.into_update())
}

/// The model while it is trained: parameters, running statistics, and the optimizer's state of this call.
pub struct Model {
    tensors: BTreeMap<String, Tensor>,
    state: BTreeMap<String, Tensor>,
    /// The model as the round started, once a graph has wanted it.
    start: BTreeMap<String, Tensor>,
    wanted: UpdateKind,
    /// Where gradients are wanted: those of the last step.
    gradients: BTreeMap<String, Tensor>,
    /// Names among the tensors that a graph gave as running statistics.
    statistics: BTreeSet<String>,
    steps: u64,
}

impl Model {
    /// The model as the round starts.
    pub fn current() -> Self {
        Self {
            tensors: model::current().into_iter().collect(),
            state: BTreeMap::new(),
            start: BTreeMap::new(),
            wanted: model::wanted(),
            gradients: BTreeMap::new(),
            statistics: BTreeSet::new(),
            steps: 0,
        }
    }

    /// Takes over what a graph computed for the model: next parameters, next statistics, next optimizer state, and gradients where
    /// the policy wants them.
    pub fn update(&mut self, outputs: Outputs) {
        for (kind, tensor) in outputs.tensors.into_values() {
            match kind {
                PortKind::NextParameter(name) => self.tensors.insert(name, tensor),
                PortKind::NextStatistic(name) => {
                    self.statistics.insert(name.clone());
                    self.tensors.insert(name, tensor)
                }
                PortKind::NextState(port) => self.state.insert(port, tensor),
                PortKind::Gradient(name) if self.wanted == UpdateKind::Gradients => self.gradients.insert(name, tensor),
                _ => None,
            };
        }
        self.steps += 1;
    }

    /// What the policy has updates hold.
    pub fn wanted(&self) -> UpdateKind {
        self.wanted
    }

    /// What goes back to the host: the model, or the gradients of the last step and the running statistics.
    fn into_update(mut self) -> NamedTensors {
        if self.wanted == UpdateKind::Models {
            return self.tensors.into_iter().collect();
        }
        self.tensors.retain(|name, _| self.statistics.contains(name));
        self.gradients.into_iter().chain(self.tensors).collect()
    }

    /// Steps taken in this call.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The tensors as they are now: to work on them by hand, where the policy grants that.
    pub fn tensors(&mut self) -> &mut BTreeMap<String, Tensor> {
        &mut self.tensors
    }
}

/// A graph that the policy names for this module.
pub struct Graph {
    name: String,
    ports: ports::GraphPorts,
    context: GraphExecutionContext,
}

impl Graph {
    /// The graph of this name.
    ///
    /// # Errors
    /// The policy names no such graph for this module.
    pub fn named(name: &str) -> Result<Self> {
        let graph = load_by_name(name).map_err(|error| Failure::graph(error.data()))?;
        let context = graph
            .init_execution_context()
            .map_err(|error| Failure::graph(error.data()))?;
        let ports = ports::of(name).ok_or_else(|| Failure::graph(format!("graph `{name}` has no ports")))?;
        Ok(Self {
            name: name.to_owned(),
            ports,
            context,
        })
    }

    /// The graph of this name for batches of `rows` rows, where `name` itself is for `batch` rows: `name` or `name@rows`.
    ///
    /// # Errors
    /// As [`Graph::named`].
    pub fn for_rows(name: &str, batch: u32, rows: u32) -> Result<Self> {
        if rows == batch {
            Self::named(name)
        } else {
            Self::named(&format!("{name}@{rows}"))
        }
    }

    /// Its inputs.
    pub fn inputs(&self) -> &[Port] {
        &self.ports.inputs
    }

    /// Its outputs.
    pub fn outputs(&self) -> &[Port] {
        &self.ports.outputs
    }

    /// Computes once: parameters, statistics and optimizer state from `model`, rows from `batch`, scalars by name. The scalar
    /// `step` counts from 1 by itself; it needs a range in the policy's `scalars` as every other does. Optimizer state starts with
    /// zeros.
    ///
    /// # Errors
    /// A scalar is missing, or the engine fails. A scalar out of the policy's range ends the call.
    pub fn run(&self, model: &mut Model, batch: &Batch, scalars: &[(&str, f64)]) -> Result<Outputs> {
        self.start_state(model)?;
        let anchored = |port: &Port| matches!(port.kind, PortKind::Anchor(_));
        if model.start.is_empty() && self.ports.inputs.iter().any(anchored) {
            model.start = model::current().into_iter().collect();
        }
        let mut names = Vec::with_capacity(self.ports.inputs.len());
        let mut kept = Vec::with_capacity(self.ports.inputs.len());
        let mut inputs = Vec::with_capacity(self.ports.inputs.len());
        for port in &self.ports.inputs {
            if matches!(port.kind, PortKind::Scalar) {
                let given = scalars
                    .iter()
                    .find(|(name, _)| *name == port.name)
                    .map(|(_, value)| *value);
                let value = match given {
                    Some(value) => value,
                    None if port.name == "step" => (model.steps + 1) as f64,
                    None => {
                        return Err(Failure::graph(format!(
                            "graph `{}`: scalar `{}` is not given",
                            self.name, port.name
                        )));
                    }
                };
                inputs.push((port.name.clone(), scalar(port, value)?));
                continue;
            }
            let tensor = match &port.kind {
                PortKind::Parameter(name) | PortKind::Statistic(name) => model.tensors.get(name),
                PortKind::State(name) => model.state.get(name),
                PortKind::Anchor(name) => model.start.get(name),
                _ => batch.tensors.get(&port.name),
            };
            let missing = || {
                Failure::graph(format!(
                    "graph `{}`: nothing to give to port `{}`",
                    self.name, port.name
                ))
            };
            names.push(port.name.clone());
            kept.push(tensor.ok_or_else(missing)?);
        }
        inputs.extend(names.into_iter().zip(handles::duplicate(&kept)));
        let outputs = self
            .context
            .compute(inputs)
            .map_err(|error| Failure::graph(error.data()))?;
        let mut kinds: BTreeMap<_, _> = self.ports.outputs.iter().map(|port| (&port.name, &port.kind)).collect();
        let tensors = outputs.into_iter().map(|(name, tensor)| {
            let kind = kinds.remove(&name).cloned().unwrap_or(PortKind::Other);
            (name, (kind, tensor))
        });
        Ok(Outputs {
            tensors: tensors.collect(),
        })
    }

    fn start_state(&self, model: &mut Model) -> Result<()> {
        let missing = |port: &Port| match &port.kind {
            PortKind::State(name) => !model.state.contains_key(name),
            _ => false,
        };
        if self.ports.inputs.iter().any(missing) {
            let fresh = ports::fresh_state(&self.name);
            let fresh = fresh.ok_or_else(|| Failure::graph(format!("graph `{}` has no state", self.name)))?;
            for (name, tensor) in fresh {
                model.state.entry(name).or_insert(tensor);
            }
        }
        Ok(())
    }
}

fn scalar(port: &Port, value: f64) -> Result<Tensor> {
    let bytes = match port.ty {
        TensorType::Fp32 => (value as f32).to_le_bytes().to_vec(),
        TensorType::Fp64 => value.to_le_bytes().to_vec(),
        TensorType::I32 => (value as i32).to_le_bytes().to_vec(),
        TensorType::I64 => (value as i64).to_le_bytes().to_vec(),
        other => return Err(Failure::graph(format!("port `{}`: no scalars of {other:?}", port.name))),
    };
    Ok(Tensor::new(&port.dimensions, port.ty, &bytes))
}

/// What a graph gave.
pub struct Outputs {
    tensors: BTreeMap<String, (PortKind, Tensor)>,
}

impl Outputs {
    /// The value of an output of one element, such as `loss`; the policy lists the ones that may be read.
    ///
    /// # Errors
    /// There is no such output, or it is not one number.
    pub fn scalar(&self, name: &str) -> Result<f64> {
        let (_, tensor) = self
            .tensors
            .get(name)
            .ok_or_else(|| Failure::graph(format!("no output `{name}`")))?;
        let bytes = tensor.data();
        let value = match tensor.ty() {
            TensorType::Fp32 => bytes.try_into().ok().map(|bytes| f64::from(f32::from_le_bytes(bytes))),
            TensorType::Fp64 => bytes.try_into().ok().map(f64::from_le_bytes),
            TensorType::I32 => bytes.try_into().ok().map(|bytes| f64::from(i32::from_le_bytes(bytes))),
            TensorType::I64 => bytes.try_into().ok().map(|bytes| i64::from_le_bytes(bytes) as f64),
            _ => None,
        };
        value.ok_or_else(|| Failure::graph(format!("output `{name}` is not one number")))
    }

    /// An output by handle.
    pub fn take(&mut self, name: &str) -> Option<Tensor> {
        self.tensors.remove(name).map(|(_, tensor)| tensor)
    }
}

/// A dataset that the policy gives to this node.
#[derive(Clone, Debug)]
pub struct Dataset {
    name: String,
    seed: Option<u64>,
    drop_last: bool,
    first: u32,
    most: Option<u32>,
}

impl Dataset {
    /// The dataset of this name, its rows as they are stored.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            seed: None,
            drop_last: false,
            first: 0,
            most: None,
        }
    }

    /// Its rows in the order that a seed gives.
    pub fn shuffled(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Leaves out a last batch that is not full.
    pub fn drop_last(mut self) -> Self {
        self.drop_last = true;
        self
    }

    /// Leaves out that many batches at the beginning of the pass; the host jumps over them.
    pub fn first(mut self, batches: u32) -> Self {
        self.first = batches;
        self
    }

    /// That many batches at most, so that the host draws no more of them ahead.
    pub fn most(mut self, batches: u32) -> Self {
        self.most = Some(batches);
        self
    }

    /// How many rows there are.
    ///
    /// # Errors
    /// The policy gives this node no such dataset.
    pub fn rows(&self) -> Result<u64> {
        dataset::rows(&self.name)
    }

    /// How many batches of so many rows a whole pass has.
    ///
    /// # Errors
    /// As [`Dataset::rows`], or a batch of no rows.
    pub fn count(&self, batch: u32) -> Result<u32> {
        if batch == 0 {
            return Err(Failure::setting("a batch of no rows"));
        }
        let (rows, batch) = (self.rows()?, u64::from(batch));
        let count = if self.drop_last {
            rows / batch
        } else {
            rows.div_ceil(batch)
        };
        u32::try_from(count).map_err(|_| Failure::dataset(format!("{count} batches are more than can be counted")))
    }

    /// A pass over the rows.
    ///
    /// # Errors
    /// As [`Dataset::rows`], or a batch of no rows.
    pub fn batches(&self, batch: u32) -> Result<Batches> {
        let order = dataset::Order {
            seed: self.seed,
            batch,
            drop_last: self.drop_last,
            first: self.first,
            most: self.most,
        };
        dataset::open(&self.name, order).map(Batches)
    }
}

/// One pass over a dataset.
pub struct Batches(dataset::Batches);

impl Iterator for Batches {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = self.0.next().transpose()?;
        Some(batch.map(|batch| Batch {
            rows: batch.rows,
            tensors: batch.tensors.into_iter().collect(),
        }))
    }
}

/// Some rows.
pub struct Batch {
    rows: u32,
    tensors: BTreeMap<String, Tensor>,
}

impl Batch {
    /// How many.
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// The tensors, by the names of the dataset's inputs.
    pub fn tensors(&mut self) -> &mut BTreeMap<String, Tensor> {
        &mut self.tensors
    }
}
