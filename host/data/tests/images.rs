//! JPEG images in Parquet files, as the Hugging Face hub stores them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::sync::Arc;

use cloister_data::{DataError, DataLimits, Dataset, FileSummary, Format, Source};
use cloister_policy::DatasetSpec;
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use proptest::prelude::*;

use support::{all, spec};

/// Bits of a scan, most significant first; a byte of ones is followed by one of zeros.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    current: u8,
    count: u32,
}

impl Bits {
    fn put(&mut self, value: u32, width: u32) {
        for at in (0..width).rev() {
            self.current = self.current << 1 | (value >> at & 1) as u8;
            self.count += 1;
            if self.count == 8 {
                self.bytes.push(self.current);
                if self.current == 0xff {
                    self.bytes.push(0);
                }
                (self.current, self.count) = (0, 0);
            }
        }
    }
}

fn segment(marker: u8, content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u16 + 2).to_be_bytes();
    [&[0xff, marker], &length[..], content].concat()
}

/// A baseline JPEG image of 16 x 8 pixels: two blocks, each of one colour (`[Y, Cb, Cr]`, or grey with `[Y]`).
fn jpeg(blocks: [&[u8]; 2]) -> Vec<u8> {
    let planes = blocks[0].len();
    let mut frame = vec![8, 0, 8, 0, 16, planes as u8];
    let mut scan = vec![planes as u8];
    for plane in 1..=planes as u8 {
        frame.extend([plane, 0x11, 0]);
        scan.extend([plane, 0]);
    }
    scan.extend([0, 63, 0]);
    // Twelve codes of four bits for the sizes of differences; one code of one bit that ends a block.
    let sizes = [&[0, 0, 0, 0, 12][..], &[0; 12], &(0..12).collect::<Vec<u8>>()].concat();
    let ends = [&[0x10, 1][..], &[0; 15], &[0]].concat();
    let mut bits = Bits::default();
    let mut before = vec![0i32; planes];
    for block in blocks {
        for (plane, &value) in block.iter().enumerate() {
            let level = (i32::from(value) - 128) * 8;
            let difference = level - before[plane];
            before[plane] = level;
            let width = 32 - difference.unsigned_abs().leading_zeros();
            bits.put(width, 4);
            let low = if difference < 0 { difference - 1 } else { difference };
            bits.put(low as u32, width);
            bits.put(0, 1);
        }
    }
    bits.put(0x7f, (8 - bits.count) % 8);
    [
        vec![0xff, 0xd8],
        segment(0xdb, &[&[0][..], &[1; 64]].concat()),
        segment(0xc0, &frame),
        segment(0xc4, &sizes),
        segment(0xc4, &ends),
        segment(0xda, &scan),
        bits.bytes,
        vec![0xff, 0xd9],
    ]
    .concat()
}

const SCHEMA: &str = "message rows { optional group img { optional binary bytes; optional binary path (STRING); } \
     required int64 label; }";

/// A file of images; `None` is a null.
fn file(images: &[Option<Vec<u8>>], group: usize) -> Vec<u8> {
    let schema = Arc::new(parse_message_type(SCHEMA).unwrap());
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::default()).unwrap();
    for part in images.chunks(group) {
        let mut out = writer.next_row_group().unwrap();
        let mut index = 0;
        while let Some(mut column) = out.next_column().unwrap() {
            match column.untyped() {
                ColumnWriter::ByteArrayColumnWriter(to) if index == 0 => {
                    let values: Vec<ByteArray> = part.iter().flatten().cloned().map(ByteArray::from).collect();
                    let levels: Vec<i16> = part.iter().map(|image| if image.is_some() { 2 } else { 1 }).collect();
                    to.write_batch(&values, Some(&levels), None).unwrap();
                }
                ColumnWriter::ByteArrayColumnWriter(to) => {
                    to.write_batch(&[], Some(&vec![1; part.len()]), None).unwrap();
                }
                ColumnWriter::Int64ColumnWriter(to) => {
                    to.write_batch(&(0..part.len() as i64).collect::<Vec<_>>(), None, None)
                        .unwrap();
                }
                _ => unreachable!("no such column in the schema"),
            }
            column.close().unwrap();
            index += 1;
        }
        out.close().unwrap();
    }
    writer.into_inner().unwrap()
}

fn open(bytes: Vec<u8>, spec: &DatasetSpec) -> Result<Dataset, DataError> {
    let source = Source::from_bytes("images.parquet", bytes);
    Dataset::open(&source, Format::Parquet, spec, &DataLimits::default())
}

fn colours() -> DatasetSpec {
    spec("x = { columns = \"img0..img383\", shape = [3, 8, 16] }\nlabels = { column = \"label\", dtype = \"i64\" }")
}

const GREY: &[u8] = &[100, 128, 128];
const WARM: &[u8] = &[128, 128, 178];

#[test]
fn images_become_planes() {
    let images = vec![
        Some(jpeg([GREY, WARM])),
        Some(jpeg([WARM, WARM])),
        Some(jpeg([GREY, GREY])),
    ];
    let dataset = open(file(&images, 2), &colours()).unwrap();
    assert_eq!(dataset.rows(), 3);
    assert_eq!(all(&dataset, "labels", None, 3), [0.0, 1.0, 0.0]);
    let x = all(&dataset, "x", None, 3);
    assert_eq!(x.len(), 3 * 3 * 8 * 16);
    let pixel =
        |image: usize, plane: usize, row: usize, column: usize| x[((image * 3 + plane) * 8 + row) * 16 + column];
    for plane in 0..3 {
        assert_eq!(
            (pixel(0, plane, 0, 0), pixel(0, plane, 7, 7), pixel(2, plane, 3, 15)),
            (100.0, 100.0, 100.0)
        );
    }
    // JFIF: red is Y + 1.402 (Cr - 128), green is Y - 0.714 (Cr - 128).
    for (plane, wanted) in [(0, 198.1), (1, 92.3), (2, 128.0)] {
        assert!((pixel(0, plane, 4, 8) - wanted).abs() <= 1.0 && (pixel(1, plane, 0, 0) - wanted).abs() <= 1.0);
    }
    let summary = FileSummary::of(
        &Source::from_bytes("f", file(&images, 3)),
        Format::Parquet,
        &DataLimits::default(),
    );
    let names: Vec<String> = summary.unwrap().columns.into_iter().map(|column| column.name).collect();
    assert_eq!(
        (names.len(), &names[383][..], &names[384][..], &names[385][..]),
        (386, "img383", "img.path", "label")
    );
}

#[test]
fn images_outside_of_a_slice_are_not_decoded() {
    let text = "name = \"train\"\nslice = \"1..3\"\n[inputs]\nx = { columns = \"img0..img383\", shape = [3, 8, 16] }\n";
    let slice = DatasetSpec::parse(text.as_bytes(), "spec.toml").unwrap();
    let images = [GREY, WARM].map(|block| Some(jpeg([block, block])));
    let [grey, warm] = images.clone();
    let first = Some(jpeg([GREY, GREY]));
    let damaged = Some(b"\xff\xd8 no image".to_vec());
    let part = open(file(&[first, warm.clone(), grey.clone(), damaged.clone()], 2), &slice).unwrap();
    let whole = spec("x = { columns = \"img0..img383\", shape = [3, 8, 16] }");
    let alone = open(file(&[warm, grey], 1), &whole).unwrap();
    assert_eq!(part.commitment(&[7; 32]), alone.commitment(&[7; 32]));
    let [grey, warm] = images;
    assert!(open(file(&[grey, warm, damaged], 2), &slice).is_err(), "inside it is");
}

#[test]
fn grey_images_have_one_plane() {
    let dataset = open(
        file(&[Some(jpeg([&[7], &[250]]))], 1),
        &spec("x = { columns = \"img0..img127\", shape = [1, 8, 16] }"),
    );
    let x = all(&dataset.unwrap(), "x", None, 1);
    assert_eq!((x[0], x[7], x[8], x[127]), (7.0, 7.0, 250.0, 250.0));
}

#[test]
fn a_damaged_image_is_named() {
    let good = jpeg([GREY, WARM]);
    let refusal = |bad: Option<Vec<u8>>| {
        let images = [Some(good.clone()), Some(good.clone()), bad];
        open(file(&images, 2), &colours()).unwrap_err().to_string()
    };
    for (bad, said) in [
        (Some(good[..good.len() / 2].to_vec()), "no readable JPEG image"),
        (Some(b"text".to_vec()), "no readable JPEG image"),
        (Some(Vec::new()), "no readable JPEG image"),
        (Some(jpeg([&[7], &[250]])), "an image of 16 x 8, 1 planes"),
        (None, "null"),
    ] {
        let error = refusal(bad);
        assert!(
            error.starts_with("images.parquet: row 3, column \"img\": seen "),
            "{error}"
        );
        assert!(
            error.contains(said) && error.contains("wanted a JPEG or PNG image of 16 x 8 with 3 planes"),
            "{error}"
        );
    }
    // Where the first is no image, there is no such column.
    let error = open(file(&[Some(b"text".to_vec())], 1), &colours()).unwrap_err();
    assert!(matches!(error, DataError::MissingColumn { .. }), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn changed_images(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let mut image = jpeg([GREY, WARM]);
        for (at, value) in changes {
            let at = at.index(image.len());
            image[at] = value;
        }
        let _ = open(file(&[Some(jpeg([GREY, GREY])), Some(image.clone())], 2), &colours());
        let _ = open(file(&[Some(image)], 1), &colours());
    }
}
