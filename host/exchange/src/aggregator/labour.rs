//! The thread on which aggregation, evaluation and keeping run, one after another.

use std::sync::Arc;

use cloister_rounds::{Layout, LayoutError};
use cloister_tensor::{Digest, TensorMap};
use tokio::sync::{mpsc, oneshot};

use crate::work::{AggregatorWork, RoundInfo, RoundRecord, UpdateStream, WorkError};

use super::member::Input;

/// What the driver has done.
pub(super) enum Order {
    Aggregate {
        info: RoundInfo,
        model: Arc<TensorMap>,
        updates: Box<UpdateStream>,
    },
    Keep {
        record: Box<RoundRecord>,
        model: Arc<TensorMap>,
        kept: oneshot::Sender<Result<(), WorkError>>,
    },
}

/// A finished aggregation.
pub(super) struct Aggregated {
    pub(super) model: TensorMap,
    pub(super) digest: Digest,
    pub(super) metrics: Vec<(String, f64)>,
    pub(super) state: Option<Digest>,
}

/// Works orders off until there are none.
pub(super) fn run(
    mut work: Box<dyn AggregatorWork>,
    mut orders: mpsc::UnboundedReceiver<Order>,
    inputs: &mpsc::Sender<Input>,
) {
    while let Some(order) = orders.blocking_recv() {
        match order {
            Order::Aggregate { info, model, updates } => {
                let result = aggregate(&mut *work, &info, &model, *updates).map_err(|error| error.to_string());
                drop(model);
                let input = Input::Aggregated {
                    round: info.round,
                    attempt: info.attempt,
                    result,
                };
                if inputs.blocking_send(input).is_err() {
                    return;
                }
            }
            Order::Keep { record, model, kept } => {
                // The driver waits for this answer, or is gone.
                let _ = kept.send(work.keep(&record, &model));
            }
        }
    }
}

fn aggregate(
    work: &mut dyn AggregatorWork,
    info: &RoundInfo,
    model: &TensorMap,
    mut updates: UpdateStream,
) -> Result<Aggregated, WorkError> {
    let aggregate = work.aggregate(info, model, &mut updates)?;
    drop(updates);
    let bad = |error: LayoutError| WorkError::new("the aggregate", error);
    Layout::of(model)
        .map_err(bad)?
        .require(&Layout::of(&aggregate.model).map_err(bad)?)
        .map_err(bad)?;
    cloister_rounds::reception::require_finite(&aggregate.model)
        .map_err(|refusal| WorkError::new("the aggregate", refusal))?;
    let mut metrics = work.evaluate(info, &aggregate.model)?;
    // How good a model is, is the evaluation's word alone.
    let said = |name: &str| matches!(name, "loss" | "accuracy");
    metrics.extend(aggregate.metrics.into_iter().filter(|(name, _)| !said(name)));
    let digest = Layout::model_digest(&aggregate.model).map_err(bad)?;
    Ok(Aggregated {
        model: aggregate.model,
        digest,
        metrics,
        state: aggregate.state,
    })
}
