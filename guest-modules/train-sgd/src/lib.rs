//! Trains by mini-batch gradient descent, with whatever optimizer the training graph holds. Touches handles and scalars only.

use cloister_guest::prelude::*;

cloister_guest::settings! {
    struct Settings {
        /// Passes over the rows in a round.
        epochs: u32 = 1,
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
        /// Reports the mean loss of the last epoch; the policy then lists `loss` in `reads`.
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

fn train(round: Round, model: &mut Model) -> Result<()> {
    let settings = Settings::read()?;
    let rate = settings.learning_rate(round);
    let full = Graph::named("train")?;
    for epoch in 0..settings.epochs {
        let mut rows = Dataset::named("train").shuffled(round.seed.wrapping_add(u64::from(epoch)));
        if settings.drop_last {
            rows = rows.drop_last();
        }
        let (mut sum, mut count) = (0.0, 0.0);
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
        if count > 0.0 && epoch + 1 == settings.epochs {
            metrics::report("loss", sum / count);
        }
    }
    Ok(())
}

cloister_guest::export_trainer!(train);
