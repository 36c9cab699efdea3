//! Transforms: what they make takes the place of rows, and nothing else comes of them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that panics says where, and a skipped one says so"
)]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cloister_data::{Batch, BatchOrder, DataLimits, Dataset, Format, Source};
use cloister_policy::DatasetSpec;
use cloister_sandbox::{
    CallLimits, Made, Module, ModuleError, ModuleErrorKind, PassOrder, PassSeed, Rows, Sandbox, SettingValue,
    Transform, TransformedRows,
};
use cloister_tensor::{Dtype, Tensor, TensorMap};
use common::{BATCH, INPUTS, ROWS, loaded, settings, text, train, train_call};

fn limits() -> CallLimits {
    CallLimits {
        guest_memory_bytes: 32 << 20,
        tensor_memory_bytes: 4 << 20,
        compute: Duration::from_secs(2),
        log_bytes: 4096,
        ..CallLimits::default()
    }
}

fn made(shape: &[usize], dtype: Dtype, classes: Option<usize>) -> Made {
    Made {
        shape: shape.to_vec(),
        dtype,
        classes,
    }
}

fn doubling(module: &Module, attack: &str) -> Transform {
    Transform {
        module: module.clone(),
        settings: settings(&[("attack", text(attack))]),
        makes: BTreeMap::from([("x".to_owned(), made(&[4], Dtype::F32, None))]),
        limits: limits(),
    }
}

fn batch(rows: usize) -> Batch {
    let x = (0..rows * 4).map(|at| at as f32 + 0.5).collect();
    let labels = (0..rows).map(|row| (row % 3) as i64).collect();
    Batch {
        rows,
        tensors: TensorMap::from([
            ("labels".to_owned(), Tensor::from_i64(&[rows], labels).unwrap()),
            ("x".to_owned(), Tensor::from_f32(&[rows, 4], x).unwrap()),
        ]),
    }
}

#[test]
fn what_it_makes_takes_the_place_of_what_was_read_and_the_rest_passes_by() {
    let Some((sandbox, module)) = loaded("hostile-transform") else {
        return;
    };
    let drawn = sandbox.transform(&doubling(&module, "none"), batch(8), 1).unwrap();
    let x = drawn.batch.tensors["x"].as_f32().unwrap().to_vec();
    assert_eq!((drawn.batch.rows, x.len(), x[0], x[31]), (8, 32, 1.0, 63.0));
    assert_eq!(drawn.batch.tensors["labels"], batch(8).tensors["labels"]);
    let logged = sandbox.transform(&doubling(&module, "log_rows"), batch(2), 1).unwrap();
    assert_eq!(logged.log, ["hostile-transform: info: row: 0.5"]);
}

fn refused(attack: &str, change: impl FnOnce(&mut Transform)) -> Option<ModuleError> {
    let (sandbox, module) = loaded("hostile-transform")?;
    let mut transform = doubling(&module, attack);
    change(&mut transform);
    let error = sandbox.transform(&transform, batch(8), 1).expect_err(attack);
    // The sandbox works on.
    sandbox.transform(&doubling(&module, "none"), batch(8), 1).unwrap();
    Some(error)
}

#[test]
fn whatever_does_not_fit_the_policy_is_refused() {
    for (attack, kind, words) in [
        (
            "wrong_shape",
            ModuleErrorKind::WrongShape,
            "seen F32 [8, 2, 2], wanted F32 [8, 4]",
        ),
        ("wrong_rows", ModuleErrorKind::WrongShape, "seen F32 [7, 4]"),
        ("wrong_type", ModuleErrorKind::WrongShape, "seen U8"),
        ("short", ModuleErrorKind::WrongShape, "seen 31 elements"),
        ("nan", ModuleErrorKind::NotFinite, "first at element 3"),
        ("infinite", ModuleErrorKind::NotFinite, "first at element 0"),
        ("missing", ModuleErrorKind::MissingTensor, "did not make the input `x`"),
        ("twice", ModuleErrorKind::DuplicateTensor, "twice"),
        ("unknown", ModuleErrorKind::UnknownTensor, "`z`"),
        ("trap", ModuleErrorKind::Trap, "unreachable"),
        ("panic", ModuleErrorKind::Trap, "unreachable"),
        ("allocate", ModuleErrorKind::Memory, "33554432"),
        ("log_without_end", ModuleErrorKind::Log, "more than 4096 bytes"),
        ("give_up", ModuleErrorKind::Failed, "the first value is"),
    ] {
        let Some(error) = refused(attack, |_| {}) else { return };
        assert_eq!(error.kind, kind, "{attack}: {error}");
        assert!(error.message.contains(words), "{attack}: {error}");
    }
    let Some(error) = refused("too_large", |_| {}) else {
        return;
    };
    assert!(
        matches!(error.kind, ModuleErrorKind::Memory | ModuleErrorKind::Trap),
        "16 MiB for a batch of 128 bytes: {error}"
    );
}

#[test]
fn time_and_memory_have_limits() {
    let start = Instant::now();
    let Some(error) = refused("loop", |transform| {
        transform.limits.compute = Duration::from_millis(200)
    }) else {
        return;
    };
    assert_eq!(error.kind, ModuleErrorKind::Deadline, "{error}");
    assert!(start.elapsed() < Duration::from_secs(60));
    let large = refused("none", |transform| {
        transform.makes.insert("y".into(), made(&[1 << 20], Dtype::F32, None));
    });
    let large = large.unwrap();
    assert_eq!(large.kind, ModuleErrorKind::Memory, "{large}");
    assert!(large.message.contains("raise `tensor_memory_mib`"), "{large}");
}

#[test]
fn labels_that_it_makes_name_a_class() {
    let Some(error) = refused("labels", |transform| {
        transform.makes.insert("labels".into(), made(&[], Dtype::I64, Some(3)));
    }) else {
        return;
    };
    assert!(error.message.contains("seen the label 99, wanted 0 to 2"), "{error}");
}

#[test]
fn a_module_of_another_world_transforms_nothing() {
    let Some((sandbox, module)) = loaded("aggregate-fedavg") else {
        return;
    };
    let error = sandbox.transform(&doubling(&module, "none"), batch(1), 1).unwrap_err();
    assert_eq!(error.kind, ModuleErrorKind::World, "{error}");
}

/// The rows of the sandbox's tests as a dataset, through a transform.
fn transformed(sandbox: &Sandbox, module: &Module, attack: &str) -> TransformedRows {
    let mut lines = "a,b,c,d,label\n".to_owned();
    for row in 0..ROWS as usize {
        let value = |input: usize| ((row * 37 + input * 101) % 97) as f32 / 97.0;
        let label = (0..3)
            .max_by(|&one, &other| value(one).total_cmp(&value(other)))
            .unwrap();
        lines += &format!("{},{},{},{},{label}\n", value(0), value(1), value(2), value(3));
    }
    let spec = "name = \"train\"\ninputs = { x = { columns = [\"a\", \"b\", \"c\", \"d\"] }, labels = { column = \"label\", dtype = \"i64\" } }\n";
    let spec = DatasetSpec::parse(spec.as_bytes(), "spec.toml").unwrap();
    let source = Source::from_bytes("rows.csv", lines.into_bytes());
    TransformedRows {
        sandbox: sandbox.clone(),
        rows: Dataset::open(&source, Format::Csv, &spec, &DataLimits::default()).unwrap(),
        transform: Arc::new(doubling(module, attack)),
    }
}

fn pass(ahead: bool, seed: Option<u64>) -> PassOrder {
    PassOrder {
        order: BatchOrder {
            seed,
            ..BatchOrder::of(BATCH)
        },
        seed: PassSeed {
            round: 7,
            dataset: Arc::from("train"),
            pass: 0,
        },
        end: None,
        ahead,
    }
}

#[test]
fn a_jump_into_a_pass_transforms_what_it_gives_and_gives_the_same() {
    let Some((sandbox, module)) = loaded("hostile-transform") else {
        return;
    };
    let rows = transformed(&sandbox, &module, "random");
    let draw = |order: PassOrder| -> Vec<Batch> {
        rows.batches(&order)
            .unwrap()
            .map(|drawn| drawn.unwrap().batch)
            .collect()
    };
    for ahead in [false, true] {
        let whole = draw(pass(ahead, Some(3)));
        assert_ne!(whole[0].tensors["x"], whole[1].tensors["x"]);
        for at in 0..whole.len() + 1 {
            let mut jump = pass(ahead, Some(3));
            (jump.order.first, jump.order.most) = (at, Some(1));
            let seen = draw(jump);
            let wanted = whole.get(at).into_iter();
            assert!(
                seen.iter()
                    .map(|batch| &batch.tensors)
                    .eq(wanted.map(|batch| &batch.tensors)),
                "batch {at}: the same rows, and the same seed"
            );
        }
    }
    let order = |most| BatchOrder {
        most,
        ..BatchOrder::of(BATCH)
    };
    let (all, one) = (rows.ahead_bytes(order(None)), rows.ahead_bytes(order(Some(1))));
    assert!(one < all / 2, "{one} of {all} bytes are charged for one batch");
}

#[test]
fn the_same_bytes_ahead_or_not_and_nothing_is_kept_from_batch_to_batch() {
    let Some((sandbox, module)) = loaded("hostile-transform") else {
        return;
    };
    for attack in ["none", "remember"] {
        let rows = transformed(&sandbox, &module, attack);
        let bytes = |ahead| -> Vec<TensorMap> {
            let batches = rows.batches(&pass(ahead, Some(3))).unwrap();
            batches.map(|drawn| drawn.unwrap().batch.tensors).collect()
        };
        let (ahead, inline) = (bytes(true), bytes(false));
        assert_eq!(ahead.len(), 3);
        assert_eq!(ahead, inline, "{attack}");
        if attack == "remember" {
            let zero = |tensors: &TensorMap| tensors["x"].as_f32().unwrap().iter().all(|&value| value == 0.0);
            assert!(ahead.iter().all(zero), "each batch meets a fresh instance");
        }
    }
}

#[test]
fn a_trainer_gets_transformed_rows_as_rows_and_its_round_is_the_same_again() {
    let Some((sandbox, module)) = loaded("hostile-transform") else {
        return;
    };
    let Some(trainer) = common::guest("train-sgd") else {
        return;
    };
    let trainer = sandbox.load("train-sgd", &trainer).unwrap();
    let train = |attack: Option<&str>| {
        let mut call = train_call(&trainer);
        call.settings = settings(&[("learning_rate", SettingValue::Number(0.1))]);
        if let Some(attack) = attack {
            let rows: Arc<dyn Rows> = Arc::new(transformed(&sandbox, &module, attack));
            call.datasets = BTreeMap::from([("train".to_owned(), rows)]);
        }
        train(&sandbox, call)
    };
    let one = train(Some("none")).unwrap();
    assert_eq!(one.rows, ROWS, "the host counts the rows that were read");
    assert_eq!(one.tensors, train(Some("none")).unwrap().tensors);
    assert_ne!(one.tensors, train(None).unwrap().tensors, "the graph saw other rows");
    let logged = train(Some("log_rows")).unwrap();
    assert!(
        logged
            .log
            .iter()
            .any(|line| line.contains("hostile-transform: info: row:")),
        "{:?}",
        logged.log
    );
}

#[test]
fn a_transform_that_fails_ends_the_call_and_its_words_pass_by_the_trainer() {
    let Some((sandbox, module)) = loaded("hostile-transform") else {
        return;
    };
    let Some(trainer) = common::guest("train-sgd") else {
        return;
    };
    let trainer = sandbox.load("train-sgd", &trainer).unwrap();
    for (attack, kind) in [
        ("give_up", ModuleErrorKind::Failed),
        ("panic", ModuleErrorKind::Trap),
        ("nan", ModuleErrorKind::NotFinite),
    ] {
        let mut call = train_call(&trainer);
        let rows: Arc<dyn Rows> = Arc::new(transformed(&sandbox, &module, attack));
        call.datasets = BTreeMap::from([("train".to_owned(), rows)]);
        let error = train(&sandbox, call).unwrap_err();
        assert_eq!(
            (error.kind, error.module.as_str()),
            (kind, "hostile-transform"),
            "{error}"
        );
        assert_eq!(error.digest, module.digest(), "who failed is named, not who was called");
    }
}

#[test]
fn rows_drawn_ahead_count_and_a_trainers_end_is_their_end() {
    let Some((sandbox, module)) = loaded("hostile-transform") else {
        return;
    };
    let Some(trainer) = common::guest("train-sgd") else {
        return;
    };
    let trainer = sandbox.load("train-sgd", &trainer).unwrap();
    let run = |attack: &str, change: &dyn Fn(&mut cloister_sandbox::TrainCall)| {
        let mut call = train_call(&trainer);
        let rows: Arc<dyn Rows> = Arc::new(transformed(&sandbox, &module, attack));
        call.datasets = BTreeMap::from([("train".to_owned(), rows)]);
        change(&mut call);
        train(&sandbox, call).unwrap_err()
    };
    // Three batches that wait, and one that is read, are more than is left beside the model.
    let model: u64 = train_call(&trainer)
        .model
        .values()
        .map(|tensor| tensor.bytes().len() as u64)
        .sum();
    let full = run("none", &|call| {
        call.limits.tensor_memory_bytes = model + 2 * (BATCH * INPUTS * 4) as u64
    });
    assert_eq!(full.kind, ModuleErrorKind::Memory, "{full}");
    assert!(full.message.contains("batches drawn ahead"), "{full}");
    let start = Instant::now();
    let late = run("loop", &|call| call.limits.call = Duration::from_millis(300));
    assert_eq!(late.kind, ModuleErrorKind::Deadline, "{late}");
    assert!(
        start.elapsed() < Duration::from_secs(60),
        "the transform's own limit is longer"
    );
}

#[test]
fn pictures_are_augmented_alike_from_the_same_seed_and_standardised() {
    let Some((sandbox, module)) = loaded("augment-cifar") else {
        return;
    };
    let pixels: Vec<u8> = (0..8 * 3072_usize).map(|at| (at * 31 % 251) as u8).collect();
    let images = |pixels: &[u8]| {
        let shape = cloister_tensor::Shape::new(&[8, 3, 32, 32]).unwrap();
        let x = Tensor::new(Dtype::U8, shape, pixels.to_vec().into()).unwrap();
        let labels = Tensor::from_i64(&[8], vec![0; 8]).unwrap();
        Batch {
            rows: 8,
            tensors: TensorMap::from([("x".to_owned(), x), ("labels".to_owned(), labels)]),
        }
    };
    let run = |augment: bool, seed: u64| {
        let transform = Transform {
            module: module.clone(),
            settings: settings(&[("augment", SettingValue::Boolean(augment))]),
            makes: BTreeMap::from([("x".to_owned(), made(&[3, 24, 24], Dtype::F32, None))]),
            limits: limits(),
        };
        let drawn = sandbox.transform(&transform, images(&pixels), seed).unwrap();
        drawn.batch.tensors["x"].as_f32().unwrap().to_vec()
    };
    assert_eq!(run(true, 1), run(true, 1));
    assert_ne!(run(true, 1), run(true, 2));
    assert_eq!(run(false, 1), run(false, 2), "the middle is the middle");
    for picture in run(true, 1)
        .chunks(3 * 24 * 24)
        .chain(run(false, 1).chunks(3 * 24 * 24))
    {
        let mean = picture.iter().map(|&pixel| f64::from(pixel)).sum::<f64>() / picture.len() as f64;
        let variance = picture
            .iter()
            .map(|&pixel| (f64::from(pixel) - mean).powi(2))
            .sum::<f64>()
            / picture.len() as f64;
        assert!(mean.abs() < 1e-4 && (variance - 1.0).abs() < 1e-3, "{mean} {variance}");
    }
    // The window in the middle, standardised by hand.
    let first: Vec<f64> = (0..3)
        .flat_map(|plane| (4..28).flat_map(move |row| (4..28).map(move |column| plane * 1024 + row * 32 + column)))
        .map(|at: usize| f64::from(pixels[at]))
        .collect();
    let mean = first.iter().sum::<f64>() / first.len() as f64;
    let deviation = (first.iter().map(|pixel| (pixel - mean).powi(2)).sum::<f64>() / first.len() as f64).sqrt();
    for (seen, pixel) in run(false, 0).iter().zip(&first) {
        assert!((f64::from(*seen) - (pixel - mean) / deviation).abs() < 1e-4);
    }
}
