//! A small ONNX model for each operator and each of its forms, written as other tools write them. The tests of this crate
//! check their gradients against finite differences in f64, those of the engines that all engines compute the same.

/// Bytes of a protobuf message.
#[derive(Clone, Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value > 127 {
            self.0.push((value & 127) as u8 | 128);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn int(mut self, field: u64, value: i64) -> Self {
        self.varint(field << 3);
        self.varint(value as u64);
        self
    }

    fn bytes(mut self, field: u64, content: &[u8]) -> Self {
        self.varint(field << 3 | 2);
        self.varint(content.len() as u64);
        self.0.extend(content);
        self
    }

    fn float(mut self, field: u64, value: f32) -> Self {
        self.varint(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn message(self, field: u64, content: &Self) -> Self {
        self.bytes(field, &content.0)
    }
}

const F32: i64 = 1;
const I64: i64 = 7;
const BOOL: i64 = 9;

/// Numbers between -1 and 1 that look random and are the same everywhere.
pub fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1u64 << 24) as f32) * 2.0 - 1.0
        })
        .collect()
}

fn tensor(name: &str, kind: i64, dims: &[i64], raw: Vec<u8>) -> Message {
    let mut message = Message::default();
    for &dim in dims {
        message = message.int(1, dim);
    }
    message.int(2, kind).bytes(8, name.as_bytes()).bytes(9, &raw)
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn ints(values: &[i64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// An attribute of a node.
#[derive(Clone, Debug)]
pub enum A<'a> {
    I(&'a str, i64),
    F(&'a str, f32),
    S(&'a str, &'a str),
    L(&'a str, &'a [i64]),
}

/// A model under construction; its only data input `x` is f32 `[2, 1]`.
pub struct Model {
    opset: i64,
    nodes: Vec<Message>,
    initializers: Vec<Message>,
    inputs: Vec<Message>,
    seed: u64,
}

impl Model {
    pub fn new(opset: i64) -> Self {
        let mut model = Self {
            opset,
            nodes: Vec::new(),
            initializers: Vec::new(),
            inputs: Vec::new(),
            seed: 5,
        };
        model.input("x", F32, &[2, 1]);
        model
    }

    fn input(&mut self, name: &str, kind: i64, dims: &[i64]) {
        let mut shape = Message::default();
        for &dim in dims {
            shape = shape.message(1, &Message::default().int(1, dim));
        }
        let of = Message::default().int(1, kind).message(2, &shape);
        let kind = Message::default().message(1, &of);
        self.inputs
            .push(Message::default().bytes(1, name.as_bytes()).message(2, &kind));
    }

    /// A trained parameter.
    pub fn parameter(&mut self, name: &str, dims: &[i64]) -> &mut Self {
        let count = dims.iter().product::<i64>() as usize;
        self.seed += 1;
        let values = numbers(count, self.seed);
        self.initializers.push(tensor(name, F32, dims, floats(&values)));
        self
    }

    fn constant(&mut self, name: &str, kind: i64, dims: &[i64], raw: Vec<u8>) -> &mut Self {
        let value = Message::default()
            .bytes(1, b"value")
            .message(5, &tensor("", kind, dims, raw))
            .int(20, 4);
        let node = Message::default()
            .bytes(2, name.as_bytes())
            .bytes(4, b"Constant")
            .message(5, &value);
        self.nodes.push(node);
        self
    }

    pub fn floats(&mut self, name: &str, dims: &[i64], values: &[f32]) -> &mut Self {
        self.constant(name, F32, dims, floats(values))
    }

    pub fn ints(&mut self, name: &str, dims: &[i64], values: &[i64]) -> &mut Self {
        self.constant(name, I64, dims, ints(values))
    }

    pub fn truths(&mut self, name: &str, dims: &[i64], values: &[u8]) -> &mut Self {
        self.constant(name, BOOL, dims, values.to_vec())
    }

    pub fn node(&mut self, operator: &str, inputs: &[&str], outputs: &[&str], attributes: &[A<'_>]) -> &mut Self {
        let mut node = Message::default();
        for name in inputs {
            node = node.bytes(1, name.as_bytes());
        }
        for name in outputs {
            node = node.bytes(2, name.as_bytes());
        }
        node = node.bytes(4, operator.as_bytes());
        for attribute in attributes {
            let named = |name: &str| Message::default().bytes(1, name.as_bytes());
            let attribute = match attribute {
                A::I(name, value) => named(name).int(3, *value).int(20, 2),
                A::F(name, value) => named(name).float(2, *value).int(20, 1),
                A::S(name, value) => named(name).bytes(4, value.as_bytes()).int(20, 3),
                A::L(name, values) => {
                    let list = values.iter().fold(named(name), |list, &value| list.int(8, value));
                    list.int(20, 7)
                }
            };
            node = node.message(5, &attribute);
        }
        self.nodes.push(node);
        self
    }

    /// The file. Its output `logits`, `[2, 2]`, depends on every one of the `count` elements of the value `from`.
    pub fn finish(&mut self, from: &str, count: usize) -> Vec<u8> {
        self.ints("to_row", &[2], &[1, count as i64]);
        self.node("Reshape", &[from, "to_row"], &["row"], &[]);
        self.node("Add", &["row", "x"], &["rows"], &[]);
        self.node("Tanh", &["rows"], &["bent"], &[]);
        self.floats("mix", &[count as i64, 2], &numbers(count * 2, 77));
        self.node("MatMul", &["bent", "mix"], &["logits"], &[]);
        let mut graph = Message::default();
        for node in &self.nodes {
            graph = graph.message(1, node);
        }
        graph = graph.bytes(2, b"operator");
        for one in &self.initializers {
            graph = graph.message(5, one);
        }
        for one in &self.inputs {
            graph = graph.message(11, one);
        }
        graph = graph.message(12, &Message::default().bytes(1, b"logits"));
        let opset = Message::default().bytes(1, b"").int(2, self.opset);
        Message::default().int(1, 8).message(7, &graph).message(8, &opset).0
    }
}

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

fn resizes(all: &mut Vec<Named>) {
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

fn convolutions(all: &mut Vec<Named>) {
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

fn transposed_convolutions(all: &mut Vec<Named>) {
    use A::{I, L};
    let cases: [Case<'_>; 4] = [
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

fn pools(all: &mut Vec<Named>) {
    use A::L;
    for (operator, pads, count) in [("AveragePool", [0, 0, 0, 0], 8), ("MaxPool", [1, 1, 1, 1], 18)] {
        let mut model = Model::new(17);
        model.parameter("image", &[1, 2, 5, 5]);
        let attributes = [L("kernel_shape", &[3, 3]), L("strides", &[2, 2]), L("pads", &pads)];
        model.node(operator, &["image"], &["y"], &attributes);
        all.push((format!("{operator} {pads:?}"), model.finish("y", count)));
    }
    for operator in ["GlobalAveragePool", "GlobalMaxPool"] {
        let mut model = Model::new(17);
        model
            .parameter("image", &[2, 3, 2, 4])
            .node(operator, &["image"], &["y"], &[]);
        all.push((operator.into(), model.finish("y", 6)));
    }
}
