//! Makes the next model by an optimizer: the aggregator's part of a parameter server.
//!
//! Where updates hold gradients, the optimizer's gradient is their mean, weighted by the rows that the workers' hosts counted. Where
//! they hold models it is `previous - mean` (Reddi et al., "Adaptive Federated Optimization", ICLR 2021): `sgd` with a step size of 1
//! is then federated averaging, `momentum` FedAvgM, `adam` FedAdam. Running statistics become the mean of the updates' in either case.
//!
//! Definitions are PyTorch's (`torch.optim`, 2.x): the gradient's norm is clipped first (`clip_grad_norm_`); weight decay is added to
//! the gradient, but for `adamw`, where it acts on the parameter beside the moments. Momentum starts at 0, so that the first step
//! equals PyTorch's, which starts it at the gradient. The round's number corrects the bias of Adam's moments. Steps are computed in
//! f32 element by element, in an order that depends on nothing: the same updates give the same bytes on any machine.

mod optimizer;

use cloister_guest::aggregator::{Entry, Part, update_kind};
use cloister_guest::prelude::*;
use optimizer::Optimizer;

cloister_guest::settings! {
    struct Settings {
        /// What makes the next model of a gradient.
        optimizer: String in ["sgd", "momentum", "nesterov", "adam", "adamw"] = "sgd",
        /// Step size; 1 with `sgd` and updates of models is federated averaging.
        learning_rate: f64 = 0.1,
        /// Momentum and Nesterov: share of the momentum that is kept.
        momentum: f64 = 0.9,
        /// Adam and AdamW: share of the first moment that is kept.
        beta1: f64 = 0.9,
        /// Adam and AdamW: share of the second moment that is kept.
        beta2: f64 = 0.999,
        /// Adam and AdamW: added to the denominator.
        epsilon: f64 = 1e-8,
        /// Weight decay; 0 for none. A parameter whose gradient is all zeros, as that of a frozen one, does not decay.
        weight_decay: f64 = 0.0,
        /// Weight decay of parameters of one dimension too: biases, and the scales and shifts of norms.
        decay_vectors: bool = true,
        /// The largest norm of all gradients together; longer ones are scaled down to it. 0 for none.
        clip_norm: f64 = 0.0,
        /// How the step size changes: `step` multiplies it with `decay` after each of `boundaries`, `cosine` lets it fall to 0 at
        /// the last update.
        schedule: String in ["constant", "step", "cosine"] = "constant",
        /// Schedule `step`: updates after which the step size changes, such as "200,300".
        boundaries: String = "",
        /// Schedule `step`: the factor.
        decay: f64 = 0.1,
        /// Updates over which the step size rises to its first value in equal steps.
        warmup: u32 = 0,
    }
}

impl Settings {
    /// The step size of this update.
    fn rate(&self, round: Round) -> Result<f64> {
        let past = round.index.saturating_sub(1);
        if past < self.warmup {
            return Ok(self.learning_rate * f64::from(past + 1) / f64::from(self.warmup));
        }
        let factor = match self.schedule.as_str() {
            "step" => {
                let passed = self.boundaries()?.into_iter().filter(|&end| end <= past).count();
                self.decay.powf(passed as f64)
            }
            "cosine" => {
                let whole = round.count.saturating_sub(self.warmup).max(1);
                let done = f64::from(past - self.warmup) / f64::from(whole);
                0.5 * (1.0 + (core::f64::consts::PI * done.min(1.0)).cos())
            }
            _ => 1.0,
        };
        Ok(self.learning_rate * factor)
    }

    fn boundaries(&self) -> Result<Vec<u32>> {
        let words = self
            .boundaries
            .split(',')
            .map(str::trim)
            .filter(|word| !word.is_empty());
        let read = |word: &str| {
            let problem = || {
                Failure::setting(format!(
                    "setting `boundaries`: seen {word:?}, wanted numbers of updates such as \"200,300\""
                ))
            };
            word.parse().map_err(|_| problem())
        };
        words.map(read).collect()
    }

    fn check(&self) -> Result<()> {
        let share = 0.0..1.0;
        for (name, value, fits, wanted) in [
            (
                "learning_rate",
                self.learning_rate,
                self.learning_rate >= 0.0,
                "at least 0",
            ),
            (
                "momentum",
                self.momentum,
                share.contains(&self.momentum),
                "at least 0 and below 1",
            ),
            (
                "beta1",
                self.beta1,
                share.contains(&self.beta1),
                "at least 0 and below 1",
            ),
            (
                "beta2",
                self.beta2,
                share.contains(&self.beta2),
                "at least 0 and below 1",
            ),
            ("epsilon", self.epsilon, self.epsilon > 0.0, "above 0"),
            (
                "weight_decay",
                self.weight_decay,
                self.weight_decay >= 0.0,
                "at least 0",
            ),
            ("clip_norm", self.clip_norm, self.clip_norm >= 0.0, "at least 0"),
            ("decay", self.decay, self.decay >= 0.0, "at least 0"),
        ] {
            if !fits || !value.is_finite() {
                return Err(Failure::setting(format!(
                    "setting `{name}`: seen {value}, wanted {wanted}"
                )));
            }
        }
        self.boundaries().map(drop)
    }

    /// Whether the weight decay acts on this parameter.
    fn decays(&self, entry: &Entry, norm_squared: f64) -> bool {
        self.weight_decay > 0.0 && norm_squared > 0.0 && (self.decay_vectors || entry.dimensions.len() > 1)
    }
}

/// The optimizer's gradient, out of the mean of the updates.
fn gradient(kind: UpdateKind, model: &FlatModel, part: Part, previous: &[f32]) -> Vec<f32> {
    let mut mean = model.written(part);
    if kind == UpdateKind::Models {
        vector::zip(&mut mean, previous, |mean, previous| previous - mean);
    }
    mean
}

fn aggregate(round: Round, model: &mut FlatModel) -> Result<()> {
    let settings = Settings::read()?;
    settings.check()?;
    let (rate, kind) = (settings.rate(round)?, update_kind());
    let optimizer = Optimizer::new(&settings, rate, round.index);
    let parameters: Vec<Entry> = model.layout().into_iter().filter(|entry| !entry.statistic).collect();
    // Into the next model, where the optimizer finds it; running statistics are done with that.
    model.write_mean()?;
    let mut norms = vec![0.0; parameters.len()];
    if settings.clip_norm > 0.0 || settings.weight_decay > 0.0 {
        for (norm, entry) in norms.iter_mut().zip(&parameters) {
            for part in model.parts_of(entry) {
                let previous = match kind {
                    UpdateKind::Models => model.previous(part),
                    UpdateKind::Gradients => Vec::new(),
                };
                *norm += vector::norm_squared(&gradient(kind, model, part, &previous));
            }
        }
    }
    let mut clip = 1.0;
    if settings.clip_norm > 0.0 {
        let norm = norms.iter().sum::<f64>().sqrt();
        clip = (settings.clip_norm / (norm + 1e-6)).min(1.0) as f32;
        metrics::report("gradient_norm", norm);
    }
    for (entry, norm_squared) in parameters.iter().zip(norms) {
        let decays = settings.decays(entry, norm_squared);
        for part in model.parts_of(entry) {
            let mut values = model.previous(part);
            let mut gradient = gradient(kind, model, part, &values);
            if clip < 1.0 {
                vector::scale(clip, &mut gradient);
            }
            optimizer.step(part, &mut values, gradient, decays);
            model.write(part, &values);
        }
    }
    metrics::report("learning_rate", rate);
    Ok(())
}

cloister_guest::export_aggregator!(aggregate);
