//! Gives the gradient of one batch a call: the worker's part of a parameter server. The optimizer is the aggregator's.
//!
//! The call's step says which batch: passes over the rows go on from call to call, each in an order of its own.

use cloister_guest::prelude::*;

cloister_guest::settings! {
    struct Settings {
        /// Rows in a batch; the graph `train` is for so many.
        batch: u32 = 32,
        /// Leaves out the rows that fill no batch, instead of giving them to the graph `train@N`.
        drop_last: bool = false,
        /// Seed of the order of the first pass over the rows; each further pass takes the next number.
        seed: u64 = 1,
        /// Reports the loss of the batch; the policy then lists `loss` in `reads`.
        report_loss: bool = true,
    }
}

fn train(round: Round, model: &mut Model) -> Result<()> {
    if model.wanted() != UpdateKind::Gradients {
        return Err(Failure::model(
            "this trainer gives gradients, and the policy has updates hold models",
        ));
    }
    let settings = Settings::read()?;
    let mut rows = Dataset::named("train");
    if settings.drop_last {
        rows = rows.drop_last();
    }
    let batches = u64::from(rows.count(settings.batch)?);
    if batches == 0 {
        return Err(Failure::dataset("the rows fill no batch"));
    }
    let (pass, at) = (round.step / batches, round.step % batches);
    let rows = rows.shuffled(settings.seed.wrapping_add(pass)).first(at as u32).most(1);
    let batch = rows.batches(settings.batch)?.next();
    let batch = batch.ok_or_else(|| Failure::dataset(format!("there is no batch {at}")))??;
    let out = Graph::for_rows("train", settings.batch, batch.rows())?.run(model, &batch, &[])?;
    if settings.report_loss {
        metrics::report("loss", out.scalar("loss")?);
    }
    model.update(out);
    Ok(())
}

cloister_guest::export_trainer!(train);
