//! `wasi:nn`, the standard interfaces, over the graphs that the policy names.
//!
//! `load` is refused: a guest brings no graph. `load-by-name` gives the graphs of the policy. `compute` admits a tensor to a
//! port by its label, charges the outputs before it runs, and keeps a deadline. What breaks the federation's rules ends the
//! call; what a guest could mend (an unknown name, a batch of another size) is answered with an error of the standard's kind.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use cloister_engine::EngineError;
use cloister_graph::PortKind;
use cloister_tensor::{Dtype, Shape, Tensor};
use wasmtime::Result;
use wasmtime::component::Resource;

use crate::bindings::trainer::wasi::nn::errors::ErrorCode;
use crate::bindings::trainer::wasi::nn::graph::{ExecutionTarget, GraphEncoding};
use crate::bindings::trainer::wasi::nn::tensor::TensorType;
use crate::bindings::trainer::wasi::nn::{errors, graph, inference, tensor};
use crate::budget::Charge;
use crate::error::{ModuleErrorKind, Refusal};
use crate::guest::Guest;
use crate::label::{GuestTensor, Label, admit, output_label};
use crate::masks::MaskSeed;
use crate::training::{GraphEntry, Training, is_mask, port_bytes, wit_dimensions, wit_type};

/// An error as a guest holds it.
#[allow(unreachable_pub, reason = "the bindings re-export it")]
pub struct NnError {
    code: ErrorCode,
    data: String,
}

/// A graph as a guest holds it.
#[allow(unreachable_pub, reason = "the bindings re-export it")]
pub struct NamedGraph(Arc<GraphEntry>);

/// An execution context as a guest holds it: nothing beyond the graph.
#[allow(unreachable_pub, reason = "the bindings re-export it")]
pub struct ExecutionContext(Arc<GraphEntry>);

/// A dropout's mask on its way into a run.
struct Mask<'g> {
    port: &'g str,
    tensor: Tensor,
    charge: Arc<Charge>,
}

type NamedTensors = Vec<(String, Resource<GuestTensor>)>;

impl Guest<Training> {
    /// Answers with an error, and remembers it in case the guest gives up.
    fn nn_error<T>(
        &mut self,
        code: ErrorCode,
        kind: ModuleErrorKind,
        message: String,
    ) -> Result<Result<T, Resource<NnError>>> {
        let data = self.answer(kind, message);
        self.push(NnError { code, data }).map(Err)
    }
}

impl tensor::Host for Guest<Training> {}

impl tensor::HostTensor for Guest<Training> {
    fn new(&mut self, dimensions: Vec<u32>, ty: TensorType, data: Vec<u8>) -> Result<Resource<GuestTensor>> {
        let shape = |message: String| Refusal::new(ModuleErrorKind::WrongShape, message);
        let dims: Vec<usize> = dimensions.iter().map(|&dim| dim as usize).collect();
        let dtype = host_type(ty);
        let wanted = Shape::new(&dims).map_err(|error| shape(format!("a tensor of the module: {error}")))?;
        let bytes = wanted.elements() * dtype.size_bytes();
        if bytes != data.len() {
            let seen = data.len();
            return Err(shape(format!(
                "a tensor of the module: {dims:?} of {} takes {bytes} bytes, seen {seen}",
                dtype.name()
            ))
            .into());
        }
        let write = self.world.grants.tensor_access.write;
        if !write && wanted.elements() != 1 {
            let message = format!(
                "the module makes a tensor of shape {dims:?}; without `tensor_access = \"write\"` in the policy it may make \
                 scalars only"
            );
            return Err(Refusal::new(ModuleErrorKind::Denied, message).into());
        }
        let charge = self.budget.charge(bytes as u64, "a tensor of the module")?;
        let tensor = Tensor::new(dtype, wanted, Bytes::from(data)).map_err(|error| shape(error.to_string()))?;
        let label = if write { Label::Made } else { Label::Scalar };
        self.push(GuestTensor {
            tensor,
            label,
            computed: false,
            _charge: charge,
        })
    }

    fn dimensions(&mut self, tensor: Resource<GuestTensor>) -> Result<Vec<u32>> {
        Ok(wit_dimensions(self.table.get(&tensor)?.tensor.shape().dims())?)
    }

    fn ty(&mut self, tensor: Resource<GuestTensor>) -> Result<TensorType> {
        Ok(wit_type(self.table.get(&tensor)?.tensor.dtype()))
    }

    fn data(&mut self, tensor: Resource<GuestTensor>) -> Result<Vec<u8>> {
        let held = self.table.get(&tensor)?;
        let readable = match &held.label {
            Label::Scalar | Label::Made => true,
            Label::Output { port, .. } => held.tensor.shape().elements() == 1 && self.world.grants.reads.contains(port),
            _ => false,
        };
        if !readable && !self.world.grants.tensor_access.read {
            let hint = match &held.label {
                Label::Output { port, .. } if held.tensor.shape().elements() == 1 => {
                    format!("list `{port}` in its `reads`, or grant")
                }
                _ => "grant".to_owned(),
            };
            let message = format!(
                "the module reads {}; the policy would have to {hint} `tensor_access = \"read\"`",
                held.label
            );
            return Err(Refusal::new(ModuleErrorKind::Denied, message).into());
        }
        Ok(held.tensor.bytes().to_vec())
    }

    fn drop(&mut self, tensor: Resource<GuestTensor>) -> Result<()> {
        self.table.delete(tensor)?;
        Ok(())
    }
}

impl errors::Host for Guest<Training> {}

impl errors::HostError for Guest<Training> {
    fn code(&mut self, error: Resource<NnError>) -> Result<ErrorCode> {
        Ok(self.table.get(&error)?.code)
    }

    fn data(&mut self, error: Resource<NnError>) -> Result<String> {
        Ok(self.table.get(&error)?.data.clone())
    }

    fn drop(&mut self, error: Resource<NnError>) -> Result<()> {
        self.table.delete(error)?;
        Ok(())
    }
}

impl graph::Host for Guest<Training> {
    fn load(
        &mut self,
        _builder: Vec<Vec<u8>>,
        _encoding: GraphEncoding,
        _target: ExecutionTarget,
    ) -> Result<Result<Resource<NamedGraph>, Resource<NnError>>> {
        let message = "`load` is not for modules: the policy names the graphs, use `load-by-name`".to_owned();
        self.nn_error(ErrorCode::Security, ModuleErrorKind::Denied, message)
    }

    fn load_by_name(&mut self, name: String) -> Result<Result<Resource<NamedGraph>, Resource<NnError>>> {
        if let Some(entry) = self.world.graphs.get(&name) {
            let graph = NamedGraph(Arc::clone(entry));
            return self.push(graph).map(Ok);
        }
        let known: Vec<_> = self.world.graphs.keys().map(String::as_str).collect();
        let message = format!("no graph `{name}`; the policy gives this module: {}", known.join(", "));
        self.nn_error(ErrorCode::NotFound, ModuleErrorKind::UnknownGraph, message)
    }
}

impl graph::HostGraph for Guest<Training> {
    fn init_execution_context(
        &mut self,
        graph: Resource<NamedGraph>,
    ) -> Result<Result<Resource<ExecutionContext>, Resource<NnError>>> {
        let context = ExecutionContext(Arc::clone(&self.table.get(&graph)?.0));
        self.push(context).map(Ok)
    }

    fn drop(&mut self, graph: Resource<NamedGraph>) -> Result<()> {
        self.table.delete(graph)?;
        Ok(())
    }
}

impl inference::Host for Guest<Training> {}

impl inference::HostGraphExecutionContext for Guest<Training> {
    fn compute(
        &mut self,
        context: Resource<ExecutionContext>,
        inputs: NamedTensors,
    ) -> Result<Result<NamedTensors, Resource<NnError>>> {
        let graph = Arc::clone(&self.table.get(&context)?.0);
        // The standard's `compute` takes the handles over, whatever comes of it.
        let mut given = BTreeMap::new();
        let mut twice = None;
        for (name, handle) in inputs {
            let tensor = self.table.delete(handle)?;
            if given.insert(name.clone(), tensor).is_some() {
                twice = Some(name);
            }
        }
        if let Some(name) = twice {
            let message = format!("graph `{}`: input `{name}` is given twice", graph.name);
            return self.nn_error(ErrorCode::InvalidArgument, ModuleErrorKind::Argument, message);
        }
        let mut inputs = Vec::with_capacity(graph.inputs.len());
        // They last as long as the run.
        let mut charges = Vec::with_capacity(graph.inputs.len());
        let mut rows: BTreeMap<Arc<str>, u64> = BTreeMap::new();
        for port in &graph.inputs {
            let tensor = given.remove(&port.name);
            if is_mask(port) && tensor.is_none() {
                continue;
            }
            let Some(tensor) = tensor else {
                let message = format!("graph `{}`: input `{}` is not given", graph.name, port.name);
                return self.nn_error(ErrorCode::InvalidArgument, ModuleErrorKind::Argument, message);
            };
            admit(&graph.name, port, &tensor, &self.world.grants)?;
            let (seen_type, seen_dims) = (tensor.tensor.dtype(), tensor.tensor.shape().dims());
            if seen_type != port.dtype || seen_dims != &port.shape[..] {
                let message = format!(
                    "graph `{}`, port `{}`: seen {} {seen_dims:?}, wanted {} {:?}",
                    graph.name,
                    port.name,
                    seen_type.name(),
                    port.dtype.name(),
                    &port.shape[..]
                );
                return self.nn_error(ErrorCode::InvalidArgument, ModuleErrorKind::WrongShape, message);
            }
            if let Label::Data { dataset, .. } = &tensor.label {
                let fed = rows.entry(Arc::clone(dataset)).or_default();
                *fed = (*fed).max(seen_dims.first().map_or(0, |&rows| rows as u64));
            }
            inputs.push((port.name.as_str(), tensor.tensor));
            charges.push(tensor._charge);
        }
        if let Some(name) = given.keys().next() {
            let message = format!("graph `{}` has no input `{name}`", graph.name);
            return self.nn_error(ErrorCode::InvalidArgument, ModuleErrorKind::Argument, message);
        }
        for mask in self.masks(&graph)? {
            inputs.push((mask.port, mask.tensor));
            charges.push(mask.charge);
        }
        let outputs = match self.run(&graph, &inputs)? {
            Ok(outputs) => outputs,
            Err(message) => return self.nn_error(ErrorCode::RuntimeError, ModuleErrorKind::Engine, message),
        };
        if graph.trains && !self.world.grants.tensor_access.write {
            for (dataset, fed) in rows {
                *self.world.fed.entry(dataset).or_default() += fed;
            }
        }
        self.hand_over(outputs).map(Ok)
    }

    fn drop(&mut self, context: Resource<ExecutionContext>) -> Result<()> {
        self.table.delete(context)?;
        Ok(())
    }
}

impl Guest<Training> {
    /// The masks of a run's dropouts.
    fn masks<'g>(&mut self, graph: &'g GraphEntry) -> Result<Vec<Mask<'g>>, Refusal> {
        let mut masks = Vec::new();
        for port in &graph.inputs {
            let PortKind::Mask { dropout, ratio } = port.kind else {
                continue;
            };
            let charge = self.budget.charge(port_bytes(port)?, "a mask of a dropout")?;
            let seed = MaskSeed {
                round: self.world.seed,
                graph: &graph.name,
                run: self.world.masked,
            };
            masks.push(Mask {
                port: &port.name,
                tensor: seed.draw(port, dropout, ratio)?,
                charge,
            });
        }
        self.world.masked += u64::from(!masks.is_empty());
        Ok(masks)
    }

    /// Runs a graph on inputs that fit; the inner error is the engine's, in words.
    fn run(
        &mut self,
        graph: &GraphEntry,
        inputs: &[(&str, Tensor)],
    ) -> Result<Result<Vec<(String, GuestTensor)>, String>, Refusal> {
        let mut charges = Vec::with_capacity(graph.outputs.len());
        for port in &graph.outputs {
            charges.push(self.budget.charge(port_bytes(port)?, "an output")?);
        }
        let deadline = self.deadline.left()?.min(self.limits.compute);
        let ran = {
            let mut compiled = graph.compiled.lock().unwrap_or_else(PoisonError::into_inner);
            compiled.run(inputs, Some(deadline))
        };
        let ran = match ran {
            Ok(outputs) => outputs,
            Err(EngineError::Deadline { .. }) => {
                let message = format!("graph `{}` took more than {:.3} s", graph.name, deadline.as_secs_f64());
                return Err(Refusal::new(ModuleErrorKind::Deadline, message));
            }
            Err(error) => return Ok(Err(format!("graph `{}`: {error}", graph.name))),
        };
        let mut by_name: BTreeMap<String, Tensor> = ran.into_iter().collect();
        let mut outputs = Vec::with_capacity(charges.len());
        for (port, charge) in graph.outputs.iter().zip(charges) {
            let tensor = by_name
                .remove(&port.name)
                .filter(|tensor| tensor.dtype() == port.dtype && tensor.shape().dims() == &port.shape[..]);
            let Some(tensor) = tensor else {
                return Ok(Err(format!(
                    "graph `{}`: the engine gave no fitting output `{}`",
                    graph.name, port.name
                )));
            };
            if matches!(port.kind, PortKind::Loss) && tensor.first_not_finite().is_some() {
                let message = format!("graph `{}`: the loss is not finite; the training diverged", graph.name);
                return Err(Refusal::new(ModuleErrorKind::NotFinite, message));
            }
            let label = output_label(&graph.name, port);
            outputs.push((
                port.name.clone(),
                GuestTensor {
                    tensor,
                    label,
                    computed: true,
                    _charge: charge,
                },
            ));
        }
        Ok(Ok(outputs))
    }
}

fn host_type(ty: TensorType) -> Dtype {
    match ty {
        TensorType::Fp16 => Dtype::F16,
        TensorType::Fp32 => Dtype::F32,
        TensorType::Fp64 => Dtype::F64,
        TensorType::Bf16 => Dtype::Bf16,
        TensorType::U8 => Dtype::U8,
        TensorType::I32 => Dtype::I32,
        TensorType::I64 => Dtype::I64,
    }
}
