//! How a training graph is derived from a model: one set of words, as arguments of `graph train` and `policy draft` and as keys of an
//! example's plan.

use std::path::PathBuf;

use cloister_graph::{Loss, Optimizer, TrainOptions, WeightGradient};
use miette::Report;

use crate::forms;
use crate::ui::{Exit, failed};

/// An optimizer, as people name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerName {
    /// None in the graph, which gives gradients: the aggregation module has it
    None,
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
}

/// A loss, as people name it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossName {
    /// Cross entropy of the softmax of logits [N, C] and labels i64 [N], the mean over the rows
    #[default]
    SoftmaxCrossEntropy,
    /// The same with a share of each class as labels, f32 [N, C]
    SoftCrossEntropy,
    /// Mean squared difference of the output [N, ...] and labels f32 of the same shape
    MeanSquaredError,
    /// Cross entropy of the sigmoid of logits [N, ...] and labels f32 of the same shape, 0 to 1; the mean over all elements
    BinaryCrossEntropy,
}

impl LossName {
    /// The loss of that name.
    pub const fn loss(self) -> Loss {
        match self {
            Self::SoftmaxCrossEntropy => Loss::SoftmaxCrossEntropy,
            Self::SoftCrossEntropy => Loss::SoftCrossEntropy,
            Self::MeanSquaredError => Loss::MeanSquaredError,
            Self::BinaryCrossEntropy => Loss::BinaryCrossEntropy,
        }
    }
}

/// A form of the gradients of convolution weights, as people name it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConvGradient {
    /// By a rule: gemm for 1x1 kernels, else spatial
    #[default]
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

/// Everything about a training graph but its model, its optimizer's name and its batch.
#[derive(Clone, Debug, clap::Args, serde::Deserialize)]
pub struct Derivation {
    /// Loss
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    pub loss: LossName,
    /// Share of the momentum buffer that is kept (momentum, nesterov); by default 0.9
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub momentum: Option<f64>,
    /// Share of the first moment that is kept (adam, adamw); by default 0.9
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub beta1: Option<f64>,
    /// Share of the second moment that is kept (adam, adamw); by default 0.999
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub beta2: Option<f64>,
    /// Added to the denominator (adam, adamw); by default 1e-8
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub epsilon: Option<f64>,
    /// L2: this times the parameter is added to its gradient; with adamw this times the learning rate is the share that decays
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    #[serde(default)]
    pub weight_decay: f64,
    /// L2 in the loss: half of this times the sum of the squares of the parameters is added to it. Goes with --optimizer none, too
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    #[serde(default)]
    pub l2: f64,
    /// Parameter without weight decay and L2; a beginning followed by * names several. May be repeated
    #[arg(long, value_name = "NAME")]
    #[serde(default)]
    pub no_decay: Vec<String>,
    /// No weight decay and no L2 for the scales and shifts of normalisation layers (batch, layer, group, instance, root mean square)
    #[arg(long = "no-decay-norm", action = clap::ArgAction::SetFalse)]
    #[serde(default = "yes")]
    pub decay_norms: bool,
    /// Scale all gradients down together to this L2 norm at most, before weight decay
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub clip_norm: Option<f64>,
    /// FedProx: this times a parameter's distance from its value at the start of the round is added to its gradient. The graph
    /// takes those values as anchor/NAME
    #[arg(long, value_name = "MU", default_value_t = 0.0, allow_negative_numbers = true)]
    #[serde(default)]
    pub proximal: f64,
    /// Leave dropouts out instead of taking their masks as inputs
    #[arg(long = "no-dropout", action = clap::ArgAction::SetFalse)]
    #[serde(default = "yes")]
    pub dropout: bool,
    /// Parameter that is not trained; a beginning followed by * names several. May be repeated
    #[arg(long, value_name = "NAME")]
    #[serde(default)]
    pub freeze: Vec<String>,
    /// Output that the loss is of, for models with several
    #[arg(long, value_name = "NAME")]
    pub logits: Option<String>,
    /// Form of the gradients of convolution weights
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    pub conv_gradient: ConvGradient,
    /// Forms chosen for single layers by `cloister graph tune`; layers that are not in the file, also those of another batch, take
    /// --conv-gradient
    #[arg(long, value_name = "FORMS.toml")]
    pub forms: Option<PathBuf>,
}

fn yes() -> bool {
    true
}

impl Default for Derivation {
    fn default() -> Self {
        Self {
            loss: LossName::default(),
            momentum: None,
            beta1: None,
            beta2: None,
            epsilon: None,
            weight_decay: 0.0,
            l2: 0.0,
            no_decay: Vec::new(),
            decay_norms: yes(),
            clip_norm: None,
            proximal: 0.0,
            dropout: yes(),
            freeze: Vec::new(),
            logits: None,
            conv_gradient: ConvGradient::default(),
            forms: None,
        }
    }
}

impl Derivation {
    /// Refuses a constant that the optimizer does not have: it would be left out in silence.
    pub fn check(&self, optimizer: OptimizerName) -> Result<(), String> {
        let (with_momentum, with_moments) = (
            matches!(optimizer, OptimizerName::Momentum | OptimizerName::Nesterov),
            matches!(optimizer, OptimizerName::Adam | OptimizerName::Adamw),
        );
        let constants = [
            ("momentum", self.momentum, with_momentum, "momentum or nesterov"),
            ("beta1", self.beta1, with_moments, "adam or adamw"),
            ("beta2", self.beta2, with_moments, "adam or adamw"),
            ("epsilon", self.epsilon, with_moments, "adam or adamw"),
        ];
        match constants.into_iter().find(|(_, given, has, _)| given.is_some() && !has) {
            None => Ok(()),
            Some((name, _, _, wanted)) => Err(format!(
                "--{name} goes with --optimizer {wanted}: leave it out or choose one of these"
            )),
        }
    }

    /// What a graph with this optimizer and this batch is made by.
    pub fn options(&self, optimizer: OptimizerName, batch: usize) -> Result<TrainOptions, Report> {
        self.check(optimizer)
            .map_err(|problem| failed(Exit::Usage, problem, None))?;
        let mut options = TrainOptions::new(self.optimizer(optimizer), batch);
        options.loss = self.loss.loss();
        options.weight_decay = self.weight_decay;
        options.l2 = self.l2;
        options.no_decay.clone_from(&self.no_decay);
        options.decay_norms = self.decay_norms;
        options.clip_norm = self.clip_norm;
        options.proximal = self.proximal;
        options.dropout = self.dropout;
        options.freeze.clone_from(&self.freeze);
        options.logits.clone_from(&self.logits);
        options.weight_gradient = match self.conv_gradient {
            ConvGradient::Auto => WeightGradient::Auto,
            ConvGradient::Conv => WeightGradient::Conv,
            ConvGradient::Gemm => WeightGradient::Gemm,
            ConvGradient::Spatial => WeightGradient::Spatial { parts: 1 },
            ConvGradient::Interleaved => WeightGradient::Interleaved,
        };
        if let Some(path) = &self.forms {
            options.weight_gradients = forms::read(path)?;
        }
        Ok(options)
    }

    fn optimizer(&self, name: OptimizerName) -> Optimizer {
        let momentum = self.momentum.unwrap_or(0.9);
        let (beta1, beta2) = (self.beta1.unwrap_or(0.9), self.beta2.unwrap_or(0.999));
        let epsilon = self.epsilon.unwrap_or(1e-8);
        match name {
            OptimizerName::None => Optimizer::None,
            OptimizerName::Sgd => Optimizer::Sgd,
            OptimizerName::Momentum => Optimizer::Momentum { momentum },
            OptimizerName::Nesterov => Optimizer::Nesterov { momentum },
            OptimizerName::Adam => Optimizer::Adam { beta1, beta2, epsilon },
            OptimizerName::Adamw => Optimizer::AdamW { beta1, beta2, epsilon },
        }
    }
}
