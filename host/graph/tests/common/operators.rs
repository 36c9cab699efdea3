//! A small ONNX model for each operator and each of its forms, written as other tools write them. The tests of this crate
//! check their gradients against finite differences in f64, those of the engines that all engines compute the same.

pub mod onnx_file;
mod windows;

use onnx_file::{A, Model};
use windows::{convolutions, pools, resizes, transposed_convolutions};

/// A model and what it shows.
pub type Named = (String, Vec<u8>);

/// `operator(p)` of a parameter `[2, 3]`.
fn of_one(all: &mut Vec<Named>, opset: i64, operator: &str, attributes: &[A<'_>]) {
    let mut model = Model::new(opset);
    model.parameter("p", &[2, 3]).node(operator, &["p"], &["y"], attributes);
    all.push((format!("{operator} {attributes:?}"), model.finish("y", 6)));
}

/// Adds the models of a family.
pub type Make = fn(&mut Vec<Named>);

/// The families, by name.
pub fn families() -> Vec<(&'static str, Make)> {
    vec![
        ("activations", activations),
        ("normalizations", normalizations),
        ("reductions", reductions),
        ("rearrangements", rearrangements),
        ("picks", picks),
        ("products", products),
        ("resizes", resizes),
        ("convolutions", convolutions),
        ("transposed convolutions", transposed_convolutions),
        ("pools", pools),
    ]
}

/// The models of one family.
pub fn family(name: &str) -> Vec<Named> {
    let mut all = Vec::new();
    let (_, make) = families().into_iter().find(|(one, _)| *one == name).unwrap();
    make(&mut all);
    all
}

fn activations(all: &mut Vec<Named>) {
    use A::{F, I, S};
    for operator in [
        "Sin",
        "Cos",
        "Softplus",
        "HardSwish",
        "Mish",
        "Softsign",
        "Elu",
        "Celu",
        "Selu",
        "HardSigmoid",
    ] {
        of_one(all, 18, operator, &[]);
    }
    of_one(all, 17, "LeakyRelu", &[F("alpha", 0.2)]);
    of_one(all, 17, "Elu", &[F("alpha", 0.7)]);
    of_one(all, 17, "Celu", &[F("alpha", 0.7)]);
    of_one(all, 17, "Selu", &[F("alpha", 1.5), F("gamma", 1.1)]);
    of_one(all, 17, "HardSigmoid", &[F("alpha", 0.7), F("beta", 0.4)]);
    of_one(all, 24, "Swish", &[F("alpha", 1.7)]);
    of_one(all, 20, "Gelu", &[]);
    of_one(all, 20, "Gelu", &[S("approximate", "tanh")]);
    of_one(all, 17, "Trilu", &[I("upper", 0)]);
    let mut model = Model::new(17);
    model.parameter("p", &[2, 3, 2]).parameter("slope", &[3, 1]);
    model.node("PRelu", &["p", "slope"], &["y"], &[]);
    all.push(("PRelu".into(), model.finish("y", 12)));
    // The form in which Clip stands for ReLU6, and powers in the form of older layer norms.
    let mut model = Model::new(17);
    model
        .parameter("p", &[2, 3])
        .floats("low", &[], &[-0.25])
        .floats("high", &[], &[0.4]);
    model.node("Clip", &["p", "low", "high"], &["y"], &[]);
    all.push(("Clip".into(), model.finish("y", 6)));
    for exponent in [2.0, 3.0, -1.0, 0.5, 1.5] {
        let mut model = Model::new(17);
        model
            .parameter("p", &[2, 3])
            .floats("half", &[], &[0.5])
            .floats("e", &[], &[exponent]);
        model
            .node("Mul", &["p", "p"], &["q"], &[])
            .node("Add", &["q", "half"], &["s"], &[]);
        model.node("Pow", &["s", "e"], &["y"], &[]);
        all.push((format!("Pow {exponent}"), model.finish("y", 6)));
    }
    for operator in ["Sum", "Mean", "Max", "Min"] {
        let mut model = Model::new(17);
        model
            .parameter("a", &[2, 3])
            .parameter("b", &[3])
            .parameter("c", &[2, 1]);
        model.node(operator, &["a", "b", "c"], &["y"], &[]);
        all.push((operator.into(), model.finish("y", 6)));
    }
    // A mask of truth values: what is not a number or below the bound is replaced.
    let mut model = Model::new(17);
    model.parameter("p", &[2, 3]).floats("bound", &[], &[0.1]);
    model.node("IsNaN", &["p"], &["nan"], &[]);
    model.node("GreaterOrEqual", &["p", "bound"], &["above"], &[]);
    model.node("Not", &["nan"], &["number"], &[]);
    model.node("And", &["above", "number"], &["both"], &[]);
    model.node("Xor", &["both", "nan"], &["one"], &[]);
    model.node("Floor", &["p"], &["floor"], &[]);
    model.node("Where", &["one", "p", "floor"], &["y"], &[]);
    all.push(("masks".into(), model.finish("y", 6)));
}

fn normalizations(all: &mut Vec<Named>) {
    use A::{F, I};
    for axis in [-1, 1] {
        let mut model = Model::new(17);
        let dims: &[i64] = if axis == 1 { &[3, 2] } else { &[2] };
        model
            .parameter("p", &[2, 3, 2])
            .parameter("scale", dims)
            .parameter("shift", dims);
        model.node(
            "LayerNormalization",
            &["p", "scale", "shift"],
            &["y", "mean", "inverse"],
            &[I("axis", axis), F("epsilon", 0.01)],
        );
        all.push((format!("LayerNormalization {axis}"), model.finish("y", 12)));
    }
    let mut model = Model::new(17);
    model.parameter("p", &[2, 4]).parameter("scale", &[4]);
    model.node("LayerNormalization", &["p", "scale"], &["n", "mean", "inverse"], &[]);
    model
        .node("Mul", &["mean", "inverse"], &["m"], &[])
        .node("Add", &["n", "m"], &["y"], &[]);
    all.push(("LayerNormalization's further results".into(), model.finish("y", 8)));
    let mut model = Model::new(23);
    model.parameter("p", &[2, 4]).parameter("scale", &[4]);
    model.node("RMSNormalization", &["p", "scale"], &["y"], &[]);
    all.push(("RMSNormalization".into(), model.finish("y", 8)));
    let mut model = Model::new(17);
    model
        .parameter("p", &[2, 3, 2, 2])
        .parameter("scale", &[3])
        .parameter("shift", &[3]);
    model.node("InstanceNormalization", &["p", "scale", "shift"], &["y"], &[]);
    all.push(("InstanceNormalization".into(), model.finish("y", 24)));
    for (opset, channels) in [(18, 2), (21, 4)] {
        let mut model = Model::new(opset);
        model
            .parameter("p", &[2, 4, 2])
            .parameter("scale", &[channels])
            .parameter("shift", &[channels]);
        model.node(
            "GroupNormalization",
            &["p", "scale", "shift"],
            &["y"],
            &[I("num_groups", 2)],
        );
        all.push((format!("GroupNormalization of opset {opset}"), model.finish("y", 16)));
    }
    let mut model = Model::new(17);
    model
        .parameter("p", &[2, 3, 2, 2])
        .parameter("scale", &[3])
        .parameter("shift", &[3]);
    model
        .floats("mean", &[3], &[0.0; 3])
        .floats("variance", &[3], &[1.0; 3]);
    model.node(
        "BatchNormalization",
        &["p", "scale", "shift", "mean", "variance"],
        &["y", "next_mean", "next_variance"],
        &[I("training_mode", 1)],
    );
    all.push(("BatchNormalization".into(), model.finish("y", 24)));
}

fn reductions(all: &mut Vec<Named>) {
    use A::{I, L};
    let names = [
        "ReduceMean",
        "ReduceSum",
        "ReduceMax",
        "ReduceMin",
        "ReduceL1",
        "ReduceL2",
        "ReduceSumSquare",
        "ReduceLogSumExp",
    ];
    for operator in names {
        // Axes as an operand, and as an attribute where that was so until opset 17.
        let mut model = Model::new(18);
        model.parameter("p", &[2, 3, 2]).ints("axes", &[2], &[0, -1]);
        model.node(operator, &["p", "axes"], &["y"], &[I("keepdims", 0)]);
        all.push((format!("{operator} by an operand"), model.finish("y", 3)));
        if operator != "ReduceSum" {
            let mut model = Model::new(13);
            model.parameter("p", &[2, 3, 2]);
            model.node(operator, &["p"], &["y"], &[L("axes", &[1]), I("keepdims", 1)]);
            all.push((format!("{operator} by an attribute"), model.finish("y", 4)));
        }
    }
    for operator in ["Softmax", "LogSoftmax"] {
        of_one(all, 17, operator, &[I("axis", 0)]);
    }
}

fn rearrangements(all: &mut Vec<Named>) {
    use A::{I, S};
    // Three parts of one value, each used in its own way; then uneven ones by operand and by count.
    let mut model = Model::new(17);
    model.parameter("p", &[2, 6]).ints("sizes", &[3], &[1, 3, 2]);
    model.node("Split", &["p", "sizes"], &["a", "b", "c"], &[I("axis", 1)]);
    model.node("Concat", &["c", "a", "b"], &["j"], &[I("axis", -1)]);
    model.node("Mul", &["j", "p"], &["y"], &[]);
    all.push(("Split by sizes".into(), model.finish("y", 12)));
    let mut model = Model::new(18);
    model.parameter("p", &[5, 2]);
    model.node("Split", &["p"], &["a", "b", "c"], &[I("axis", 0), I("num_outputs", 3)]);
    model
        .node("Mul", &["a", "b"], &["m"], &[])
        .node("Mul", &["m", "c"], &["y"], &[]);
    all.push(("Split by count".into(), model.finish("y", 4)));
    let mut model = Model::new(17);
    model.parameter("p", &[4, 2]);
    model
        .node("Split", &["p"], &["a", "b"], &[I("axis", 0)])
        .node("Mul", &["a", "b"], &["y"], &[]);
    all.push(("Split in halves".into(), model.finish("y", 4)));
    let mut model = Model::new(17);
    model.parameter("p", &[2, 3]).ints("times", &[2], &[2, 3]);
    model.node("Tile", &["p", "times"], &["y"], &[]);
    all.push(("Tile".into(), model.finish("y", 36)));
    let mut model = Model::new(17);
    model.parameter("p", &[3, 4]).ints("k", &[], &[1]);
    model.node("Trilu", &["p", "k"], &["y"], &[]);
    all.push(("Trilu above the diagonal".into(), model.finish("y", 12)));
    for mode in ["DCR", "CRD"] {
        let mut model = Model::new(17);
        model.parameter("p", &[1, 8, 1, 2]);
        model.node("DepthToSpace", &["p"], &["y"], &[I("blocksize", 2), S("mode", mode)]);
        all.push((format!("DepthToSpace {mode}"), model.finish("y", 16)));
    }
    let mut model = Model::new(17);
    model.parameter("p", &[1, 1, 4, 4]);
    model.node("SpaceToDepth", &["p"], &["y"], &[I("blocksize", 2)]);
    all.push(("SpaceToDepth".into(), model.finish("y", 16)));
    let mut model = Model::new(28);
    model.parameter("p", &[1, 2, 2, 4]);
    model.node("SpaceToDepth", &["p"], &["y"], &[I("blocksize", 2), S("mode", "CRD")]);
    all.push(("SpaceToDepth by channels first".into(), model.finish("y", 16)));
    let mut model = Model::new(18);
    model
        .parameter("p", &[2, 3])
        .ints("pads", &[2], &[1, 2])
        .floats("with", &[], &[0.5])
        .ints("axes", &[1], &[-1]);
    model.node("Pad", &["p", "pads", "with", "axes"], &["y"], &[]);
    all.push(("Pad along chosen axes".into(), model.finish("y", 12)));
    let mut model = Model::new(19);
    model.parameter("p", &[2, 3]).ints("two", &[], &[2]);
    model
        .node("CastLike", &["two", "p"], &["f"], &[])
        .node("Mul", &["p", "f"], &["y"], &[]);
    all.push(("CastLike".into(), model.finish("y", 6)));
    // The chain by which exporters reshape: the shape taken apart, computed with, joined.
    let mut model = Model::new(17);
    model.parameter("p", &[2, 3, 4]);
    model
        .node("Shape", &["p"], &["shape"], &[])
        .ints("zero", &[], &[0])
        .ints("two", &[1], &[2]);
    model
        .node("Gather", &["shape", "zero"], &["n"], &[])
        .ints("front", &[1], &[0]);
    model.node("Unsqueeze", &["n", "front"], &["n1"], &[]);
    model
        .node("Mul", &["n1", "two"], &["n2"], &[])
        .ints("rest", &[1], &[-1]);
    model.node("Concat", &["n2", "rest"], &["to"], &[I("axis", 0)]);
    model.node("Reshape", &["p", "to"], &["r"], &[]);
    model
        .node("Mod", &["n2", "rest"], &["none"], &[])
        .node("Size", &["p"], &["size"], &[]);
    model
        .node("Sub", &["size", "none"], &["all"], &[])
        .node("Cast", &["all"], &["f"], &[I("to", 1)]);
    model.node("Div", &["r", "f"], &["y"], &[]);
    all.push(("a chain of shapes".into(), model.finish("y", 24)));
    // A large filled constant and a mask of truth values over it.
    let mut model = Model::new(17);
    model.parameter("p", &[64, 1]).ints("dims", &[2], &[64, 32]);
    model
        .node("ConstantOfShape", &["dims"], &["zeros"], &[])
        .node("Add", &["p", "zeros"], &["s"], &[]);
    model
        .ints("axes", &[1], &[1])
        .node("ReduceSum", &["s", "axes"], &["y"], &[]);
    all.push(("ConstantOfShape".into(), model.finish("y", 64)));
}

fn picks(all: &mut Vec<Named>) {
    use A::I;
    // An embedding by constant tokens, one used twice; one row by a scalar; rows by tokens that depend on the data.
    for axis in [0, 1] {
        let mut model = Model::new(17);
        model
            .parameter("table", &[4, 3])
            .ints("tokens", &[2, 2], &[2, 0, -1, 2]);
        model.node("Gather", &["table", "tokens"], &["y"], &[I("axis", axis)]);
        all.push((
            format!("Gather along {axis}"),
            model.finish("y", if axis == 0 { 12 } else { 16 }),
        ));
    }
    let mut model = Model::new(17);
    model.parameter("p", &[2, 3, 2]).ints("last", &[], &[-1]);
    model.node("Gather", &["p", "last"], &["y"], &[I("axis", 1)]);
    all.push(("Gather of one row".into(), model.finish("y", 4)));
    let mut model = Model::new(17);
    model.parameter("table", &[4, 3]).floats("three", &[], &[3.0]);
    model
        .node("Abs", &["x"], &["size"], &[])
        .node("Mul", &["size", "three"], &["wide"], &[]);
    model.node("Cast", &["wide"], &["tokens"], &[I("to", 7)]);
    model.node("Gather", &["table", "tokens"], &["y"], &[]);
    all.push(("Gather by data".into(), model.finish("y", 6)));
}

fn products(all: &mut Vec<Named>) {
    use A::{F, I, S};
    for (equation, left, right, count) in [
        ("bij,bjk->bik", &[2, 2, 3][..], &[2, 3, 2][..], 8),
        ("bhid,bhjd->bhij", &[1, 2, 2, 3], &[1, 2, 2, 3], 8),
        ("ij,jk->ki", &[2, 3], &[3, 2], 4),
        ("i,j->ij", &[2], &[3], 6),
        ("bij,kj->bi", &[2, 2, 3], &[2, 3], 4),
    ] {
        let mut model = Model::new(17);
        model.parameter("a", left).parameter("b", right);
        model.node("Einsum", &["a", "b"], &["y"], &[S("equation", equation)]);
        all.push((format!("Einsum {equation}"), model.finish("y", count)));
    }
    let mut model = Model::new(17);
    model.parameter("a", &[2, 3, 2]);
    model.node("Einsum", &["a"], &["y"], &[S("equation", "ijk -> ki")]);
    all.push(("Einsum of one".into(), model.finish("y", 4)));
    for (left, right, count) in [
        (&[2, 1, 2, 3][..], &[3, 3, 2][..], 24),
        (&[3], &[2, 3, 2], 4),
        (&[2, 3], &[3], 2),
    ] {
        let mut model = Model::new(17);
        model
            .parameter("a", left)
            .parameter("b", right)
            .node("MatMul", &["a", "b"], &["y"], &[]);
        all.push((format!("MatMul {left:?} {right:?}"), model.finish("y", count)));
    }
    let mut model = Model::new(23);
    model
        .parameter("q", &[1, 2, 3, 2])
        .parameter("k", &[1, 2, 4, 2])
        .parameter("v", &[1, 2, 4, 3]);
    model.truths("mask", &[3, 4], &[1, 0, 1, 1, 1, 1, 0, 1, 0, 1, 1, 1]);
    model.node("Attention", &["q", "k", "v", "mask"], &["y"], &[F("scale", 0.8)]);
    all.push(("Attention with a mask".into(), model.finish("y", 18)));
    let mut model = Model::new(23);
    model
        .parameter("q", &[1, 3, 8])
        .parameter("k", &[1, 3, 4])
        .parameter("v", &[1, 3, 4]);
    let heads = [
        I("q_num_heads", 4),
        I("kv_num_heads", 2),
        I("is_causal", 1),
        F("softcap", 2.0),
    ];
    model.node("Attention", &["q", "k", "v"], &["y"], &heads);
    all.push(("Attention, causal, with shared heads".into(), model.finish("y", 24)));
}
