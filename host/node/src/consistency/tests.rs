use cloister_graph::{Optimizer, TrainOptions, samples, train};

use super::*;

/// An agreement of two nodes over a model of 4 inputs and 3 classes, drafted out of these lines for module and dataset.
fn agreement(module: &str, dataset: &str) -> (Vec<String>, Vec<String>) {
    agreement_by("averaging", Optimizer::Sgd, module, dataset)
}

fn agreement_by(mode: &str, optimizer: Optimizer, module: &str, dataset: &str) -> (Vec<String>, Vec<String>) {
    let model = Model::parse(&samples::mlp(4, 8, 3, 1).unwrap(), &Limits::default()).unwrap();
    let made = train(&model, &TrainOptions::new(optimizer, 16)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.onnx");
    std::fs::write(&path, made.training.bytes()).unwrap();
    let (zeros, ones) = ("00".repeat(32), "11".repeat(32));
    let digest = Digest::of(made.training.bytes());
    let key = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
    let text = format!(
        "format = 1\nname = \"f\"\nversion = 1\n\
         [[participant]]\nname = \"a\"\npublic_key = \"{key}\"\n\
         [[node]]\nname = \"hub\"\nrole = \"aggregator\"\nparticipant = \"a\"\n\
         [[node]]\nname = \"w\"\nrole = \"worker\"\nparticipant = \"a\"\n\
         [[node]]\nname = \"v\"\nrole = \"worker\"\nparticipant = \"a\"\n\
         [model]\nname = \"m\"\nweights = \"{zeros}\"\n\
         [[module]]\nname = \"t\"\nrole = \"trainer\"\nsha256 = \"{zeros}\"\n{module}\n\
         [[module]]\nname = \"g\"\nrole = \"aggregator\"\nsha256 = \"{ones}\"\n\
         [[graph]]\nname = \"train\"\nsha256 = \"{digest}\"\nbatch = 16\n\
         [[dataset]]\nname = \"train\"\nnode = \"w\"\ncommitment = \"{zeros}\"\nrows = 32\n{dataset}\n\
         [[dataset]]\nname = \"train\"\nnode = \"v\"\ncommitment = \"{ones}\"\nrows = 32\n{DATASET}\n\
         [rounds]\nmode = \"{mode}\"\ncount = 1\nquorum = 2\ndeadline_s = 60\nmin_workers_per_aggregate = 2\nseed = 0\n\
         [attestation]\nsimulated = true\nroot_key_id = \"{}\"\n[release]\nmodel = \"final\"\nrecipients = []\n",
        "00".repeat(48)
    );
    let policy = cloister_policy::Policy::parse(text.as_bytes(), "p.toml").unwrap();
    let mut at_hand = AtHand::default();
    let missing = at_hand.folder(folder.path(), &policy).unwrap();
    (at_hand.problems(&policy), missing)
}

const MODULE: &str =
    "scalars = { learning_rate = { min = 0.0, max = 1.0 }, step = { min = 1.0, max = 1e9 } }\nreads = [\"loss\"]";
const DATASET: &str =
    "inputs = { x = { columns = \"p0..p3\", shape = [4] }, labels = { column = \"y\", dtype = \"i64\" } }";

#[test]
fn what_fits_has_no_problem() {
    let (problems, missing) = agreement(MODULE, DATASET);
    assert!(problems.is_empty(), "{problems:?}");
    assert_eq!(missing, ["t", "g"], "files that are not in the folder");
}

#[test]
fn a_mode_by_steps_wants_graphs_that_give_gradients() {
    let (problems, _) = agreement_by("synchronous", Optimizer::Sgd, MODULE, DATASET);
    assert_eq!(
        problems,
        ["workers send gradients (mode synchronous), and graph train gives none: make it with --optimizer none"]
    );
    let (problems, _) = agreement_by("synchronous", Optimizer::None, "reads = [\"loss\"]", DATASET);
    assert!(problems.is_empty(), "{problems:?}");
}

#[test]
fn each_misfit_is_named_with_both_sides() {
    let range = "scalars = { learning_rate = { min = 0.0, max = 1.0 } }";
    for (module, dataset, words) in [
        (range, DATASET, ["graph train takes step", "--scalar t.step=1..1e9"]),
        (
            MODULE,
            "inputs = { x = { columns = \"p0..p3\" } }",
            ["has the inputs x", "takes labels"],
        ),
        (
            &MODULE.replace("loss", "los"),
            DATASET,
            ["`reads` names los", "they have loss"],
        ),
        (
            &MODULE.replace("step =", "stop ="),
            DATASET,
            ["names stop", "learning_rate, step"],
        ),
        (
            MODULE,
            &DATASET.replace("x =", "images ="),
            ["inputs images, labels", "takes x"],
        ),
        (
            MODULE,
            &DATASET.replace("p3", "p4").replace("[4]", "[5]"),
            ["rows of shape [5]", "rows of shape [4]"],
        ),
        (
            MODULE,
            &DATASET.replace(", dtype = \"i64\"", ""),
            ["labels has f32", "i64"],
        ),
    ] {
        let (problems, _) = agreement(module, dataset);
        let all = problems.join("\n");
        assert!(words.iter().all(|word| all.contains(word)), "{words:?}: {all}");
    }
}

#[test]
fn what_a_transform_makes_is_compared_with_what_graphs_take() {
    let module = format!(
        "{MODULE}\n[[module]]\nname = \"aug\"\nrole = \"transform\"\nsha256 = \"{}\"",
        "22".repeat(32)
    );
    let read = DATASET.replace("p3", "p8").replace("[4]", "[9]");
    let through = |makes: &str| format!("{read}\ntransform = \"aug\"\nmakes = {{ x = {makes} }}");
    let (problems, _) = agreement(&module, &through("{ shape = [4] }"));
    assert!(
        problems.is_empty(),
        "the graph takes what is made, not what was read: {problems:?}"
    );
    for (makes, words) in [
        (
            "{ shape = [2, 2] }",
            "input x, made by the transform aug, has f32 rows of shape [2, 2]",
        ),
        (
            "{ shape = [4], dtype = \"i64\" }",
            "made by the transform aug, has i64 rows",
        ),
    ] {
        let (problems, _) = agreement(&module, &through(makes));
        assert!(problems.join("\n").contains(words), "{words}: {problems:?}");
    }
}
