//! A graph compiled by ONNX Runtime.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cloister_engine::{Cancel, Compiled, EngineError, Intake, Watchdog, described};
use cloister_graph::{EngineGraph, Port};
use cloister_tensor::Tensor;
use ort::session::{RunOptions, Session, SessionInputValue};
use ort::value::{DynValue, Outlet};

use crate::{NAME, failed, values};

/// A deadline beyond this is none: it keeps arithmetic on points in time from overflowing.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);

pub(crate) struct CompiledByOnnxRuntime {
    session: Session,
    watchdog: Arc<Watchdog>,
    intake: Intake,
    /// For each input of the session, the graph's that goes there.
    taken: Vec<usize>,
    outputs: Vec<Port>,
}

impl CompiledByOnnxRuntime {
    /// Compares what the library made of the graph with what the graph declares.
    pub(crate) fn new(session: Session, watchdog: Arc<Watchdog>, graph: &EngineGraph) -> Result<Self, EngineError> {
        let differ = |(seen, wanted): (String, String)| EngineError::Ports {
            backend: NAME.into(),
            digest: graph.digest(),
            seen,
            wanted,
        };
        let taken = match_inputs(session.inputs(), graph.inputs()).map_err(differ)?;
        check_outputs(session.outputs(), graph.outputs()).map_err(differ)?;
        Ok(Self {
            session,
            watchdog,
            intake: Intake::new(graph.inputs()),
            taken,
            outputs: graph.outputs().to_vec(),
        })
    }
}

/// What the library sees, and what the graph declares.
type Difference = (String, String);

/// For each input of the session, which of the graph's it is. An input that nothing uses may not be there any more.
fn match_inputs(seen: &[Outlet], declared: &[Port]) -> Result<Vec<usize>, Difference> {
    let mut left: HashMap<&str, usize> = HashMap::new();
    for (at, port) in declared.iter().enumerate() {
        left.insert(&port.name, at);
    }
    seen.iter()
        .map(|seen| {
            let at = left.remove(seen.name());
            let at = at.ok_or_else(|| (format!("an input `{}`", seen.name()), "no such input".to_owned()))?;
            compare("input", seen, &declared[at]).map(|()| at)
        })
        .collect()
}

fn check_outputs(seen: &[Outlet], declared: &[Port]) -> Result<(), Difference> {
    if seen.len() != declared.len() {
        return Err((format!("{} outputs", seen.len()), declared.len().to_string()));
    }
    seen.iter()
        .zip(declared)
        .try_for_each(|(seen, declared)| compare("output", seen, declared))
}

fn compare(side: &str, seen: &Outlet, declared: &Port) -> Result<(), Difference> {
    let dtype = seen.dtype().tensor_type().and_then(values::dtype);
    let dims = seen.dtype().tensor_shape().map(|shape| &shape[..]);
    let same = |dims: &[i64]| {
        let wanted = declared.shape.iter().map(|dim| i64::try_from(*dim).ok());
        dims.len() == declared.shape.len() && dims.iter().zip(wanted).all(|(seen, wanted)| Some(*seen) == wanted)
    };
    if seen.name() == declared.name && dtype == Some(declared.dtype) && dims.is_some_and(same) {
        return Ok(());
    }
    Err((
        format!("{side} `{}` {}", seen.name(), seen.dtype()),
        format!(
            "{side} `{}` {}",
            declared.name,
            described(declared.dtype, &declared.shape)
        ),
    ))
}

/// A run under way.
struct Running(RunOptions);

impl Cancel for Running {
    fn cancel(&self) {
        // A run that can't be told to end goes on to its end; its result is refused then.
        let _ = self.0.terminate();
    }
}

impl Compiled for CompiledByOnnxRuntime {
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
        let arranged = self.intake.arrange(inputs)?;
        let late = || {
            deadline
                .filter(|after| begin.elapsed() >= *after)
                .map(|after| EngineError::Deadline { after })
        };
        if let Some(late) = late() {
            return Err(late);
        }
        let ports = self.intake.ports();
        let lent: Vec<values::Lent<'_>> = self.taken.iter().map(|&at| values::lent(arranged[at])).collect();
        let fed = self.taken.iter().zip(&lent).map(|(&at, lent)| {
            let value = values::view(lent, &ports[at].shape).map_err(|error| failed("setting an input", error))?;
            Ok((Cow::Borrowed(ports[at].name.as_str()), value))
        });
        let fed: Vec<(Cow<'_, str>, SessionInputValue<'_>)> = fed.collect::<Result<_, EngineError>>()?;
        let running = RunOptions::new().map_err(|error| failed("preparing a run", error))?;
        let running = Arc::new(Running(running));
        let watch = deadline.filter(|after| *after < LONGEST_WAIT).map(|after| {
            let run: Arc<dyn Cancel> = Arc::clone(&running) as Arc<dyn Cancel>;
            self.watchdog.watch(run, begin + after)
        });
        let watch = watch.transpose().map_err(|error| failed("preparing a run", error))?;
        let ended = self.session.run_with_options(fed, &running.0);
        drop(watch);
        if let Some(late) = late() {
            return Err(late);
        }
        let made = ended.map_err(|error| failed("running the graph", error))?;
        let inputs: Vec<&Tensor> = arranged;
        self.outputs
            .iter()
            .zip(made)
            .map(|(port, (_, value))| output(port, value, &inputs))
            .collect()
    }
}

fn output(port: &Port, value: DynValue, inputs: &[&Tensor]) -> Result<(String, Tensor), EngineError> {
    let tensor = values::taken(port, value, inputs).map_err(|cause| EngineError::Run {
        backend: NAME.into(),
        during: "reading an output",
        cause: format!("output `{}`: {cause}", port.name),
    })?;
    Ok((port.name.clone(), tensor))
}
