//! `cloister graph tune`: which form of each convolution's weight gradient is fastest here, by measurement; and the file that
//! holds the choice.

use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use cloister_engine::{Backend, CompileOptions, Compiled};
use cloister_graph::{ConvLayer, Limits, Model, Optimizer, TrainOptions, WeightGradient, tuning};
use cloister_tensor::Tensor;
use miette::Report;

use super::graph::{read, refused};
use super::graph_run::{BackendName, PrecisionName, choose_backend};
use crate::derivation::LossName;
use crate::files;
use crate::forms;
use crate::ui::{Exit, Ui, fail};

/// A form this many times as slow as the best one so far is not run again.
const HOPELESS: f64 = 3.0;
/// A form has to be faster than the rule's by this factor to be chosen: less is noise.
const CLEARLY: f64 = 0.97;

/// Measure which form of each convolution's weight gradient is fastest here, and write the choice to a file.
///
/// The gradient of a convolution's weight can be computed in several forms that give the same numbers within rounding; which is
/// fastest depends on the layer, the engine and the processor. This runs every form of every kind of layer that the model has,
/// alone and in turn, and writes the fastest into FORMS.toml, for `cloister graph train --forms FORMS.toml` and `cloister policy draft --forms FORMS.toml`. From there on nothing is
/// measured: the same model, options and file give the same graph, byte by byte. Without a file a rule decides.
/// Best on the kind of machine that will train, with the number of threads that its node has, and nothing else running.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  cloister graph tune resnet56.onnx --batch 128 --threads 2 -o forms.toml
  cloister graph train resnet56.onnx --optimizer momentum --batch 128 --forms forms.toml -o train.onnx")]
pub(super) struct TuneArgs {
    /// Forward model, as for `graph train`
    #[arg(value_name = "MODEL.onnx")]
    model: PathBuf,
    /// Rows of a batch, as for `graph train`: a choice is for layers of this size
    #[arg(long, value_name = "N")]
    batch: usize,
    /// Loss, as for `graph train`
    #[arg(long, value_enum, default_value_t)]
    loss: LossName,
    /// Output that the loss is of, for models with several
    #[arg(long, value_name = "NAME")]
    logits: Option<String>,
    /// Parameter that is not trained, as for `graph train`. May be repeated
    #[arg(long, value_name = "NAME")]
    freeze: Vec<String>,
    /// Runs of each form, of which the fastest counts
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// The engine; without this, OpenVINO if its folder is known, else tract
    #[arg(long, value_enum)]
    backend: Option<BackendName>,
    /// Folder of OpenVINO's libraries
    #[arg(long, value_name = "DIR", env = "CLOISTER_OPENVINO_DIR")]
    openvino_dir: Option<PathBuf>,
    /// Threads of OpenVINO; tract runs on one
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// What the engine computes in, as the policy's `[compute]` will say it
    #[arg(long, value_enum, default_value_t = PrecisionName::F32)]
    precision: PrecisionName,
    /// Where the choice is written
    #[arg(short = 'o', long = "out", value_name = "FORMS.toml")]
    out: PathBuf,
}

/// Runs the command.
pub(super) fn run(args: &TuneArgs, out: &mut Ui) -> Result<Exit, Report> {
    files::not_an_input(&args.out, [args.model.as_path()])?;
    let model = Model::parse(&read(&args.model)?, &Limits::default()).map_err(|error| refused(&args.model, &error))?;
    let mut options = TrainOptions::new(Optimizer::None, args.batch);
    options.loss = args.loss.loss();
    options.logits.clone_from(&args.logits);
    options.freeze.clone_from(&args.freeze);
    let layers = tuning::layers(&model, &options).map_err(|error| refused(&args.model, &error))?;
    let backend = choose_backend(args.backend, args.openvino_dir.as_deref(), None, out)?;
    let compile = CompileOptions {
        threads: args.threads,
        precision: args.precision.into(),
        ..CompileOptions::default()
    };
    backend.can(&compile).map_err(|error| fail(Exit::Failed, error))?;
    out.note(format_args!(
        "engine: {}; {} kinds of layers",
        backend.name(),
        layers.len()
    ));
    let mut text = format!(
        "# Forms of the gradients of convolution weights, by `cloister graph tune` on {} with {} threads, in {}.\n\
         # For `cloister graph train --forms`. Times are the least of {} runs, in milliseconds.\nversion = {}\n\n\
         [weight_gradients]\n",
        backend.name(),
        args.threads.map_or_else(
            || "the engine's own number of".to_owned(),
            |threads| threads.to_string()
        ),
        compile.precision,
        args.runs,
        forms::VERSION
    );
    for (at, layer) in layers.iter().enumerate() {
        let times = measure(backend.as_ref(), &compile, layer, args.runs)?;
        let Some((form, _)) = fastest(&times) else { continue };
        let mut row = String::new();
        for (form, time) in &times {
            let _ = write!(row, "  {form} {:.2}", time.as_secs_f64() * 1e3);
        }
        out.note(format_args!(
            "{}/{}  {layer}: {form}  ({} ms)",
            at + 1,
            layers.len(),
            row.trim()
        ));
        let _ = writeln!(text, "# {}\n\"{layer}\" = \"{form}\"", row.trim());
    }
    files::write(&args.out, text.as_bytes())?;
    out.note(format_args!("wrote {}", args.out.display()));
    Ok(Exit::Done)
}

/// A form on its way through the trials.
struct Trial {
    form: WeightGradient,
    compiled: Box<dyn Compiled>,
    best: Duration,
}

impl Trial {
    fn run(&mut self, inputs: &[(&str, Tensor)]) -> Result<(), Report> {
        let begin = Instant::now();
        self.compiled
            .run(inputs, None)
            .map_err(|error| fail(Exit::Failed, error))?;
        self.best = self.best.min(begin.elapsed());
        Ok(())
    }
}

/// The least time of each form of a layer, the rule's form first. They run in turn, so that whatever else the machine does meets
/// all alike.
fn measure(
    backend: &dyn Backend,
    options: &CompileOptions,
    layer: &ConvLayer,
    runs: u32,
) -> Result<Vec<(WeightGradient, Duration)>, Report> {
    let mut trials: Vec<Trial> = Vec::new();
    let mut inputs: Vec<(String, Tensor)> = Vec::new();
    for form in layer.candidates() {
        let graph = tuning::trial(layer, form).map_err(|error| fail(Exit::Failed, error))?;
        let compiled = backend
            .compile(&graph, options)
            .map_err(|error| fail(Exit::Failed, error))?;
        if inputs.is_empty() {
            for port in graph.inputs() {
                let values = (0..port.shape.iter().product::<usize>()).map(|at| (at % 31) as f32 / 31.0 - 0.4);
                let tensor =
                    Tensor::from_f32(&port.shape, values.collect()).map_err(|error| fail(Exit::Failed, error))?;
                inputs.push((port.name.clone(), tensor));
            }
        }
        trials.push(Trial {
            form,
            compiled,
            best: Duration::MAX,
        });
    }
    let inputs: Vec<(&str, Tensor)> = inputs
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor.clone()))
        .collect();
    for trial in &mut trials {
        trial.run(&inputs)?;
        // The first run takes memory and makes kernels.
        trial.best = Duration::MAX;
        trial.run(&inputs)?;
    }
    for _ in 1..runs {
        let least = trials.iter().map(|trial| trial.best).min().unwrap_or_default();
        for trial in &mut trials {
            if trial.best < least.mul_f64(HOPELESS) {
                trial.run(&inputs)?;
            }
        }
    }
    Ok(trials.iter().map(|trial| (trial.form, trial.best)).collect())
}

/// The fastest form, or the first one where that is about as fast.
fn fastest(times: &[(WeightGradient, Duration)]) -> Option<(WeightGradient, Duration)> {
    let first = times.first()?;
    let best = times.iter().min_by_key(|(_, time)| *time)?;
    Some(if best.1 < first.1.mul_f64(CLEARLY) {
        *best
    } else {
        *first
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_stands_unless_another_form_is_clearly_faster() {
        let ms = Duration::from_millis;
        let (rule, other) = (WeightGradient::Spatial { parts: 1 }, WeightGradient::Conv);
        assert_eq!(fastest(&[(rule, ms(100)), (other, ms(99))]), Some((rule, ms(100))));
        assert_eq!(fastest(&[(rule, ms(100)), (other, ms(90))]), Some((other, ms(90))));
        assert_eq!(fastest(&[]), None);
    }
}
