//! `cloister graph run`: any graph, on named tensors, on any engine.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cloister_engine::{Backend, CompileOptions, Precision, openvino, tract};
use cloister_graph::{EngineGraph, Limits, Model, Port, PortKind};
use cloister_tensor::{ReadLimits, Shape, Tensor, TensorMap, npz, safetensors};
use miette::Report;

use crate::engines::Further;
use crate::files;
use crate::keeper::runner::unused_threads;
use crate::ui::{Exit, Ui, fail, failed, unreadable};

/// Tensors that an error about the inputs names at most.
const MAX_PROBLEMS: usize = 20;
/// How the outputs of a step begin that are inputs of the next one.
const NEXT: &str = "next/";

/// Run a graph once on named tensors and write what comes out.
///
/// Every input of the graph must be fed by its name, with its type and shape; `cloister graph show` prints them.
/// Prints a line an output.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  cloister graph run train.onnx --feed batch.npz --weights model.onnx -o step.safetensors
  cloister graph run eval.onnx --feed batch.npz --weights model.safetensors --backend tract
  cloister graph run model.onnx --feed rows.npz -o logits.npz
  cloister graph run train.torchstep --feed batch.npz --weights model.safetensors --backend libtorch

A feed by NumPy:
  numpy.savez('batch.npz', x=x.astype('float32'), labels=y.astype('int64'),
              learning_rate=numpy.float32([0.1]), step=numpy.int64([1]))")]
pub struct GraphRunArgs {
    /// The graph: a training or evaluation graph, or a forward model with its weights inside
    #[arg(value_name = "GRAPH.onnx")]
    graph: PathBuf,
    /// Tensors by the names of the graph's inputs (.npz or .safetensors); may be given more than once
    #[arg(long, value_name = "FILE", required = true)]
    feed: Vec<PathBuf>,
    /// Parameters and statistics: an ONNX model's own, or a .safetensors or .npz file; names that the graph does not have
    /// are left out. The outputs of an earlier run do as well: `next/NAME` becomes NAME. Optimizer state that nothing gives starts with
    /// zeros. May be given more than once: of a name that several have, the last one counts
    #[arg(long, value_name = "FILE")]
    weights: Vec<PathBuf>,
    /// The engine; without this, OpenVINO if its folder is known, else tract
    #[arg(long, value_enum)]
    backend: Option<BackendName>,
    /// Folder of OpenVINO's libraries
    #[arg(long, value_name = "DIR", env = "CLOISTER_OPENVINO_DIR")]
    openvino_dir: Option<PathBuf>,
    /// Folder of the libraries of ONNX Runtime or libtorch; without it, CLOISTER_ONNXRUNTIME_DIR or CLOISTER_LIBTORCH_DIR
    #[arg(long, value_name = "DIR")]
    library_dir: Option<PathBuf>,
    /// Threads of the engine; tract runs on one
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// What the engine computes in where the graph says f32, as a policy's `[compute]` says it
    #[arg(long, value_enum, default_value_t = PrecisionName::F32)]
    precision: PrecisionName,
    /// Give up after this many seconds
    #[arg(long, value_name = "SECONDS")]
    deadline_s: Option<u32>,
    /// Where the outputs go, by the file's ending: .safetensors or .npz
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    output: Option<PathBuf>,
}

/// An engine by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum BackendName {
    /// OpenVINO on the CPU.
    Openvino,
    /// tract, in pure Rust: slower, nothing to install.
    Tract,
    /// ONNX Runtime, in a binary built with the feature `onnxruntime`.
    Onnxruntime,
    /// libtorch, for steps in TorchScript, in a binary built with the feature `libtorch`.
    Libtorch,
}

/// A precision by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum PrecisionName {
    /// f32.
    F32,
    /// bf16, on OpenVINO and a processor that has it: faster, and coarser.
    Bf16,
}

impl From<PrecisionName> for Precision {
    fn from(name: PrecisionName) -> Self {
        match name {
            PrecisionName::F32 => Self::F32,
            PrecisionName::Bf16 => Self::Bf16,
        }
    }
}

/// Runs the command.
pub fn run(args: GraphRunArgs, out: &mut Ui) -> Result<Exit, Report> {
    let writer = args.output.as_deref().map(Format::of).transpose()?;
    if let Some(output) = &args.output {
        let inputs = [&args.graph].into_iter().chain(&args.feed).chain(&args.weights);
        files::not_an_input(output, inputs.map(PathBuf::as_path))?;
    }
    let mut feed = TensorMap::new();
    for path in &args.feed {
        for (name, tensor) in read_tensors(path)? {
            if feed.insert(name.clone(), tensor).is_some() {
                return Err(failed(
                    Exit::Usage,
                    format!("`{name}` is in more than one of the feed files"),
                    None,
                ));
            }
        }
    }
    let mut weights = TensorMap::new();
    for path in &args.weights {
        weights.extend(read_weights(path)?);
    }
    let graph = load_graph(&args.graph, &feed)?;
    let weights = carried_on(graph.inputs(), &feed, weights);
    let inputs = assemble(graph.inputs(), feed, weights).map_err(|(problems, help)| {
        failed(
            Exit::Usage,
            format!("{} cannot run on these tensors:\n{problems}", args.graph.display()),
            help,
        )
    })?;
    for (name, tensor) in &inputs {
        if let Some(at) = tensor.first_not_finite() {
            out.note(format!(
                "warning: `{name}` is not finite, first at element {at}: what comes out need not show it, since an engine's ReLU may \
                 make a number of NaN"
            ));
        }
    }
    let backend = choose_backend(
        args.backend,
        args.openvino_dir.as_deref(),
        args.library_dir.as_deref(),
        out,
    )?;
    out.note(format!("engine: {}", backend.name()));
    if let Some(note) = unused_threads(backend.name(), args.threads.map_or(1, NonZeroUsize::get)) {
        out.note(note);
    }
    let options = CompileOptions {
        threads: args.threads,
        precision: args.precision.into(),
        ..CompileOptions::default()
    };
    let mut compiled = backend
        .compile(&graph, &options)
        .map_err(|error| fail(Exit::Failed, error))?;
    let begin = Instant::now();
    let deadline = args.deadline_s.map(|seconds| Duration::from_secs(seconds.into()));
    let outputs = compiled
        .run(&inputs, deadline)
        .map_err(|error| fail(Exit::Failed, error))?;
    out.note(format!("ran in {:.1} ms", begin.elapsed().as_secs_f64() * 1e3));
    for (name, tensor) in &outputs {
        out.data(line(name, tensor));
    }
    if let (Some(path), Some(format)) = (&args.output, writer) {
        let tensors: TensorMap = outputs.into_iter().collect();
        let file = match format {
            Format::Npz => npz::write(&tensors),
            Format::Safetensors => safetensors::write(&tensors, &BTreeMap::new()),
        }
        .map_err(|error| fail(Exit::Failed, error))?;
        files::write(path, &file)?;
        out.note(format!("wrote {}", path.display()));
    }
    Ok(Exit::Done)
}

/// A file of tensors, by its ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Npz,
    Safetensors,
}

impl Format {
    fn of(path: &Path) -> Result<Self, Report> {
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("npz") => Ok(Self::Npz),
            Some("safetensors") => Ok(Self::Safetensors),
            _ => Err(failed(
                Exit::Usage,
                format!("{}: the ending must be .npz or .safetensors", path.display()),
                None,
            )),
        }
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, Report> {
    files::read(path, ReadLimits::default().max_bytes)
}

fn read_tensors(path: &Path) -> Result<TensorMap, Report> {
    let format = Format::of(path)?;
    let file = read_file(path)?;
    match format {
        Format::Npz => npz::read(&file, &ReadLimits::default()),
        Format::Safetensors => safetensors::read(file.into(), &ReadLimits::default()),
    }
    .map_err(|error| failed(Exit::Usage, format!("cannot read {}: {error}", path.display()), None))
}

fn read_weights(path: &Path) -> Result<TensorMap, Report> {
    if path.extension().is_some_and(|ending| ending == "onnx") {
        let model = Model::parse(&read_file(path)?, &Limits::default()).map_err(unreadable)?;
        return Ok(model.initial_weights());
    }
    read_tensors(path)
}

/// Reads the graph; the open batch size of a forward model is that of the tensor fed to its first input.
fn load_graph(path: &Path, feed: &TensorMap) -> Result<EngineGraph, Report> {
    let file = read_file(path)?;
    if EngineGraph::is_torch_script(&file) {
        return EngineGraph::load(&file).map_err(unreadable);
    }
    let model = Model::parse(&file, &Limits::default()).map_err(unreadable)?;
    if model.has_typed_ports() {
        return EngineGraph::load(&file).map_err(unreadable);
    }
    let open = model
        .inputs()
        .into_iter()
        .find(|input| input.dims.first() == Some(&None));
    let rows = open
        .and_then(|input| feed.get(&input.name))
        .and_then(|tensor| tensor.shape().dims().first().copied());
    match rows {
        Some(rows) => model.at_batch(rows).map_err(unreadable),
        None => EngineGraph::load(&file).map_err(unreadable),
    }
}

/// The engine that was asked for, or the one that is there.
pub(super) fn choose_backend(
    backend: Option<BackendName>,
    openvino_dir: Option<&Path>,
    library_dir: Option<&Path>,
    out: &mut Ui,
) -> Result<Box<dyn Backend>, Report> {
    match (backend, openvino_dir) {
        (Some(BackendName::Tract), _) => Ok(Box::new(tract::Tract::new())),
        (Some(BackendName::Onnxruntime), _) => Further::OnnxRuntime.load(library_dir),
        (Some(BackendName::Libtorch), _) => Further::Libtorch.load(library_dir),
        (_, Some(dir)) => Ok(Box::new(openvino::load(dir).map_err(unreadable)?)),
        (Some(BackendName::Openvino), None) => Err(failed(
            Exit::Usage,
            "OpenVINO was asked for, and its folder is not known",
            Some(format!(
                "name the folder with OpenVINO {}'s libraries by --openvino-dir or CLOISTER_OPENVINO_DIR",
                openvino::VERSION
            )),
        )),
        (None, None) => {
            out.note("no --openvino-dir and no CLOISTER_OPENVINO_DIR: tract runs, which is slower");
            Ok(Box::new(tract::Tract::new()))
        }
    }
}

/// The weights with what an earlier step gave as `next/NAME` in the place of NAME, zeros for optimizer state that is not there, and
/// the weights as they were for anchors that are not.
fn carried_on(ports: &[Port], feed: &TensorMap, weights: TensorMap) -> TensorMap {
    let (next, mut weights): (TensorMap, TensorMap) = weights.into_iter().partition(|(name, _)| name.starts_with(NEXT));
    for port in ports {
        if let (PortKind::Anchor(param), false) = (&port.kind, feed.contains_key(&port.name))
            && let Some(tensor) = weights
                .get(param)
                .or_else(|| next.get(&format!("{NEXT}{param}")))
                .cloned()
        {
            weights.entry(port.name.clone()).or_insert(tensor);
        }
    }
    for (name, tensor) in next {
        if let Some(name) = name.strip_prefix(NEXT) {
            weights.insert(name.to_owned(), tensor);
        }
    }
    for port in ports.iter().filter(|port| matches!(port.kind, PortKind::State { .. })) {
        if let (false, Ok(shape)) = (feed.contains_key(&port.name), Shape::new(&port.shape)) {
            weights
                .entry(port.name.clone())
                .or_insert_with(|| Tensor::zeros(port.dtype, shape));
        }
    }
    weights
}

/// Gives each port its tensor, fed before weights; or says all that is wrong, and what may help.
#[allow(clippy::type_complexity, reason = "a list, or what is wrong and what may help")]
fn assemble(
    ports: &[Port],
    mut feed: TensorMap,
    mut weights: TensorMap,
) -> Result<Vec<(&str, Tensor)>, (String, Option<String>)> {
    let mut problems = Vec::new();
    let mut help = None;
    let mut inputs = Vec::with_capacity(ports.len());
    for port in ports {
        let wanted = format!("{} {:?}", port.dtype, port.shape);
        let Some(tensor) = feed.remove(&port.name).or_else(|| weights.remove(&port.name)) else {
            problems.push(format!("`{}` is missing: wanted {wanted}", port.name));
            continue;
        };
        // NumPy's scalars have no dimensions, and ports have one.
        let tensor = match tensor.shape().rank() {
            0 if port.shape == [1] => tensor.clone().reshaped(Shape::one()).unwrap_or(tensor),
            _ => tensor,
        };
        if tensor.dtype() != port.dtype || tensor.shape().dims() != port.shape {
            problems.push(format!(
                "`{}` is {} {}: wanted {wanted}",
                port.name,
                tensor.dtype(),
                tensor.shape()
            ));
            if tensor.dtype() != port.dtype {
                help = Some("convert with NumPy's .astype('float32') or .astype('int64')".to_owned());
            }
            continue;
        }
        inputs.push((port.name.as_str(), tensor));
    }
    problems.extend(
        feed.keys()
            .map(|name| format!("`{name}` is fed, and the graph has no such input")),
    );
    if problems.is_empty() {
        return Ok(inputs);
    }
    let more = problems.len().saturating_sub(MAX_PROBLEMS);
    problems.truncate(MAX_PROBLEMS);
    let mut text = problems
        .iter()
        .map(|problem| format!("  {problem}"))
        .collect::<Vec<_>>()
        .join("\n");
    if more > 0 {
        let _ = write!(text, "\n  and {more} more");
    }
    Err((
        text,
        help.or_else(|| Some("`cloister graph show` prints the graph's inputs".to_owned())),
    ))
}

/// An output in a line; its value if it is one number.
fn line(name: &str, tensor: &Tensor) -> String {
    let mut line = format!("{name}  {} {}", tensor.dtype(), tensor.shape());
    if tensor.shape().elements() == 1
        && let Some(value) = tensor.first_f64()
    {
        let _ = write!(line, "  {value}");
    }
    line
}

#[cfg(test)]
mod tests {
    use cloister_tensor::Dtype;

    use super::*;

    fn port(name: &str, dtype: Dtype, shape: &[usize]) -> Port {
        Port {
            name: name.into(),
            dtype,
            shape: shape.to_vec(),
            kind: PortKind::Data(name.into()),
        }
    }

    fn tensors(names: &[(&str, &[usize])]) -> TensorMap {
        names
            .iter()
            .map(|(name, dims)| ((*name).to_owned(), Tensor::zeros(Dtype::F32, Shape::new(dims).unwrap())))
            .collect()
    }

    #[test]
    fn feeds_come_before_weights_and_scalars_get_their_dimension() {
        let ports = [
            port("x", Dtype::F32, &[2]),
            port("w", Dtype::F32, &[3]),
            port("rate", Dtype::F32, &[1]),
        ];
        let weights = tensors(&[("w", &[3]), ("x", &[9]), ("unused", &[1])]);
        let inputs = assemble(&ports, tensors(&[("x", &[2]), ("rate", &[])]), weights).unwrap();
        let shapes: Vec<&[usize]> = inputs.iter().map(|(_, tensor)| tensor.shape().dims()).collect();
        assert_eq!(shapes, [&[2][..], &[3], &[1]]);
    }

    #[test]
    fn a_step_goes_on_from_what_the_last_one_gave_and_state_starts_with_zeros() {
        let state = |slot: &str| Port {
            name: format!("state/{slot}/w"),
            dtype: Dtype::F32,
            shape: vec![3],
            kind: PortKind::State {
                slot: slot.into(),
                param: "w".into(),
            },
        };
        let ports = [port("w", Dtype::F32, &[3]), state("m"), state("v")];
        let mut earlier = tensors(&[("w", &[9]), ("next/w", &[3]), ("loss", &[1])]);
        let moved = Tensor::from_f32(&[3], vec![1.0, 2.0, 3.0]).unwrap();
        earlier.insert("next/state/m/w".to_owned(), moved.clone());
        let weights = carried_on(&ports, &TensorMap::new(), earlier);
        assert_eq!(weights["state/m/w"], moved);
        let inputs = assemble(&ports, TensorMap::new(), weights).unwrap();
        assert!(inputs.iter().all(|(_, tensor)| tensor.shape().dims() == [3]));
        assert_eq!(inputs[2].1.first_f64(), Some(0.0));
    }

    #[test]
    fn all_that_is_wrong_is_said_at_once() {
        let ports = [
            port("x", Dtype::F32, &[2]),
            port("labels", Dtype::I64, &[2]),
            port("w", Dtype::F32, &[3]),
        ];
        let feed = tensors(&[("x", &[3]), ("labels", &[2]), ("y", &[1])]);
        let (problems, help) = assemble(&ports, feed, TensorMap::new()).unwrap_err();
        for said in [
            "`x` is F32 [3]: wanted F32 [2]",
            "`labels` is F32 [2]: wanted I64 [2]",
            "`w` is missing: wanted F32 [3]",
            "`y` is fed, and the graph has no such input",
        ] {
            assert!(problems.contains(said), "{problems}");
        }
        assert!(help.unwrap().contains("astype"));
    }

    #[test]
    fn endings_name_formats() {
        assert_eq!(Format::of(Path::new("a.npz")).unwrap(), Format::Npz);
        assert_eq!(Format::of(Path::new("a.safetensors")).unwrap(), Format::Safetensors);
        assert!(Format::of(Path::new("a.pt")).is_err());
        assert!(Format::of(Path::new("npz")).is_err());
    }
}
