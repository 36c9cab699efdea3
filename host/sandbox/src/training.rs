//! What the host keeps for a running trainer, and the interfaces `model`, `handles` and `ports`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};

use cloister_graph::{Port, PortKind};
use cloister_tensor::{Dtype, Shape, Tensor, TensorMap};
use wasmtime::Result;
use wasmtime::component::Resource;

use crate::bindings::trainer::cloister::federation::{handles, model, ports, types};
use crate::bindings::trainer::wasi::nn::tensor::TensorType;
use crate::call::SharedGraph;
use crate::error::{ModuleErrorKind, Refusal};
use crate::guest::{Guest, wit_update};
use crate::label::{GuestTensor, Label};
use crate::rows::Rows;
use crate::{Grants, UpdateKind};

/// A graph and its ports.
pub(crate) struct GraphEntry {
    pub(crate) name: Arc<str>,
    pub(crate) inputs: Vec<Port>,
    pub(crate) outputs: Vec<Port>,
    /// Whether it moves the model: gives next parameters or gradients.
    pub(crate) trains: bool,
    pub(crate) compiled: SharedGraph,
}

impl GraphEntry {
    pub(crate) fn new(name: &str, compiled: SharedGraph) -> Self {
        let (inputs, outputs) = {
            let graph = compiled.lock().unwrap_or_else(PoisonError::into_inner);
            (graph.inputs().to_vec(), graph.outputs().to_vec())
        };
        let trains = outputs
            .iter()
            .any(|port| matches!(port.kind, PortKind::NextParameter(_) | PortKind::Gradient(_)));
        Self {
            name: Arc::from(name),
            inputs,
            outputs,
            trains,
            compiled,
        }
    }
}

/// What the world `trainer` adds to a [`Guest`].
pub(crate) struct Training {
    pub(crate) grants: Grants,
    pub(crate) graphs: BTreeMap<String, Arc<GraphEntry>>,
    pub(crate) datasets: BTreeMap<String, Arc<dyn Rows>>,
    /// Passes begun, by dataset.
    pub(crate) passes: BTreeMap<Arc<str>, u64>,
    pub(crate) statistics: BTreeSet<String>,
    /// The seed of the node's round.
    pub(crate) seed: u64,
    /// What the update has to hold.
    pub(crate) update: UpdateKind,
    /// Runs of graphs with masks begun.
    pub(crate) masked: u64,
    /// Rows that training graphs were fed, by dataset.
    pub(crate) fed: BTreeMap<Arc<str>, u64>,
    /// Parameters and statistics as the round starts.
    model: Vec<(String, GuestTensor)>,
}

impl Guest<Training> {
    /// Labels the model's tensors and charges them.
    pub(crate) fn hold_model(&mut self, tensors: &TensorMap) -> Result<(), Refusal> {
        let bytes = tensors.values().map(|tensor| tensor.bytes().len() as u64).sum();
        let charge = self.budget.charge(bytes, "the model")?;
        let labelled = tensors.iter().map(|(name, tensor)| {
            let label = if self.world.statistics.contains(name) {
                Label::Statistic(name.clone())
            } else {
                Label::Parameter(name.clone())
            };
            let tensor = tensor.clone();
            (
                name.clone(),
                GuestTensor {
                    tensor,
                    label,
                    computed: false,
                    _charge: Arc::clone(&charge),
                },
            )
        });
        self.world.model = labelled.collect();
        Ok(())
    }

    /// Hands tensors to the guest.
    pub(crate) fn hand_over(
        &mut self,
        tensors: impl IntoIterator<Item = (String, GuestTensor)>,
    ) -> Result<Vec<(String, Resource<GuestTensor>)>> {
        tensors
            .into_iter()
            .map(|(name, tensor)| Ok((name, self.push(tensor)?)))
            .collect()
    }
}

impl Training {
    pub(crate) fn new(
        grants: Grants,
        graphs: BTreeMap<String, SharedGraph>,
        datasets: BTreeMap<String, Arc<dyn Rows>>,
        (seed, update): (u64, UpdateKind),
    ) -> Self {
        let graphs: BTreeMap<_, _> = graphs
            .into_iter()
            .map(|(name, graph)| (name.clone(), Arc::new(GraphEntry::new(&name, graph))))
            .collect();
        let inputs = graphs.values().flat_map(|graph| &graph.inputs);
        let statistics = inputs.filter_map(|port| match &port.kind {
            PortKind::Statistic(name) => Some(name.clone()),
            _ => None,
        });
        let statistics = statistics.collect();
        Self {
            grants,
            graphs,
            datasets,
            passes: BTreeMap::new(),
            statistics,
            seed,
            update,
            masked: 0,
            fed: BTreeMap::new(),
            model: Vec::new(),
        }
    }

    /// Names of the model's tensors that some graph computes what an update has to hold of.
    pub(crate) fn trained(&self) -> BTreeSet<String> {
        let outputs = self.graphs.values().flat_map(|graph| &graph.outputs);
        let names = outputs.filter_map(|port| match (&port.kind, self.update) {
            (PortKind::NextStatistic(name), _)
            | (PortKind::NextParameter(name), UpdateKind::Model)
            | (PortKind::Gradient(name), UpdateKind::Gradient) => Some(name.clone()),
            _ => None,
        });
        names.collect()
    }
}

impl model::Host for Guest<Training> {
    fn current(&mut self) -> Result<Vec<(String, Resource<GuestTensor>)>> {
        let model = self.world.model.clone();
        self.hand_over(model)
    }

    fn wanted(&mut self) -> Result<types::UpdateKind> {
        Ok(wit_update(self.world.update))
    }
}

impl handles::Host for Guest<Training> {
    fn duplicate(&mut self, tensors: Vec<Resource<GuestTensor>>) -> Result<Vec<Resource<GuestTensor>>> {
        tensors
            .iter()
            .map(|tensor| {
                let tensor = self.table.get(tensor)?.clone();
                self.push(tensor)
            })
            .collect()
    }
}

impl ports::Host for Guest<Training> {
    fn of(&mut self, graph: String) -> Result<Option<ports::GraphPorts>> {
        let Some(graph) = self.world.graphs.get(&graph) else {
            return Ok(None);
        };
        let given = graph.inputs.iter().filter(|port| !is_mask(port));
        Ok(Some(ports::GraphPorts {
            inputs: given.map(wit_port).collect::<Result<_, Refusal>>()?,
            outputs: graph.outputs.iter().map(wit_port).collect::<Result<_, Refusal>>()?,
        }))
    }

    fn fresh_state(&mut self, graph: String) -> Result<Option<Vec<(String, Resource<GuestTensor>)>>> {
        let Some(graph) = self.world.graphs.get(&graph).cloned() else {
            return Ok(None);
        };
        let mut state = Vec::new();
        for port in &graph.inputs {
            let PortKind::State { slot, param } = &port.kind else {
                continue;
            };
            let charge = self.budget.charge(port_bytes(port)?, "optimizer state")?;
            let tensor = Tensor::zeros(port.dtype, port_shape(port)?);
            let label = Label::State {
                slot: slot.clone(),
                param: param.clone(),
            };
            state.push((
                port.name.clone(),
                GuestTensor {
                    tensor,
                    label,
                    computed: false,
                    _charge: charge,
                },
            ));
        }
        self.hand_over(state).map(Some)
    }
}

/// Whether the host fills the port itself.
pub(crate) fn is_mask(port: &Port) -> bool {
    matches!(port.kind, PortKind::Mask { .. })
}

/// The port's shape, checked.
pub(crate) fn port_shape(port: &Port) -> Result<Shape, Refusal> {
    Shape::new(&port.shape)
        .map_err(|error| Refusal::new(ModuleErrorKind::Engine, format!("port `{}`: {error}", port.name)))
}

/// Bytes of a tensor at the port.
pub(crate) fn port_bytes(port: &Port) -> Result<u64, Refusal> {
    // No overflow: a shape has at most 2^40 elements.
    Ok(port_shape(port)?.elements() as u64 * port.dtype.size_bytes() as u64)
}

fn wit_port(port: &Port) -> Result<ports::Port, Refusal> {
    let kind = match &port.kind {
        PortKind::Data(name) => ports::PortKind::Data(name.clone()),
        PortKind::Labels => ports::PortKind::Labels,
        PortKind::Parameter(name) => ports::PortKind::Parameter(name.clone()),
        PortKind::Statistic(name) => ports::PortKind::Statistic(name.clone()),
        PortKind::State { .. } => ports::PortKind::State(port.name.clone()),
        PortKind::Anchor(name) => ports::PortKind::Anchor(name.clone()),
        PortKind::LearningRate | PortKind::Step => ports::PortKind::Scalar,
        PortKind::Loss | PortKind::Correct => ports::PortKind::Measure,
        PortKind::Gradient(name) => ports::PortKind::Gradient(name.clone()),
        PortKind::NextParameter(name) => ports::PortKind::NextParameter(name.clone()),
        PortKind::NextStatistic(name) => ports::PortKind::NextStatistic(name.clone()),
        PortKind::NextState { slot, param } => ports::PortKind::NextState(format!("state/{slot}/{param}")),
        PortKind::Mask { .. } | PortKind::Output(_) => ports::PortKind::Other,
    };
    let dimensions = wit_dimensions(&port.shape)?;
    Ok(ports::Port {
        name: port.name.clone(),
        kind,
        ty: wit_type(port.dtype),
        dimensions,
    })
}

/// A shape as wasi-nn writes it.
pub(crate) fn wit_dimensions(dims: &[usize]) -> Result<Vec<u32>, Refusal> {
    let narrow = dims.iter().map(|&dim| u32::try_from(dim));
    narrow.collect::<Result<_, _>>().map_err(|_| {
        Refusal::new(
            ModuleErrorKind::WrongShape,
            format!("shape {dims:?}: wasi-nn counts a dimension in 32 bits"),
        )
    })
}

/// A type as wasi-nn writes it; it has no booleans, which are bytes there.
pub(crate) fn wit_type(dtype: Dtype) -> TensorType {
    match dtype {
        Dtype::F16 => TensorType::Fp16,
        Dtype::F32 => TensorType::Fp32,
        Dtype::F64 => TensorType::Fp64,
        Dtype::Bf16 => TensorType::Bf16,
        Dtype::U8 | Dtype::Bool => TensorType::U8,
        Dtype::I32 => TensorType::I32,
        Dtype::I64 => TensorType::I64,
    }
}
