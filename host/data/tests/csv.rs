//! CSV files, good and broken.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use std::io::Write;

use cloister_data::{ColumnKind, DataLimits, Dataset, FileSummary, Format, Source};
use proptest::prelude::*;
use support::{all, csv_error, open_csv, open_csv_within, small};

const GOOD: &str = "label,a,note,b\n0,1,x,2\n1,3.5,\"y, \"\"z\"\"\",-4e-1\n";

#[test]
fn columns_are_found_by_name_and_others_ignored() {
    let dataset = open_csv(GOOD, &small()).unwrap();
    assert_eq!(dataset.rows(), 2);
    assert_eq!(all(&dataset, "x", None, 2), [1.0, 2.0, 3.5, f64::from(-0.4_f32)]);
    assert_eq!(all(&dataset, "labels", None, 1), [0.0, 1.0]);
}

#[test]
fn line_ends_marks_and_spaces_do_not_matter() {
    let plain = all(&open_csv("a,b,label\n1,2,0\n", &small()).unwrap(), "x", None, 1);
    for text in [
        "a,b,label\r\n1,2,0\r\n",
        "\u{feff}a,b,label\n1,2,0",
        "a, b ,label\n 1,\t2 ,\"0\"\n\n\n",
        "\"a\",b,label\n1,2,0\n",
    ] {
        assert_eq!(all(&open_csv(text, &small()).unwrap(), "x", None, 1), plain, "{text:?}");
    }
}

#[test]
fn a_file_is_read_from_its_start_wherever_its_offset_stands() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(GOOD.as_bytes()).unwrap();
    let source = Source::from_file("rows.csv", file).unwrap();
    assert_eq!(
        Dataset::open(&source, Format::Csv, &small(), &DataLimits::default())
            .unwrap()
            .rows(),
        2
    );
}

#[test]
fn errors_name_file_row_column_seen_and_wanted() {
    assert_eq!(
        csv_error("a,b,label\n1,2,0\n1,two,0\n"),
        r#"rows.csv: row 2 (line 3), column "b": seen "two", wanted a finite number that fits f32"#
    );
    assert_eq!(
        csv_error("a,b,label\n1,2,0.5\n"),
        r#"rows.csv: row 1 (line 2), column "label": seen "0.5", wanted a whole number that fits i64"#
    );
    assert_eq!(
        csv_error("a,b,label\n1,,0\n"),
        r#"rows.csv: row 1 (line 2), column "b": seen an empty cell, wanted a finite number that fits f32"#
    );
    assert_eq!(
        csv_error("a,b,label\n1,2,0\n1,2\n"),
        "rows.csv: row 2 (line 3): seen 2 cells, wanted 3 as in the header"
    );
    assert_eq!(
        csv_error("a,c,lable\n1,2,0\n").split("; ").collect::<Vec<_>>(),
        [
            r#"rows.csv: no column "label", which input labels needs"#,
            r#"the nearest is "lable""#
        ]
    );
}

#[test]
fn an_error_shows_no_other_cell_and_cuts_a_long_one() {
    let message = csv_error(format!("a,b,label\n31337,{},0\n", "z".repeat(5000)));
    assert!(!message.contains("31337") && message.len() < 200, "{message}");
    let message = csv_error("a,b,label\n1,\u{1b}[31mred,0\n");
    assert!(!message.contains('\u{1b}'), "control characters are escaped: {message}");
}

#[test]
fn broken_texts_are_refused() {
    let cases: [(&str, &str); 18] = [
        ("", "empty file"),
        ("\n", "has no name"),
        ("a,b,label", "no rows"),
        ("a,b,label\n\n\n", "no rows"),
        ("a,b,label\n1,2,0\n\n1,2,0\n", "line 3: seen an empty line between rows"),
        ("a,b,,label\n1,2,3,0\n", "column 3 of the header has no name"),
        ("a,b,label,a\n1,2,0,1\n", "stands in the header twice"),
        ("a;b;label\n1;2;0\n", "separated by commas"),
        ("a,b,label\n1,2,0,\n", "seen 4 cells, wanted 3"),
        ("a,b,label\n1,\"2,0\n1,2,0\n", "not closed on the line"),
        ("a,b,label\n1,\"2\"2,0\n", "after its closing quote"),
        ("a,b,label\n1,2\"2,0\n", "a quote inside an unquoted cell"),
        ("a,b,label\n1,NaN,0\n", "seen \"NaN\""),
        ("a,b,label\n1,-inf,0\n", "seen \"-inf\""),
        ("a,b,label\n1,1e39,0\n", "seen \"1e39\""),
        (
            "a,b,label\n1,2,99999999999999999999999999999999999999999999\n",
            "fits i64",
        ),
        ("a,b,label\n1,0x10,0\n", "finite number that fits f32"),
        ("a,b,label\r1,2,0\r", "no column \"label\""),
    ];
    for (text, wanted) in cases {
        let message = csv_error(text);
        assert!(message.contains(wanted), "{text:?}: {message}");
    }
    assert!(csv_error(b"a,b,label\n1,\xff\xfe,0\n".to_vec()).contains("finite number that fits f32"));
    assert!(
        csv_error(b"\xff\xfea\0,\0b\0".to_vec()).contains("no name in UTF-8"),
        "UTF-16"
    );
    assert!(csv_error(b"a,b,label\n1,2\0,0\n".to_vec()).contains("finite number that fits f32"));
}

#[test]
fn limits_hold() {
    let limits = DataLimits {
        file_bytes: 64,
        rows: 3,
        columns: 4,
        line_bytes: 20,
        memory_bytes: 32,
    };
    let refused = |text: &str, limits: &DataLimits| open_csv_within(text, &small(), limits).unwrap_err().to_string();
    assert!(refused(&"a".repeat(65), &limits).contains("bytes of the file: seen 65, at most 64"));
    assert!(refused("a,b,label\n1,22222222222222222222,0\n", &limits).contains("line 2: bytes in the line"));
    assert!(refused("a,b,label,c,d\n1,2,0,1,2\n", &limits).contains("more than 4 cells"));
    assert!(
        refused("a,b,label\n1,2,0\n1,2,0\n1,2,0\n", &limits)
            .contains("bytes of the dataset in memory: seen 48, at most 32")
    );
    let roomy = DataLimits {
        memory_bytes: 1 << 20,
        ..limits
    };
    assert!(refused("a,b,label\n1,2,0\n1,2,0\n1,2,0\n1,2,0\n", &roomy).contains("rows: seen 4, at most 3"));
    let endless = vec![b'1'; 3 << 20];
    assert!(
        open_csv(endless, &small())
            .unwrap_err()
            .to_string()
            .contains("at most 1048576"),
        "a line without an end"
    );
}

#[test]
fn inputs_that_cannot_be_are_refused() {
    let refused = |change: &dyn Fn(&mut cloister_policy::InputSpec)| {
        let mut spec = small();
        change(spec.inputs.get_mut("x").unwrap());
        open_csv(GOOD, &spec).unwrap_err().to_string()
    };
    assert!(refused(&|x| x.shape = vec![3]).contains("shape [3] does not hold the 2 columns"));
    assert!(refused(&|x| x.shape = vec![usize::MAX, 2]).contains("does not hold"));
    assert!(refused(&|x| x.columns.clear()).contains("seen 0 columns"));
    assert!(refused(&|x| x.scale[1] = f64::NAN).contains("finite"));
    assert!(refused(&|x| x.offset.clear()).contains("2 scales and 0 offsets"));
    let mut none = small();
    none.inputs.clear();
    assert!(open_csv(GOOD, &none).unwrap_err().to_string().contains("no inputs"));
}

#[test]
fn a_directory_is_no_source() {
    let folder = tempfile::tempdir().unwrap();
    let file = std::fs::File::open(folder.path()).unwrap();
    let said = Source::from_file("folder", file).unwrap_err().to_string();
    assert!(said.contains("one regular file") && said.contains("ZIP"), "{said}");
}

#[test]
fn a_summary_tells_kinds() {
    let source = Source::from_bytes("rows.csv", GOOD.as_bytes().to_vec());
    let summary = FileSummary::of(&source, Format::Csv, &DataLimits::default()).unwrap();
    let kinds: Vec<_> = summary
        .columns
        .iter()
        .map(|column| (column.name.as_str(), column.kind.clone()))
        .collect();
    assert_eq!(summary.rows, 2);
    assert_eq!(kinds[0], ("label", ColumnKind::Whole));
    assert_eq!(kinds[1], ("a", ColumnKind::Real));
    assert!(matches!(kinds[2], ("note", ColumnKind::Other(_))));
}

proptest! {
    #[test]
    fn any_bytes_end_in_a_dataset_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = open_csv(bytes, &small());
    }

    #[test]
    fn any_lines_after_a_good_header_end_in_a_dataset_or_an_error(text in "a,b,label\n([0-9,\".\r\n -]{0,12}\n){0,8}") {
        let _ = open_csv(text, &small());
    }

    /// What is read is what a writer wrote: any f32 and any i64 comes back bit for bit, in any quoting.
    #[test]
    fn written_rows_come_back(rows in proptest::collection::vec((any::<f32>(), any::<f32>(), any::<i64>(), "[^\r\n]{0,10}"), 1..20), quote: bool) {
        let rows: Vec<_> = rows.into_iter().filter(|row| row.0.is_finite() && row.1.is_finite()).collect();
        prop_assume!(!rows.is_empty());
        let style = if quote { csv::QuoteStyle::Always } else { csv::QuoteStyle::Necessary };
        let mut writer = csv::WriterBuilder::new().quote_style(style).from_writer(Vec::new());
        writer.write_record(["a", "note", "b", "label"]).unwrap();
        for (a, b, label, note) in &rows {
            writer.write_record([format!("{a:e}"), note.clone(), b.to_string(), label.to_string()]).unwrap();
        }
        let dataset = open_csv(writer.into_inner().unwrap(), &small()).unwrap();
        let mut batches = dataset.batches(cloister_data::BatchOrder::of(rows.len())).unwrap();
        let batch = batches.next().unwrap().unwrap();
        let x: Vec<f32> = rows.iter().flat_map(|row| [row.0, row.1]).collect();
        prop_assert_eq!(batch.tensors["x"].to_f32_vec().unwrap(), x);
        let labels: Vec<i64> = rows.iter().map(|row| row.2).collect();
        prop_assert_eq!(batch.tensors["labels"].to_i64_vec().unwrap(), labels);
    }
}
