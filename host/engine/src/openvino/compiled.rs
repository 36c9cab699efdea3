//! A graph compiled by OpenVINO.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use cloister_graph::{EngineGraph, Port};
use cloister_tensor::{Shape, Tensor};

use super::{failed, ffi};
use crate::intake::{Intake, described};
use crate::pool::Pool;
use crate::watchdog::Watchdog;
use crate::{Compiled, EngineError};

/// Buffers that a compiled graph keeps for later, in sets of its outputs: those of the last step live on as the inputs
/// of the next one, and a third set may be on its way out.
const IDLE_OUTPUT_SETS: usize = 3;

pub(super) struct CompiledByOpenVino {
    // In the order in which they are to be dropped.
    request: Option<ffi::Request>,
    model: ffi::CompiledModel,
    _core: Arc<ffi::Core>,
    watchdog: Arc<Watchdog>,
    backend: Arc<str>,
    intake: Intake,
    /// For each input of the compiled model, the graph's that goes there.
    taken: Vec<usize>,
    outputs: Vec<(Port, Shape)>,
    output_ports: Vec<Port>,
    pool: Pool,
}

impl CompiledByOpenVino {
    /// Compares what OpenVINO made of the graph with what the graph declares.
    pub(super) fn new(
        backend: Arc<str>,
        core: Arc<ffi::Core>,
        watchdog: Arc<Watchdog>,
        model: ffi::CompiledModel,
        graph: &EngineGraph,
    ) -> Result<Self, EngineError> {
        let asked = |failure| failed(&backend, failure);
        let differ = |(seen, wanted): (String, String)| EngineError::Ports {
            backend: backend.to_string(),
            digest: graph.digest(),
            seen,
            wanted,
        };
        let taken = match_inputs(&model.inputs().map_err(asked)?, graph.inputs()).map_err(differ)?;
        check_outputs(&model.outputs().map_err(asked)?, graph.outputs()).map_err(differ)?;
        let mut outputs = Vec::with_capacity(graph.outputs().len());
        let mut set_bytes = 0usize;
        for port in graph.outputs() {
            let shape = Shape::new(&port.shape)
                .map_err(|error| differ((error.to_string(), format!("output `{}`", port.name))))?;
            set_bytes = set_bytes.saturating_add(shape.elements() * port.dtype.size_bytes() + 64);
            outputs.push((port.clone(), shape));
        }
        Ok(Self {
            request: None,
            model,
            _core: core,
            watchdog,
            backend,
            intake: Intake::new(graph.inputs()),
            taken,
            outputs,
            output_ports: graph.outputs().to_vec(),
            pool: Pool::new(set_bytes.saturating_mul(IDLE_OUTPUT_SETS)),
        })
    }
}

/// What the backend sees, and what the graph declares.
type Difference = (String, String);

/// For each input of the compiled model, which of the graph's it is. An input that nothing in the graph uses (`step`
/// with plain gradient descent) is not in the compiled model; callers give it all the same, and it is checked.
fn match_inputs(seen: &[ffi::PortInfo], declared: &[Port]) -> Result<Vec<usize>, Difference> {
    let mut left: HashMap<&str, usize> = declared
        .iter()
        .enumerate()
        .map(|(at, port)| (port.name.as_str(), at))
        .collect();
    seen.iter()
        .map(|seen| {
            let at = left.remove(seen.name.as_str());
            let at = at.ok_or_else(|| (format!("an input `{}`", seen.name), "no such input".to_owned()))?;
            compare("input", seen, &declared[at]).map(|()| at)
        })
        .collect()
}

/// Outputs are set by index, so index by index they must be the same.
fn check_outputs(seen: &[ffi::PortInfo], declared: &[Port]) -> Result<(), Difference> {
    if seen.len() != declared.len() {
        return Err((format!("{} outputs", seen.len()), declared.len().to_string()));
    }
    seen.iter()
        .zip(declared)
        .try_for_each(|(seen, declared)| compare("output", seen, declared))
}

fn compare(side: &str, seen: &ffi::PortInfo, declared: &Port) -> Result<(), Difference> {
    if seen.name == declared.name && seen.dtype == Some(declared.dtype) && seen.dims == declared.shape {
        return Ok(());
    }
    let dtype = seen
        .dtype
        .map_or_else(|| "of an unknown type".to_owned(), |dtype| dtype.to_string());
    Err((
        format!("{side} `{}` {dtype} {:?}", seen.name, seen.dims),
        format!(
            "{side} `{}` {}",
            declared.name,
            described(declared.dtype, &declared.shape)
        ),
    ))
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
        let arranged = self.intake.arrange(inputs)?;
        let inputs: Vec<&Tensor> = self.taken.iter().map(|&at| arranged[at]).collect();
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
        let buffers = request
            .run(&inputs, buffers, deadline.map(|after| (after, &*self.watchdog)))
            .map_err(|failure| match (failure.deadline, deadline) {
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
