//! What the tests of this crate share.
#![allow(dead_code, reason = "each test file uses its part")]

use cloister_data::{BatchOrder, DataError, DataLimits, Dataset, Format, Source};
use cloister_policy::DatasetSpec;
use cloister_tensor::Tensor;

/// A dataset `train` of some inputs, written as in a policy.
pub(crate) fn spec(inputs: &str) -> DatasetSpec {
    DatasetSpec::parse(
        format!("name = \"train\"\n[inputs]\n{inputs}\n").as_bytes(),
        "spec.toml",
    )
    .expect("a good description")
}

/// Two f32 columns `a` and `b` as `x`, and the i64 column `label` as `labels`.
pub(crate) fn small() -> DatasetSpec {
    spec("x = { columns = [\"a\", \"b\"] }\nlabels = { column = \"label\", dtype = \"i64\" }")
}

pub(crate) fn open_csv(text: impl Into<Vec<u8>>, spec: &DatasetSpec) -> Result<Dataset, DataError> {
    open_csv_within(text, spec, &DataLimits::default())
}

pub(crate) fn open_csv_within(
    text: impl Into<Vec<u8>>,
    spec: &DatasetSpec,
    limits: &DataLimits,
) -> Result<Dataset, DataError> {
    Dataset::open(&Source::from_bytes("rows.csv", text.into()), Format::Csv, spec, limits)
}

/// The message that a broken text is refused with.
pub(crate) fn csv_error(text: impl Into<Vec<u8>>) -> String {
    open_csv(text, &small()).expect_err("the text is broken").to_string()
}

/// All rows of an input in an order, as f64.
pub(crate) fn all(dataset: &Dataset, input: &str, seed: Option<u64>, batch: usize) -> Vec<f64> {
    let batches = dataset
        .batches(BatchOrder {
            seed,
            ..BatchOrder::of(batch)
        })
        .expect("a batch of at least 1");
    batches
        .flat_map(|batch| batch.expect("a batch").tensors[input].to_f64_vec())
        .collect()
}

pub(crate) fn dims(tensor: &Tensor) -> Vec<usize> {
    tensor.shape().dims().to_vec()
}
