//! `cloister graph`: make, show and run training graphs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use cloister_graph::{ConvLayer, GraphError, Limits, Loss, Model, Optimizer, TrainOptions, WeightGradient, train};
use miette::Report;
use serde_json::json;

use super::graph_run::{self, GraphRunArgs};
use super::graph_sample::{self, SampleArgs};
use super::graph_show::{self, ShowArgs};
use super::graph_tune::{self, TuneArgs};
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
pub(super) enum LossName {
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
    pub(super) const fn loss(self) -> Loss {
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
    /// By a rule: gemm for 1x1 kernels, else spatial
    Auto,
    /// As a convolution with batch and channels swapped
    Conv,
    /// As a matrix product
    Gemm,
    /// As a convolution with the channels as one more spatial axis
    Spatial,
    /// As a convolution with the channels laid along the last spatial axis
    Interleaved,
}

/// Differentiate a forward model and append the optimizer: a step of training as one graph.
///
/// The training graph maps parameters, a batch and the optimizer's state to the loss and to the next parameters and state, so
/// that one inference call is one step. It uses standard ONNX operators only (opset 17). Its inputs are the model's own, `labels`
/// (i64 [N], or f32 as the loss wants them), a mask `mask/K` for each dropout, every parameter and running statistic under its own name, and with an optimizer `learning_rate` (f32 [1]), `step`
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
    /// L2 in the loss: half of this times the sum of the squares of the parameters is added to it. Goes with --optimizer none, too
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    l2: f64,
    /// Parameter without weight decay and L2; a beginning followed by * names several. May be repeated
    #[arg(long, value_name = "NAME")]
    no_decay: Vec<String>,
    /// No weight decay and no L2 for the scales and shifts of normalisation layers (batch, layer, group, instance, root mean square)
    #[arg(long)]
    no_decay_norm: bool,
    /// Scale all gradients down together to this L2 norm at most, before weight decay
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    clip_norm: Option<f64>,
    /// FedProx: this times a parameter's distance from its value at the start of the round is added to its gradient. The graph
    /// takes those values as anchor/NAME
    #[arg(long, value_name = "MU", default_value_t = 0.0, allow_negative_numbers = true)]
    proximal: f64,
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
    /// Forms chosen for single layers by `cloister graph tune`; layers that are not in the file take --conv-gradient
    #[arg(long, value_name = "FORMS.toml")]
    forms: Option<PathBuf>,
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

    fn options(&self, weight_gradients: BTreeMap<ConvLayer, WeightGradient>) -> TrainOptions {
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
            l2: self.l2,
            no_decay: self.no_decay.clone(),
            decay_norms: !self.no_decay_norm,
            clip_norm: self.clip_norm,
            proximal: self.proximal,
            dropout: !self.no_dropout,
            freeze: self.freeze.clone(),
            gradients: self.gradients,
            logits: self.logits.clone(),
            weight_gradient: match self.conv_gradient {
                ConvGradient::Auto => WeightGradient::Auto,
                ConvGradient::Conv => WeightGradient::Conv,
                ConvGradient::Gemm => WeightGradient::Gemm,
                ConvGradient::Spatial => WeightGradient::Spatial { parts: 1 },
                ConvGradient::Interleaved => WeightGradient::Interleaved,
            },
            weight_gradients,
        }
    }
}

fn run_train(args: &TrainArgs, out: &mut Ui) -> Result<Exit, Report> {
    args.constants()?;
    let file = read(&args.model)?;
    let inputs = || {
        [Some(args.model.as_path()), args.forms.as_deref()]
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
    let forms = args.forms.as_deref().map(graph_tune::read_forms).transpose()?;
    let graphs = train(&model, &args.options(forms.unwrap_or_default())).map_err(about)?;
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
