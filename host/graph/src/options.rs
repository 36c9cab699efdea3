//! What kind of training graph is wanted.

use std::collections::BTreeMap;

use crate::error::GraphError;
use crate::loss::Loss;
use crate::ops::{ConvLayer, WeightGradient};
use crate::optimizer::Optimizer;

/// What kind of training graph is wanted. Parameters are named by their names, or by beginnings of names followed by `*`.
#[derive(Clone, Debug)]
pub struct TrainOptions {
    /// The loss.
    pub loss: Loss,
    /// The optimizer, written into the graph.
    pub optimizer: Optimizer,
    /// Rows of a batch; the graph is fixed to it.
    pub batch: usize,
    /// L2: this times the parameter is added to its gradient before the optimizer sees it (AdamW: this times the learning
    /// rate is the share of the parameter that decays). 0 for none.
    pub weight_decay: f64,
    /// L2 in the loss: half of this times the sum of the squares of the parameters is part of the loss that is an output, and this times
    /// a parameter of its gradient, before clipping. Unlike weight decay it goes with a graph that gives gradients alone. It spares the
    /// parameters that weight decay spares. 0 for none.
    pub l2: f64,
    /// Parameters without weight decay.
    pub no_decay: Vec<String>,
    /// Whether scales and shifts of normalisations (batch, layer, group, instance, root mean square) have weight decay, as
    /// all parameters do in PyTorch's optimizers. They are known by the operator that reads them.
    pub decay_norms: bool,
    /// Gradients are scaled down together to this L2 norm at most, before weight decay.
    pub clip_norm: Option<f64>,
    /// FedProx: this times a parameter's distance from its value at the start of the round (the input `anchor/PARAM`) is added
    /// to its gradient, before clipping: the gradient of this/2 times the squared distance. The loss that is an output is
    /// without it. 0 for none. Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020.
    pub proximal: f64,
    /// Parameters that are not trained. What looks like one and no gradient can reach has to be among them: it becomes a constant
    /// of the graphs.
    pub freeze: Vec<String>,
    /// Whether gradients are outputs besides the next parameters (after clipping, before weight decay). Without an optimizer
    /// they always are.
    pub gradients: bool,
    /// The output that the loss is of; may be left out for models with one output.
    pub logits: Option<String>,
    /// Form of the gradients of convolution weights.
    pub weight_gradient: WeightGradient,
    /// Forms chosen for single layers, by measurement ([`crate::tuning`]); layers that the model does not have are left out.
    pub weight_gradients: BTreeMap<ConvLayer, WeightGradient>,
    /// Whether dropouts in training form take their masks as inputs `mask/K` ([`PortKind::Mask`](crate::PortKind::Mask)), K counting dropouts from 0; else they are left
    /// out. A mask is f32 of the shape of what it drops from, 1 where an element stays and 0 where it goes; the graph scales
    /// what stays by `1 / (1 - ratio)`. The metadata `cloister.dropout` hold the ratios in the order of the masks.
    pub dropout: bool,
}

impl TrainOptions {
    /// Cross entropy, no decay, no clipping, nothing frozen, dropouts with masks.
    pub fn new(optimizer: Optimizer, batch: usize) -> Self {
        Self {
            loss: Loss::default(),
            optimizer,
            batch,
            weight_decay: 0.0,
            l2: 0.0,
            no_decay: Vec::new(),
            decay_norms: true,
            clip_norm: None,
            proximal: 0.0,
            freeze: Vec::new(),
            gradients: false,
            logits: None,
            weight_gradient: WeightGradient::default(),
            weight_gradients: BTreeMap::new(),
            dropout: true,
        }
    }

    /// Refuses what is out of range.
    pub(crate) fn check(&self) -> Result<(), GraphError> {
        let refuse = |option: &'static str, problem: String| Err(GraphError::Option { option, problem });
        if self.batch == 0 || self.batch > MAX_BATCH {
            return refuse(
                "--batch",
                format!("{} was given, 1 to {MAX_BATCH} is wanted", self.batch),
            );
        }
        if !(self.weight_decay >= 0.0 && self.weight_decay.is_finite()) {
            let problem = format!("{} was given, at least 0 is wanted", self.weight_decay);
            return refuse("--weight-decay", problem);
        }
        if !(self.l2 >= 0.0 && self.l2.is_finite()) {
            return refuse("--l2", format!("{} was given, at least 0 is wanted", self.l2));
        }
        if !(self.proximal >= 0.0 && self.proximal.is_finite()) {
            let problem = format!("{} was given, at least 0 is wanted", self.proximal);
            return refuse("--proximal", problem);
        }
        if let Some(most) = self.clip_norm
            && !(most > 0.0 && most.is_finite())
        {
            return refuse("--clip-norm", format!("{most} was given, above 0 is wanted"));
        }
        if self.optimizer == Optimizer::None
            && (self.weight_decay != 0.0 || self.l2 == 0.0 && !self.no_decay.is_empty())
        {
            let problem = "gradients have no weight decay; it belongs to the optimizer that they are given to, or to the loss (--l2)"
                .to_owned();
            return refuse("--weight-decay", problem);
        }
        self.optimizer.check()
    }

    /// Refuses names that no parameter has; one that no gradient can reach can be frozen, too.
    pub(crate) fn check_names(&self, parameters: &[&str], out_of_reach: &[&str]) -> Result<(), GraphError> {
        let freezable = [parameters, out_of_reach].concat();
        for (option, patterns, names) in [
            ("--freeze", &self.freeze, &freezable[..]),
            ("--no-decay", &self.no_decay, parameters),
        ] {
            for pattern in patterns {
                if !names.iter().any(|name| matches(pattern, name)) {
                    let some: Vec<&str> = names.iter().copied().take(20).collect();
                    let problem = format!("no parameter '{pattern}'; there are {}", some.join(", "));
                    return Err(GraphError::Option { option, problem });
                }
            }
        }
        Ok(())
    }
}

/// Largest batch.
const MAX_BATCH: usize = 1 << 20;

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => name == pattern,
    }
}

/// Whether one of the patterns names the parameter.
pub(crate) fn is_named(patterns: &[String], name: &str) -> bool {
    patterns.iter().any(|pattern| matches(pattern, name))
}
