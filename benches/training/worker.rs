//! A process that takes training steps when it is told to: one engine, directly or through runner, sandbox and guest.
//!
//! It speaks as `pytorch.py` does: a line for each request on stdin, a line of JSON for each answer on stdout.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead as _, Seek as _, Write as _};
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::{Duration, Instant};

use cloister_benches::direct::Step;
use cloister_benches::{guest, memory_bytes, openvino_dir};
use cloister_data::Format;
use cloister_engine::{Backend, CompileOptions, openvino};
use cloister_graph::{EngineGraph, Limits, Model, PortKind};
use cloister_policy::DatasetSpec;
use cloister_runner::{BackendChoice, Runner, RunnerOptions, SharedTensors, TrainRequest};
use cloister_sandbox::{CallLimits, Grants, RoundInfo, ScalarRange, SettingValue, UpdateKind};

const CLASSES: usize = 10;
/// Batches of the dataset that the guest draws from: steps of one epoch.
pub(crate) const EPOCH: u32 = 4;

/// What takes steps.
enum Steps {
    Direct(Box<Step>),
    Guest(Box<Runner>, Box<TrainRequest>),
}

/// Runs `worker direct|guest|libtorch GRAPH MODEL.onnx THREADS`: GRAPH is ONNX, for libtorch a step in TorchScript.
pub(crate) fn run(words: &[String]) {
    let [way, graph, model, threads] = words else {
        panic!("worker direct|guest|libtorch GRAPH MODEL THREADS, not {words:?}");
    };
    let read = |path: &str| std::fs::read(Path::new(path)).expect("the bench wrote it");
    let graph = EngineGraph::load(&read(graph)).expect("the bench made the graph");
    let model = Model::parse(&read(model), &Limits::default()).expect("the bench made the model");
    let threads: NonZeroUsize = threads.parse().expect("a number of threads");
    let begin = Instant::now();
    let mut steps = match way.as_str() {
        "direct" => direct(&openvino_backend(), &graph, &model, threads),
        #[cfg(feature = "libtorch")]
        "libtorch" => direct(&libtorch_backend(), &graph, &model, threads),
        "guest" => through_guest(&graph, &model, threads),
        other => panic!("no way {other} in this bench"),
    };
    let took = steps.take(1);
    let first = match &steps {
        Steps::Direct(_) => begin.elapsed(),
        // The first call takes a whole epoch.
        Steps::Guest(..) => begin.elapsed().saturating_sub(took * (EPOCH - 1)),
    };
    say(&serde_json::json!({ "first_s": first.as_secs_f64() }));
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("stdin is text");
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["step", count] => {
                let count: u32 = count.parse().expect("a number of steps");
                let cpu = steps.cpu();
                let wall = steps.take(count);
                let count = steps.rounded(count);
                let cpu = (steps.cpu() - cpu) / f64::from(count);
                say(&serde_json::json!({ "wall_s": wall.as_secs_f64(), "cpu_s": cpu }));
            }
            ["memory"] => say(&serde_json::json!({ "peak_bytes": steps.peak_bytes() })),
            _ => return,
        }
    }
}

fn say(answer: &serde_json::Value) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{answer}")
        .and_then(|()| out.flush())
        .expect("the bench listens");
}

impl Steps {
    /// Steps that a request for so many takes: a guest takes whole epochs.
    fn rounded(&self, count: u32) -> u32 {
        match self {
            Self::Direct(_) => count,
            Self::Guest(..) => count.next_multiple_of(EPOCH),
        }
    }

    /// Takes steps, and says how long each took.
    fn take(&mut self, count: u32) -> Duration {
        let count = self.rounded(count);
        match self {
            Self::Direct(step) => {
                let begin = Instant::now();
                (0..count).for_each(|_| step.run());
                begin.elapsed() / count
            }
            Self::Guest(runner, request) => {
                let epochs = SettingValue::Integer(i64::from(count / EPOCH));
                request.settings.insert("epochs".to_owned(), epochs);
                runner.train(request).expect("the guest trains").elapsed / count
            }
        }
    }

    fn runner(&self) -> Option<u32> {
        match self {
            Self::Direct(_) => None,
            Self::Guest(runner, _) => runner.pid(),
        }
    }

    /// Processor time so far of this process and its runner, in seconds.
    fn cpu(&self) -> f64 {
        let own = cpu_seconds("/proc/self/stat");
        own + self
            .runner()
            .map_or(0.0, |pid| cpu_seconds(&format!("/proc/{pid}/stat")))
    }

    /// The most memory that whoever computes had: this process, or its runner.
    fn peak_bytes(&self) -> u64 {
        match self.runner() {
            None => memory_bytes("VmHWM"),
            Some(pid) => {
                let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the runner lives");
                let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
                let kib = line.and_then(|value| value.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
                kib.expect("the kernel says it in kB") * 1024
            }
        }
    }
}

/// User and system time of a process: fields 14 and 15, in hundredths of a second.
fn cpu_seconds(path: &str) -> f64 {
    let stat = std::fs::read_to_string(path).expect("the process lives");
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks = fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok());
    ticks.sum::<f64>() / 100.0
}

fn openvino_backend() -> openvino::OpenVino {
    let dir = openvino_dir().expect("CLOISTER_OPENVINO_DIR names OpenVINO");
    openvino::load(&dir).expect("OpenVINO loads")
}

#[cfg(feature = "libtorch")]
fn libtorch_backend() -> cloister_engine_libtorch::Libtorch {
    let dir = std::env::var_os("CLOISTER_LIBTORCH_DIR").expect("`cargo xtask bench training` names it");
    cloister_engine_libtorch::load(Path::new(&dir)).expect("libtorch loads")
}

fn direct(backend: &dyn Backend, graph: &EngineGraph, model: &Model, threads: NonZeroUsize) -> Steps {
    let options = CompileOptions {
        threads: Some(threads),
        ..CompileOptions::default()
    };
    Steps::Direct(Box::new(Step::new(backend, graph, model, CLASSES, &options)))
}

/// Rows of made-up numbers as CSV, `EPOCH` batches of them.
fn rows(batch: usize, columns: usize) -> File {
    let mut text: String = (0..columns).map(|column| format!("p{column},")).collect();
    text.push_str("label\n");
    for row in 0..batch * EPOCH as usize {
        for column in 0..columns {
            text.push(char::from(b'0' + ((row * 7 + column * 3) % 10) as u8));
            text.push(',');
        }
        writeln!(text, "{}", row % CLASSES).expect("a string takes everything");
    }
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(text.as_bytes())
        .and_then(|()| file.rewind())
        .expect("there is room for the rows");
    file
}

fn through_guest(graph: &EngineGraph, model: &Model, threads: NonZeroUsize) -> Steps {
    let module = guest("train-sgd").expect("CLOISTER_GUESTS_DIR names the built guests");
    let mut options = RunnerOptions::new(std::env::current_exe().expect("this program has a path"));
    options.openvino_dir = openvino_dir();
    options.backend = BackendChoice::OpenVino;
    options.threads = threads.get();
    let mut runner = Runner::start(options).expect("the runner starts");
    runner.load_module("train-sgd", &module).expect("the guest loads");
    runner.load_graph("train", graph.bytes()).expect("the graph loads");
    let x = graph
        .inputs()
        .iter()
        .find(|port| matches!(port.kind, PortKind::Data(_)));
    let shape = &x.expect("the model has an input").shape;
    let columns: usize = shape[1..].iter().product();
    let spec = format!(
        "name = \"train\"\n[inputs]\nx = {{ columns = \"p0..p{}\", shape = {:?}, scale = 0.1 }}\n\
         labels = {{ column = \"label\", dtype = \"i64\" }}\n",
        columns - 1,
        &shape[1..]
    );
    let spec = DatasetSpec::parse(spec.as_bytes(), "spec.toml").expect("the dataset is described");
    runner
        .open_dataset("rows.csv", rows(shape[0], columns), Format::Csv, &spec, &[9; 32])
        .expect("the rows are read");
    let range = |min, max| ScalarRange { min, max };
    let scalars = [("learning_rate", range(0.0, 1.0)), ("step", range(1.0, 1e9))];
    let names = |name: &str| BTreeSet::from([name.to_owned()]);
    let request = TrainRequest {
        module: "train-sgd".to_owned(),
        settings: BTreeMap::from([
            ("batch".to_owned(), SettingValue::Integer(shape[0] as i64)),
            ("learning_rate".to_owned(), SettingValue::Number(1e-3)),
        ]),
        grants: Grants {
            scalars: scalars.map(|(name, range)| (name.to_owned(), range)).into(),
            reads: names("loss"),
            ..Grants::default()
        },
        graphs: names("train"),
        datasets: names("train"),
        transforms: BTreeMap::new(),
        model: SharedTensors::copy_of(&model.initial_weights()).expect("there is memory for the model"),
        round: RoundInfo {
            index: 1,
            count: 10,
            seed: 7,
            step: 0,
        },
        update: UpdateKind::Model,
        limits: CallLimits::default(),
        timeout: Duration::from_secs(3600),
    };
    Steps::Guest(Box::new(runner), Box::new(request))
}
