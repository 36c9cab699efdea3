//! What windows see at the edges, number by number.

use std::collections::BTreeMap;

use super::interpreter::Array;
use super::run::run;
use super::zoo::onnx_file::{A, Model as File};
use crate::{Limits, Model};

/// What `operator` makes of a row of numbers.
fn of_a_row(operator: &str, row: &[f32], kernel: Option<&[f32]>, attributes: &[A<'_>]) -> Vec<f64> {
    let mut file = File::new(17);
    file.floats("row", &[1, 1, row.len() as i64], row);
    let mut operands = vec!["row"];
    if let Some(kernel) = kernel {
        file.floats("kernel", &[1, 1, kernel.len() as i64], kernel);
        operands.push("kernel");
    }
    file.node(operator, &operands, &["y"], attributes);
    let model = Model::parse(&file.written("y"), &Limits::default()).unwrap();
    let x = BTreeMap::from([("x".to_owned(), Array::new(&[2, 1], vec![0.0; 2]))]);
    run(&model.at_batch(2).unwrap(), &x)["y"].values.clone()
}

#[test]
fn averages_rounded_up_count_what_pytorch_counts() {
    let average = |counted: i64, pad: i64| {
        let attributes = [
            A::L("kernel_shape", &[3]),
            A::L("strides", &[2]),
            A::L("pads", &[pad, pad]),
            A::I("ceil_mode", 1),
            A::I("count_include_pad", counted),
        ];
        of_a_row("AveragePool", &[3.0, 6.0, 9.0, 12.0], None, &attributes)
    };
    assert_eq!(average(0, 0), [6.0, 10.5]);
    assert_eq!(
        average(1, 0),
        [6.0, 10.5],
        "what is behind the ground counts for nothing"
    );
    assert_eq!(average(0, 1), [4.5, 9.0, 12.0]);
    assert_eq!(
        average(1, 1),
        [3.0, 9.0, 6.0],
        "padding counts, and what is behind it does not"
    );
}

#[test]
fn transposed_convolutions_are_as_long_as_their_strides_say() {
    let spread = |row: &[f32], kernel: &[f32], stride: i64, automatic: &str| {
        let attributes = [A::L("strides", &[stride]), A::S("auto_pad", automatic)];
        of_a_row("ConvTranspose", row, Some(kernel), &attributes)
    };
    let ones = [1.0; 3];
    assert_eq!(spread(&[1.0, 10.0], &ones, 2, "SAME_UPPER"), [1.0, 1.0, 11.0, 10.0]);
    assert_eq!(spread(&[1.0, 10.0], &ones, 2, "SAME_LOWER"), [1.0, 11.0, 10.0, 10.0]);
    assert_eq!(spread(&[1.0, 10.0], &ones, 2, "VALID"), [1.0, 1.0, 11.0, 10.0, 10.0]);
    // A kernel that is shorter than its stride leaves nothing behind the last one.
    assert_eq!(
        spread(&[1.0, 10.0], &[2.0], 3, "SAME_UPPER"),
        [2.0, 0.0, 0.0, 20.0, 0.0, 0.0]
    );
}
