//! What the participants of an example submit: modules, and the graphs and initial weights of its model.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cloister_exchange::content::ContentKind;
use cloister_graph::{Limits as GraphLimits, Model as Forward, samples};
use cloister_policy::agreement::{Graph, Module, ScalarRange};
use cloister_policy::{ModuleRole, Scalar, TensorAccess};
use cloister_tensor::Digest;

use super::plan::{Plan, Sample};
use crate::derivation::OptimizerName;
use crate::drafting::{Parties, Recipe, make_graphs};
use crate::files;
use crate::ui::{Exit, failed, unreadable};

/// Something that a participant submits.
pub struct Submission {
    /// What it is.
    pub kind: ContentKind,
    /// Its name in the policy.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
}

/// Writes the model, its initial weights and its graphs.
pub fn graphs(
    plan: &Plan,
    parties: Parties<'_>,
    content: &Path,
    submissions: &mut Vec<Submission>,
) -> Result<(Digest, Vec<Graph>), miette::Report> {
    let (model, training) = (&plan.model, &plan.training);
    let onnx = match model.sample {
        Sample::Logistic => samples::logistic(model.inputs, model.classes, model.seed),
        Sample::Mlp => samples::mlp(model.inputs, model.hidden, model.classes, model.seed),
        Sample::Cnn => samples::cnn(model.inputs, model.hidden, model.classes, model.seed),
        Sample::Resnet => samples::resnet(model.inputs, model.hidden, model.classes, model.depth, model.seed),
        Sample::Bottleneck => samples::bottleneck(model.inputs, model.hidden, model.classes, model.depth, model.seed),
        Sample::Encoder => samples::encoder(model.inputs, model.hidden, model.classes, model.depth, model.seed),
    };
    let onnx = onnx.map_err(unreadable)?;
    files::write(&content.join("forward.onnx"), &onnx)?;
    let forward = Forward::parse(&onnx, &GraphLimits::default()).map_err(unreadable)?;
    let mut derivation = training.derivation.clone();
    derivation.forms = derivation.forms.map(|path| plan.folder.join(path));
    let options = derivation.options(training.optimizer, training.batch as usize)?;
    let recipe = Recipe {
        options,
        batch: training.batch,
        evaluation_batch: training.evaluation_batch,
    };
    let made = make_graphs(&forward, &recipe, parties, content)?;
    submissions.push(Submission {
        kind: ContentKind::Weights,
        name: model.name.clone(),
        path: made.weights_path,
    });
    let mut graphs = Vec::new();
    for (graph, path) in made.graphs {
        submissions.push(Submission {
            kind: ContentKind::Graph,
            name: graph.name.clone(),
            path,
        });
        graphs.push(graph);
    }
    Ok((made.weights, graphs))
}

/// The modules as the policy names them, their files to be submitted.
pub fn modules(plan: &Plan, guests: &Path, submissions: &mut Vec<Submission>) -> Result<Vec<Module>, miette::Report> {
    let training = &plan.training;
    let mut trained = settings(&training.settings)?;
    let batch = Scalar::Integer(i64::from(training.batch));
    trained.entry("batch".to_owned()).or_insert(batch);
    let mut wanted = vec![
        (&training.trainer, &training.trainer, ModuleRole::Trainer, trained),
        (
            &training.aggregator,
            &training.aggregator,
            ModuleRole::Aggregator,
            settings(&training.aggregator_settings)?,
        ),
    ];
    for transform in &plan.transforms {
        let settings = settings(&transform.settings)?;
        wanted.push((&transform.name, &transform.module, ModuleRole::Transform, settings));
    }
    let mut made = Vec::new();
    for (name, guest, module_role, settings) in wanted {
        let path = guests.join(format!("{guest}.wasm"));
        let wasm = std::fs::read(&path).map_err(|cause| {
            failed(
                Exit::Usage,
                format!("the module {} cannot be read: {cause}", path.display()),
                Some("`cargo xtask setup` builds the guest modules from source".into()),
            )
        })?;
        let trainer = module_role == ModuleRole::Trainer;
        let range = |min, max| ScalarRange { min, max };
        // A graph without an optimizer takes neither.
        let paced = trainer && training.optimizer != OptimizerName::None;
        let scalars = [
            ("learning_rate".to_owned(), range(0.0, 1.0)),
            ("step".to_owned(), range(1.0, 1e9)),
        ];
        made.push(Module {
            name: name.clone(),
            role: module_role,
            sha256: Digest::of(&wasm),
            tensor_access: TensorAccess::Handles,
            settings,
            scalars: if paced {
                scalars.into_iter().collect()
            } else {
                BTreeMap::new()
            },
            reads: if trainer { vec!["loss".into()] } else { Vec::new() },
            nodes: None,
        });
        submissions.push(Submission {
            kind: ContentKind::Module,
            name: name.clone(),
            path,
        });
    }
    Ok(made)
}

/// Settings of a module, as the policy has them.
fn settings(table: &toml::Table) -> Result<BTreeMap<String, Scalar>, miette::Report> {
    let scalar = |(name, value): (&String, &toml::Value)| {
        let scalar = match value {
            toml::Value::Boolean(value) => Scalar::Boolean(*value),
            toml::Value::Integer(value) => Scalar::Integer(*value),
            toml::Value::Float(value) => Scalar::Float(*value),
            toml::Value::String(value) => Scalar::Text(value.clone()),
            _ => {
                let text = format!("setting {name}: a number, a text or a truth value is wanted");
                return Err(failed(Exit::Usage, text, None));
            }
        };
        Ok((name.clone(), scalar))
    };
    table.iter().map(scalar).collect()
}
