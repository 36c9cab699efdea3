//! Batches and the commitment.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use cloister_data::BatchOrder;
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};
use support::{all, dims, open_csv, small, spec};

fn numbered(rows: usize) -> String {
    let mut text = "a,b,label\n".to_owned();
    for row in 0..rows {
        text.push_str(&format!("{row},{},{row}\n", row + 1000));
    }
    text
}

#[test]
fn the_last_batch_holds_what_is_left_or_is_dropped() {
    let dataset = open_csv(numbered(10), &small()).unwrap();
    let sizes = |batch, drop_last| -> Vec<usize> {
        let batches = dataset
            .batches(BatchOrder {
                seed: Some(1),
                drop_last,
                ..BatchOrder::of(batch)
            })
            .unwrap();
        let promised = batches.len();
        let sizes: Vec<usize> = batches.map(|batch| batch.unwrap().rows).collect();
        assert_eq!(sizes.len(), promised);
        sizes
    };
    assert_eq!(sizes(4, false), [4, 4, 2]);
    assert_eq!(sizes(4, true), [4, 4]);
    assert_eq!(sizes(5, false), [5, 5]);
    assert_eq!(sizes(100, false), [10]);
    assert_eq!(sizes(100, true), [0_usize; 0]);
    assert!(dataset.batches(BatchOrder::of(0)).is_err());
}

#[test]
fn a_jump_gives_the_batches_that_a_whole_pass_gives_there() {
    let dataset = open_csv(numbered(23), &small()).unwrap();
    let labels = |order: BatchOrder| -> Vec<Vec<f64>> {
        let batches = dataset.batches(order).unwrap();
        let promised = batches.len();
        let labels: Vec<_> = batches
            .map(|batch| batch.unwrap().tensors["labels"].to_f64_vec())
            .collect();
        assert_eq!(labels.len(), promised);
        labels
    };
    for seed in [None, Some(7)] {
        for drop_last in [false, true] {
            let pass = BatchOrder {
                seed,
                drop_last,
                ..BatchOrder::of(4)
            };
            let whole = labels(pass);
            for (first, most) in [
                (0, Some(0)),
                (0, Some(2)),
                (2, None),
                (3, Some(1)),
                (5, Some(1)),
                (4, Some(9)),
                (6, Some(1)),
                (usize::MAX, Some(usize::MAX)),
                (1, Some(usize::MAX)),
            ] {
                let seen = labels(BatchOrder { first, most, ..pass });
                let wanted: Vec<_> = whole
                    .iter()
                    .skip(first)
                    .take(most.unwrap_or(usize::MAX))
                    .cloned()
                    .collect();
                assert_eq!(seen, wanted, "{seed:?} {drop_last} {first} {most:?}");
            }
        }
    }
}

#[test]
fn a_seed_gives_one_order_and_keeps_rows_together() {
    let dataset = open_csv(numbered(50), &small()).unwrap();
    let labels = all(&dataset, "labels", Some(7), 8);
    assert_eq!(
        labels,
        all(&dataset, "labels", Some(7), 50),
        "the batch size does not change the order"
    );
    assert_ne!(labels, all(&dataset, "labels", Some(8), 8));
    let x = all(&dataset, "x", Some(7), 8);
    for (row, label) in x.chunks(2).zip(&labels) {
        assert_eq!(row, [*label, label + 1000.0]);
    }
}

#[test]
fn shapes_are_rows_then_the_input() {
    let image = "image = { columns = [\"a\", \"b\"], shape = [1, 2, 1], scale = 0.5, offset = [1, -2] }";
    let dataset = open_csv(
        numbered(3),
        &spec(&format!("{image}\nlabel = {{ column = \"label\", dtype = \"i64\" }}")),
    )
    .unwrap();
    let batch = dataset.batches(BatchOrder::of(2)).unwrap().next().unwrap().unwrap();
    assert_eq!(dims(&batch.tensors["image"]), [2, 1, 2, 1]);
    assert_eq!(dims(&batch.tensors["label"]), [2]);
    assert_eq!(batch.tensors["image"].to_f32_vec().unwrap(), [1.0, 498.0, 1.5, 498.5]);
}

#[test]
fn the_commitment_is_what_the_format_says() {
    let dataset = open_csv("a,b,label\n1,2,3\n-0.5,0,4\n", &small()).unwrap();
    let salt = [7; 32];
    let lp = |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat();
    let one = 1_f64.to_be_bytes();
    let zero = 0_f64.to_be_bytes();
    let mut wanted = b"cloister/dataset/v1".to_vec();
    wanted.extend([lp(&salt), lp(b"train"), 2_u32.to_be_bytes().to_vec()].concat());
    wanted.extend([lp(b"labels"), lp(b"I64"), 0_u32.to_be_bytes().to_vec()].concat());
    wanted.extend([&1_u32.to_be_bytes()[..], &lp(b"label"), &one, &zero].concat());
    wanted.extend(
        [
            lp(b"x"),
            lp(b"F32"),
            1_u32.to_be_bytes().to_vec(),
            2_u64.to_be_bytes().to_vec(),
        ]
        .concat(),
    );
    wanted.extend([&2_u32.to_be_bytes()[..], &lp(b"a"), &one, &zero, &lp(b"b"), &one, &zero].concat());
    wanted.extend(2_u64.to_be_bytes());
    for (label, a, b) in [(3_i64, 1_f32, 2_f32), (4, -0.5, 0.0)] {
        wanted.extend(label.to_le_bytes());
        wanted.extend([a.to_le_bytes(), b.to_le_bytes()].concat());
    }
    let digest: [u8; 32] = Sha256::digest(&wanted).into();
    assert_eq!(dataset.commitment(&salt).as_bytes(), &digest);
    // The test vector of FORMAT.md.
    assert_eq!(
        dataset.commitment(&salt).to_string(),
        "d5b974a3032f4a1e860860554e61cefdac44183969686748c72b2ce419a13b61"
    );
}

#[test]
fn the_commitment_changes_with_salt_row_order_and_description() {
    let text = numbered(4);
    let dataset = open_csv(text.clone(), &small()).unwrap();
    let first = dataset.commitment(&[0; 32]);
    assert_eq!(first, open_csv(text.clone(), &small()).unwrap().commitment(&[0; 32]));
    assert_ne!(first, dataset.commitment(&[1; 32]));
    let mut lines: Vec<&str> = text.lines().collect();
    lines.swap(1, 2);
    assert_ne!(
        first,
        open_csv(lines.join("\n"), &small()).unwrap().commitment(&[0; 32])
    );
    let mut renamed = small();
    renamed.name = "other".to_owned();
    assert_ne!(first, open_csv(text.clone(), &renamed).unwrap().commitment(&[0; 32]));
    let mut scaled = small();
    scaled.inputs.get_mut("x").unwrap().scale[0] = 0.5;
    assert_ne!(first, open_csv(text, &scaled).unwrap().commitment(&[0; 32]));
}

proptest! {
    #[test]
    fn every_row_comes_once_in_any_order(rows in 1_usize..200, batch in 1_usize..64, seed: Option<u64>) {
        let dataset = open_csv(numbered(rows), &small()).unwrap();
        let mut labels = all(&dataset, "labels", seed, batch);
        labels.sort_by(f64::total_cmp);
        prop_assert_eq!(labels, (0..rows).map(|row| row as f64).collect::<Vec<_>>());
    }
}
