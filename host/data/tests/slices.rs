//! Datasets that are some rows of a file: the same as a file of those rows alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::fmt::Write as _;

use cloister_data::{DataError, DataLimits, Dataset, Format, Source};
use cloister_policy::DatasetSpec;
use proptest::prelude::*;
use support::all;

const SALT: [u8; 32] = [7; 32];
const INPUTS: &str = "x = { columns = [\"a\", \"b\"] }\nlabels = { column = \"label\", dtype = \"i64\" }";
const PICTURES: &str = "x = { columns = \"p0..p3071\", shape = [3, 32, 32], dtype = \"u8\" }\nlabels = { column = \"label\", dtype = \"i64\" }";

fn spec(inputs: &str, head: &str) -> DatasetSpec {
    let text = format!("name = \"train\"\n{head}[inputs]\n{inputs}\n");
    DatasetSpec::parse(text.as_bytes(), "spec.toml").unwrap()
}

fn open(name: &str, bytes: Vec<u8>, spec: &DatasetSpec) -> Result<Dataset, DataError> {
    let format = Format::of_name(name).unwrap();
    Dataset::open(&Source::from_bytes(name, bytes), format, spec, &DataLimits::default())
}

fn csv(rows: std::ops::Range<u64>) -> Vec<u8> {
    let mut text = "a,b,label\n".to_owned();
    for row in rows {
        writeln!(text, "{row},{},{}", row * row, row % 3).unwrap();
    }
    text.into_bytes()
}

/// CIFAR-10's records, each full of its own number.
fn cifar(rows: std::ops::Range<u8>) -> Vec<u8> {
    rows.flat_map(|row| std::iter::once(row % 10).chain(std::iter::repeat_n(row, 3072)))
        .collect()
}

#[test]
fn pictures_of_half_a_file_are_those_of_the_half() {
    for (slice, rows) in [("0..6", 0..6), ("6..12", 6..12), ("11..12", 11..12)] {
        let part = open(
            "all.bin",
            cifar(0..12),
            &spec(PICTURES, &format!("slice = \"{slice}\"\n")),
        )
        .unwrap();
        let alone = open("own.bin", cifar(rows.clone()), &spec(PICTURES, "")).unwrap();
        assert_eq!(part.rows(), u64::from(rows.end - rows.start));
        assert_eq!(part.memory_bytes(), alone.memory_bytes(), "nothing else is kept");
        assert_eq!(part.commitment(&SALT), alone.commitment(&SALT), "{slice}");
        assert_eq!(all(&part, "x", None, 3)[0], f64::from(rows.start));
    }
}

#[test]
fn a_file_with_fewer_rows_is_refused() {
    for slice in ["0..13", "12..13", "40..50"] {
        let error = open(
            "all.bin",
            cifar(0..12),
            &spec(PICTURES, &format!("slice = \"{slice}\"\n")),
        )
        .unwrap_err();
        let words = error.to_string();
        assert!(
            words.contains("all.bin: seen 12 rows") && words.contains(&format!("wanted the rows {slice}")),
            "{words}"
        );
    }
}

#[test]
fn what_is_damaged_outside_of_a_slice_does_not_matter() {
    let text = "a,b,label\n1,2,0\nx,y,1\n3,4,1\n5,6\n7,8,2\n";
    let good = open("rows.csv", text.into(), &spec(INPUTS, "slice = \"2..3\"\n")).unwrap();
    assert_eq!((all(&good, "x", None, 1), good.skipped().rows), (vec![3.0, 4.0], 0));
    // Inside it does, by the row of the file; and is left out where the policy says so.
    let error = open("rows.csv", text.into(), &spec(INPUTS, "slice = \"2..5\"\n")).unwrap_err();
    assert!(error.to_string().contains("row 4 (line 5)"), "{error}");
    let head = "slice = \"1..5\"\ndamaged = \"skip\"\n";
    let kept = open("rows.csv", text.into(), &spec(INPUTS, head)).unwrap();
    assert_eq!(all(&kept, "x", None, 9), [3.0, 4.0, 7.0, 8.0]);
    assert_eq!((kept.rows(), kept.skipped().rows), (2, 2));
}

proptest! {
    #[test]
    fn any_slice_of_text_is_the_file_of_its_rows(rows in 1_u64..40, first in 0_u64..40, count in 1_u64..40) {
        let end = first + count;
        let spec = |head: &str| spec(INPUTS, head);
        let part = open("all.csv", csv(0..rows), &spec(&format!("slice = \"{first}..{end}\"\n")));
        if end > rows {
            prop_assert!(part.is_err());
        } else {
            let alone = open("own.csv", csv(first..end), &spec("")).unwrap();
            prop_assert_eq!(part.unwrap().commitment(&SALT), alone.commitment(&SALT));
        }
    }
}
