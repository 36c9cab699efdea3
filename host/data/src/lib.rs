//! Datasets: a file of numbers in, typed batches out.
//!
//! A [`Dataset`] is read once from an open file ([`Source`]; CSV, Parquet, NPZ, NPY, IDX, CIFAR-10's binary files,
//! or a ZIP archive of images in folders), by the `inputs` that the policy gives it
//! ([`DatasetSpec`](cloister_policy::dataset::DatasetSpec)), and held in memory as the tensors' own bytes. From it come
//!
//! - [batches](Dataset::batches) in file order or in the order that a seed gives ([`order`]): two runs, same bytes;
//! - its [commitment](Dataset::commitment): a salted SHA-256 over canonical rows, laid out in `FORMAT.md` beside this
//!   crate and in [`commitment`]. The policy names it, so a participant can't change its rows unseen, and the salt
//!   keeps anyone from confirming a guess of them.
//!
//! A value is `raw * scale + offset`, computed in f64 and then rounded once to the input's dtype. Missing cells, text,
//! NaN, infinities and broken images are refused, with the file, row and column, what was seen there and what was wanted; no error
//! shows another cell. Where the policy says `damaged = "skip"` such rows are left out, counted and told instead. Every size is bounded by [`DataLimits`].
#![forbid(unsafe_code)]

mod arrays;
mod batches;
pub mod commitment;
mod csv_reader;
mod dataset;
mod error;
mod image_archive;
mod images;
mod limits;
mod number;
mod numpy;
pub mod order;
mod parquet_images;
mod parquet_reader;
pub mod salt;
mod source;
mod summary;
mod table;

pub use batches::{Batch, BatchOrder, Batches};
pub use dataset::{Dataset, Format, UnknownFormat};
pub use error::DataError;
pub use limits::DataLimits;
pub use source::Source;
pub use summary::{ColumnKind, ColumnSummary, FileSummary};
pub use table::Skipped;
