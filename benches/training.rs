//! Training steps of four networks, side by side in one run: PyTorch (eager, `channels_last`, `torch.compile`), OpenVINO called
//! directly with the forms of the rule and with those that `cloister graph tune` has measured, and the same graph through runner,
//! sandbox and guest; libtorch behind the same trait, where its libraries were fetched.
//!
//! `cargo xtask bench training [-- [--turns N] MODEL...]` sets up PyTorch and everything else, and runs this. Each way is a process of its own, so that memory
//! and processor time are its own, and all wait while one takes its turn. A run of some models
//! replaces their rows in `benches/results/training.json`, and writes `training.md` and `training.svg` beside it from all rows that are there.
#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a bench"
)]

#[path = "training/report.rs"]
mod report;
#[path = "training/worker.rs"]
mod worker;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};

use cloister_graph::{Limits, Model, Optimizer, TrainOptions, train};
use report::Row;

/// Name, rows of a batch, steps of a turn.
const MODELS: [(&str, usize, u32); 4] = [
    ("resnet56", 128, worker::EPOCH),
    ("resnet50", 64, worker::EPOCH),
    ("cnn", 64, 100 * worker::EPOCH),
    ("mlp", 64, 500 * worker::EPOCH),
];
/// Turns of every way unless `--turns N` says otherwise. One more comes before them, which is not counted.
const TURNS: usize = 9;
/// The way through runner, sandbox and guest.
const GUEST: &str = "guest and sandbox, OpenVINO";

fn main() -> ExitCode {
    let mut words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    match words.first().map(String::as_str) {
        Some("runner") => return cloister_runner::runner_main(),
        Some("worker") => {
            worker::run(&words[1..]);
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let Some(python) = std::env::var_os("CLOISTER_TORCH_PYTHON").map(PathBuf::from) else {
        println!(
            "SKIPPED: CLOISTER_TORCH_PYTHON names no Python with PyTorch; `cargo xtask bench training` sets one up"
        );
        return ExitCode::SUCCESS;
    };
    let mut turns = TURNS;
    if let Some(at) = words.iter().position(|word| word == "--turns") {
        turns = words
            .get(at + 1)
            .and_then(|turns| turns.parse().ok())
            .expect("--turns N");
        words.drain(at..at + 2);
    }
    let known = |word: &&String| !MODELS.iter().any(|(model, ..)| model == word);
    if let Some(other) = words.iter().find(known) {
        eprintln!(
            "no model {other}: there are {}",
            MODELS.map(|(model, ..)| model).join(", ")
        );
        return ExitCode::FAILURE;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let results = Path::new(env!("CARGO_MANIFEST_DIR")).join("results");
    std::fs::create_dir_all(&results).expect("the results have a folder");
    for (model, batch, steps) in MODELS {
        if words.is_empty() || words.iter().any(|word| word == model) {
            let rows = measure(&python, folder.path(), (model, batch, steps), turns);
            // After each model, so that a run that is ended keeps what it has.
            keep(&results, model, rows);
        }
    }
    ExitCode::SUCCESS
}

/// Puts a model's rows in the place of those that are there, and writes table and chart anew.
fn keep(results: &Path, model: &str, measured: Vec<Row>) {
    let file = results.join("training.json");
    let before: Vec<Row> = match std::fs::read(&file) {
        Ok(text) => serde_json::from_slice(&text).expect("training.json holds rows: correct or remove it"),
        Err(_) => Vec::new(),
    };
    let mut rows: Vec<Row> = before
        .into_iter()
        .filter(|row| row.model != model)
        .chain(measured)
        .collect();
    rows.sort_by_key(|row| MODELS.iter().position(|(model, ..)| *model == row.model));
    let table = report::table(&rows);
    println!("{table}");
    let json = serde_json::to_string_pretty(&rows).expect("rows are JSON");
    std::fs::write(file, json + "\n")
        .and_then(|()| std::fs::write(results.join("training.md"), &table))
        .and_then(|()| std::fs::write(results.join("training.svg"), report::chart(&rows)))
        .expect("the results can be written");
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, Into::into)
}

fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or_else(|| "an unnamed processor".to_owned(), |(_, name)| name.to_owned())
}

/// Processes that ran or waited in the last minute.
fn load() -> f64 {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let first = load.split(' ').next().and_then(|load| load.parse().ok());
    first.unwrap_or(f64::NAN)
}

/// A process that takes steps.
struct Way {
    name: String,
    child: Child,
    answers: BufReader<ChildStdout>,
    first_s: f64,
    turns: Vec<(f64, f64)>,
}

impl Way {
    fn start(name: &str, command: &mut Command) -> Option<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let answers = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
        let mut way = Self {
            name: name.to_owned(),
            child,
            answers,
            first_s: 0.0,
            turns: Vec::new(),
        };
        let Some(answer) = way.answer() else {
            eprintln!("LEFT OUT: {name} ended before its first step");
            return None;
        };
        way.first_s = answer["first_s"].as_f64().expect("a number");
        eprintln!("  {name}: first step after {:.2} s", way.first_s);
        Some(way)
    }

    fn answer(&mut self) -> Option<serde_json::Value> {
        let mut line = String::new();
        self.answers.read_line(&mut line).ok().filter(|&bytes| bytes > 0)?;
        Some(serde_json::from_str(&line).expect("an answer is JSON"))
    }

    fn ask(&mut self, request: &str) -> serde_json::Value {
        let stdin = self.child.stdin.as_mut().expect("stdin is a pipe");
        writeln!(stdin, "{request}")
            .and_then(|()| stdin.flush())
            .expect("it listens");
        self.answer().expect("it answers")
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

fn measure(python: &Path, folder: &Path, (model, batch, steps): (&'static str, usize, u32), turns: usize) -> Vec<Row> {
    eprintln!("{model}, {batch} rows a batch");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("training/pytorch.py");
    let file = folder.join(format!("{model}.onnx"));
    let pytorch = |way: &str, last: &str| {
        let mut command = Command::new(python);
        command.arg(&script).args([model, way, last]);
        command
    };
    let exported = pytorch("export", &file.to_string_lossy())
        .stderr(Stdio::null())
        .status();
    assert!(exported.expect("Python starts").success(), "PyTorch exports {model}");
    let threads = threads().to_string();
    let mut ways = Vec::new();
    for way in ["eager", "channels_last", "compile"] {
        if way != "channels_last" || model != "mlp" {
            ways.extend(Way::start(&format!("PyTorch {way}"), &mut pytorch(way, &threads)));
        }
    }
    let by_rule = graph(&file, batch, None);
    let by_rule = written(folder, &format!("{model}.rule.onnx"), &by_rule);
    let exe = std::env::current_exe().expect("this program has a path");
    let worker = |way: &str, graph: &Path| {
        let mut command = Command::new(&exe);
        command.args(["worker", way]).arg(graph).arg(&file).arg(&threads);
        command
    };
    ways.extend(Way::start("OpenVINO, forms by rule", &mut worker("direct", &by_rule)));
    let measured = (model != "mlp").then(|| tuned(folder, &file, batch, &threads));
    let best = measured.as_ref().unwrap_or(&by_rule);
    if let Some(measured) = &measured {
        ways.extend(Way::start(
            "OpenVINO, forms by measurement",
            &mut worker("direct", measured),
        ));
    }
    ways.extend(Way::start(GUEST, &mut worker("guest", best)));
    if cfg!(feature = "libtorch") && std::env::var_os("CLOISTER_LIBTORCH_DIR").is_some() {
        let step = folder.join(format!("{model}.torchstep"));
        let made = pytorch("torchstep", &step.to_string_lossy())
            .status()
            .expect("Python starts");
        assert!(made.success(), "{model} becomes a step in TorchScript");
        ways.extend(Way::start("libtorch", &mut worker("libtorch", &step)));
    }
    let before = load();
    for turn in 0..=turns {
        for way in &mut ways {
            let answer = way.ask(&format!("step {steps}"));
            let number = |key: &str| answer[key].as_f64().expect("a number");
            if turn > 0 {
                way.turns.push((number("wall_s"), number("cpu_s")));
            }
        }
    }
    let machine = format!("{}, {} threads", processor(), self::threads());
    let load = [before, load()];
    let walls = |way: &Way| way.turns.iter().map(|turn| turn.0).collect::<Vec<f64>>();
    let eager = walls(&ways[0]);
    // The last of them has the graph that the guest runs.
    let direct = ways.iter().rfind(|way| way.name.starts_with("OpenVINO")).map(walls);
    let row = |mut way: Way| {
        let memory = way.ask("memory");
        let turns = std::mem::take(&mut way.turns);
        // Of the same graph on the same engine, called directly in the same turn.
        let own = |(turn, direct): (&(f64, f64), &f64)| 1.0 - direct / turn.0;
        Row {
            model: model.to_owned(),
            way: way.name.clone(),
            machine: machine.clone(),
            load,
            turns: turns.len(),
            sandbox: direct
                .as_ref()
                .filter(|_| way.name == GUEST)
                .map(|direct| median(turns.iter().zip(direct).map(own))),
            wall_s: median(turns.iter().map(|turn| turn.0)),
            cpu_s: median(turns.iter().map(|turn| turn.1)),
            ratio: median(turns.iter().zip(&eager).map(|(turn, eager)| turn.0 / eager)),
            peak_bytes: memory["peak_bytes"].as_u64().expect("a number"),
            first_s: way.first_s,
        }
    };
    ways.into_iter().map(row).collect()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

fn graph(model: &Path, batch: usize, forms: Option<&Path>) -> Vec<u8> {
    if let Some(forms) = forms {
        let out = model.with_extension("tuned.onnx");
        let mut command = cloister();
        command.args([
            "graph",
            "train",
            "--optimizer",
            "momentum",
            "--weight-decay",
            "0.0002",
            "--batch",
        ]);
        command
            .arg(batch.to_string())
            .arg("--forms")
            .arg(forms)
            .arg("-o")
            .arg(&out)
            .arg(model);
        assert!(
            command.status().expect("cloister starts").success(),
            "the graph is made"
        );
        return std::fs::read(&out).expect("the graph was written");
    }
    let file = std::fs::read(model).expect("the model was written");
    let model = Model::parse(&file, &Limits::default()).expect("the model parses");
    let mut options = TrainOptions::new(Optimizer::Momentum { momentum: 0.9 }, batch);
    options.weight_decay = 2e-4;
    let begin = std::time::Instant::now();
    let graphs = train(&model, &options).expect("the model trains");
    eprintln!("  differentiated in {:.3} s", begin.elapsed().as_secs_f64());
    graphs.training.bytes().to_vec()
}

fn cloister() -> Command {
    Command::new(std::env::var_os("CLOISTER_BIN").expect("`cargo xtask bench` sets CLOISTER_BIN"))
}

/// The graph with the forms that are fastest here.
fn tuned(folder: &Path, model: &Path, batch: usize, threads: &str) -> PathBuf {
    let forms = model.with_extension("forms.toml");
    let mut command = cloister();
    command
        .args(["graph", "tune", "--threads", threads, "--batch"])
        .arg(batch.to_string());
    command.arg("-o").arg(&forms).arg(model);
    assert!(
        command.status().expect("cloister starts").success(),
        "the forms are measured"
    );
    let graph = graph(model, batch, Some(&forms));
    let name = model.file_stem().unwrap_or_default().to_string_lossy();
    written(folder, &format!("{name}.measured.onnx"), &graph)
}

fn written(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).expect("there is room for a graph");
    path
}
