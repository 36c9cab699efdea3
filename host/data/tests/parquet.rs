//! Parquet files, good and broken.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use std::sync::Arc;

use cloister_data::{DataError, DataLimits, Dataset, FileSummary, Format, Source};
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use proptest::prelude::*;
use support::{all, open_csv, small, spec};

const SCHEMA: &str = "message rows { required float a; optional double b; required int64 label; required boolean flag; \
     required int32 small (INTEGER(16,false)); required int32 day (DATE); required binary text (STRING); }";

/// `rows` rows in row groups of at most `group`; `null` names a row whose `b` is missing.
fn file(rows: usize, group: usize, null: Option<usize>) -> Vec<u8> {
    let schema = Arc::new(parse_message_type(SCHEMA).unwrap());
    let mut writer =
        SerializedFileWriter::new(Vec::new(), schema, Arc::new(WriterProperties::builder().build())).unwrap();
    let numbers: Vec<usize> = (0..rows).collect();
    for part in numbers.chunks(group) {
        let mut out = writer.next_row_group().unwrap();
        let mut index = 0;
        while let Some(mut column) = out.next_column().unwrap() {
            let i64s: Vec<i64> = part.iter().map(|row| *row as i64).collect();
            let i32s: Vec<i32> = part.iter().map(|row| *row as i32).collect();
            match column.untyped() {
                ColumnWriter::FloatColumnWriter(to) => {
                    to.write_batch(&part.iter().map(|row| *row as f32).collect::<Vec<_>>(), None, None)
                        .unwrap();
                }
                ColumnWriter::DoubleColumnWriter(to) => {
                    let values: Vec<f64> = part
                        .iter()
                        .filter(|row| Some(**row) != null)
                        .map(|row| *row as f64 + 0.5)
                        .collect();
                    let levels: Vec<i16> = part.iter().map(|row| i16::from(Some(*row) != null)).collect();
                    to.write_batch(&values, Some(&levels), None).unwrap();
                }
                ColumnWriter::Int64ColumnWriter(to) => drop(to.write_batch(&i64s, None, None).unwrap()),
                ColumnWriter::Int32ColumnWriter(to) => drop(to.write_batch(&i32s, None, None).unwrap()),
                ColumnWriter::BoolColumnWriter(to) => {
                    to.write_batch(&part.iter().map(|row| row % 2 == 1).collect::<Vec<_>>(), None, None)
                        .unwrap();
                }
                ColumnWriter::ByteArrayColumnWriter(to) => {
                    to.write_batch(&vec![ByteArray::from("text"); part.len()], None, None)
                        .unwrap();
                }
                _ => unreachable!("no such column in the schema"),
            }
            column.close().unwrap();
            index += 1;
        }
        assert_eq!(index, 7);
        out.close().unwrap();
    }
    writer.into_inner().unwrap()
}

fn open(bytes: Vec<u8>, spec: &cloister_policy::DatasetSpec) -> Result<Dataset, DataError> {
    Dataset::open(
        &Source::from_bytes("rows.parquet", bytes),
        Format::Parquet,
        spec,
        &DataLimits::default(),
    )
}

#[test]
fn columns_of_several_row_groups_are_read() {
    let dataset = open(file(20_000, 9000, None), &small()).unwrap();
    assert_eq!(dataset.rows(), 20_000);
    let labels = all(&dataset, "labels", None, 512);
    assert!(labels.iter().enumerate().all(|(row, label)| *label == row as f64));
    let x = all(&dataset, "x", None, 20_000);
    assert_eq!(&x[39_998..], [19_999.0, 19_999.5]);
}

/// A file of the one column `a`.
fn real_column(schema: &str, write: impl Fn(&mut ColumnWriter<'_>)) -> Vec<u8> {
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut writer =
        SerializedFileWriter::new(Vec::new(), schema, Arc::new(WriterProperties::builder().build())).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    write(column.untyped());
    column.close().unwrap();
    group.close().unwrap();
    writer.into_inner().unwrap()
}

#[test]
fn what_is_not_finite_is_refused_by_row_and_column() {
    for (value, seen) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        let singles = real_column("message rows { required float a; }", |column| {
            let ColumnWriter::FloatColumnWriter(to) = column else {
                unreachable!("a is a float")
            };
            to.write_batch(&[1.0, 2.0, value], None, None).unwrap();
        });
        let doubles = real_column("message rows { required double a; }", |column| {
            let ColumnWriter::DoubleColumnWriter(to) = column else {
                unreachable!("a is a double")
            };
            to.write_batch(&[1.0, 2.0, f64::from(value)], None, None).unwrap();
        });
        for file in [singles, doubles] {
            let error = open(file, &one("a", "f32")).expect_err("it is no number").to_string();
            let wanted = format!("rows.parquet: row 3, column \"a\": seen {seen}");
            assert!(error.starts_with(&wanted), "{error}");
        }
    }
}

#[test]
fn the_same_numbers_commit_to_the_same_digest_in_both_formats() {
    let mut text = "b,a,label\n".to_owned();
    for row in 0..100 {
        text.push_str(&format!("{}.5,{row},{row}\n", row));
    }
    let csv = open_csv(text, &small()).unwrap();
    assert_eq!(
        open(file(100, 33, None), &small()).unwrap().commitment(&[3; 32]),
        csv.commitment(&[3; 32])
    );
}

/// One column as the input `x`.
fn one(column: &str, dtype: &str) -> cloister_policy::DatasetSpec {
    spec(&format!("x = {{ column = \"{column}\", dtype = \"{dtype}\" }}"))
}

#[test]
fn booleans_and_unsigned_integers_are_numbers() {
    assert_eq!(
        all(&open(file(4, 4, None), &one("flag", "i64")).unwrap(), "x", None, 4),
        [0.0, 1.0, 0.0, 1.0]
    );
    assert_eq!(
        all(&open(file(4, 4, None), &one("small", "f32")).unwrap(), "x", None, 4),
        [0.0, 1.0, 2.0, 3.0]
    );
}

#[test]
fn refusals_name_what_was_seen() {
    let refused = |bytes, column: &str, dtype| open(bytes, &one(column, dtype)).unwrap_err().to_string();
    assert_eq!(
        refused(file(9, 4, Some(6)), "b", "f32"),
        "rows.parquet: row 7, column \"b\": seen null, wanted a finite number that fits f32"
    );
    assert!(refused(file(9, 4, None), "b", "i64").contains("row 1, column \"b\": seen 0.5, wanted a whole number"));
    assert!(refused(file(3, 3, None), "day", "i64").contains("Date"));
    assert!(refused(file(3, 3, None), "text", "f32").contains("BYTE_ARRAY"));
    assert!(refused(file(3, 3, None), "lable", "f32").contains("the nearest is \"label\""));
}

#[test]
fn limits_hold() {
    let source = Source::from_bytes("rows.parquet", file(100, 100, None));
    let refused = |limits: DataLimits| {
        Dataset::open(&source, Format::Parquet, &small(), &limits)
            .unwrap_err()
            .to_string()
    };
    assert!(
        refused(DataLimits {
            file_bytes: 100,
            ..DataLimits::default()
        })
        .contains("bytes of the file")
    );
    assert!(
        refused(DataLimits {
            columns: 6,
            ..DataLimits::default()
        })
        .contains("columns: seen 7, at most 6")
    );
    assert!(
        refused(DataLimits {
            rows: 99,
            ..DataLimits::default()
        })
        .contains("rows: seen 100, at most 99")
    );
    assert!(
        refused(DataLimits {
            memory_bytes: 1000,
            ..DataLimits::default()
        })
        .contains("bytes of the dataset in memory")
    );
}

#[test]
fn a_summary_comes_from_the_metadata() {
    let source = Source::from_bytes("rows.parquet", file(5, 2, None));
    let summary = FileSummary::of(&source, Format::Parquet, &DataLimits::default()).unwrap();
    assert_eq!((summary.rows, summary.columns.len()), (5, 7));
    assert_eq!(summary.columns[1].kind.to_string(), "numbers");
}

#[test]
fn truncated_files_are_refused() {
    let whole = file(200, 64, None);
    for len in (0..whole.len()).step_by(7) {
        let message = open(whole[..len].to_vec(), &small()).unwrap_err().to_string();
        assert!(message.starts_with("rows.parquet: "), "{message}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn flipped_bytes_end_in_a_dataset_or_an_error(at: proptest::sample::Index, with: u8, from_end in 0_usize..400) {
        let mut bytes = file(40, 16, None);
        // Half of the hits in the footer, where the lengths and offsets are.
        let index = if with % 2 == 0 { at.index(bytes.len()) } else { bytes.len() - 1 - from_end.min(bytes.len() - 1) };
        bytes[index] ^= with | 1;
        let _ = open(bytes, &small());
    }

    #[test]
    fn any_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(open(bytes, &small()).is_err());
    }
}
