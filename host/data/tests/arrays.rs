//! CIFAR-10's binary files, IDX and NPZ: the same rows as from CSV, and what is refused.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests"
)]

mod support;

use cloister_data::{ColumnKind, DataError, DataLimits, Dataset, FileSummary, Format, Source};
use cloister_policy::DatasetSpec;
use cloister_tensor::{Tensor, TensorMap, npz};
use proptest::prelude::*;

use support::{all, open_csv, spec};

const SALT: [u8; 32] = [7; 32];

fn open(bytes: &[u8], format: Format, spec: &DatasetSpec) -> Result<Dataset, DataError> {
    let source = Source::from_bytes("rows.file", bytes.to_vec());
    Dataset::open(&source, format, spec, &DataLimits::default())
}

fn refusal(bytes: &[u8], format: Format, spec: &DatasetSpec) -> String {
    open(bytes, format, spec).expect_err("it is broken").to_string()
}

/// Pixels of 2 x 2 and labels, for three rows.
const PIXELS: [u8; 12] = [0, 1, 2, 3, 4, 5, 6, 7, 252, 253, 254, 255];
const LABELS: [u8; 3] = [3, 0, 9];

fn images() -> DatasetSpec {
    spec(
        "x = { columns = \"p0..p3\", shape = [1, 2, 2], scale = 0.5 }\nlabels = { column = \"label\", dtype = \"i64\" }",
    )
}

fn idx_array(kind: u8, dims: &[u32], content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, kind, dims.len() as u8];
    bytes.extend(dims.iter().flat_map(|dim| dim.to_be_bytes()));
    bytes.extend(content);
    bytes
}

fn idx() -> Vec<u8> {
    [idx_array(8, &[3, 2, 2], &PIXELS), idx_array(8, &[3], &LABELS)].concat()
}

fn csv() -> String {
    let row = |at: usize| {
        let pixels: Vec<String> = PIXELS[at * 4..at * 4 + 4].iter().map(u8::to_string).collect();
        format!("{},{}\n", pixels.join(","), LABELS[at])
    };
    format!("p0,p1,p2,p3,label\n{}", (0..3).map(row).collect::<String>())
}

fn as_npz() -> Vec<u8> {
    let floats = PIXELS.iter().map(|&pixel| f32::from(pixel)).collect();
    let tensors = TensorMap::from([
        ("p".to_owned(), Tensor::from_f32(&[3, 2, 2], floats).unwrap()),
        (
            "label".to_owned(),
            Tensor::from_i64(&[3], LABELS.iter().map(|&label| label.into()).collect()).unwrap(),
        ),
        ("other".to_owned(), Tensor::from_f32(&[5], vec![0.5; 5]).unwrap()),
    ]);
    npz::write(&tensors).unwrap()
}

#[test]
fn the_same_numbers_are_the_same_dataset_in_every_format() {
    let described = images();
    let wanted = open_csv(csv(), &described).unwrap();
    for (bytes, format) in [(idx(), Format::Idx), (as_npz(), Format::Npz)] {
        let seen = open(&bytes, format, &described).unwrap();
        assert_eq!(seen.rows(), 3);
        assert_eq!(all(&seen, "x", None, 2), all(&wanted, "x", None, 2));
        assert_eq!(all(&seen, "labels", Some(5), 2), all(&wanted, "labels", Some(5), 2));
        assert_eq!(seen.commitment(&SALT), wanted.commitment(&SALT), "{format}");
    }
}

fn cifar(labels: &[u8]) -> Vec<u8> {
    let record = |label: &u8| {
        let mut record = vec![*label];
        record.extend((0..3072).map(|at| (at % 251) as u8));
        record
    };
    labels.iter().flat_map(record).collect()
}

fn cifar_spec() -> DatasetSpec {
    spec("x = { columns = \"p0..p3071\", shape = [3, 32, 32] }\nlabels = { column = \"label\", dtype = \"i64\" }")
}

#[test]
fn cifar_records_become_planes_and_labels() {
    let dataset = open(&cifar(&[3, 9, 0]), Format::Cifar10, &cifar_spec()).unwrap();
    assert_eq!(all(&dataset, "labels", None, 2), [3.0, 9.0, 0.0]);
    let pixels = all(&dataset, "x", None, 3);
    assert_eq!(pixels.len(), 3 * 3072);
    // Green, row 1, column 2 of the last image.
    assert_eq!(pixels[2 * 3072 + 1024 + 32 + 2], f64::from((1024 + 32 + 2) % 251));
    let batch = dataset.batches(cloister_data::BatchOrder {
        drop_last: true,
        ..cloister_data::BatchOrder::of(2)
    });
    let batch = batch.unwrap().next().unwrap().unwrap();
    assert_eq!(support::dims(&batch.tensors["x"]), [2, 3, 32, 32]);
}

#[test]
fn a_damaged_record_is_named() {
    let cifar10 = cifar_spec();
    let error = refusal(&cifar(&[3, 10]), Format::Cifar10, &cifar10);
    assert_eq!(
        error,
        "rows.file: row 2, column \"label\": seen the label 10, wanted a class from 0 to 9"
    );
    let mut short = cifar(&[1, 2]);
    short.pop();
    let error = refusal(&short, Format::Cifar10, &cifar10);
    assert!(
        error.contains("1 records and a rest") && error.contains("3073"),
        "{error}"
    );
    assert!(refusal(&[], Format::Cifar10, &cifar10).contains("no rows"));

    let described = images();
    for (bytes, said) in [
        (
            idx_array(8, &[3, 2, 2], &PIXELS[1..]),
            "array 0: seen 11 bytes of content, wanted 3 rows of 4 bytes",
        ),
        ([idx(), vec![0, 0]].concat(), "array 2: its header ends early"),
        (idx_array(7, &[3], &LABELS), "the type 0x07"),
        (idx_array(8, &[], &[1]), "0 dimensions"),
        (vec![b'P', b'K', 3, 4], "wanted 0, 0, a type and a rank"),
        (idx_array(8, &[3, 2, 2], &PIXELS), "no column \"label\""),
        (
            [idx_array(8, &[3], &LABELS), idx_array(8, &[3], &LABELS)].concat(),
            "a second one like array 0",
        ),
        (
            [idx_array(8, &[3, 2, 2], &PIXELS), idx_array(8, &[2], &LABELS[1..])].concat(),
            "array 0 has 3 rows, array 1 has 2",
        ),
        (idx_array(8, &[u32::MAX, u32::MAX, u32::MAX], &[]), "elements in a row"),
        (idx_array(8, &[3, 0], &[]), "hold nothing"),
    ] {
        let error = refusal(&bytes, Format::Idx, &described);
        assert!(error.contains(said), "{error}");
    }
    let nan = idx_array(
        0x0d,
        &[2, 4],
        &[1.0f32, 0.0, 0.0, 0.0, 0.0, f32::NAN, 0.0, 0.0]
            .map(f32::to_be_bytes)
            .concat(),
    );
    let only = spec("x = { columns = \"p0..p3\" }");
    let error = refusal(&nan, Format::Idx, &only);
    assert!(
        error.starts_with("rows.file: row 2, column \"p1\": seen NaN"),
        "{error}"
    );
}

#[test]
fn what_is_not_finite_is_refused_by_row_and_column_in_numpys_files() {
    let only = spec("x = { columns = \"p0..p3\" }");
    for (value, seen) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        let values = [1.0, 0.0, 0.0, 0.0, 0.0, value, 0.0, 0.0];
        let singles = Tensor::from_f32(&[2, 4], values.to_vec()).unwrap();
        let file = npz::write(&TensorMap::from([("p".to_owned(), singles)])).unwrap();
        let error = refusal(&file, Format::Npz, &only);
        let wanted = format!("rows.file: row 2, column \"p1\": seen {seen}");
        assert!(error.starts_with(&wanted), "{error}");

        // Version 1 of the format, with its header filled up to a multiple of 64 bytes.
        let header = "{'descr': '<f8', 'fortran_order': False, 'shape': (2, 4), }";
        let mut file = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
        file.extend(format!("{header:<117}\n").bytes());
        file.extend(values.iter().flat_map(|value| f64::from(*value).to_le_bytes()));
        let error = refusal(&file, Format::Npy, &only);
        assert!(error.starts_with(&wanted), "{error}");
    }
}

#[test]
fn signed_and_real_elements_keep_their_values() {
    let only = spec("x = { columns = [\"p0\", \"p1\"] }");
    for (kind, content, wanted) in [
        (9, vec![0xff, 2], [-1.0, 2.0]),
        (
            0x0b,
            [(-300i16).to_be_bytes(), 7i16.to_be_bytes()].concat(),
            [-300.0, 7.0],
        ),
        (
            0x0c,
            [(-70_000i32).to_be_bytes(), 7i32.to_be_bytes()].concat(),
            [-70_000.0, 7.0],
        ),
        (
            0x0d,
            [(-0.5f32).to_be_bytes(), 7f32.to_be_bytes()].concat(),
            [-0.5, 7.0],
        ),
        (
            0x0e,
            [(-0.5f64).to_be_bytes(), 7f64.to_be_bytes()].concat(),
            [-0.5, 7.0],
        ),
    ] {
        let dataset = open(&idx_array(kind, &[1, 2], &content), Format::Idx, &only).unwrap();
        assert_eq!(all(&dataset, "x", None, 1), wanted);
    }
}

#[test]
fn archives_are_refused_with_the_arrays_name() {
    let described = images();
    assert!(refusal(b"no archive", Format::Npz, &described).contains("rows.file"));
    let single = TensorMap::from([(
        "p".to_owned(),
        Tensor::scalar_f32(1.0)
            .reshaped(cloister_tensor::Shape::new(&[]).unwrap())
            .unwrap(),
    )]);
    let error = refusal(&npz::write(&single).unwrap(), Format::Npz, &described);
    assert!(error.contains("array p: seen a single number"), "{error}");
    let uneven = spec("x = { column = \"other\" }\nlabels = { column = \"label\", dtype = \"i64\" }");
    let error = refusal(&as_npz(), Format::Npz, &uneven);
    assert!(error.contains("array label has 3 rows, array other has 5"), "{error}");
    let limits = DataLimits {
        memory_bytes: 16,
        ..DataLimits::default()
    };
    let source = Source::from_bytes("rows.npz", as_npz());
    let error = Dataset::open(&source, Format::Npz, &described, &limits).unwrap_err();
    assert!(matches!(error, DataError::TooMuch { .. }), "{error}");
}

#[test]
fn formats_are_known_by_name_and_files_show_their_columns() {
    for (name, format) in [
        ("data_batch_1.bin", Format::Cifar10),
        ("train.IDX", Format::Idx),
        ("train-images-idx3-ubyte", Format::Idx),
        ("digits.npz", Format::Npz),
    ] {
        assert_eq!(Format::of_name(name), Some(format));
        assert_eq!(format.to_string().parse(), Ok(format));
    }
    let limits = DataLimits::default();
    let shown = |bytes: Vec<u8>, format| FileSummary::of(&Source::from_bytes("f", bytes), format, &limits).unwrap();
    let seen = shown(cifar(&[1, 2]), Format::Cifar10);
    assert_eq!((seen.rows, seen.columns.len()), (2, 3073));
    assert_eq!(shown(idx(), Format::Idx).columns[4].name, "label");
    let seen = shown(as_npz(), Format::Npz);
    let names: Vec<&str> = seen.columns.iter().map(|column| column.name.as_str()).collect();
    assert_eq!(names, ["label", "other", "p0", "p1", "p2", "p3"]);
    assert_eq!((seen.rows, &seen.columns[1].kind), (5, &ColumnKind::Real));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..256), which in 0..3usize) {
        let format = [Format::Cifar10, Format::Idx, Format::Npz][which];
        let _ = open(&bytes, format, &images());
        let _ = FileSummary::of(&Source::from_bytes("f", bytes), format, &DataLimits::default());
    }

    #[test]
    fn changed_files(at in any::<prop::sample::Index>(), value in any::<u8>(), archive in any::<bool>()) {
        let (mut bytes, format) = if archive { (as_npz(), Format::Npz) } else { (idx(), Format::Idx) };
        let at = at.index(bytes.len());
        bytes[at] = value;
        let _ = open(&bytes, format, &images());
    }
}
