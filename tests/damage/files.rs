//! Files that a person writes or was sent, broken in several ways.

use std::fs;
use std::path::Path;

use cloister_tests::{Run, cloister, guests, root, says};

use super::refused;

/// A file of that name and content, and the run of a command on it.
fn on_file(name: &str, content: &[u8], command: impl FnOnce(&Path) -> Vec<String>) -> Run {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(name);
    fs::write(&file, content).unwrap();
    let run = cloister(command(&file)).unwrap();
    assert!(says(&run.stderr, name), "the file is named: {}", run.stderr);
    run
}

fn then(words: &[&str], file: &Path) -> Vec<String> {
    let words = words.iter().map(|word| match *word {
        "FILE" => file.display().to_string(),
        word => word.to_owned(),
    });
    words.collect()
}

#[test]
fn a_broken_model_is_refused_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("m.onnx");
    let sample = [
        "graph",
        "sample",
        "mlp",
        "--inputs",
        "4",
        "--hidden",
        "3",
        "--classes",
        "2",
        "-o",
    ];
    let mut arguments = sample.map(str::to_owned).to_vec();
    arguments.push(file.display().to_string());
    let made = cloister(arguments).unwrap();
    assert_eq!(made.code, 0, "{}", made.stderr);
    let whole = fs::read(&file).unwrap();
    let replaced = |from: &[u8], to: &[u8]| {
        let at = whole.windows(from.len()).position(|part| part == from).unwrap();
        [&whole[..at], to, &whole[at + from.len()..]].concat()
    };
    for (case, content, wanted) in [
        ("nothing", Vec::new(), &["there is no graph", "at byte 0"][..]),
        (
            "text",
            b"ir_version: 8\n".to_vec(),
            &["field 13 of the model", "at byte 1"],
        ),
        (
            "cut",
            whole[..whole.len() / 2].to_vec(),
            &["are left (at byte", "export the model again"],
        ),
        (
            "an unknown operator",
            replaced(b"Relu", b"Rulu"),
            &["node 1 (Rulu, which makes 'v1')", "is not supported"],
        ),
        (
            "an operator without its input",
            replaced(b"Gemm", b"Relu"),
            &["node 0 (Relu, which makes 'v0')", "3 operands; 1 to 1 are wanted"],
        ),
    ] {
        let run = on_file("broken.onnx", &content, |file| then(&["graph", "show", "FILE"], file));
        refused(case, &run, 2, wanted);
    }
}

#[test]
fn a_broken_module_is_refused_with_its_place() {
    let whole = fs::read(guests().join("train-sgd.wasm")).unwrap();
    for (case, content, wanted) in [
        ("nothing", Vec::new(), &["unexpected end-of-file at byte 0"][..]),
        (
            "text",
            b"(component)".to_vec(),
            &["magic header not detected", "at byte 0"],
        ),
        (
            "a core module",
            b"\0asm\x01\0\0\0".to_vec(),
            &["a core WebAssembly module, not a component"],
        ),
        (
            "cut",
            whole[..whole.len() / 2].to_vec(),
            &["unexpected end-of-file at byte"],
        ),
    ] {
        let run = on_file("broken.wasm", &content, |file| {
            then(&["module", "inspect", "FILE"], file)
        });
        refused(case, &run, 2, wanted);
    }

    // One that could run nowhere is shown all the same: what it imports is what its author has to know.
    let mut other = whole;
    let from = b"wasi:nn/";
    let places: Vec<_> = (0..other.len() - from.len())
        .filter(|at| other[*at..].starts_with(from))
        .collect();
    for at in places {
        other[at..at + from.len()].copy_from_slice(b"wasi:xx/");
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("other.wasm");
    fs::write(&file, other).unwrap();
    let run = cloister(then(&["module", "inspect", "FILE"], &file)).unwrap();
    assert_eq!(run.code, 1, "{}", run.stderr);
    assert!(
        run.stdout.contains("world     none: the module imports wasi:xx/"),
        "{}",
        run.stdout
    );
}

#[test]
fn a_broken_policy_is_refused_with_line_and_key() {
    let whole = fs::read_to_string(root().join("policies/simulation.toml")).unwrap();
    let replaced = |from: &str, to: &str| {
        assert!(whole.contains(from), "{from}");
        whole.replacen(from, to, 1)
    };
    for (case, content, wanted) in [
        ("nothing", String::new(), &[":1:1: the document has no `format`"][..]),
        (
            "no TOML",
            replaced("format = 1", "format 1"),
            &[":7:8: not TOML: key with no value, expected `=`"],
        ),
        (
            "an unknown key",
            replaced("threshold = 2", "treshold = 2"),
            &[":12:1: unknown key `agreement.treshold`; did you mean `threshold`?"],
        ),
        (
            "a wrong type",
            replaced("version = 1 ", "version = \"one\" "),
            &[":9:11: `version` is a string; a whole number is wanted"],
        ),
        (
            "a later format",
            replaced("format = 1", "format = 9"),
            &[":7:10: `format` is not 1, the one that this host reads"],
        ),
        (
            "a short digest",
            replaced("sha256 = \"00", "sha256 = \""),
            &[":50:10: `module[0].sha256` is \"00", "wanted a SHA-256 digest"],
        ),
        (
            "a node of nobody",
            replaced("participant = \"beta\"", "participant = \"gamma\""),
            &[":39:15: `node[2].participant` is \"gamma\", but the policy has no [[participant]] of that name"],
        ),
    ] {
        let run = on_file("broken.toml", content.as_bytes(), |file| {
            then(&["policy", "check", "FILE"], file)
        });
        refused(case, &run, 2, wanted);
    }
    let run = on_file("broken.toml", b"name = \"\xff\"", |file| {
        then(&["policy", "check", "FILE"], file)
    });
    refused("no UTF-8", &run, 2, &[":1:9: the file is not UTF-8 text"]);
}

#[test]
fn a_broken_table_is_refused_with_row_and_column() {
    let commit = [
        "data",
        "commit",
        "FILE",
        "--name",
        "t",
        "--input",
        "x=a",
        "--input",
        "labels=label:i64",
    ];
    for (case, content, wanted) in [
        ("nothing", &b""[..], &["seen an empty file, wanted a header line"][..]),
        ("a header alone", b"a,label\n", &["seen no rows, wanted at least one"]),
        (
            "a word",
            b"a,label\n1,0\nx,1\n",
            &["row 2 (line 3), column \"a\": seen \"x\", wanted a finite number"],
        ),
        (
            "an empty cell",
            b"a,label\n1,0\n,1\n",
            &["row 2 (line 3), column \"a\": seen an empty cell, wanted a finite number"],
        ),
        (
            "NaN",
            b"a,label\n1,0\nNaN,1\n",
            &["row 2 (line 3), column \"a\": seen \"NaN\", wanted a finite number"],
        ),
        (
            "a broken label",
            b"a,label\n1,0.5\n",
            &["row 1 (line 2), column \"label\": seen \"0.5\", wanted a whole number"],
        ),
        (
            "a cell too few",
            b"a,label\n1,0\n1\n",
            &["row 2 (line 3): seen 1 cells, wanted 2 as in the header"],
        ),
        (
            "a cell too many",
            b"a,label\n1,0\n1,1,1\n",
            &["row 2 (line 3): seen 3 cells, wanted 2 as in the header"],
        ),
        (
            "no such column",
            b"b,label\n1,0\n",
            &["no column \"a\", which input x needs; the nearest is \"b\""],
        ),
        (
            "no UTF-8",
            b"a,label\n\xff,0\n",
            &["row 1 (line 2), column \"a\": seen"],
        ),
    ] {
        let run = on_file("broken.csv", content, |file| then(&commit, file));
        refused(case, &run, 2, wanted);
    }
}

#[test]
fn a_broken_node_file_is_refused_with_line_and_key() {
    let whole = fs::read_to_string(root().join("examples/digits/templates/worker.toml")).unwrap();
    let replaced = |from: &str, to: &str| {
        assert!(whole.contains(from), "{from}");
        whole.replacen(from, to, 1)
    };
    for (case, content, wanted) in [
        ("nothing", String::new(), &[":1:1: missing field `name`"][..]),
        (
            "no TOML",
            replaced("name = ", "name "),
            &[":2:6: key with no value, expected `=`"],
        ),
        (
            "an unknown key",
            replaced("aggregator =", "agregator ="),
            &[":6:", "agregator", "did you mean", "aggregator"],
        ),
        (
            "a wrong type",
            replaced("name = \"worker-a\"", "name = 7"),
            &[":2:8: invalid type: integer `7`, expected a string"],
        ),
        (
            "no port",
            replaced("AGGREGATOR.EXAMPLE.ORG:7700", "AGGREGATOR.EXAMPLE.ORG"),
            &["`aggregator` is no HOST:PORT"],
        ),
        (
            "another provider",
            replaced("provider = \"simulated\"", "provider = \"sgx\""),
            &[":7:12: unknown variant `sgx`, expected one of `simulated`"],
        ),
    ] {
        let run = on_file("node.toml", content.as_bytes(), |file| {
            then(&["worker", "--config", "FILE"], file)
        });
        refused(case, &run, 2, wanted);
    }
}
