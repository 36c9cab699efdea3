//! How graphs of a policy are made is said as for a single graph, and gives the same bytes.

use super::*;

#[path = "../../host/graph/tests/common/onnx_file.rs"]
#[allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "shared by tests that each use a part of it"
)]
mod onnx_file;

/// Runs the binary on words in which `DIR` stands for the folder.
fn done(folder: &Path, line: &str) {
    let folder = folder.display().to_string();
    let run = cloister(line.split(' ').map(|word| word.replace("DIR", &folder))).unwrap();
    assert_eq!(run.code, 0, "{line}: {}", run.stderr);
}

/// [`folder`], with a convolutional network and pictures of 8 x 8 in place of rows of four numbers.
fn pictures() -> TempDir {
    let folder = folder();
    done(
        folder.path(),
        "graph sample cnn --inputs 64 --hidden 4 --classes 3 -o DIR/cnn.onnx",
    );
    for node in ["worker-a", "worker-b", "hub"] {
        let path = folder.path().join(format!("{node}.toml"));
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(
            path,
            text.replace("\"p0..p3\", shape = [4]", "\"p0..p63\", shape = [1, 8, 8]"),
        )
        .unwrap();
    }
    folder
}

fn made_of_cnn() -> [&'static str; 10] {
    MADE.map(|word| if word == "DIR/mlp.onnx" { "DIR/cnn.onnx" } else { word })
}

#[test]
fn forms_that_were_measured_go_into_the_graphs_of_a_policy() {
    let folder = pictures();
    let at = |name: &str| folder.path().join(name);
    done(
        folder.path(),
        "graph tune DIR/cnn.onnx --batch 32 --runs 1 --backend tract -o DIR/measured.toml",
    );
    // What was measured as it is, and with another form for every layer, which the rule would not take.
    let measured = std::fs::read_to_string(at("measured.toml")).unwrap();
    let other: Vec<String> = measured
        .lines()
        .map(|line| match line.split_once(" = \"") {
            Some((layer, _)) if layer.starts_with('"') => format!("{layer} = \"conv\""),
            _ => line.to_owned(),
        })
        .collect();
    std::fs::write(at("other.toml"), other.join("\n")).unwrap();
    for (forms, metadata) in [("DIR/measured.toml", ""), ("DIR/other.toml", "groups 1 = conv")] {
        let run = draft(folder.path(), &[&made_of_cnn()[..], &["--forms", forms]].concat());
        assert_eq!(run.code, 0, "{}", run.stderr);
        done(
            folder.path(),
            &format!("graph train DIR/cnn.onnx --optimizer momentum --batch 32 --forms {forms} -o DIR/alone.onnx"),
        );
        let drafted = std::fs::read(at("made/train.onnx")).unwrap();
        assert_eq!(drafted, std::fs::read(at("alone.onnx")).unwrap(), "{forms}");
        assert!(String::from_utf8_lossy(&drafted).contains(metadata), "{forms}");
    }
    let run = draft(
        folder.path(),
        &[&made_of_cnn()[..], &["--forms", "DIR/cnn.onnx"]].concat(),
    );
    assert_eq!(run.code, 2, "{}", run.stderr);
    assert!(run.stderr.contains("graph tune"), "{}", run.stderr);
}

#[test]
fn every_option_of_a_graph_is_one_of_a_policy() {
    let folder = folder();
    let said = "--loss soft-cross-entropy --beta1 0.8 --beta2 0.99 --epsilon 1e-6 --weight-decay 0.01 --no-decay fc2.b* \
                --no-decay-norm --clip-norm 1 --proximal 0.1 --freeze fc1.* --logits logits --conv-gradient gemm";
    for node in ["worker-a", "worker-b", "hub"] {
        let path = folder.path().join(format!("{node}.toml"));
        let text = std::fs::read_to_string(&path).unwrap();
        let shares = text.replace(
            "column = \"label\", dtype = \"i64\"",
            "columns = \"c0..c2\", dtype = \"f32\"",
        );
        std::fs::write(path, shares).unwrap();
    }
    let more: Vec<&str> = said.split(' ').collect();
    let made = MADE.map(|word| if word == "momentum" { "adamw" } else { word });
    let run = draft(folder.path(), &[&made[..], &more].concat());
    assert_eq!(run.code, 0, "{}", run.stderr);
    done(
        folder.path(),
        &format!("graph train DIR/mlp.onnx --optimizer adamw --batch 32 {said} -o DIR/alone.onnx"),
    );
    let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    assert_eq!(read("made/train.onnx"), read("alone.onnx"));
    // Without a model there is nothing that they could say.
    let run = draft(folder.path(), &more);
    assert_eq!(run.code, 2, "{}", run.stderr);
    assert!(words(&run.stderr).contains("give --onnx"), "{}", run.stderr);
}

#[test]
fn dropouts_stay_in_the_graphs_of_a_policy() {
    let folder = folder();
    let file = onnx_file::Model::of(17, &[32, 4])
        .parameter("w", &[4, 3])
        .floats("ratio", &[], &[0.5])
        .truths("trains", &[], &[1])
        .node("MatMul", &["x", "w"], &["seen"], &[])
        .node("Dropout", &["seen", "ratio", "trains"], &["logits"], &[])
        .written("logits");
    std::fs::write(folder.path().join("mlp.onnx"), file).unwrap();
    dataset(folder.path(), "hub", "rows = 128");
    let made = [&MADE[..], &["--setting", "train-sgd.drop_last=true"]].concat();
    for (more, kept) in [(&[][..], true), (&["--no-dropout"][..], false)] {
        let run = draft(folder.path(), &[&made[..], more].concat());
        assert_eq!(run.code, 0, "{}", run.stderr);
        let graph = |name: &str| std::fs::read(folder.path().join("made").join(name)).unwrap();
        let has = |name: &str| String::from_utf8_lossy(&graph(name)).contains("mask 0 0.5");
        assert_eq!((has("train.onnx"), has("evaluate.onnx")), (kept, false));
    }
}
