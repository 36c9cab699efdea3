//! Write trainers, transforms and aggregators for Cloister in Rust.
//!
//! A trainer reads like the paper that it implements:
//!
//! ```ignore
//! use cloister_guest::prelude::*;
//!
//! cloister_guest::settings! {
//!     struct Settings {
//!         /// Rows in a batch.
//!         batch: u32 = 32,
//!         /// Step size.
//!         learning_rate: f64 = 0.1,
//!     }
//! }
//!
//! fn train(round: Round, model: &mut Model) -> Result<()> {
//!     let settings = Settings::read()?;
//!     let step = Graph::named("train")?;
//!     for batch in Dataset::named("train").shuffled(round.seed).drop_last().batches(settings.batch)? {
//!         let out = step.run(model, &batch?, &[("learning_rate", settings.learning_rate)])?;
//!         metrics::report("loss", out.scalar("loss")?);
//!         model.update(out);
//!     }
//!     Ok(())
//! }
//!
//! cloister_guest::export_trainer!(train);
//! ```
//!
//! A module holds tensors by handle: what it may read and make is the policy's to say, and a call that oversteps is ended by
//! the host. There is no clock and no randomness but [`Round::seed`].

pub mod aggregator;
pub mod bindings;
mod failure;
pub mod image;
pub mod log;
pub mod metrics;
pub mod random;
pub mod settings;
pub mod trainer;
pub mod transform;
pub mod vector;

pub use failure::{Failure, FailureKind, Result, log_panics};

/// The round that a call belongs to, and what updates hold.
pub use bindings::trainer::cloister::federation::types::{Round, UpdateKind};

/// What most trainers and aggregators use.
pub mod prelude {
    pub use crate::aggregator::{FlatModel, Slot, Update, updates};
    pub use crate::trainer::{Batch, Dataset, Graph, Model, Outputs};
    pub use crate::{Failure, Result, Round, UpdateKind, log, metrics, vector};
}

/// What most transforms use.
pub mod transform_prelude {
    pub use crate::image::{Image, Size};
    pub use crate::random::Random;
    pub use crate::transform::{Batch, Elements, Made};
    pub use crate::{Failure, Result, log, vector};
}

/// Exports a function `fn(Round, &mut Model) -> Result<()>` as the component's trainer. What the model holds when the function
/// returns is the update.
#[macro_export]
macro_rules! export_trainer {
    ($train:path) => {
        struct ExportedTrainer;
        impl $crate::bindings::trainer::exports::cloister::federation::training::Guest for ExportedTrainer {
            fn train(round: $crate::Round) -> ::core::result::Result<$crate::trainer::NamedTensors, $crate::Failure> {
                $crate::trainer::call(round, $train)
            }
        }
        $crate::bindings::trainer::export_trainer_world!(
            ExportedTrainer with_types_in $crate::bindings::trainer
        );
    };
}

/// Exports a function `fn(&Batch, &mut Random) -> Result<Made>` as the component's transform. The generator starts from the batch's
/// seed.
#[macro_export]
macro_rules! export_transform {
    ($transform:path) => {
        struct ExportedTransform;
        impl $crate::bindings::transform::exports::cloister::federation::transforming::Guest for ExportedTransform {
            fn transform(
                batch: $crate::bindings::transform::exports::cloister::federation::transforming::Batch,
            ) -> ::core::result::Result<::std::vec::Vec<$crate::transform::Array>, $crate::Failure> {
                $crate::transform::call(batch, $transform)
            }
        }
        $crate::bindings::transform::export_transform_world!(
            ExportedTransform with_types_in $crate::bindings::transform
        );
    };
}

/// Exports a function `fn(Round, &mut FlatModel) -> Result<()>` as the component's aggregator. What it wrote to the model is
/// the next one.
#[macro_export]
macro_rules! export_aggregator {
    ($aggregate:path) => {
        struct ExportedAggregator;
        impl $crate::bindings::aggregator::exports::cloister::federation::aggregation::Guest for ExportedAggregator {
            fn aggregate(round: $crate::Round) -> ::core::result::Result<(), $crate::Failure> {
                $crate::aggregator::call(round, $aggregate)
            }
        }
        $crate::bindings::aggregator::export_aggregator_world!(
            ExportedAggregator with_types_in $crate::bindings::aggregator
        );
    };
}
