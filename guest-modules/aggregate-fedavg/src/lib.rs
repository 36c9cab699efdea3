//! Federated averaging (McMahan et al., 2017): the mean of the updates, weighted by the rows that the workers' hosts counted.

use cloister_guest::prelude::*;

fn aggregate(_round: Round, model: &mut FlatModel) -> Result<()> {
    if cloister_guest::aggregator::update_kind() == UpdateKind::Gradients {
        return Err(Failure::new(
            "the policy has updates hold gradients, whose mean is no model: `aggregate-optimizer` makes the next one of them",
        ));
    }
    model.write_mean().map(drop)
}

cloister_guest::export_aggregator!(aggregate);
