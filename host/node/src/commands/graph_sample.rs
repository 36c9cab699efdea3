//! `cloister graph sample`: a small model with seeded weights to begin with.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use cloister_graph::samples;
use miette::Report;

use crate::files;
use crate::ui::{Exit, Ui, fail};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SampleName {
    /// Logistic regression: x [N, inputs] to logits [N, classes]
    Logistic,
    /// One hidden layer of rectified units
    Mlp,
    /// Two blocks of convolution, batch norm and max pool on square images: x [N, 1, side, side]
    Cnn,
    /// Residual network (v2) on square images of three channels: x [N, 3, side, side]
    Resnet,
    /// Residual network of bottleneck blocks (ResNet-50), for images of 32x32 and more: x [N, 3, side, side]
    Bottleneck,
    /// Transformer encoder on sequences of side tokens of side numbers: x [N, side, side]
    Encoder,
}

/// Write a small model with seeded weights to begin with.
///
/// The same arguments give the same bytes on every machine.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  cloister graph sample mlp --inputs 64 --hidden 64 --classes 10 --seed 7 -o mlp.onnx
  cloister graph sample logistic --inputs 30 --classes 2 -o logistic.onnx
  cloister graph sample cnn --inputs 64 --hidden 8 --classes 10 -o cnn.onnx
  cloister graph sample resnet --inputs 3072 --hidden 16 --depth 56 --classes 10 -o resnet56.onnx
  cloister graph sample bottleneck --inputs 3072 --hidden 64 --depth 50 --classes 10 -o resnet50.onnx
  cloister graph sample encoder --inputs 64 --hidden 32 --depth 2 --classes 10 -o encoder.onnx")]
pub(super) struct SampleArgs {
    /// Kind of model
    #[arg(value_enum)]
    kind: SampleName,
    /// Numbers in a row of data; for cnn and encoder a square, such as 64 for images of 8x8; for resnet and
    /// bottleneck three of them
    #[arg(long, value_name = "N")]
    inputs: usize,
    /// Classes
    #[arg(long, value_name = "N")]
    classes: usize,
    /// Hidden units (mlp, encoder: a multiple of 16) or channels of the first convolution (cnn, resnet, bottleneck)
    #[arg(long, value_name = "N", default_value_t = 32)]
    hidden: usize,
    /// Layers: for resnet 6 n + 2 (by default 20), for bottleneck 26, 50 (by default), 101 or 152, for encoder any (by default 2)
    #[arg(long, value_name = "N")]
    depth: Option<usize>,
    /// Seed of the weights
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Where the model is written
    #[arg(short = 'o', long = "out", value_name = "OUT.onnx")]
    out: PathBuf,
}

/// Runs the command.
pub(super) fn run(args: &SampleArgs, out: &mut Ui) -> Result<Exit, Report> {
    let depth = |usual| args.depth.unwrap_or(usual);
    let file = match args.kind {
        SampleName::Logistic => samples::logistic(args.inputs, args.classes, args.seed),
        SampleName::Mlp => samples::mlp(args.inputs, args.hidden, args.classes, args.seed),
        SampleName::Cnn => samples::cnn(args.inputs, args.hidden, args.classes, args.seed),
        SampleName::Resnet => samples::resnet(args.inputs, args.hidden, args.classes, depth(20), args.seed),
        SampleName::Bottleneck => samples::bottleneck(args.inputs, args.hidden, args.classes, depth(50), args.seed),
        SampleName::Encoder => samples::encoder(args.inputs, args.hidden, args.classes, depth(2), args.seed),
    };
    let file = file.map_err(|error| fail(Exit::Usage, error))?;
    files::write(&args.out, &file)?;
    out.note(format_args!(
        "model  {}  sha256 {}",
        args.out.display(),
        cloister_tensor::Digest::of(&file)
    ));
    Ok(Exit::Done)
}
