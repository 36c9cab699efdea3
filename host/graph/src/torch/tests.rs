use proptest::prelude::*;

use crate::{EngineGraph, GraphError, Language, Limits, PortKind};

const STEP: &str = "cloister torchscript step 1
input\tx\tF32\t[2, 3]\tdata
input\tlabels\tI64\t[2]\tlabels
input\tw\tF32\t[4, 3]\tparameter
input\tmean\tF32\t[4]\tstatistic
input\tvariance\tF32\t[4]\tstatistic
output\tloss\tF32\t[1]\tloss
output\tgrad/w\tF32\t[4, 3]\tgradient w
output\tnext/mean\tF32\t[4]\tnext-statistic mean
output\tnext/variance\tF32\t[4]\tnext-statistic variance
classes\t4
v0 = leaf(i2)
v1 = linear(i0, v0, None)
v2 = clone(i3)
v3 = clone(i4)
v4 = batch_norm(v1, None, None, v2, v3, True, 0.1, 1e-5, False)
v5 = cross_entropy_loss(v4, i1, None, 1, -100, 0.0)
v6 = gradients(v5, [v0])
v7 = reshape(v5, [1])
v8 = add(v6, i2, alpha=0.5)
return v7, v8, v2, v3
";

fn load(text: &str) -> Result<EngineGraph, GraphError> {
    EngineGraph::load(text.as_bytes())
}

/// The step with one line in the place of another.
fn with(old: &str, new: &str) -> String {
    assert!(STEP.contains(old), "{old}");
    STEP.replacen(old, new, 1)
}

#[test]
fn a_step_is_written_anew_as_a_class_without_names_of_its_file() {
    let graph = load(STEP).unwrap();
    assert_eq!(graph.language(), Language::TorchScript);
    assert_eq!(graph.classes(), Some(4));
    assert_eq!(graph.inputs().len(), 5);
    assert_eq!(graph.inputs()[2].kind, PortKind::Parameter("w".to_owned()));
    assert_eq!(graph.outputs()[1].kind, PortKind::Gradient("w".to_owned()));
    let source = std::str::from_utf8(graph.bytes()).unwrap();
    let wanted = "    i4 = inputs[4]
    v0 = torch.requires_grad_(torch.detach(i2))
    v1 = torch.linear(i0, v0, None)
    v2 = torch.clone(i3)
    v3 = torch.clone(i4)
    v4 = torch.batch_norm(v1, None, None, v2, v3, True, 0.1, 1e-5, False)
    v5 = torch.cross_entropy_loss(v4, i1, None, 1, -100, 0.0)
    g6 = torch.autograd.grad([v5], [v0])
    v6 = unchecked_cast(Tensor, g6[0])
    v7 = torch.reshape(v5, [1])
    v8 = torch.add(v6, i2, alpha=0.5)
    return [v7, v8, v2, v3]
";
    assert!(source.ends_with(wanted), "{source}");
    assert!(!source.contains("variance") && !source.contains("grad/w"));
    assert_ne!(graph.digest(), graph.source_digest());
}

#[test]
fn what_could_do_more_than_compute_is_refused_by_line_and_name() {
    let cases = [
        (
            "v1 = linear(i0, v0, None)",
            "v1 = from_file(\"/etc/passwd\")",
            "line 13",
            "\"from_file\" is no operator",
        ),
        (
            "v1 = linear(i0, v0, None)",
            "v1 = save(i0, \"x\")",
            "line 13",
            "\"save\" is no operator",
        ),
        (
            "v1 = linear(i0, v0, None)",
            "v1 = rand_like(i0)",
            "line 13",
            "\"rand_like\" is no operator",
        ),
        (
            "v1 = linear(i0, v0, None)",
            "v1 = add_(i0, v0)",
            "line 13",
            "\"add_\" is no operator",
        ),
        (
            "v1 = linear(i0, v0, None)",
            "v1 = ops.aten.linear(i0, v0)",
            "line 13",
            "\"ops.aten.linear\" is no operator",
        ),
        (
            "v1 = linear(i0, v0, None)",
            "v1 = add(i0, i0, out=v0)",
            "line 13",
            "\"out\" is no operand's name",
        ),
        (
            "v1 = linear(i0, v0, None)",
            "v1 = linear(i0, v9)",
            "line 13",
            "\"v9\" is no operand",
        ),
        (
            "v1 = linear(i0, v0, None)",
            "v1 = linear(i0, i05)",
            "line 13",
            "\"i05\" is no operand",
        ),
        (
            "v1 = linear(i0, v0, None)",
            "v1 = relu(relu(i0))",
            "line 13",
            "\"relu\" is no operand",
        ),
        (
            "v1 = linear(i0, v0, None)",
            "v1 = relu(i0); import os",
            "line 13",
            "wanted a comma or the end",
        ),
        (
            "v1 = linear(i0, v0, None)",
            "x = linear(i0, v0)",
            "line 13",
            "are called v1",
        ),
        ("v1 = linear(i0, v0, None)", "if i0:", "line 13", "is no statement"),
        (
            "v2 = clone(i3)",
            "v2 = detach(i3)",
            "line 16",
            "batch_norm writes to its running statistics",
        ),
        (
            "v2, v3, True",
            "i3, v3, True",
            "line 16",
            "batch_norm writes to its running statistics",
        ),
        ("[v0])", "[i2])", "line 18", "with respect to leaves"),
        ("1e-5", "1e999", "line 16", "\"1e999\" is no operand"),
        ("1e-5", "nan", "line 16", "\"nan\" is no operand"),
        ("return v7", "return v99", "line 21", "\"v99\" is no value"),
        (
            "return v7, v8, v2, v3",
            "return v7",
            "line 21",
            "1 values are returned, and 4 outputs declared",
        ),
        ("[4, 3]\tparameter", "[4, -3]\tparameter", "line 4", "is no shape"),
        ("input\tmean", "input\tw", "line 5", "is there already"),
        ("classes\t4", "classes\t0", "line 11", "a number of classes"),
    ];
    for (old, new, line, problem) in cases {
        let error = load(&with(old, new)).unwrap_err().to_string();
        assert!(error.starts_with(line) && error.contains(problem), "{new}: {error}");
    }
    let error = load(&format!("{STEP}v9 = relu(i0)\n")).unwrap_err().to_string();
    assert!(error.contains("something follows the return"), "{error}");
}

#[test]
fn ports_are_held_to_their_kinds_as_in_onnx() {
    for (old, new) in [
        ("grad/w\tF32\t[4, 3]", "grad/w\tF32\t[3, 4]"),
        ("gradient w", "gradient mean"),
        ("gradient w", "next-parameter w"),
        ("loss\tF32\t[1]\tloss", "loss\tF32\t[2]\tloss"),
        ("labels\tI64\t[2]\tlabels", "labels\tI64\t[2, 1]\tlabels"),
        ("\tstatistic", "\tsecret"),
    ] {
        let error = load(&with(old, new)).unwrap_err();
        assert!(matches!(error, GraphError::Interface(_)), "{new}: {error}");
    }
}

#[test]
fn counts_are_limited() {
    let limits = Limits {
        ports: 4,
        ..Limits::default()
    };
    let error = EngineGraph::load_within(STEP.as_bytes(), &limits)
        .unwrap_err()
        .to_string();
    assert!(error.contains("5 inputs, at most 4"), "{error}");
    let limits = Limits {
        nodes: 3,
        ..Limits::default()
    };
    let error = EngineGraph::load_within(STEP.as_bytes(), &limits)
        .unwrap_err()
        .to_string();
    assert!(error.contains("4 statements, at most 3"), "{error}");
    let limits = Limits {
        bytes: 100,
        ..Limits::default()
    };
    assert!(EngineGraph::load_within(STEP.as_bytes(), &limits).is_err());
    let deep = with(
        "v1 = linear(i0, v0, None)",
        &format!("v1 = relu({})", "[".repeat(100_000)),
    );
    assert!(load(&deep).is_err());
}

proptest! {
    #[test]
    fn any_step_ends_in_a_graph_or_an_error(
        at in 0..STEP.len(),
        length in 0usize..40,
        new in "[a-z0-9 =,.()\\[\\]\"\t\n-]{0,20}",
    ) {
        let end = (at + length).min(STEP.len());
        let text = format!("{}{new}{}", &STEP[..at], &STEP[end..]);
        if let Ok(graph) = load(&text) {
            // What comes out is lines of the one form, whatever went in.
            for line in std::str::from_utf8(graph.bytes()).unwrap().lines().skip(6) {
                let known = ["    i", "    v", "    g", "    return ["];
                prop_assert!(known.iter().any(|start| line.starts_with(start)), "{line}");
            }
        }
    }
}
