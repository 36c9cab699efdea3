//! `cloister graph`: make, show and run training graphs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use cloister_graph::{
    EngineGraph, GraphError, Limits, Loss, Model, Operator, Optimizer, Port, TrainOptions, WeightGradient, samples,
    train,
};
use miette::Report;
use serde::Serialize;

use super::graph_run::{self, GraphRunArgs};
use crate::files;
use crate::ui::{Exit, OutputArgs, Ui, fail, failed};

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
    /// Run a graph on named tensors
    Run(GraphRunArgs),
}

/// Runs the command.
pub fn run(args: GraphArgs, out: &mut Ui) -> Result<Exit, Report> {
    match args.command {
        GraphCommand::Train(args) => run_train(&args, out),
        GraphCommand::Show(args) => run_show(&args, out),
        GraphCommand::Sample(args) => run_sample(&args, out),
        GraphCommand::Run(args) => graph_run::run(args, out),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OptimizerName {
    /// p - lr * g
    Sgd,
    /// SGD with momentum, as in PyTorch (dampening 0)
    Momentum,
    /// Momentum that looks ahead, as in PyTorch
    Nesterov,
    /// Adam with bias correction, as in PyTorch
    Adam,
    /// Adam with weight decay apart from its moments, as in PyTorch
    Adamw,
    /// None: gradients are the outputs
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LossName {
    /// Cross entropy of the softmax of logits [N, C] and labels i64 [N], the mean over the rows
    SoftmaxCrossEntropy,
    /// The same with a share of each class as labels, f32 [N, C]
    SoftCrossEntropy,
    /// Mean squared difference of the output [N, ...] and labels f32 of the same shape
    MeanSquaredError,
    /// Cross entropy of the sigmoid of logits [N, ...] and labels f32 of the same shape, 0 to 1; the mean over all elements
    BinaryCrossEntropy,
}

impl LossName {
    const fn loss(self) -> Loss {
        match self {
            Self::SoftmaxCrossEntropy => Loss::SoftmaxCrossEntropy,
            Self::SoftCrossEntropy => Loss::SoftCrossEntropy,
            Self::MeanSquaredError => Loss::MeanSquaredError,
            Self::BinaryCrossEntropy => Loss::BinaryCrossEntropy,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ConvGradient {
    /// By the number of channels
    Auto,
    /// As a convolution: few channels
    Conv,
    /// As a matrix product: many channels
    Gemm,
}

/// Differentiate a forward model and append the optimizer: a step of training as one graph.
///
/// The training graph maps parameters, a batch and the optimizer's state to the loss and to the next parameters and state, so
/// that one inference call is one step. It uses standard ONNX operators only (opset 17). Its inputs are the model's own, `labels`
/// (i64 [N], or f32 as the loss wants them), a mask `mask/K` for each dropout, every parameter and running statistic under its own name, and with an optimizer `learning_rate` (f32 [1]), `step`
/// (i64 [1], from 1) and `state/SLOT/PARAM` (zeros at first). Its outputs are `loss` (f32 [1]), `next/PARAM`,
/// `next/state/SLOT/PARAM`, `next/STATISTIC`, and `grad/PARAM` with `--gradients` or without an optimizer.
/// The same model and options give the same bytes.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  cloister graph train mlp.onnx --optimizer momentum --batch 32 -o train.onnx --evaluation evaluate.onnx
  cloister graph train cnn.onnx --optimizer adam --batch 64 --weight-decay 1e-4 -o train.onnx
  cloister graph train resnet.onnx --optimizer sgd --batch 16 --freeze 'layer1.*' -o head.onnx
  cloister graph train mlp.onnx --optimizer none --batch 32 -o gradients.onnx
  cloister graph train vit.onnx --optimizer adamw --weight-decay 0.05 --no-decay-norm --clip-norm 1 --batch 64 -o train.onnx
  cloister graph train house.onnx --loss mean-squared-error --optimizer adam --batch 32 -o train.onnx

Export from PyTorch with: torch.onnx.export(model, x, 'model.onnx', opset_version=17, dynamo=False,
  training=torch.onnx.TrainingMode.TRAINING, do_constant_folding=False,
  input_names=['x'], output_names=['logits'], dynamic_axes={'x': {0: 'N'}, 'logits': {0: 'N'}})
or with its newer exporter: torch.onnx.export(model, (x,), 'model.onnx', dynamo=True, optimize=False, external_data=False,
  training=torch.onnx.TrainingMode.TRAINING, input_names=['x'], output_names=['logits'],
  dynamic_shapes=({0: torch.export.Dim('N')},))")]
struct TrainArgs {
    /// Forward model (ONNX, opset 13 to 24, one file; first dimension of its inputs open)
    #[arg(value_name = "MODEL.onnx")]
    model: PathBuf,
    /// Loss
    #[arg(long, value_enum, default_value_t = LossName::SoftmaxCrossEntropy)]
    loss: LossName,
    /// Optimizer that becomes part of the graph
    #[arg(long, value_enum)]
    optimizer: OptimizerName,
    /// Rows of a batch; the graph is fixed to it
    #[arg(long, value_name = "N")]
    batch: usize,
    /// Share of the momentum buffer that is kept (momentum, nesterov); by default 0.9
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    momentum: Option<f64>,
    /// Share of the first moment that is kept (adam, adamw); by default 0.9
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    beta1: Option<f64>,
    /// Share of the second moment that is kept (adam, adamw); by default 0.999
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    beta2: Option<f64>,
    /// Added to the denominator (adam, adamw); by default 1e-8
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    epsilon: Option<f64>,
    /// L2: this times the parameter is added to its gradient; with adamw this times the learning rate is the share that decays
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    weight_decay: f64,
    /// Parameter without weight decay; a beginning followed by * names several. May be repeated
    #[arg(long, value_name = "NAME")]
    no_decay: Vec<String>,
    /// No weight decay for the scales and shifts of normalisation layers (batch, layer, group, instance, root mean square)
    #[arg(long)]
    no_decay_norm: bool,
    /// Scale all gradients down together to this L2 norm at most, before weight decay
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    clip_norm: Option<f64>,
    /// Leave dropouts out instead of taking their masks as inputs
    #[arg(long)]
    no_dropout: bool,
    /// Parameter that is not trained; a beginning followed by * names several. May be repeated
    #[arg(long, value_name = "NAME")]
    freeze: Vec<String>,
    /// Give gradients besides the next parameters
    #[arg(long)]
    gradients: bool,
    /// Output that the loss is of, for models with several
    #[arg(long, value_name = "NAME")]
    logits: Option<String>,
    /// Form of the gradients of convolution weights
    #[arg(long, value_enum, default_value_t = ConvGradient::Auto)]
    conv_gradient: ConvGradient,
    /// Where the training graph is written
    #[arg(short = 'o', long = "out", value_name = "OUT.onnx")]
    out: PathBuf,
    /// Where the evaluation graph is written: loss, hits and the model's outputs, with running statistics
    #[arg(long, value_name = "EVAL.onnx")]
    evaluation: Option<PathBuf>,
}

impl TrainArgs {
    /// Refuses a constant that the optimizer does not have: it would be left out in silence.
    fn constants(&self) -> Result<(), Report> {
        let (with_momentum, with_moments) = (
            matches!(self.optimizer, OptimizerName::Momentum | OptimizerName::Nesterov),
            matches!(self.optimizer, OptimizerName::Adam | OptimizerName::Adamw),
        );
        let constants = [
            ("--momentum", self.momentum, with_momentum, "momentum or nesterov"),
            ("--beta1", self.beta1, with_moments, "adam or adamw"),
            ("--beta2", self.beta2, with_moments, "adam or adamw"),
            ("--epsilon", self.epsilon, with_moments, "adam or adamw"),
        ];
        match constants.into_iter().find(|(_, given, has, _)| given.is_some() && !has) {
            None => Ok(()),
            Some((name, _, _, wanted)) => Err(failed(
                Exit::Usage,
                format!("{name} goes with --optimizer {wanted}"),
                Some("leave it out or choose one of these".into()),
            )),
        }
    }

    fn options(&self) -> TrainOptions {
        let optimizer = match self.optimizer {
            OptimizerName::None => Optimizer::None,
            OptimizerName::Sgd => Optimizer::Sgd,
            OptimizerName::Momentum => Optimizer::Momentum {
                momentum: self.momentum.unwrap_or(0.9),
            },
            OptimizerName::Nesterov => Optimizer::Nesterov {
                momentum: self.momentum.unwrap_or(0.9),
            },
            OptimizerName::Adam => Optimizer::Adam {
                beta1: self.beta1.unwrap_or(0.9),
                beta2: self.beta2.unwrap_or(0.999),
                epsilon: self.epsilon.unwrap_or(1e-8),
            },
            OptimizerName::Adamw => Optimizer::AdamW {
                beta1: self.beta1.unwrap_or(0.9),
                beta2: self.beta2.unwrap_or(0.999),
                epsilon: self.epsilon.unwrap_or(1e-8),
            },
        };
        TrainOptions {
            loss: self.loss.loss(),
            optimizer,
            batch: self.batch,
            weight_decay: self.weight_decay,
            no_decay: self.no_decay.clone(),
            decay_norms: !self.no_decay_norm,
            clip_norm: self.clip_norm,
            dropout: !self.no_dropout,
            freeze: self.freeze.clone(),
            gradients: self.gradients,
            logits: self.logits.clone(),
            weight_gradient: match self.conv_gradient {
                ConvGradient::Auto => WeightGradient::Auto,
                ConvGradient::Conv => WeightGradient::Conv,
                ConvGradient::Gemm => WeightGradient::Gemm,
            },
        }
    }
}

fn run_train(args: &TrainArgs, out: &mut Ui) -> Result<Exit, Report> {
    args.constants()?;
    let file = read(&args.model)?;
    files::not_an_input(&args.out, [args.model.as_path()])?;
    if let Some(evaluation) = &args.evaluation {
        files::not_an_input(evaluation, [args.model.as_path()])?;
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
    let graphs = train(&model, &args.options()).map_err(about)?;
    files::write(&args.out, graphs.training.bytes())?;
    out.note(format_args!(
        "training graph    {}  sha256 {}",
        args.out.display(),
        graphs.training.digest()
    ));
    if let Some(path) = &args.evaluation {
        files::write(path, graphs.evaluation.bytes())?;
        out.note(format_args!(
            "evaluation graph  {}  sha256 {}",
            path.display(),
            graphs.evaluation.digest()
        ));
    }
    Ok(Exit::Done)
}

/// Print a graph's parameters, ports, operators and digest.
///
/// Takes forward models, training graphs and evaluation graphs.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  cloister graph show mlp.onnx
  cloister graph show train.onnx -o json
  cloister graph show --operators")]
struct ShowArgs {
    /// ONNX file
    #[arg(value_name = "GRAPH.onnx", required_unless_present = "operators")]
    graph: Option<PathBuf>,
    /// Batch size that a forward model is shown with
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch: usize,
    /// List the operators that can be read
    #[arg(long)]
    operators: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Serialize)]
struct Shown {
    sha256: String,
    kind: String,
    parameters: Vec<ShownTensor>,
    parameter_count: usize,
    statistics: Vec<ShownTensor>,
    inputs: Vec<ShownPort>,
    outputs: Vec<ShownPort>,
    operators: BTreeMap<&'static str, usize>,
    metadata: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct ShownTensor {
    name: String,
    shape: Vec<usize>,
}

#[derive(Serialize)]
struct ShownPort {
    name: String,
    kind: &'static str,
    dtype: &'static str,
    shape: Vec<usize>,
}

fn shown_tensors(of: &[(String, Vec<usize>)]) -> Vec<ShownTensor> {
    of.iter()
        .map(|(name, shape)| ShownTensor {
            name: name.clone(),
            shape: shape.clone(),
        })
        .collect()
}

fn shown_ports(of: &[Port]) -> Vec<ShownPort> {
    let port = |port: &Port| ShownPort {
        name: port.name.clone(),
        kind: port.kind.word(),
        dtype: port.dtype.name(),
        shape: port.shape.clone(),
    };
    of.iter().map(port).collect()
}

fn run_show(args: &ShowArgs, out: &mut Ui) -> Result<Exit, Report> {
    let Some(path) = &args.graph else {
        show_operators(args.output, out);
        return Ok(Exit::Done);
    };
    let file = read(path)?;
    let about = |error: GraphError| refused(path, &error);
    let model = Model::parse(&file, &Limits::default()).map_err(about)?;
    let typed = model.has_typed_ports();
    let graph = if typed {
        EngineGraph::load(&file)
    } else {
        model.at_batch(args.batch)
    }
    .map_err(about)?;
    let (parameters, statistics) = if typed {
        let of_kind = |word: &str| -> Vec<ShownTensor> {
            let ports = graph.inputs().iter().filter(|port| port.kind.word() == word);
            ports
                .map(|port| ShownTensor {
                    name: port.name.clone(),
                    shape: port.shape.clone(),
                })
                .collect()
        };
        (of_kind("parameter"), of_kind("statistic"))
    } else {
        (shown_tensors(model.parameters()), shown_tensors(model.statistics()))
    };
    let shown = Shown {
        sha256: graph.source_digest().to_string(),
        kind: graph
            .metadata()
            .get("cloister.kind")
            .cloned()
            .unwrap_or_else(|| "forward".to_owned()),
        parameter_count: parameters.iter().map(|one| one.shape.iter().product::<usize>()).sum(),
        parameters,
        statistics,
        inputs: shown_ports(graph.inputs()),
        outputs: shown_ports(graph.outputs()),
        operators: graph
            .operators()
            .into_iter()
            .map(|(operator, count)| (operator.name(), count))
            .collect(),
        metadata: graph.metadata().clone(),
    };
    if args.output.json() {
        out.json(&shown);
    } else {
        print(&shown, out);
    }
    Ok(Exit::Done)
}

fn print(shown: &Shown, out: &mut Ui) {
    out.data(format_args!("sha256      {}", shown.sha256));
    out.data(format_args!("kind        {}", shown.kind));
    for (key, value) in &shown.metadata {
        let name = key.trim_start_matches("cloister.");
        if !matches!(name, "format" | "kind" | "inputs" | "outputs") {
            out.data(format_args!("{name:<11} {value}"));
        }
    }
    let operators: Vec<String> = shown
        .operators
        .iter()
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    out.data(format_args!("operators   {}", operators.join(", ")));
    out.data(format_args!(
        "parameters  {} in {} tensors",
        shown.parameter_count,
        shown.parameters.len()
    ));
    for one in &shown.parameters {
        out.data(format_args!("  {:<40} {:?}", one.name, one.shape));
    }
    if !shown.statistics.is_empty() {
        out.data("statistics");
        for one in &shown.statistics {
            out.data(format_args!("  {:<40} {:?}", one.name, one.shape));
        }
    }
    for (title, ports) in [("inputs", &shown.inputs), ("outputs", &shown.outputs)] {
        out.data(title);
        for port in ports {
            out.data(format_args!(
                "  {:<40} {:<15} {:<5} {:?}",
                port.name, port.kind, port.dtype, port.shape
            ));
        }
    }
}

fn show_operators(output: OutputArgs, out: &mut Ui) {
    let names: Vec<&str> = Operator::ALL.iter().map(|operator| operator.name()).collect();
    if output.json() {
        out.json(&names);
    } else {
        for name in names {
            out.data(name);
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SampleName {
    /// Logistic regression: x [N, inputs] to logits [N, classes]
    Logistic,
    /// One hidden layer of rectified units
    Mlp,
    /// Two blocks of convolution, batch norm and max pool on square images: x [N, 1, side, side]
    Cnn,
    /// Residual network (v2) on square images of three channels: x [N, 3, side, side]
    Resnet,
}

/// Write a small model with seeded weights to begin with.
///
/// The same arguments give the same bytes on every machine.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  cloister graph sample mlp --inputs 64 --hidden 64 --classes 10 --seed 7 -o mlp.onnx
  cloister graph sample logistic --inputs 30 --classes 2 -o logistic.onnx
  cloister graph sample cnn --inputs 64 --hidden 8 --classes 10 -o cnn.onnx
  cloister graph sample resnet --inputs 3072 --hidden 16 --depth 56 --classes 10 -o resnet56.onnx")]
struct SampleArgs {
    /// Kind of model
    #[arg(value_enum)]
    kind: SampleName,
    /// Numbers in a row of data; for cnn a square, such as 64 for images of 8x8; for resnet three of them
    #[arg(long, value_name = "N")]
    inputs: usize,
    /// Classes
    #[arg(long, value_name = "N")]
    classes: usize,
    /// Hidden units (mlp) or channels of the first convolution (cnn, resnet)
    #[arg(long, value_name = "N", default_value_t = 32)]
    hidden: usize,
    /// Layers (resnet): 6 n + 2
    #[arg(long, value_name = "N", default_value_t = 20)]
    depth: usize,
    /// Seed of the weights
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Where the model is written
    #[arg(short = 'o', long = "out", value_name = "OUT.onnx")]
    out: PathBuf,
}

fn run_sample(args: &SampleArgs, out: &mut Ui) -> Result<Exit, Report> {
    let file = match args.kind {
        SampleName::Logistic => samples::logistic(args.inputs, args.classes, args.seed),
        SampleName::Mlp => samples::mlp(args.inputs, args.hidden, args.classes, args.seed),
        SampleName::Cnn => samples::cnn(args.inputs, args.hidden, args.classes, args.seed),
        SampleName::Resnet => samples::resnet(args.inputs, args.hidden, args.classes, args.depth, args.seed),
    };
    let file = file.map_err(|error| fail(Exit::Usage, error))?;
    files::write(&args.out, &file)?;
    out.note(format_args!(
        "model  {}  sha256 {}",
        args.out.display(),
        cloister_tensor::Digest::of(&file)
    ));
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
