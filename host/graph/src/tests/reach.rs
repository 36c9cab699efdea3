//! What no gradient can reach is not left untrained in silence.

use cloister_tensor::Dtype;

use super::zoo::onnx_file::{A, Model as File};
use super::{model, parameter};
use crate::ir::{Attributes, Operator as O};
use crate::{Limits, Model, Optimizer, TrainOptions, train};

fn options(freeze: &[&str]) -> TrainOptions {
    let mut options = TrainOptions::new(Optimizer::Sgd, 2);
    options.freeze = freeze.iter().map(|&name| name.to_owned()).collect();
    options
}

fn refusal(file: &[u8], freeze: &[&str]) -> String {
    let model = Model::parse(file, &Limits::default()).unwrap();
    train(&model, &options(freeze)).unwrap_err().to_string()
}

/// The parameters and the ports of a training graph.
fn trains(file: &[u8], freeze: &[&str]) -> (Vec<String>, Vec<String>) {
    let model = Model::parse(file, &Limits::default()).unwrap();
    let graph = train(&model, &options(freeze)).unwrap().training;
    let parameters = model.parameters().iter().map(|(name, _)| name.clone()).collect();
    (
        parameters,
        graph.inputs().iter().map(|port| port.name.clone()).collect(),
    )
}

/// Conv, Relu, Round, Linear.
fn rounded() -> Vec<u8> {
    model(|builder| {
        let x = builder.input("x", Dtype::F32, &[2, 1, 3, 3]).unwrap();
        let kernel = parameter(builder, "conv.weight", &[2, 1, 3, 3], 1);
        let bias = parameter(builder, "conv.bias", &[2], 2);
        let inputs = [x, kernel, bias].map(Some).to_vec();
        let seen = builder.nodes(O::Conv, inputs, Attributes::none(), 1).unwrap()[0];
        let seen = builder.unary(O::Relu, seen).unwrap();
        let seen = builder.unary(O::Round, seen).unwrap();
        let row = builder.reshape(seen, &[2, 2]).unwrap();
        let weight = parameter(builder, "fc.weight", &[2, 2], 3);
        builder.gemm(row, weight, (false, false), 1.0).unwrap()
    })
}

#[test]
fn weights_before_an_operator_that_stops_gradients_are_refused_by_name() {
    let said = refusal(&rounded(), &[]);
    for word in ["(Round", "'conv.weight'", "would not be trained", "--freeze"] {
        assert!(said.contains(word), "{said}");
    }
    let said = refusal(&rounded(), &["conv.weight"]);
    assert!(said.contains("'conv.bias'"), "{said}");
    let said = refusal(&rounded(), &["conv.wait"]);
    assert!(
        said.contains("no parameter 'conv.wait'") && said.contains("conv.bias"),
        "{said}"
    );
}

#[test]
fn what_is_frozen_on_purpose_is_a_constant_of_the_graph() {
    let (parameters, ports) = trains(&rounded(), &["conv.*"]);
    assert_eq!(parameters, ["fc.weight"]);
    assert_eq!(ports, ["x", "labels", "fc.weight", "learning_rate", "step"]);
}

#[test]
fn exponents_and_bounds_are_refused_where_they_look_trained() {
    let powers = model(|builder| {
        let x = builder.input("x", Dtype::F32, &[2, 2]).unwrap();
        let weight = parameter(builder, "fc.weight", &[2, 2], 3);
        let row = builder.gemm(x, weight, (false, false), 1.0).unwrap();
        let row = builder.unary(O::Exp, row).unwrap();
        let exponents = parameter(builder, "exponents", &[2], 4);
        builder.binary(O::Pow, row, exponents).unwrap()
    });
    let said = refusal(&powers, &[]);
    assert!(said.contains("(Pow") && said.contains("'exponents'"), "{said}");
    let bounds = File::new(17)
        .parameter("weight", &[2, 3])
        .parameter("levels", &[3])
        .node("ReduceMax", &["levels"], &["most"], &[A::I("keepdims", 0)])
        .node("Clip", &["weight", "", "most"], &["clipped"], &[])
        .finish("clipped", 6);
    let said = refusal(&bounds, &[]);
    assert!(said.contains("(Clip") && said.contains("'levels'"), "{said}");
}

#[test]
fn constants_as_exporters_write_them_pass() {
    let single = |dims: &[i64]| {
        File::new(17)
            .parameter("weight", &[1, 1, 2, 3])
            .parameter("bound", &[])
            .parameter("two", dims)
            .parameter("threshold", &[1])
            .floats("levels", &[3], &[0.1, 0.2, 0.3])
            .initializer("scales", &[4], &[1.0, 1.0, 2.0, 2.0])
            .node("Clip", &["weight", "", "bound"], &["clipped"], &[])
            .node("Mul", &["clipped", "clipped"], &["square"], &[])
            .node("Pow", &["square", "two"], &["power"], &[])
            .node("Greater", &["power", "threshold"], &["more"], &[])
            .node("Greater", &["power", "levels"], &["many"], &[])
            .node("And", &["more", "many"], &["both"], &[])
            .node("Where", &["both", "power", "weight"], &["chosen"], &[])
            .node("Resize", &["chosen", "", "scales"], &["large"], &[])
            .finish("large", 24)
    };
    let (parameters, _) = trains(&single(&[1]), &[]);
    assert_eq!(parameters, ["weight"]);
    trains(&single(&[]), &[]);
}
