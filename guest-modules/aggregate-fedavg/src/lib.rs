//! Federated averaging (McMahan et al., 2017): the mean of the updates, weighted by the rows that the workers' hosts counted.
//!
//! Updates are folded one after the other, in the order of their nodes' names, so the bytes do not depend on who was first:
//! `mean += rows / rows so far * (update - mean)`. One update and one result are in memory, whatever the number of workers.
//! In f32, each fold rounds an element three times: the error of a mean of `n` updates stays below `3 n` units in the last
//! place of the largest of them.

use cloister_guest::prelude::*;

fn aggregate(_round: Round, model: &mut FlatModel) -> Result<()> {
    let mut total = 0_u64;
    let mut folded = 0_u32;
    for update in updates() {
        let rows = update.rows();
        if rows == 0 {
            log::warn(&format!(
                "{} trained on no row: its update does not count",
                update.node()
            ));
            continue;
        }
        total = total
            .checked_add(rows)
            .ok_or_else(|| Failure::new("more rows than can be counted"))?;
        let share = (rows as f64 / total as f64) as f32;
        for part in model.parts() {
            let new = update.read(part);
            if folded == 0 {
                model.write(part, &new);
            } else {
                let mut mean = model.written(part);
                vector::mix(share, &new, &mut mean);
                model.write(part, &mean);
            }
        }
        folded += 1;
    }
    if folded == 0 {
        return Err(Failure::new("no update to average"));
    }
    Ok(())
}

cloister_guest::export_aggregator!(aggregate);
