//! Small ONNX files, written as other tools write them.

/// Bytes of a protobuf message.
#[derive(Clone, Default)]
pub(super) struct Message(Vec<u8>);

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

pub(super) const F32: i64 = 1;
pub(super) const I64: i64 = 7;
pub(super) const BOOL: i64 = 9;

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
        Self::of(opset, &[2, 1])
    }

    /// A model whose data input has other dimensions.
    pub fn of(opset: i64, dims: &[i64]) -> Self {
        let mut model = Self {
            opset,
            nodes: Vec::new(),
            initializers: Vec::new(),
            inputs: Vec::new(),
            seed: 5,
        };
        model.input("x", F32, dims);
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

    /// An initializer of these values, which may be a parameter or not.
    pub fn initializer(&mut self, name: &str, dims: &[i64], values: &[f32]) -> &mut Self {
        self.initializers.push(tensor(name, F32, dims, floats(values)));
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
        self.written("logits")
    }

    /// The file with this output.
    pub fn written(&self, output: &str) -> Vec<u8> {
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
        graph = graph.message(12, &Message::default().bytes(1, output.as_bytes()));
        let opset = Message::default().bytes(1, b"").int(2, self.opset);
        Message::default().int(1, 8).message(7, &graph).message(8, &opset).0
    }
}
