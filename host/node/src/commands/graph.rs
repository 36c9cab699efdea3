//! `cloister graph`: make, show and run training graphs.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use cloister_graph::{GraphError, Limits, Model, TrainOptions, train};
use miette::Report;
use serde_json::json;

use super::graph_run::{self, GraphRunArgs};
use super::graph_sample::{self, SampleArgs};
use super::graph_show::{self, ShowArgs};
use super::graph_tune::{self, TuneArgs};
use crate::derivation::{Derivation, OptimizerName};
use crate::files;
use crate::ui::{Exit, Format, Ui, failed};

/// Make, show and run training graphs.
#[derive(Args, Debug)]
pub struct GraphArgs {
    #[command(subcommand)]
    command: GraphCommand,
}

#[derive(Subcommand, Debug)]
enum GraphCommand {
    /// Differentiate a forward model and append the optimizer: a step of training as one graph
    Train(TrainArgs),
    /// Print a graph's parameters, ports, operators and digest
    Show(ShowArgs),
    /// Write a small model with seeded weights to begin with
    Sample(SampleArgs),
    /// Measure which forms of a training graph's convolutions are fastest here
    Tune(TuneArgs),
    /// Run a graph on named tensors
    Run(GraphRunArgs),
}

/// Runs the command.
pub fn run(args: GraphArgs, out: &mut Ui) -> Result<Exit, Report> {
    match args.command {
        GraphCommand::Train(args) => run_train(&args, out),
        GraphCommand::Show(args) => graph_show::run(&args, out),
        GraphCommand::Sample(args) => graph_sample::run(&args, out),
        GraphCommand::Tune(args) => graph_tune::run(&args, out),
        GraphCommand::Run(args) => graph_run::run(args, out),
    }
}

/// Differentiate a forward model and append the optimizer: a step of training as one graph.
///
/// The training graph maps parameters, a batch and the optimizer's state to the loss and to the next parameters and state, so
/// that one inference call is one step. It uses standard ONNX operators only (opset 17). Its inputs are the model's own, `labels`
/// (i64 [N], or f32 as the loss wants them), a mask `mask/K` for each dropout (which the host draws in a federation), every parameter and running statistic under its own name, and with an optimizer `learning_rate` (f32 [1]), `step`
/// (i64 [1], from 1) and `state/SLOT/PARAM` (zeros at first), with `--proximal` also `anchor/PARAM`. Its outputs are `loss` (f32 [1]), `next/PARAM`,
/// `next/state/SLOT/PARAM`, `next/STATISTIC`, and `grad/PARAM` with `--gradients` or without an optimizer.
/// The same model, options and file of forms give the same bytes.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  cloister graph train mlp.onnx --optimizer momentum --batch 32 -o train.onnx --evaluation evaluate.onnx
  cloister graph train cnn.onnx --optimizer adam --batch 64 --weight-decay 1e-4 -o train.onnx
  cloister graph train resnet.onnx --optimizer sgd --batch 16 --freeze 'layer1.*' -o head.onnx
  cloister graph train mlp.onnx --optimizer none --batch 32 -o gradients.onnx
  cloister graph train resnet56.onnx --optimizer none --l2 2e-4 --no-decay-norm --batch 128 -o gradients.onnx
  cloister graph train vit.onnx --optimizer adamw --weight-decay 0.05 --no-decay-norm --clip-norm 1 --batch 64 -o train.onnx
  cloister graph train house.onnx --loss mean-squared-error --optimizer adam --batch 32 -o train.onnx

Export from PyTorch with: torch.onnx.export(model, x, 'model.onnx', opset_version=17, dynamo=False,
  training=torch.onnx.TrainingMode.TRAINING, do_constant_folding=False,
  input_names=['x'], output_names=['logits'], dynamic_axes={'x': {0: 'N'}, 'logits': {0: 'N'}})
or with its newer exporter: torch.onnx.export(model, (x,), 'model.onnx', dynamo=True, optimize=False, external_data=False,
  training=torch.onnx.TrainingMode.TRAINING, input_names=['x'], output_names=['logits'],
  dynamic_shapes=({0: torch.export.Dim('N')},))")]
struct TrainArgs {
    /// Forward model (ONNX, opset 13 to 28, one file; first dimension of its inputs open)
    #[arg(value_name = "MODEL.onnx")]
    model: PathBuf,
    /// Optimizer that becomes part of the graph
    #[arg(long, value_enum)]
    optimizer: OptimizerName,
    /// Rows of a batch; the graph is fixed to it
    #[arg(long, value_name = "N")]
    batch: usize,
    #[command(flatten)]
    derivation: Derivation,
    /// Give gradients besides the next parameters
    #[arg(long)]
    gradients: bool,
    /// Where the training graph is written
    #[arg(short = 'o', long = "out", value_name = "OUT.onnx")]
    out: PathBuf,
    /// Where the evaluation graph is written: loss, hits and the model's outputs, with running statistics
    #[arg(long, value_name = "EVAL.onnx")]
    evaluation: Option<PathBuf>,
    /// Form of what is printed: the files, and their digests as a policy names them
    #[arg(long, value_enum, default_value_t = Format::Text)]
    print: Format,
}

impl TrainArgs {
    fn options(&self) -> Result<TrainOptions, Report> {
        let mut options = self.derivation.options(self.optimizer, self.batch)?;
        options.gradients = self.gradients;
        Ok(options)
    }
}

fn run_train(args: &TrainArgs, out: &mut Ui) -> Result<Exit, Report> {
    let options = args.options()?;
    let file = read(&args.model)?;
    let inputs = || {
        [Some(args.model.as_path()), args.derivation.forms.as_deref()]
            .into_iter()
            .flatten()
    };
    files::not_an_input(&args.out, inputs())?;
    if let Some(evaluation) = &args.evaluation {
        files::not_an_input(evaluation, inputs())?;
        if *evaluation == args.out {
            return Err(failed(
                Exit::Usage,
                format!("{} is named for both graphs", evaluation.display()),
                Some("give --out and --evaluation different files".into()),
            ));
        }
    }
    let about = |error: GraphError| refused(&args.model, &error);
    let model = Model::parse(&file, &Limits::default()).map_err(about)?;
    let weights = model.initial_weights();
    let broken = weights
        .iter()
        .find_map(|(name, tensor)| tensor.first_not_finite().map(|at| (name, at)));
    if let Some((name, at)) = broken {
        return Err(failed(
            Exit::Usage,
            format!(
                "{}: the initial `{name}` is not finite at element {at}: no step from there gives numbers",
                args.model.display()
            ),
            Some("initialise the model anew and export it again".into()),
        ));
    }
    let graphs = train(&model, &options).map_err(about)?;
    let evaluation = args
        .evaluation
        .as_deref()
        .map(|path| ("evaluation", path, &graphs.evaluation));
    let mut written = serde_json::Map::new();
    for (kind, path, graph) in [("training", args.out.as_path(), &graphs.training)]
        .into_iter()
        .chain(evaluation)
    {
        files::write(path, graph.bytes())?;
        match args.print {
            Format::Text => out.data(format_args!(
                "{:<16}  {}  sha256 {}",
                format!("{kind} graph"),
                path.display(),
                graph.digest()
            )),
            Format::Json => {
                let told = json!({ "path": path.display().to_string(), "sha256": graph.digest().to_string() });
                written.insert(kind.to_owned(), told);
            }
        }
    }
    if args.print == Format::Json {
        out.json(&written);
    }
    Ok(Exit::Done)
}

/// What a graph file was refused for, with its path.
pub(super) fn refused(path: &Path, error: &GraphError) -> Report {
    failed(Exit::Usage, format!("{}: {error}", path.display()), None)
}

/// Reads a graph file within the limits of graphs.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, Report> {
    files::read(path, Limits::default().bytes as u64)
}
