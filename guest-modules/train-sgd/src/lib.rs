//! Trains by mini-batch gradient descent, with whatever optimizer the training graph holds. Touches handles and scalars only.
//!
//! This is the worker's part of federated averaging (McMahan et al., 2017): passes over the rows, or a number of steps, between two
//! averages. With a graph that has a proximal term (`cloister graph train --proximal`) it is that of FedProx (Li et al., 2020).
//! The optimizer's state lives as long as the round: each begins with zeros.

use cloister_guest::prelude::*;

cloister_guest::settings! {
    struct Settings {
        /// Passes over the rows in a round.
        epochs: u32 = 1,
        /// Steps in a round in place of passes, 0 for passes. The next round goes on in the rows where this one stopped.
        steps: u32 = 0,
        /// With `steps`: the seed of the order of the first pass over the rows; each further pass takes the next number.
        seed: u64 = 1,
        /// Rows in a batch; the graph `train` is for so many.
        batch: u32 = 32,
        /// Leaves out the rows that fill no batch, instead of giving them to the graph `train@N`.
        drop_last: bool = false,
        /// Step size of the first round.
        learning_rate: f64 = 0.1,
        /// How the step size changes from round to round.
        schedule: String in ["constant", "step", "cosine"] = "constant",
        /// Schedule `step`: rounds after which the step size is multiplied with `decay`.
        step_rounds: u32 = 10,
        /// Schedule `step`: the factor.
        decay: f64 = 0.5,
        /// Reports the mean loss of the last epoch, or of the steps; the policy then lists `loss` in `reads`.
        report_loss: bool = true,
    }
}

impl Settings {
    fn learning_rate(&self, round: Round) -> f64 {
        let past = f64::from(round.index.saturating_sub(1));
        self.learning_rate
            * match self.schedule.as_str() {
                "step" => self.decay.powf((past / f64::from(self.step_rounds.max(1))).floor()),
                "cosine" => 0.5 * (1.0 + (core::f64::consts::PI * past / f64::from(round.count.max(1))).cos()),
                _ => 1.0,
            }
    }
}

/// Batches of one pass over the rows.
struct Pass {
    seed: u64,
    first: u32,
    most: u32,
}

/// The passes of a round, of which each has so many batches. One after another: a round may have any number.
fn passes(settings: &Settings, round: Round, batches: u32) -> impl Iterator<Item = Pass> + use<> {
    let whole = settings.steps == 0 || batches == 0;
    let (seed, mut epochs, mut left) = (settings.seed, 0..settings.epochs, settings.steps);
    let mut at = round.step.wrapping_mul(u64::from(settings.steps));
    core::iter::from_fn(move || {
        if whole {
            return epochs.next().map(|epoch| Pass {
                seed: round.seed.wrapping_add(u64::from(epoch)),
                first: 0,
                most: batches,
            });
        }
        if left == 0 {
            return None;
        }
        // Below `batches`, so it fits.
        let first = (at % u64::from(batches)) as u32;
        let most = left.min(batches - first);
        let seed = seed.wrapping_add(at / u64::from(batches));
        at = at.wrapping_add(u64::from(most));
        left -= most;
        Some(Pass { seed, first, most })
    })
}

fn train(round: Round, model: &mut Model) -> Result<()> {
    let settings = Settings::read()?;
    let rate = settings.learning_rate(round);
    let full = Graph::named("train")?;
    let mut rows = Dataset::named("train");
    if settings.drop_last {
        rows = rows.drop_last();
    }
    let (mut sum, mut count) = (0.0, 0.0);
    for pass in passes(&settings, round, rows.count(settings.batch)?) {
        if settings.steps == 0 {
            // The loss is that of the last epoch.
            (sum, count) = (0.0, 0.0);
        }
        let rows = rows.clone().shuffled(pass.seed).first(pass.first).most(pass.most);
        for batch in rows.batches(settings.batch)? {
            let batch = batch?;
            let rest = (batch.rows() != settings.batch).then(|| Graph::for_rows("train", settings.batch, batch.rows()));
            let graph = rest.transpose()?;
            let out = graph
                .as_ref()
                .unwrap_or(&full)
                .run(model, &batch, &[("learning_rate", rate)])?;
            if settings.report_loss {
                sum += out.scalar("loss")? * f64::from(batch.rows());
                count += f64::from(batch.rows());
            }
            model.update(out);
        }
    }
    if count > 0.0 {
        metrics::report("loss", sum / count);
    }
    Ok(())
}

cloister_guest::export_trainer!(train);
