//! Operators on windows and grids: resizing, convolutions, pools.

use super::Named;
use super::onnx_file::{A, Model};

pub(super) fn resizes(all: &mut Vec<Named>) {
    use A::{I, L, S};
    for (mode, place, rounding, scales, count) in [
        ("nearest", "asymmetric", "floor", [1.0, 1.0, 2.0, 3.0], 36),
        ("nearest", "asymmetric", "floor", [1.0, 1.0, 1.5, 2.0], 18),
        ("nearest", "half_pixel", "round_prefer_ceil", [1.0, 1.0, 2.5, 0.7], 10),
        ("nearest", "align_corners", "ceil", [1.0, 1.0, 2.0, 2.0], 24),
        ("linear", "half_pixel", "floor", [1.0, 1.0, 2.0, 1.7], 20),
        ("linear", "pytorch_half_pixel", "floor", [1.0, 1.0, 0.5, 2.0], 6),
        ("linear", "align_corners", "floor", [1.0, 1.0, 2.0, 2.0], 24),
        (
            "linear",
            "half_pixel_symmetric",
            "round_prefer_floor",
            [1.0, 1.0, 1.3, 1.7],
            10,
        ),
        ("linear", "asymmetric", "floor", [1.0, 2.0, 1.0, 1.0], 12),
    ] {
        let mut model = Model::new(19);
        model.parameter("p", &[1, 1, 2, 3]).floats("scales", &[4], &scales);
        let attributes = [
            S("mode", mode),
            S("coordinate_transformation_mode", place),
            S("nearest_mode", rounding),
        ];
        model.node("Resize", &["p", "", "scales"], &["y"], &attributes);
        all.push((
            format!("Resize {mode} {place} {rounding} {scales:?}"),
            model.finish("y", count),
        ));
    }
    let mut model = Model::new(18);
    model.parameter("p", &[1, 2, 2, 3]).ints("sizes", &[2], &[4, 5]);
    model.node(
        "Resize",
        &["p", "", "", "sizes"],
        &["y"],
        &[L("axes", &[2, 3]), S("mode", "linear"), I("antialias", 0)],
    );
    all.push(("Resize by sizes".into(), model.finish("y", 40)));
}

/// Value, kernel, elements of the result, attributes.
type Case<'a> = (&'a str, &'a [i64], &'a [i64], usize, Vec<A<'a>>);

pub(super) fn convolutions(all: &mut Vec<Named>) {
    use A::{I, L};
    let cases: [Case<'_>; 6] = [
        (
            "dilated",
            &[1, 2, 6, 6],
            &[2, 2, 2, 3],
            72,
            vec![L("dilations", &[2, 1]), L("pads", &[1, 1, 1, 1])],
        ),
        (
            "grouped",
            &[2, 4, 4, 4],
            &[4, 2, 3, 3],
            32,
            vec![I("group", 2), L("strides", &[2, 2]), L("pads", &[1, 1, 1, 1])],
        ),
        (
            "depthwise",
            &[2, 3, 4, 4],
            &[3, 1, 3, 3],
            96,
            vec![I("group", 3), L("pads", &[1, 1, 1, 1])],
        ),
        (
            "depthwise, two a channel",
            &[1, 2, 4, 4],
            &[4, 1, 3, 3],
            16,
            vec![I("group", 2)],
        ),
        (
            "of one dimension",
            &[2, 2, 6],
            &[3, 2, 3],
            18,
            vec![L("strides", &[2]), L("pads", &[1, 1])],
        ),
        ("of three dimensions", &[1, 2, 3, 3, 3], &[2, 2, 2, 2, 2], 16, vec![]),
    ];
    for (name, value, kernel, count, attributes) in cases {
        let mut model = Model::new(17);
        model
            .parameter("image", value)
            .parameter("weight", kernel)
            .parameter("bias", &kernel[..1]);
        model.node("Conv", &["image", "weight", "bias"], &["y"], &attributes);
        all.push((format!("Conv {name}"), model.finish("y", count)));
    }
}

pub(super) fn transposed_convolutions(all: &mut Vec<Named>) {
    use A::{I, L, S};
    let cases: [Case<'_>; 7] = [
        ("plain", &[1, 2, 3, 3], &[2, 3, 3, 3], 75, vec![]),
        (
            "with stride and output padding",
            &[2, 2, 3, 2],
            &[2, 1, 3, 3],
            2 * 6 * 4,
            vec![
                L("strides", &[2, 2]),
                L("pads", &[1, 1, 1, 1]),
                L("output_padding", &[1, 1]),
            ],
        ),
        (
            "grouped",
            &[1, 4, 2, 2],
            &[4, 1, 2, 2],
            2 * 4 * 4,
            vec![I("group", 2), L("strides", &[2, 2])],
        ),
        (
            "dilated",
            &[1, 1, 3, 3],
            &[1, 2, 2, 2],
            2 * 4 * 4,
            vec![L("dilations", &[2, 2]), L("pads", &[1, 0, 0, 1])],
        ),
        (
            "padded to the stride, more behind",
            &[1, 1, 3, 2],
            &[1, 1, 3, 4],
            6 * 6,
            vec![L("strides", &[2, 3]), S("auto_pad", "SAME_UPPER")],
        ),
        (
            "padded to the stride, more before",
            &[1, 2, 3, 2],
            &[2, 1, 1, 4],
            9 * 2,
            vec![L("strides", &[3, 1]), S("auto_pad", "SAME_LOWER")],
        ),
        (
            "valid",
            &[1, 1, 2, 2],
            &[1, 1, 2, 2],
            9,
            vec![L("pads", &[0, 0, 0, 0]), S("auto_pad", "VALID")],
        ),
    ];
    for (name, value, kernel, count, attributes) in cases {
        let mut model = Model::new(17);
        let group = if name == "grouped" { 2 } else { 1 };
        model
            .parameter("image", value)
            .parameter("weight", kernel)
            .parameter("bias", &[kernel[1] * group]);
        model.node("ConvTranspose", &["image", "weight", "bias"], &["y"], &attributes);
        all.push((format!("ConvTranspose {name}"), model.finish("y", count)));
    }
}

pub(super) fn pools(all: &mut Vec<Named>) {
    use A::{I, L};
    for (operator, pads, count) in [("AveragePool", [0, 0, 0, 0], 8), ("MaxPool", [1, 1, 1, 1], 18)] {
        let mut model = Model::new(17);
        model.parameter("image", &[1, 2, 5, 5]);
        let attributes = [L("kernel_shape", &[3, 3]), L("strides", &[2, 2]), L("pads", &pads)];
        model.node(operator, &["image"], &["y"], &attributes);
        all.push((format!("{operator} {pads:?}"), model.finish("y", count)));
    }
    // Sizes that strides don't divide, rounded up: the last windows reach beyond the ground, and beyond padding that counts.
    let rounded: [(&str, [i64; 4], i64, usize); 4] = [
        ("AveragePool", [0, 0, 0, 0], 0, 18),
        ("AveragePool", [1, 1, 1, 1], 0, 32),
        ("AveragePool", [1, 1, 1, 1], 1, 32),
        ("MaxPool", [0, 0, 0, 0], 0, 18),
    ];
    for (operator, pads, counted, count) in rounded {
        let mut model = Model::new(17);
        model.parameter("image", &[1, 2, 6, 6]);
        let mut attributes = vec![
            L("kernel_shape", &[3, 3]),
            L("strides", &[2, 2]),
            L("pads", &pads),
            I("ceil_mode", 1),
        ];
        if operator == "AveragePool" {
            attributes.push(I("count_include_pad", counted));
        }
        model.node(operator, &["image"], &["y"], &attributes);
        all.push((
            format!("{operator} {pads:?} rounded up, counted {counted}"),
            model.finish("y", count),
        ));
    }
    for operator in ["GlobalAveragePool", "GlobalMaxPool"] {
        let mut model = Model::new(17);
        model
            .parameter("image", &[2, 3, 2, 4])
            .node(operator, &["image"], &["y"], &[]);
        all.push((operator.into(), model.finish("y", 6)));
    }
}
