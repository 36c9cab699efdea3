//! A trainer that misbehaves, for tests: the setting `attack` says how.

use std::collections::BTreeMap;

use cloister_guest::bindings::trainer::cloister::federation::{handles, model, ports};
use cloister_guest::bindings::trainer::exports::cloister::federation::training;
use cloister_guest::bindings::trainer::wasi::nn::graph;
use cloister_guest::prelude::*;
use cloister_guest::trainer::{NamedTensors, Port, PortKind, Tensor, TensorType};

cloister_guest::settings! {
    struct Settings {
        /// What to do.
        attack: String in [
            "none", "loop", "allocate", "trap", "panic", "recurse", "lie_about_length", "overflow_dimensions", "unknown_graph",
            "unknown_dataset", "empty_batch", "bring_graph", "rows_to_parameter", "rows_as_update", "swap_parameters",
            "scalar_to_data", "wrong_shape", "wrong_batch", "missing", "duplicate", "unknown_tensor", "nothing", "unchanged",
            "nan_metric", "odd_metric", "nan_parameters", "diverge", "make_tensor", "made_update", "read_parameter", "read_rows",
            "log_without_end", "rate_out_of_range", "hoard_handles", "hoard_batches", "inflate_rows", "give_up",
            "parameter_as_gradient", "moved_as_gradient", "swap_gradients", "rows_as_gradient", "made_gradient",
            "gradient_as_parameter", "no_attack_on_gradients", "jump_past_end", "rows_as_mask", "made_mask"
        ] = "none",
        /// Rows in a batch.
        batch: u32 = 32,
    }
}

/// One honest step, so that the attack stands in the middle of a training that would pass.
fn honest(round: Round, settings: &Settings) -> Result<(Model, Batch)> {
    let mut trained = Model::current();
    let graph = Graph::named("train")?;
    let mut batches = Dataset::named("train")
        .shuffled(round.seed)
        .drop_last()
        .batches(settings.batch)?;
    let batch = batches.next().ok_or_else(|| Failure::new("no batch"))??;
    let out = graph.run(&mut trained, &batch, &[("learning_rate", 0.1)])?;
    trained.update(out);
    Ok((trained, batch))
}

fn first(tensors: NamedTensors) -> Result<(String, Tensor)> {
    tensors
        .into_iter()
        .next()
        .ok_or_else(|| Failure::new("the model is empty"))
}

/// Another handle of a batch's tensor.
fn copied(batch: &mut Batch, input: &str) -> Result<Tensor> {
    let tensor = batch
        .tensors()
        .get(input)
        .ok_or_else(|| Failure::new("no such input"))?;
    Ok(handles::duplicate(&[tensor]).remove(0))
}

/// Computes `train` with one input put in by hand.
fn compute_with(settings: &Settings, instead: impl FnMut(&Port, &mut Batch) -> Option<Tensor>) -> Result<()> {
    compute_beside(settings, instead, |_| Ok(None))
}

/// As [`compute_with`], and with an input beside those that the host tells of.
fn compute_beside(
    settings: &Settings,
    mut instead: impl FnMut(&Port, &mut Batch) -> Option<Tensor>,
    beside: impl FnOnce(&mut Batch) -> Result<Option<(String, Tensor)>>,
) -> Result<()> {
    let graph = Graph::named("train")?;
    let raw = graph::load_by_name("train").and_then(|graph| graph.init_execution_context());
    let raw = raw.map_err(|error| Failure::new(error.data()))?;
    let mut batch = Dataset::named("train")
        .batches(settings.batch)?
        .next()
        .ok_or_else(|| Failure::new("no batch"))??;
    let mut parameters: BTreeMap<_, _> = model::current().into_iter().collect();
    let mut state: BTreeMap<_, _> = ports::fresh_state("train").unwrap_or_default().into_iter().collect();
    let mut inputs = Vec::new();
    for port in graph.inputs() {
        let tensor = match (instead(port, &mut batch), &port.kind) {
            (Some(tensor), _) => tensor,
            (None, PortKind::Parameter(name) | PortKind::Statistic(name)) => {
                parameters.remove(name).ok_or_else(|| Failure::new("parameter twice"))?
            }
            (None, PortKind::State(name)) => state.remove(name).ok_or_else(|| Failure::new("no such state"))?,
            (None, PortKind::Scalar) if port.ty == TensorType::I64 => {
                Tensor::new(&[1], TensorType::I64, &1_i64.to_le_bytes())
            }
            (None, PortKind::Scalar) => Tensor::new(&[1], TensorType::Fp32, &0.1_f32.to_le_bytes()),
            (None, _) => copied(&mut batch, &port.name)?,
        };
        inputs.push((port.name.clone(), tensor));
    }
    inputs.extend(beside(&mut batch)?);
    raw.compute(inputs)
        .map(drop)
        .map_err(|error| Failure::new(error.data()))
}

#[inline(never)]
#[allow(unconditional_recursion, reason = "that is the attack")]
fn recurse(depth: u64) -> u64 {
    // Little on the guest's own stack, which lies in its memory: the host's is to run out first.
    std::hint::black_box(recurse(std::hint::black_box(depth) + 1)) + 1
}

fn attack(round: Round) -> Result<NamedTensors> {
    cloister_guest::log_panics();
    let settings = Settings::read()?;
    if let Some(gradients) = attack_with_gradients(&settings)? {
        return Ok(gradients);
    }
    let (mut trained, mut batch) = honest(round, &settings)?;
    match settings.attack.as_str() {
        "loop" => loop {
            std::hint::black_box(());
        },
        "allocate" => {
            let mut hoard = Vec::new();
            loop {
                hoard.push(std::hint::black_box(vec![1_u8; 1 << 20]));
            }
        }
        "trap" => core::arch::wasm32::unreachable(),
        "panic" => panic!("out of ideas"),
        "recurse" => log::info(&recurse(0).to_string()),
        "lie_about_length" => drop(Tensor::new(&[1], TensorType::Fp32, &[0; 400])),
        "overflow_dimensions" => drop(Tensor::new(&[u32::MAX; 8], TensorType::Fp64, &[0; 8])),
        "unknown_graph" => drop(Graph::named("backdoor")?),
        "unknown_dataset" => drop(Dataset::named("everything").batches(1)?),
        "empty_batch" => drop(Dataset::named("train").batches(0)?),
        "bring_graph" => {
            let loaded = graph::load(&[vec![8, 7]], graph::GraphEncoding::Onnx, graph::ExecutionTarget::Cpu);
            drop(loaded.map_err(|error| Failure::new(error.data()))?);
        }
        "rows_to_parameter" => {
            compute_with(&settings, |port, batch| {
                let rows = copied(batch, "x").ok()?;
                let fits = matches!(port.kind, PortKind::Parameter(_)) && port.dimensions == rows.dimensions();
                fits.then_some(rows)
            })?;
        }
        "rows_as_update" => {
            let rows = batch.tensors().remove("x").ok_or_else(|| Failure::new("no rows"))?;
            let like = model::current()
                .into_iter()
                .find(|(_, tensor)| tensor.dimensions() == rows.dimensions());
            let (name, _) = like.ok_or_else(|| Failure::new("no parameter of the shape of the rows"))?;
            trained.tensors().insert(name, rows);
        }
        "swap_parameters" => {
            let mut names = trained.tensors().keys().cloned().collect::<Vec<_>>().into_iter();
            if let (Some(one), Some(other)) = (names.next(), names.next()) {
                let tensors = trained.tensors();
                let kept = handles::duplicate(&[&tensors[&one], &tensors[&other]]);
                tensors.extend([other, one].into_iter().zip(kept));
            }
        }
        "scalar_to_data" => {
            compute_with(&settings, |port, _| {
                matches!(port.kind, PortKind::Data(_)).then(|| Tensor::new(&[1], TensorType::Fp32, &[0; 4]))
            })?;
        }
        "wrong_shape" => {
            let (name, _) = first(model::current())?;
            trained
                .tensors()
                .insert(name, Tensor::new(&[3], TensorType::Fp32, &[0; 12]));
        }
        "wrong_batch" => {
            let odd = Dataset::named("train").batches(settings.batch + 1)?.next();
            let odd = odd.ok_or_else(|| Failure::new("no batch"))??;
            drop(Graph::named("train")?.run(&mut trained, &odd, &[("learning_rate", 0.1)])?);
        }
        "missing" => drop(trained.tensors().pop_first()),
        "duplicate" => {
            let mut update: NamedTensors = std::mem::take(trained.tensors()).into_iter().collect();
            let (name, tensor) = &update[0];
            let again = (name.clone(), handles::duplicate(&[tensor]).remove(0));
            update.push(again);
            return Ok(update);
        }
        "unknown_tensor" => {
            let (_, tensor) = first(model::current())?;
            trained.tensors().insert("backdoor".to_owned(), tensor);
        }
        "nothing" => return Ok(Vec::new()),
        "unchanged" => return Ok(model::current()),
        "nan_metric" => metrics::report("loss", f64::NAN),
        "odd_metric" => metrics::report("row 7: 1.5\n", 1.0),
        "nan_parameters" => {
            let (name, tensor) = first(model::current())?;
            let count: u32 = tensor.dimensions().iter().product();
            let bytes = f32::NAN.to_le_bytes().repeat(count as usize);
            trained
                .tensors()
                .insert(name, Tensor::new(&tensor.dimensions(), TensorType::Fp32, &bytes));
        }
        "diverge" => {
            let graph = Graph::named("train")?;
            for _ in 0..1000 {
                let out = graph.run(&mut trained, &batch, &[("learning_rate", 3e38)])?;
                trained.update(out);
            }
        }
        "rows_as_mask" => {
            compute_beside(
                &settings,
                |_, _| None,
                |batch| Ok(Some(("mask/0".to_owned(), copied(batch, "x")?))),
            )?;
        }
        "made_mask" => {
            compute_beside(
                &settings,
                |_, _| None,
                |batch| {
                    let like = copied(batch, "x")?.dimensions();
                    let count: u32 = like.iter().product();
                    let made = Tensor::new(&like, TensorType::Fp32, &0_f32.to_le_bytes().repeat(count as usize));
                    Ok(Some(("mask/0".to_owned(), made)))
                },
            )?;
        }
        "make_tensor" => drop(Tensor::new(&[2], TensorType::Fp32, &[0; 8])),
        "made_update" => {
            for (name, tensor) in model::current() {
                let count: u32 = tensor.dimensions().iter().product();
                let made = Tensor::new(
                    &tensor.dimensions(),
                    TensorType::Fp32,
                    &0.5_f32.to_le_bytes().repeat(count as usize),
                );
                trained.tensors().insert(name, made);
            }
        }
        "read_parameter" => drop(first(model::current())?.1.data()),
        "read_rows" => {
            let rows = batch.tensors().remove("x").ok_or_else(|| Failure::new("no rows"))?;
            log::info(&format!("{:?}", rows.data()));
        }
        "log_without_end" => loop {
            log::info("");
        },
        "rate_out_of_range" => {
            drop(Graph::named("train")?.run(&mut trained, &batch, &[("learning_rate", 7.0)])?);
        }
        "hoard_handles" => {
            let mut hoard = Vec::new();
            loop {
                hoard.push(model::current());
            }
        }
        "hoard_batches" => {
            let mut hoard = Vec::new();
            loop {
                hoard.extend(Dataset::named("train").batches(settings.batch)?);
            }
        }
        "inflate_rows" => {
            for _ in 0..20 {
                for batch in Dataset::named("train").drop_last().batches(settings.batch)? {
                    let out = Graph::named("train")?.run(&mut trained, &batch?, &[("learning_rate", 0.01)])?;
                    trained.update(out);
                }
            }
        }
        "jump_past_end" => {
            let rows = Dataset::named("train").first(u32::MAX).most(u32::MAX);
            let seen = rows.batches(settings.batch)?.count();
            metrics::report("seen", seen as f64);
        }
        "give_up" => return Err(Failure::new(format!("no {}\nmore", "x".repeat(5000)))),
        _ => {}
    }
    Ok(std::mem::take(trained.tensors()).into_iter().collect())
}

/// Attacks where gradients are wanted; nothing if the setting names none of them. The graph `train` is one that gives gradients.
fn attack_with_gradients(settings: &Settings) -> Result<Option<NamedTensors>> {
    let known = [
        "parameter_as_gradient",
        "moved_as_gradient",
        "swap_gradients",
        "rows_as_gradient",
        "made_gradient",
        "gradient_as_parameter",
        "no_attack_on_gradients",
    ];
    if !known.contains(&settings.attack.as_str()) {
        return Ok(None);
    }
    let mut trained = Model::current();
    let mut batches = Dataset::named("train").batches(settings.batch)?;
    let mut batch = batches.next().ok_or_else(|| Failure::new("no batch"))??;
    let graph = Graph::named("train")?;
    let mut out = graph.run(&mut trained, &batch, &[])?;
    let names: Vec<String> = model::current().into_iter().map(|(name, _)| name).collect();
    let mut gradients: NamedTensors = names
        .iter()
        .filter_map(|name| Some((name.clone(), out.take(&format!("grad/{name}"))?)))
        .collect();
    match settings.attack.as_str() {
        "parameter_as_gradient" => return Ok(Some(model::current())),
        "moved_as_gradient" => {
            let moved = Graph::named("move")?.run(&mut trained, &batch, &[("learning_rate", 0.1)])?;
            trained.update(moved);
            return Ok(Some(std::mem::take(trained.tensors()).into_iter().collect()));
        }
        "swap_gradients" => {
            // Two parameters of the same shape: by shape alone it would pass.
            let like = |one: usize| {
                (one + 1..gradients.len())
                    .find(|&other| gradients[one].1.dimensions() == gradients[other].1.dimensions())
            };
            let pair = (0..gradients.len()).find_map(|one| Some((one, like(one)?)));
            let (one, other) = pair.ok_or_else(|| Failure::new("no two parameters of one shape"))?;
            let name = gradients[one].0.clone();
            gradients[one].0 = std::mem::replace(&mut gradients[other].0, name);
        }
        "rows_as_gradient" => {
            let rows = batch.tensors().remove("x").ok_or_else(|| Failure::new("no rows"))?;
            let like = gradients
                .iter_mut()
                .find(|(_, tensor)| tensor.dimensions() == rows.dimensions());
            like.ok_or_else(|| Failure::new("no parameter of the shape of the rows"))?
                .1 = rows;
        }
        "made_gradient" => {
            for (_, tensor) in &mut gradients {
                let count: u32 = tensor.dimensions().iter().product();
                let bytes = 0.5_f32.to_le_bytes().repeat(count as usize);
                *tensor = Tensor::new(&tensor.dimensions(), TensorType::Fp32, &bytes);
            }
        }
        // A gradient where the graph wants a parameter.
        "gradient_as_parameter" => {
            let (name, tensor) = gradients.remove(0);
            trained.tensors().insert(name, tensor);
            drop(graph.run(&mut trained, &batch, &[])?);
        }
        _ => {}
    }
    Ok(Some(gradients))
}

struct Hostile;

impl training::Guest for Hostile {
    fn train(round: Round) -> core::result::Result<NamedTensors, Failure> {
        attack(round)
    }
}

cloister_guest::bindings::trainer::export_trainer_world!(Hostile with_types_in cloister_guest::bindings::trainer);
