//! tract (<https://github.com/sonos/tract>), the pure-Rust fallback. One thread; inputs are copied, outputs are not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cloister_graph::{EngineGraph, Port};
use cloister_tensor::{Dtype, Shape, Tensor};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::plan::{SimplePlan, eval};

use crate::error::bounded;
use crate::intake::{Intake, described};
use crate::{Backend, CompileOptions, Compiled, EngineError};

/// The version that is linked.
pub const VERSION: &str = "0.23.9";

const NAME: &str = "tract 0.23.9";

type TractTensor = tract_onnx::prelude::Tensor;

/// The backend.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tract;

impl Tract {
    /// The backend; there is nothing to load.
    pub const fn new() -> Self {
        Self
    }
}

impl Backend for Tract {
    fn name(&self) -> &str {
        NAME
    }

    fn can(&self, options: &CompileOptions) -> Result<(), EngineError> {
        options.precision.f32_alone(NAME)
    }

    fn compile(&self, graph: &EngineGraph, options: &CompileOptions) -> Result<Box<dyn Compiled>, EngineError> {
        self.can(options)?;
        let refuse = |error: TractError| EngineError::Compile {
            backend: NAME.into(),
            digest: graph.digest(),
            cause: bounded(format!("{error:#}")),
        };
        let plan = plan(crate::onnx(graph, NAME)?, graph).map_err(refuse)?;
        check_ports(&plan, graph)?;
        Ok(Box::new(CompiledByTract {
            intake: Intake::new(graph.inputs()),
            outputs: graph.outputs().to_vec(),
            plan,
        }))
    }
}

fn plan(file: &[u8], graph: &EngineGraph) -> TractResult<Arc<TypedSimplePlan>> {
    let mut model = onnx().model_for_read(&mut &file[..])?;
    for (at, port) in graph.inputs().iter().enumerate() {
        model.set_input_fact(at, InferenceFact::dt_shape(datum_type(port.dtype), port.shape.iter()))?;
    }
    let typed = model.into_typed()?;
    // Some rewrites of this version fail on graphs that are right (a broadcast whose reshaped result meets a constant matrix):
    // such a graph runs as it stands, slower.
    match typed.clone().into_optimized() {
        Ok(optimized) => SimplePlan::new(optimized),
        Err(_) => SimplePlan::new(typed),
    }
}

/// Compares what tract made of the graph with what the graph declares.
fn check_ports(plan: &TypedSimplePlan, graph: &EngineGraph) -> Result<(), EngineError> {
    let model = plan.model();
    let differ = |seen: String, wanted: String| EngineError::Ports {
        backend: NAME.into(),
        digest: graph.digest(),
        seen,
        wanted,
    };
    let counts = |inputs: usize, outputs: usize| format!("{inputs} inputs and {outputs} outputs");
    if (model.inputs.len(), model.outputs.len()) != (graph.inputs().len(), graph.outputs().len()) {
        return Err(differ(
            counts(model.inputs.len(), model.outputs.len()),
            counts(graph.inputs().len(), graph.outputs().len()),
        ));
    }
    for (outlet, port) in model.inputs.iter().zip(graph.inputs()) {
        let name = &model.node(outlet.node).name;
        if name != &port.name {
            return Err(differ(format!("input `{name}`"), format!("input `{}`", port.name)));
        }
    }
    Ok(())
}

struct CompiledByTract {
    intake: Intake,
    outputs: Vec<Port>,
    plan: Arc<TypedSimplePlan>,
}

impl Compiled for CompiledByTract {
    fn inputs(&self) -> &[Port] {
        self.intake.ports()
    }

    fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    fn run(
        &mut self,
        inputs: &[(&str, Tensor)],
        deadline: Option<Duration>,
    ) -> Result<Vec<(String, Tensor)>, EngineError> {
        let begin = Instant::now();
        let is_late = |deadline: Option<Duration>| deadline.is_some_and(|deadline| begin.elapsed() >= deadline);
        let inputs: TVec<TValue> = self
            .intake
            .arrange(inputs)?
            .into_iter()
            .map(|tensor| to_tract(tensor).map(IntoTValue::into_tvalue))
            .collect::<TractResult<_>>()
            .map_err(|error| failed("setting an input", &error))?;
        let mut state = self.plan.spawn().map_err(|error| failed("preparing a run", &error))?;
        let mut late = false;
        let result = state.run_plan_with_eval(inputs, |context, op_state, node, values| {
            if is_late(deadline) {
                late = true;
                return Err(TractError::msg("the deadline passed"));
            }
            eval(context, op_state, node, values)
        });
        match result {
            _ if late => Err(EngineError::Deadline {
                after: deadline.unwrap_or_default(),
            }),
            Err(error) => Err(failed("running the graph", &error)),
            Ok(values) => self
                .outputs
                .iter()
                .zip(values)
                .map(|(port, value)| from_tract(port, value))
                .collect(),
        }
    }
}

fn failed(during: &'static str, error: &TractError) -> EngineError {
    EngineError::Run {
        backend: NAME.into(),
        during,
        cause: bounded(format!("{error:#}")),
    }
}

fn to_tract(tensor: &Tensor) -> TractResult<TractTensor> {
    let mut copy = TractTensor::zero_dt(datum_type(tensor.dtype()), tensor.shape().dims())?;
    copy.as_bytes_mut().copy_from_slice(tensor.bytes());
    Ok(copy)
}

fn from_tract(port: &Port, value: TValue) -> Result<(String, Tensor), EngineError> {
    let unlike = |seen: String| EngineError::Run {
        backend: NAME.into(),
        during: "reading an output",
        cause: format!(
            "output `{}` is {seen}, wanted {}",
            port.name,
            described(port.dtype, &port.shape)
        ),
    };
    let mut tensor = value.into_arc_tensor();
    let wanted = datum_type(port.dtype);
    // Integers that come from shapes are symbolic inside tract.
    if tensor.datum_type() == TDim::datum_type() {
        let cast = tensor
            .cast_to_dt(wanted)
            .map_err(|error| failed("reading an output", &error))?
            .into_owned();
        tensor = cast.into_arc_tensor();
    }
    if tensor.datum_type() != wanted || tensor.shape() != port.shape {
        return Err(unlike(format!("{:?} {:?}", tensor.datum_type(), tensor.shape())));
    }
    if tensor.as_plain_ram().is_none() {
        return Err(unlike("not in plain memory".into()));
    }
    let shape = Shape::new(&port.shape).map_err(|error| unlike(error.to_string()))?;
    let tensor = Tensor::new(port.dtype, shape, Bytes::from_owner(Plain(tensor)));
    Ok((port.name.clone(), tensor.map_err(|error| unlike(error.to_string()))?))
}

/// One of tract's tensors, known to lie in plain memory, seen as bytes.
struct Plain(Arc<TractTensor>);

impl AsRef<[u8]> for Plain {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

const fn datum_type(dtype: Dtype) -> DatumType {
    match dtype {
        Dtype::F32 => DatumType::F32,
        Dtype::F64 => DatumType::F64,
        Dtype::F16 => DatumType::F16,
        // tract has no bf16; the bits travel as they are, and a graph that computes on them is refused at compiling.
        Dtype::Bf16 => DatumType::U16,
        Dtype::I64 => DatumType::I64,
        Dtype::I32 => DatumType::I32,
        Dtype::U8 => DatumType::U8,
        Dtype::Bool => DatumType::Bool,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_tells_the_linked_version() {
        assert_eq!(NAME, format!("tract {VERSION}"));
        let lock = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.lock")).unwrap();
        assert!(lock.contains(&format!("name = \"tract-onnx\"\nversion = \"{VERSION}\"")));
    }

    #[test]
    fn tensors_pass_unchanged() {
        for dtype in Dtype::ALL {
            let tensor = Tensor::zeros(dtype, Shape::new(&[2, 3]).unwrap());
            assert_eq!(to_tract(&tensor).unwrap().as_bytes(), &tensor.bytes()[..]);
        }
    }
}
