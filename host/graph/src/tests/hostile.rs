//! Files meant to break the reader: each is an error, none a panic, none costs memory beyond its size.

use proptest::prelude::*;

use super::model;
use crate::builder::Builder;
use crate::ir::{Attributes, Operator as O};
use crate::{EngineGraph, GraphError, Limits, Model, Optimizer, TrainOptions, samples, train};

/// Protobuf by hand.
fn field(number: u32, content: &[u8]) -> Vec<u8> {
    let mut bytes = varint(u64::from(number) << 3 | 2);
    bytes.extend(varint(content.len() as u64));
    bytes.extend(content);
    bytes
}

fn number(at: u32, value: u64) -> Vec<u8> {
    [varint(u64::from(at) << 3), varint(value)].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn node(operator: &str, inputs: &[&str], outputs: &[&str]) -> Vec<u8> {
    let mut body = Vec::new();
    inputs.iter().for_each(|name| body.extend(field(1, name.as_bytes())));
    outputs.iter().for_each(|name| body.extend(field(2, name.as_bytes())));
    body.extend(field(4, operator.as_bytes()));
    field(1, &body)
}

fn input(name: &str, dims: &[u64]) -> Vec<u8> {
    let shape: Vec<u8> = dims.iter().flat_map(|&dim| field(1, &number(1, dim))).collect();
    let tensor = field(1, &[number(1, 1), field(2, &shape)].concat());
    field(11, &[field(1, name.as_bytes()), field(2, &tensor)].concat())
}

fn output(name: &str) -> Vec<u8> {
    field(12, &field(1, name.as_bytes()))
}

fn file(graph: &[Vec<u8>]) -> Vec<u8> {
    [number(1, 8), field(7, &graph.concat()), field(8, &number(2, 17))].concat()
}

fn refusal(bytes: &[u8]) -> GraphError {
    EngineGraph::load(bytes).expect_err("it should be refused")
}

/// Everything that can be done with bytes, as a stranger would send them.
fn try_all(bytes: &[u8]) {
    let limits = Limits {
        nodes: 4096,
        elements: 1 << 22,
        ..Limits::default()
    };
    let _ = EngineGraph::load_within(bytes, &limits);
    if let Ok(model) = Model::parse(bytes, &limits) {
        let _ = model.initial_weights();
        let _ = model.at_batch(2);
        let _ = train(&model, &TrainOptions::new(Optimizer::Sgd, 2));
    }
}

#[test]
fn a_file_by_hand_is_read() {
    let graph = EngineGraph::load(&file(&[input("x", &[2, 3]), node("Relu", &["x"], &["y"]), output("y")])).unwrap();
    assert_eq!(graph.outputs()[0].shape, [2, 3]);
}

#[test]
fn cycles_and_double_names() {
    let cycle = file(&[
        input("x", &[2]),
        node("Add", &["x", "b"], &["a"]),
        node("Relu", &["a"], &["b"]),
        output("b"),
    ]);
    assert!(refusal(&cycle).to_string().contains("'b'"), "{}", refusal(&cycle));
    let own = file(&[node("Relu", &["a"], &["a"]), output("a")]);
    refusal(&own);
    let twice = file(&[
        input("x", &[2]),
        node("Relu", &["x"], &["a"]),
        node("Neg", &["x"], &["a"]),
        output("a"),
    ]);
    assert!(refusal(&twice).to_string().contains("already"));
    refusal(&file(&[
        input("x", &[2]),
        input("x", &[2]),
        node("Relu", &["x"], &["y"]),
        output("y"),
    ]));
    refusal(&file(&[
        input("x", &[2]),
        node("Relu", &["x"], &["y"]),
        output("y"),
        output("y"),
    ]));
    refusal(&file(&[input("x", &[2]), node("Relu", &["x"], &["y"]), output("z")]));
    refusal(&file(&[input("x", &[2]), node("Relu", &["x"], &["y"])]));
}

#[test]
fn what_is_written_anew_has_no_name_twice() {
    // Each port has a value of its own in what is written, so an input that is an output by the same name would be there twice.
    let passed = file(&[input("x", &[2]), node("Relu", &["x"], &["y"]), output("y"), output("x")]);
    assert!(refusal(&passed).to_string().contains("'x'"), "{}", refusal(&passed));
    let constant = |name: &str| {
        let content = [number(1, 2), number(2, 1), field(8, name.as_bytes()), field(9, &[0; 8])].concat();
        field(5, &content)
    };
    // Constants called as the writer calls inner values, and one that is an output besides.
    for (name, is_output) in [("v0", false), ("c0", false), ("v0", true), ("w", true)] {
        let mut graph = vec![
            input("x", &[2]),
            constant(name),
            node("Add", &["x", name], &["sum"]),
            node("Relu", &["sum"], &["y"]),
            output("y"),
        ];
        if is_output {
            graph.push(output(name));
        }
        let graph = match EngineGraph::load(&file(&graph)) {
            Ok(graph) => graph,
            Err(error) => {
                assert!(is_output, "{name}: {error}");
                continue;
            }
        };
        let again = EngineGraph::load(graph.bytes()).expect("what was written anew is accepted");
        assert_eq!(again.bytes(), graph.bytes(), "{name}");
    }
}

#[test]
fn dimensions_of_zero_and_beyond_all_bounds() {
    for dims in [
        &[0, 3][..],
        &[u64::MAX >> 1, 8],
        &[1 << 40],
        &[1 << 33],
        &[1 << 20, 1 << 20, 1 << 20],
        &[2; 9],
    ] {
        refusal(&file(&[input("x", dims), node("Relu", &["x"], &["y"]), output("y")]));
    }
    // Two factors that fit and a product that does not.
    let square = file(&[
        input("a", &[1 << 20, 1]),
        input("b", &[1, 1 << 20]),
        node("Add", &["a", "b"], &["y"]),
        output("y"),
    ]);
    assert!(refusal(&square).to_string().contains("elements"));
}

#[test]
fn constants_that_hold_nothing() {
    let empty = |name: &str, dims: &[u64]| {
        let dims: Vec<u8> = dims.iter().flat_map(|&dim| number(1, dim)).collect();
        field(
            5,
            &[dims, number(2, 1), field(8, name.as_bytes()), field(9, b"")].concat(),
        )
    };
    for (operator, dims, other) in [
        ("MatMul", &[2, 0][..], &[0, 2][..]),
        ("Conv", &[1, 1, 0, 4], &[1, 1, 1, 1]),
        ("ConvTranspose", &[1, 1, 0, 4], &[1, 1, 1, 1]),
    ] {
        let graph = [
            empty("a", dims),
            empty("b", other),
            node(operator, &["a", "b"], &["y"]),
            output("y"),
        ];
        try_all(&file(&graph));
        refusal(&file(&graph));
    }
}

#[test]
fn parts_that_are_refused() {
    let relu = || [input("x", &[2]), node("Relu", &["x"], &["y"]), output("y")].to_vec();
    let with = |more: Vec<u8>| file(&[relu(), vec![more]].concat());
    let name = |error: GraphError| error.to_string();
    assert!(name(refusal(&with(field(15, b"")))).contains("sparse"));
    assert!(name(refusal(&[file(&relu()), field(25, b"")].concat())).contains("functions"));
    assert!(name(refusal(&[file(&relu()), field(20, b"")].concat())).contains("training information"));
    let tensor = |more: Vec<u8>| field(5, &[number(1, 1), number(2, 1), field(8, b"w"), more].concat());
    assert!(name(refusal(&with(tensor(number(14, 1))))).contains("external"));
    assert!(name(refusal(&with(tensor(field(13, b""))))).contains("external"));
    assert!(name(refusal(&with(tensor(field(9, b"abc"))))).contains("3 bytes"));
    let custom = field(
        1,
        &[
            field(1, b"x"),
            field(2, b"z"),
            field(4, b"Relu"),
            field(7, b"evil.example"),
        ]
        .concat(),
    );
    assert!(name(refusal(&with(custom))).contains("evil.example"));
    let unknown = field(
        1,
        &[
            field(1, b"x"),
            field(2, b"z"),
            field(3, b"here"),
            field(4, b"Bernoulli"),
        ]
        .concat(),
    );
    let text = name(refusal(&with(unknown)));
    assert!(text.contains("'here'") && text.contains("Bernoulli"), "{text}");
    assert!(name(refusal(&with(node("Loop", &["x"], &["z"])))).contains("control flow"));
    let recurrent = name(refusal(&with(node("LSTM", &["x", "x", "x"], &["z"]))));
    assert!(
        recurrent.contains("(LSTM") && recurrent.contains("steps"),
        "{recurrent}"
    );
    refusal(&with(field(99, b"")));
    refusal(&with(node("Relu", &["x"], &["bad\nname"])));
    let old = [number(1, 8), field(7, &relu().concat()), field(8, &number(2, 9))].concat();
    assert!(name(refusal(&old)).contains("opset 17"));
}

#[test]
fn counts_are_limited_before_anything_is_kept() {
    let limits = Limits {
        nodes: 10,
        name_bytes: 20,
        bytes: 1 << 16,
        ..Limits::default()
    };
    let long = vec![node("Relu", &["x"], &["y"]); 11];
    assert!(matches!(
        EngineGraph::load_within(&file(&long), &limits),
        Err(GraphError::Limit { what: "nodes", .. })
    ));
    let named = file(&[input(&"x".repeat(21), &[2])]);
    assert!(matches!(
        EngineGraph::load_within(&named, &limits),
        Err(GraphError::Limit { .. })
    ));
    assert!(matches!(
        EngineGraph::load_within(&vec![0; 1 << 17], &limits),
        Err(GraphError::Limit { what: "bytes", .. })
    ));
}

#[test]
fn small_files_do_not_grow_into_large_graphs() {
    // Each node is a few bytes and would be a constant of 64 Ki elements.
    let whole = |name: &[u8], value: i64| {
        let content = [number(2, 7), field(8, name), field(9, &value.to_le_bytes())].concat();
        field(5, &content)
    };
    let mut graph = vec![whole(b"zero", 0), whole(b"one", 1), whole(b"n", 65_536)];
    for at in 0..100 {
        graph.push(node("Range", &["zero", "n", "one"], &[&format!("v{at}")]));
    }
    graph.push(output("v0"));
    assert!(refusal(&file(&graph)).to_string().contains("in all"));
    // A window of sixteen million elements over one.
    let wide = model(|builder| {
        let p = super::parameter(builder, "p", &[2, 2, 1, 1], 1);
        let (size, pad) = (1 << 12, (1 << 12) - 1);
        let attributes = Attributes::none()
            .with_ints("kernel_shape", &[size, size])
            .with_ints("pads", &[pad, pad, 0, 0]);
        let pooled = builder.node(O::MaxPool, &[p], attributes).unwrap();
        builder.reshape(pooled, &[2, 2]).unwrap()
    });
    let model = Model::parse(&wide, &Limits::default()).unwrap();
    let error = train(&model, &TrainOptions::new(Optimizer::Sgd, 2)).unwrap_err();
    assert!(error.to_string().contains("window"), "{error}");
}

#[test]
fn nesting_does_not_grow_the_stack() {
    let mut deep = Vec::new();
    for _ in 0..10_000 {
        deep = field(6, &deep);
    }
    let attribute = field(5, &[field(1, b"body"), deep].concat());
    let body = [field(1, b"x"), field(2, b"y"), field(4, b"Relu"), attribute].concat();
    refusal(&file(&[input("x", &[2]), field(1, &body), output("y")]));
}

#[test]
fn windows_and_axes_out_of_range() {
    let pool = |kernel: &[usize], pads: &[usize]| {
        model_error(|builder| {
            let x = builder.input("x", cloister_tensor::Dtype::F32, &[1, 1, 4, 4]).unwrap();
            let attributes = Attributes::none()
                .with_ints("kernel_shape", kernel)
                .with_ints("pads", pads);
            builder.node(O::MaxPool, &[x], attributes)
        })
    };
    pool(&[5, 5], &[0; 4]);
    pool(&[2], &[0; 2]);
    pool(&[2, 2], &[9; 4]);
    pool(&[0, 2], &[0; 4]);
    pool(&[2, 2], &[usize::MAX >> 1; 4]);
}

fn model_error(build: impl FnOnce(&mut Builder) -> Result<crate::ir::ValueId, GraphError>) {
    assert!(build(&mut Builder::new(&Limits::default())).is_err());
}

#[test]
fn shape_arithmetic_on_constants_is_folded_and_bounded() {
    // x viewed as [shape(x)[0], -1]: what exporters write for flatten.
    let bytes = model(|builder| {
        let x = builder.input("x", cloister_tensor::Dtype::F32, &[2, 3, 4]).unwrap();
        let shape = builder.unary(O::Shape, x).unwrap();
        let zero = builder.ints(&[0]).unwrap();
        let first = builder.binary(O::Gather, shape, zero).unwrap();
        let rest = builder.ints(&[-1]).unwrap();
        let shape = builder.concat(&[first, rest], 0).unwrap();
        assert!(builder.constant_of(shape).is_some());
        builder.binary(O::Reshape, x, shape).unwrap()
    });
    let graph = EngineGraph::load(&bytes).unwrap();
    assert_eq!(graph.outputs()[0].shape, [2, 12]);
    let mut builder = Builder::new(&Limits::default());
    let (start, end, step) = (
        builder
            .constant(cloister_tensor::Tensor::from_i64(&[], vec![0]).unwrap())
            .unwrap(),
        builder
            .constant(cloister_tensor::Tensor::from_i64(&[], vec![i64::MAX]).unwrap())
            .unwrap(),
        builder
            .constant(cloister_tensor::Tensor::from_i64(&[], vec![1]).unwrap())
            .unwrap(),
    );
    assert!(builder.node(O::Range, &[start, end, step], Attributes::none()).is_err());
    let huge = builder.ints(&[1 << 30, 1 << 30]).unwrap();
    assert!(builder.node(O::ConstantOfShape, &[huge], Attributes::none()).is_err());
    let zero = builder.ints(&[0]).unwrap();
    assert!(builder.binary(O::Div, zero, zero).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        try_all(&bytes);
    }

    #[test]
    fn changed_models(which in 0..4usize, changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut in any::<prop::sample::Index>(), cuts in any::<bool>()) {
        let mut bytes = match which {
            0 => samples::logistic(3, 2, 1).unwrap(),
            1 => samples::mlp(3, 2, 2, 1).unwrap(),
            2 => samples::cnn(16, 1, 2, 1).unwrap(),
            _ => {
                let model = samples::parsed(&samples::cnn(16, 1, 2, 1).unwrap()).unwrap();
                train(&model, &TrainOptions::new(Optimizer::Momentum { momentum: 0.9 }, 2)).unwrap().training.bytes().to_vec()
            }
        };
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if cuts {
            bytes.truncate(cut.index(bytes.len()));
        }
        try_all(&bytes);
    }

    #[test]
    fn changed_operators(which in any::<prop::sample::Index>(), changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let mut all = super::zoo::all_operators();
        let mut bytes = all.swap_remove(which.index(all.len())).1;
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        try_all(&bytes);
    }
}

#[test]
fn written_out_operators_stay_within_bounds() {
    let whole = |name: &[u8], value: i64| {
        let content = [
            number(1, 1),
            number(2, 7),
            field(8, name),
            field(9, &value.to_le_bytes()),
        ]
        .concat();
        field(5, &content)
    };
    // A value of many rows costs nothing until something is made of each row.
    let graph = [
        whole(b"k", 1 << 24),
        input("x", &[1, 1]),
        node("Expand", &["x", "k"], &["wide"]),
        node("Trilu", &["wide"], &["y"]),
        output("y"),
    ];
    let error = refusal(&file(&graph)).to_string();
    assert!(error.contains("a triangle of"), "{error}");
    let graph = [
        input("x", &[1, 1 << 20]),
        field(5, &scales()),
        node("Resize", &["x", "", "s"], &["y"]),
        output("y"),
    ];
    let error = refusal(&file(&graph)).to_string();
    assert!(error.contains("resized"), "{error}");
}

/// Scales of 1 and 0.5, as a float initializer.
fn scales() -> Vec<u8> {
    let raw = [1.0f32.to_le_bytes(), 0.5f32.to_le_bytes()].concat();
    [number(1, 2), number(2, 1), field(8, b"s"), field(9, &raw)].concat()
}
