//! The versions of the operator set that are read, and what the newest of them changed.

use std::collections::BTreeMap;

use super::interpreter::Array;
use super::run::run;
use super::zoo::onnx_file::{A, Model as File};
use crate::{GraphError, Limits, Model};

fn parsed(file: &[u8]) -> Result<Model, GraphError> {
    Model::parse(file, &Limits::default())
}

#[test]
fn every_version_up_to_the_newest_reviewed_is_read_and_none_beyond() {
    let of = |opset: i64| {
        let mut file = File::new(opset);
        file.parameter("p", &[2, 1]).node("Add", &["x", "p"], &["y"], &[]);
        parsed(&file.written("y"))
    };
    for opset in 13..=28 {
        assert!(of(opset).unwrap().at_batch(2).is_ok(), "{opset}");
    }
    for opset in [12, 29] {
        let said = of(opset).unwrap_err().to_string();
        let wanted = format!("version {opset} of the operator set (13 to 28 are read)");
        assert!(said.contains(&wanted), "{said}");
    }
}

#[test]
fn what_newer_versions_added_and_nobody_computes_is_refused() {
    let mut file = File::new(25);
    for name in ["q", "k", "v"] {
        file.parameter(name, &[1, 2, 3, 4]);
    }
    file.node("Attention", &["q", "k", "v"], &["y"], &[A::I("left_window_size", 1)]);
    let said = parsed(&file.written("y")).unwrap().at_batch(1).unwrap_err().to_string();
    assert!(
        said.contains("(Attention") && said.contains("'left_window_size'"),
        "{said}"
    );
}

#[test]
fn blocks_go_to_channels_in_both_orders() {
    let turned = |mode: &str| {
        let image: Vec<f32> = (0..16u8).map(f32::from).collect();
        let attributes = [A::I("blocksize", 2), A::S("mode", mode)];
        let mut file = File::new(28);
        file.floats("image", &[1, 2, 2, 4], &image);
        file.node("SpaceToDepth", &["image"], &["deep"], &attributes);
        file.node("DepthToSpace", &["deep"], &["y"], &attributes);
        let run_to = |output: &str| {
            let model = parsed(&file.written(output)).unwrap();
            let x = BTreeMap::from([("x".to_owned(), Array::new(&[2, 1], vec![0.0; 2]))]);
            run(&model.at_batch(2).unwrap(), &x)[output].values.clone()
        };
        let there_and_back: Vec<f64> = image.iter().copied().map(f64::from).collect();
        assert_eq!(run_to("y"), there_and_back, "{mode}");
        run_to("deep")[..4].to_vec()
    };
    // The first two channels: the corner of each block, first of one plane, then of the other or the next of the first.
    assert_eq!(turned("DCR"), [0.0, 2.0, 8.0, 10.0]);
    assert_eq!(turned("CRD"), [0.0, 2.0, 1.0, 3.0]);
}
