//! Forms of weight gradients: all give the same numbers, and a choice is fixed in the graph.

use std::collections::BTreeMap;

use super::interpreter::Array;
use super::numbers;
use super::run::run;
use crate::{ConvLayer, Limits, Model, Optimizer, TrainOptions, WeightGradient, samples, train, tuning};

/// Strides with a rest, dilation, uneven padding, groups, one and three spatial axes, a single window.
const LAYERS: [&str; 7] = [
    "32x3x5x5 kernel 4x3x3x3 strides 2x2 dilations 1x1 pads 1x1x1x1 groups 1",
    "16x2x6x5 kernel 3x2x2x3 strides 1x1 dilations 2x1 pads 1x0x0x2 groups 1",
    "32x4x4x4 kernel 4x1x3x3 strides 1x1 dilations 1x1 pads 1x1x1x1 groups 4",
    "16x2x3x3 kernel 3x2x1x1 strides 2x2 dilations 1x1 pads 0x0x0x0 groups 1",
    "3x2x7 kernel 3x2x3 strides 2 dilations 1 pads 1x1 groups 1",
    "2x2x3x3x3 kernel 2x2x2x2x2 strides 1x1x1 dilations 1x1x1 pads 0x0x0x0x0x0 groups 1",
    "4x3x1x1 kernel 2x3x3x3 strides 1x1 dilations 1x1 pads 1x1x1x1 groups 1",
];

#[test]
fn every_candidate_of_a_layer_gives_the_same_gradient() {
    for text in LAYERS {
        let layer: ConvLayer = text.parse().unwrap();
        assert_eq!(layer.to_string(), text);
        let forms = layer.candidates();
        assert!(forms.contains(&WeightGradient::Conv), "{text}");
        let mut first: Option<Vec<f64>> = None;
        for form in forms {
            assert_eq!(form.to_string().parse(), Ok(form));
            let graph = tuning::trial(&layer, form).unwrap();
            let feeds: BTreeMap<String, Array> = graph
                .inputs()
                .iter()
                .enumerate()
                .map(|(seed, port)| {
                    let values = numbers(port.shape.iter().product(), 5 + seed as u64);
                    (port.name.clone(), Array::new(&port.shape, values))
                })
                .collect();
            let seen = run(&graph, &feeds).remove("weight_gradient").unwrap();
            assert_eq!(seen.shape, layer.kernel, "{text} as {form}");
            let wanted = first.get_or_insert_with(|| seen.values.clone());
            let scale = wanted.iter().fold(0.0f64, |most, value| most.max(value.abs()));
            assert!(scale > 0.0, "{text}");
            for (seen, wanted) in seen.values.iter().zip(wanted) {
                assert!(
                    (*seen - *wanted).abs() < 1e-9 * scale,
                    "{text} as {form}: {seen}, {wanted}"
                );
            }
        }
    }
}

#[test]
fn a_choice_is_fixed_in_the_graph_and_said_in_it() {
    let file = samples::cnn(64, 4, 10, 7).unwrap();
    let model = Model::parse(&file, &Limits::default()).unwrap();
    let mut options = TrainOptions::new(Optimizer::Sgd, 32);
    let by_rule = train(&model, &options).unwrap();
    let layers = tuning::layers(&model, &options).unwrap();
    assert_eq!(layers.len(), 2);

    let elsewhere: ConvLayer = LAYERS[0].parse().unwrap();
    options.weight_gradients.insert(elsewhere, WeightGradient::Conv);
    let same = train(&model, &options).unwrap();
    assert_eq!(same.training.bytes(), by_rule.training.bytes());

    options
        .weight_gradients
        .insert(layers[1].clone(), WeightGradient::Interleaved);
    let (first, second) = (train(&model, &options).unwrap(), train(&model, &options).unwrap());
    assert_eq!(first.training.bytes(), second.training.bytes());
    assert_ne!(first.training.digest(), by_rule.training.digest());
    assert_eq!(first.evaluation.bytes(), by_rule.evaluation.bytes());
    let said = &first.training.metadata()["cloister.weight_gradients"];
    assert_eq!(*said, format!("{} = interleaved", layers[1]));
}
