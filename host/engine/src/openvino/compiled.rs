//! A graph compiled by OpenVINO.

use std::sync::Arc;
use std::time::Duration;

use cloister_graph::{EngineGraph, Port};
use cloister_tensor::{Shape, Tensor};

use super::{failed, ffi};
use crate::intake::{Intake, described};
use crate::pool::Pool;
use crate::{Compiled, EngineError};

/// Buffers that a compiled graph keeps for later, in sets of its outputs: those of the last step live on as the inputs
/// of the next one, and a third set may be on its way out.
const IDLE_OUTPUT_SETS: usize = 3;

pub(super) struct CompiledByOpenVino {
    // In the order in which they are to be dropped.
    request: Option<ffi::Request>,
    model: ffi::CompiledModel,
    _core: Arc<ffi::Core>,
    backend: Arc<str>,
    intake: Intake,
    outputs: Vec<(Port, Shape)>,
    output_ports: Vec<Port>,
    pool: Pool,
}

impl CompiledByOpenVino {
    /// Compares what OpenVINO made of the graph with what the graph declares.
    pub(super) fn new(
        backend: Arc<str>,
        core: Arc<ffi::Core>,
        model: ffi::CompiledModel,
        graph: &EngineGraph,
    ) -> Result<Self, EngineError> {
        let seen = |failure| failed(&backend, failure);
        check_ports(&backend, graph, "input", &model.inputs().map_err(seen)?, graph.inputs())?;
        check_ports(&backend, graph, "output", &model.outputs().map_err(seen)?, graph.outputs())?;
        let mut outputs = Vec::with_capacity(graph.outputs().len());
        let mut set_bytes = 0usize;
        for port in graph.outputs() {
            let shape = Shape::new(&port.shape).map_err(|error| EngineError::Ports {
                backend: backend.to_string(),
                digest: graph.digest(),
                seen: error.to_string(),
                wanted: format!("output `{}`", port.name),
            })?;
            set_bytes = set_bytes.saturating_add(shape.elements() * port.dtype.size_bytes() + 64);
            outputs.push((port.clone(), shape));
        }
        Ok(Self {
            request: None,
            model,
            _core: core,
            backend,
            intake: Intake::new(graph.inputs()),
            outputs,
            output_ports: graph.outputs().to_vec(),
            pool: Pool::new(set_bytes.saturating_mul(IDLE_OUTPUT_SETS)),
        })
    }
}

/// Ports are set by index, so index by index they must be the same.
fn check_ports(
    backend: &str,
    graph: &EngineGraph,
    side: &str,
    seen: &[ffi::PortInfo],
    wanted: &[Port],
) -> Result<(), EngineError> {
    let differ = |seen: String, wanted: String| EngineError::Ports {
        backend: backend.into(),
        digest: graph.digest(),
        seen,
        wanted,
    };
    if seen.len() != wanted.len() {
        return Err(differ(format!("{} {side}s", seen.len()), wanted.len().to_string()));
    }
    for (seen, wanted) in seen.iter().zip(wanted) {
        let same = seen.name == wanted.name && seen.dtype == Some(wanted.dtype) && seen.dims == wanted.shape;
        if !same {
            let dtype = seen.dtype.map_or_else(|| "of an unknown type".to_owned(), |dtype| dtype.to_string());
            return Err(differ(
                format!("{side} `{}` {dtype} {:?}", seen.name, seen.dims),
                format!("{side} `{}` {}", wanted.name, described(wanted.dtype, &wanted.shape)),
            ));
        }
    }
    Ok(())
}

impl Compiled for CompiledByOpenVino {
    fn inputs(&self) -> &[Port] {
        self.intake.ports()
    }

    fn outputs(&self) -> &[Port] {
        &self.output_ports
    }

    fn run(
        &mut self,
        inputs: &[(&str, Tensor)],
        deadline: Option<Duration>,
    ) -> Result<Vec<(String, Tensor)>, EngineError> {
        let inputs = self.intake.arrange(inputs)?;
        let buffers = self
            .outputs
            .iter()
            .map(|(port, shape)| ffi::Output {
                dtype: port.dtype,
                dims: port.shape.clone(),
                buffer: self.pool.take(shape.elements() * port.dtype.size_bytes()),
            })
            .collect();
        // Taken out, and put back only after success: a request that failed is not used again.
        let mut request = match self.request.take() {
            Some(request) => request,
            None => self.model.request().map_err(|failure| failed(&self.backend, failure))?,
        };
        let buffers = request.run(&inputs, buffers, deadline).map_err(|failure| match (failure.deadline, deadline) {
            (true, Some(after)) => EngineError::Deadline { after },
            _ => failed(&self.backend, failure),
        })?;
        self.request = Some(request);
        self.outputs
            .iter()
            .zip(buffers)
            .map(|((port, shape), buffer)| {
                let tensor = Tensor::new(port.dtype, shape.clone(), buffer.into_bytes());
                let tensor = tensor.map_err(|error| EngineError::Run {
                    backend: self.backend.to_string(),
                    during: "reading an output",
                    cause: format!("output `{}`: {error}", port.name),
                })?;
                Ok((port.name.clone(), tensor))
            })
            .collect()
    }
}
