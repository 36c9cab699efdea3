//! Optimizers, written into the training graph. Definitions are PyTorch's (`torch.optim`, 2.x).

use crate::builder::Builder;
use crate::error::GraphError;
use crate::ir::{Operator, ValueId};

/// An optimizer with its constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Optimizer {
    /// None: the graph gives gradients alone.
    None,
    /// `p - lr * g`
    Sgd,
    /// `buffer = momentum * buffer + g; p - lr * buffer`, dampening 0, not Nesterov. The buffer starts at 0, so that the first
    /// step equals PyTorch's, which starts it at `g`.
    Momentum {
        /// Share of the buffer that is kept.
        momentum: f64,
    },
    /// Momentum that looks ahead: `buffer = momentum * buffer + g; p - lr * (g + momentum * buffer)`.
    Nesterov {
        /// Share of the buffer that is kept.
        momentum: f64,
    },
    /// Adam with bias correction by `step`, which counts from 1.
    Adam {
        /// Share of the first moment that is kept.
        beta1: f64,
        /// Share of the second moment that is kept.
        beta2: f64,
        /// Added to the denominator.
        epsilon: f64,
    },
    /// Adam whose weight decay bypasses the moments: `p - lr * decay * p` comes before Adam's own step.
    AdamW {
        /// Share of the first moment that is kept.
        beta1: f64,
        /// Share of the second moment that is kept.
        beta2: f64,
        /// Added to the denominator.
        epsilon: f64,
    },
}

impl Optimizer {
    /// The name on the command line and in metadata.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Sgd => "sgd",
            Self::Momentum { .. } => "momentum",
            Self::Nesterov { .. } => "nesterov",
            Self::Adam { .. } => "adam",
            Self::AdamW { .. } => "adamw",
        }
    }

    /// Names of the state that it keeps for each parameter.
    pub const fn slots(self) -> &'static [&'static str] {
        match self {
            Self::None | Self::Sgd => &[],
            Self::Momentum { .. } | Self::Nesterov { .. } => &["momentum"],
            Self::Adam { .. } | Self::AdamW { .. } => &["m", "v"],
        }
    }

    /// Its constants under their names in metadata.
    pub(crate) fn constants(self) -> Vec<(&'static str, f64)> {
        match self {
            Self::None | Self::Sgd => Vec::new(),
            Self::Momentum { momentum } | Self::Nesterov { momentum } => vec![("momentum", momentum)],
            Self::Adam { beta1, beta2, epsilon } | Self::AdamW { beta1, beta2, epsilon } => {
                vec![("beta1", beta1), ("beta2", beta2), ("epsilon", epsilon)]
            }
        }
    }

    /// Refuses constants out of their range.
    pub(crate) fn check(self) -> Result<(), GraphError> {
        for (name, value) in self.constants() {
            let (option, fits) = match name {
                "momentum" => ("--momentum", (0.0..1.0).contains(&value)),
                "beta1" => ("--beta1", (0.0..1.0).contains(&value)),
                "beta2" => ("--beta2", (0.0..1.0).contains(&value)),
                _ => ("--epsilon", value > 0.0 && value.is_finite()),
            };
            if !fits {
                let wanted = if name == "epsilon" {
                    "above 0"
                } else {
                    "at least 0 and below 1"
                };
                return Err(GraphError::Option {
                    option,
                    problem: format!("{value} was given, {wanted} is wanted"),
                });
            }
        }
        Ok(())
    }
}

/// What all updates of a step share.
#[derive(Debug)]
pub(crate) struct Update {
    optimizer: Optimizer,
    weight_decay: f64,
    /// Step size: the learning rate, for Adam divided by the first bias correction.
    size: ValueId,
    /// Adam: 1 over the root of the second bias correction.
    second: Option<ValueId>,
    /// AdamW: the share of a parameter that decays in this step.
    decay: Option<ValueId>,
}

impl Update {
    /// `learning_rate` is f32 [1], `step` i64 [1].
    pub(crate) fn new(
        builder: &mut Builder,
        optimizer: Optimizer,
        weight_decay: f64,
        learning_rate: ValueId,
        step: ValueId,
    ) -> Result<Self, GraphError> {
        let (Optimizer::Adam { beta1, beta2, .. } | Optimizer::AdamW { beta1, beta2, .. }) = optimizer else {
            return Ok(Self {
                optimizer,
                weight_decay,
                size: learning_rate,
                second: None,
                decay: None,
            });
        };
        let apart = matches!(optimizer, Optimizer::AdamW { .. }) && weight_decay != 0.0;
        let decay = if apart {
            Some(builder.scale(learning_rate, weight_decay as f32)?)
        } else {
            None
        };
        let first = bias_correction(builder, beta1, step)?;
        let second = bias_correction(builder, beta2, step)?;
        let root = builder.unary(Operator::Sqrt, second)?;
        Ok(Self {
            optimizer,
            weight_decay,
            size: builder.div(learning_rate, first)?,
            second: Some(builder.unary(Operator::Reciprocal, root)?),
            decay,
        })
    }

    /// The next parameter and the next state, in the order of the slots. Only a parameter that `decays` has weight decay.
    pub(crate) fn apply(
        &self,
        builder: &mut Builder,
        mut parameter: ValueId,
        mut gradient: ValueId,
        state: &[ValueId],
        decays: bool,
    ) -> Result<(ValueId, Vec<ValueId>), GraphError> {
        if decays && let Some(decay) = self.decay {
            let lost = builder.mul(parameter, decay)?;
            parameter = builder.sub(parameter, lost)?;
        } else if decays && self.weight_decay != 0.0 {
            let decay = builder.scale(parameter, self.weight_decay as f32)?;
            gradient = builder.add(gradient, decay)?;
        }
        let (direction, next) = match (self.optimizer, state) {
            (Optimizer::Momentum { momentum }, &[buffer]) => {
                let kept = builder.scale(buffer, momentum as f32)?;
                let next = builder.add(kept, gradient)?;
                (next, vec![next])
            }
            (Optimizer::Nesterov { momentum }, &[buffer]) => {
                let kept = builder.scale(buffer, momentum as f32)?;
                let next = builder.add(kept, gradient)?;
                let ahead = builder.scale(next, momentum as f32)?;
                (builder.add(gradient, ahead)?, vec![next])
            }
            (
                Optimizer::Adam { beta1, beta2, epsilon } | Optimizer::AdamW { beta1, beta2, epsilon },
                &[mean, square],
            ) => {
                let mean = blend(builder, mean, gradient, beta1)?;
                let squared = builder.mul(gradient, gradient)?;
                let square = blend(builder, square, squared, beta2)?;
                let mut denominator = builder.unary(Operator::Sqrt, square)?;
                if let Some(second) = self.second {
                    denominator = builder.mul(denominator, second)?;
                }
                let epsilon = builder.scalar(epsilon as f32)?;
                let denominator = builder.add(denominator, epsilon)?;
                (builder.div(mean, denominator)?, vec![mean, square])
            }
            _ => (gradient, Vec::new()),
        };
        let change = builder.mul(direction, self.size)?;
        Ok((builder.sub(parameter, change)?, next))
    }
}

/// `share * old + (1 - share) * new`
fn blend(builder: &mut Builder, old: ValueId, new: ValueId, share: f64) -> Result<ValueId, GraphError> {
    let kept = builder.scale(old, share as f32)?;
    let fresh = builder.scale(new, (1.0 - share) as f32)?;
    builder.add(kept, fresh)
}

/// `1 - beta^step`. In f32 the difference would lose most digits for a beta near 1, so it is computed as
/// `1 - e^-x = 2 t / (1 + t)` with `t = tanh(x / 2)` and `x = -step ln beta`.
fn bias_correction(builder: &mut Builder, beta: f64, step: ValueId) -> Result<ValueId, GraphError> {
    let step = builder.cast(step, cloister_tensor::Dtype::F32)?;
    // At beta 0 nothing of the past is kept and the correction is 1: the rate is cut off where tanh is 1 in f32.
    let rate = (-beta.ln()).min(100.0);
    let half = builder.scale(step, (rate / 2.0) as f32)?;
    let slope = builder.unary(Operator::Tanh, half)?;
    let one = builder.scalar(1.0)?;
    let above = builder.scale(slope, 2.0)?;
    let below = builder.add(one, slope)?;
    builder.div(above, below)
}

/// Values that are joined by one `Concat`.
const JOINED: usize = 256;

/// The sum of the squares of all elements of some values, of shape [1].
pub(crate) fn sum_of_squares(builder: &mut Builder, values: &[ValueId]) -> Result<ValueId, GraphError> {
    let mut sums = Vec::with_capacity(values.len());
    for &value in values {
        let squares = builder.mul(value, value)?;
        let axes: Vec<usize> = (0..builder.rank(squares)).collect();
        let sum = builder.sum(squares, &axes, true)?;
        sums.push(builder.reshape(sum, &[1])?);
    }
    while sums.len() > 1 {
        let mut joined = Vec::with_capacity(sums.len().div_ceil(JOINED));
        for some in sums.chunks(JOINED) {
            let row = builder.concat(some, 0)?;
            joined.push(if some.len() == 1 {
                row
            } else {
                builder.sum(row, &[0], true)?
            });
        }
        sums = joined;
    }
    sums.first().copied().ok_or_else(|| builder.error("nothing to sum"))
}

/// The gradients, all scaled by the same factor where their common L2 norm is above `most`: `most / (norm + 1e-6)`, as in
/// PyTorch's `clip_grad_norm_`.
pub(crate) fn clipped(builder: &mut Builder, gradients: &[ValueId], most: f64) -> Result<Vec<ValueId>, GraphError> {
    let total = sum_of_squares(builder, gradients)?;
    let norm = builder.unary(Operator::Sqrt, total)?;
    let small = builder.scalar(1e-6)?;
    let norm = builder.add(norm, small)?;
    let (most, one) = (builder.scalar(most as f32)?, builder.scalar(1.0)?);
    let ratio = builder.div(most, norm)?;
    let factor = builder.binary(Operator::Min, ratio, one)?;
    gradients
        .iter()
        .map(|&gradient| builder.mul(gradient, factor))
        .collect()
}
