//! Rows that can't be read: named, and left out where the policy says so.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::io::{Cursor, Write};

use cloister_data::{BatchOrder, DataError, DataLimits, Dataset, FileSummary, Format, Source};
use cloister_policy::DatasetSpec;
use proptest::prelude::*;
use support::{all, spec};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

const SALT: [u8; 32] = [7; 32];

fn skipping(inputs: &str) -> DatasetSpec {
    let text = format!("name = \"train\"\ndamaged = \"skip\"\n[inputs]\n{inputs}\n");
    DatasetSpec::parse(text.as_bytes(), "spec.toml").unwrap()
}

fn open(name: &str, bytes: Vec<u8>, spec: &DatasetSpec) -> Result<Dataset, DataError> {
    let format = Format::of_name(name).unwrap();
    Dataset::open(&Source::from_bytes(name, bytes), format, spec, &DataLimits::default())
}

#[test]
fn damaged_rows_of_text_are_left_out_counted_and_told() {
    let inputs = "x = { columns = [\"a\", \"b\"] }\nlabels = { column = \"label\", dtype = \"i64\" }";
    let text = "a,b,label\n1,2,0\nx,y,1\n3,4,1\n5,6\n7,8,1.5\n9,10,2\n";
    let dataset = open("rows.csv", text.into(), &skipping(inputs)).unwrap();
    assert_eq!(all(&dataset, "x", None, 9), [1.0, 2.0, 3.0, 4.0, 9.0, 10.0]);
    assert_eq!(all(&dataset, "labels", None, 9), [0.0, 1.0, 2.0]);
    let skipped = dataset.skipped();
    assert_eq!((dataset.rows(), skipped.rows, skipped.first.len()), (3, 3, 3));
    for (words, wanted) in
        skipped
            .first
            .iter()
            .zip(["row 2 (line 3), column \"a\"", "row 4 (line 5): seen 2 cells", "row 5"])
    {
        assert!(words.contains(wanted), "{words}");
    }
    // The commitment is to the rows that are left: those rows alone give the same.
    let alone = open("rows.csv", "a,b,label\n1,2,0\n3,4,1\n9,10,2\n".into(), &spec(inputs)).unwrap();
    assert_eq!(dataset.commitment(&SALT), alone.commitment(&SALT));
    assert_eq!(alone.skipped().rows, 0);
    // By default the first of them stops it.
    let error = open("rows.csv", text.into(), &spec(inputs)).unwrap_err().to_string();
    assert!(error.contains("row 2"), "{error}");
    let all_bad = open("rows.csv", "a,b,label\nx,1,2\n".into(), &skipping(inputs))
        .unwrap_err()
        .to_string();
    assert!(
        all_bad.contains("all 1 rows are damaged; the first: rows.csv: row 1"),
        "{all_bad}"
    );
    // What is wrong with the file as a whole is no damaged row.
    for text in ["a,b\n1,2\n", "a,b,label\n\"1,2,3\n"] {
        assert!(open("rows.csv", text.into(), &skipping(inputs)).is_err());
    }
}

#[test]
fn many_damaged_rows_are_counted_and_few_told() {
    let lines: String = (0..1000).map(|row| if row % 2 == 0 { "1\n" } else { "?\n" }).collect();
    let dataset = open(
        "rows.csv",
        format!("a\n{lines}").into(),
        &skipping("x = { column = \"a\" }"),
    )
    .unwrap();
    assert_eq!(
        (dataset.rows(), dataset.skipped().rows, dataset.skipped().first.len()),
        (500, 500, 8)
    );
}

fn npy(dtype: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let mut header = format!("{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}");
    while !(10 + header.len() + 1).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    let length = (header.len() as u16).to_le_bytes();
    [b"\x93NUMPY\x01\x00", &length[..], header.as_bytes(), data].concat()
}

#[test]
fn numpy_arrays_one_after_another_are_rows_and_labels() {
    let images = npy("|u1", "(3, 2, 2)", &(0..12).collect::<Vec<u8>>());
    let labels: Vec<u8> = [4_i64, 5, 6].iter().flat_map(|label| label.to_le_bytes()).collect();
    let both = [images.clone(), npy("<i8", "(3,)", &labels)].concat();
    let inputs = "x = { columns = \"p0..p3\", shape = [1, 2, 2], dtype = \"u8\" }\nlabels = { column = \"label\", dtype = \"i64\" }";
    let dataset = open("rows.npy", both.clone(), &spec(inputs)).unwrap();
    assert_eq!(all(&dataset, "labels", None, 3), [4.0, 5.0, 6.0]);
    let mut batches = dataset.batches(BatchOrder::of(3)).unwrap();
    let x = batches.next().unwrap().unwrap().tensors["x"].clone();
    assert_eq!(
        (x.dtype().name(), x.shape().dims(), x.bytes()[11]),
        ("U8", &[3, 1, 2, 2][..], 11)
    );
    for (broken, said) in [
        (both[..both.len() - 1].to_vec(), "wanted 3 rows of 8 bytes"),
        ([images.clone(), images.clone()].concat(), "a second one like array 0"),
        (
            [images, b"\x93NUMPZ\x01\x00".to_vec()].concat(),
            "does not begin as a NumPy array",
        ),
        (npy("<f4", "()", &[0; 4]), "a single number"),
        (npy("|O", "(1,)", &[0; 8]), "not supported"),
    ] {
        let error = open("rows.npy", broken, &spec(inputs)).unwrap_err().to_string();
        assert!(error.contains(said), "{said}: {error}");
    }
    // NaN is damage to its row alone.
    let floats: Vec<u8> = [1.0_f32, f32::NAN, 3.0]
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let holes = open(
        "rows.npy",
        npy("<f4", "(3,)", &floats),
        &skipping("x = { column = \"label\" }"),
    )
    .unwrap();
    assert_eq!((all(&holes, "x", None, 3), holes.skipped().rows), (vec![1.0, 3.0], 1));
}

/// A PNG image of one colour; grey of one value, red green and blue of three, with transparency of four.
fn png(width: u32, height: u32, colour: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(match colour.len() {
        1 => png::ColorType::Grayscale,
        3 => png::ColorType::Rgb,
        _ => png::ColorType::Rgba,
    });
    let mut writer = encoder.write_header().unwrap();
    writer
        .write_image_data(&colour.repeat((width * height) as usize))
        .unwrap();
    writer.finish().unwrap();
    file
}

/// An archive; names that end in `/` are folders.
fn archive(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in entries {
        if let Some(folder) = name.strip_suffix('/') {
            zip.add_directory(folder, SimpleFileOptions::default()).unwrap();
        } else {
            zip.start_file(*name, SimpleFileOptions::default()).unwrap();
            zip.write_all(content).unwrap();
        }
    }
    zip.finish().unwrap().into_inner()
}

const PICTURES: &str = "x = { columns = \"p0..p11\", shape = [3, 2, 2], dtype = \"u8\" }\nlabels = { column = \"label\", dtype = \"i64\" }";

fn pictures() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("pets/dog/2.png", png(2, 2, &[9, 8, 7])),
        ("pets/cat/1.png", png(2, 2, &[1, 2, 3])),
        ("pets/", Vec::new()),
        ("pets/bird/", Vec::new()),
        ("pets/dog/1.PNG", png(2, 2, &[4, 5, 6])),
        ("__MACOSX/pets/dog/._1.png", b"junk".to_vec()),
        ("pets/dog/.DS_Store", b"junk".to_vec()),
    ]
}

#[test]
fn folders_of_images_become_planes_and_labels() {
    let dataset = open("pets.zip", archive(&pictures()), &spec(PICTURES)).unwrap();
    assert_eq!(
        all(&dataset, "labels", None, 9),
        [1.0, 2.0, 2.0],
        "bird is class 0, though it has no image"
    );
    let planes = |colour: [f64; 3]| colour.into_iter().flat_map(|value| [value; 4]).collect::<Vec<_>>();
    let wanted = [
        planes([1.0, 2.0, 3.0]),
        planes([4.0, 5.0, 6.0]),
        planes([9.0, 8.0, 7.0]),
    ]
    .concat();
    assert_eq!(all(&dataset, "x", None, 9), wanted);
    // The order in which they were packed is nobody's business.
    let mut other = pictures();
    other.reverse();
    let other = open("pets.zip", archive(&other), &spec(PICTURES)).unwrap();
    assert_eq!(other.commitment(&SALT), dataset.commitment(&SALT));
    let source = Source::from_bytes("pets.zip", archive(&pictures()));
    let summary = FileSummary::of(&source, Format::Images, &DataLimits::default()).unwrap();
    assert_eq!(
        (summary.rows, summary.columns.len(), summary.columns[12].name.as_str()),
        (3, 13, "p11")
    );
}

#[test]
fn a_damaged_image_of_an_archive_is_named_or_left_out() {
    let mut flipped = png(2, 2, &[1, 2, 3]);
    let at = flipped.len() - 20;
    flipped[at] ^= 1;
    for (name, bad, said) in [
        ("pets/cat/0.jpg", b"text".to_vec(), "no readable JPEG image"),
        ("pets/cat/2.png", b"\x89PNG\r\n\x1a\n".to_vec(), "no readable PNG image"),
        ("pets/cat/3.png", flipped, "no readable PNG image"),
        ("pets/cat/4.png", png(3, 2, &[1, 2, 3]), "an image of 3 x 2, 3 planes"),
        ("pets/cat/5.png", png(2, 2, &[1]), "an image of 2 x 2, 1 planes"),
        ("pets/cat/6.png", png(2, 2, &[1, 2, 3, 4]), "transparency"),
    ] {
        let mut entries = pictures();
        entries.push((name, bad));
        let error = open("pets.zip", archive(&entries), &spec(PICTURES))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&format!("image {name:?}: seen")) && error.contains(said),
            "{said}: {error}"
        );
        let left = open("pets.zip", archive(&entries), &skipping(PICTURES)).unwrap();
        assert_eq!((left.rows(), left.skipped().rows), (3, 1), "{name}");
        let whole = open("pets.zip", archive(&pictures()), &spec(PICTURES)).unwrap();
        assert_eq!(left.commitment(&SALT), whole.commitment(&SALT));
    }
}

#[test]
fn an_archive_of_something_else_is_refused() {
    for (entries, said) in [
        (vec![("1.png", png(2, 2, &[1, 2, 3]))], "in folders, one folder a class"),
        (vec![("a/readme.txt", Vec::new())], "in folders, one folder a class"),
        (
            vec![("a/1.png", png(2, 2, &[1, 2, 3])), ("a/b/1.png", png(2, 2, &[1, 2, 3]))],
            "side by side",
        ),
        (vec![("a/", Vec::new())], "seen no rows"),
    ] {
        let error = open("pets.zip", archive(&entries), &spec(PICTURES))
            .unwrap_err()
            .to_string();
        assert!(error.contains(said), "{said}: {error}");
    }
    let error = open("pets.zip", b"PK\x03\x04 not really".to_vec(), &spec(PICTURES))
        .unwrap_err()
        .to_string();
    assert!(error.contains("no readable ZIP archive"), "{error}");
    let few = DataLimits {
        rows: 2,
        ..DataLimits::default()
    };
    let source = Source::from_bytes("pets.zip", archive(&pictures()));
    let error = Dataset::open(&source, Format::Images, &spec(PICTURES), &few).unwrap_err();
    assert!(matches!(error, DataError::TooMuch { .. }), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn changed_archives_end_in_a_dataset_or_an_error(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)
    ) {
        let mut file = archive(&pictures());
        for (at, value) in changes {
            let at = at.index(file.len());
            file[at] = value;
        }
        for spec in [spec(PICTURES), skipping(PICTURES)] {
            let _ = open("pets.zip", file.clone(), &spec);
        }
    }

    #[test]
    fn any_bytes_as_numpy_end_in_a_dataset_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = open("rows.npy", bytes.clone(), &spec(PICTURES));
        let _ = open("rows.npy", [npy("|u1", "(3, 12)", &[0; 36]), bytes].concat(), &skipping(PICTURES));
    }
}
