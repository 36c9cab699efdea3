//! A transformer encoder.

use cloister_tensor::Dtype;

use super::{Init, ROWS, Sample};
use crate::error::GraphError;
use crate::ir::{Attribute, Attributes, Operator, ValueId};

/// Units of an attention's head.
const HEAD: usize = 16;
/// Most layers.
const MOST_LAYERS: usize = 64;
/// What is added to variances.
const EPSILON: f32 = 1e-5;

/// Transformer encoder (Vaswani et al. 2017, normalised before each part as in GPT-2 and ViT) on sequences: `x` [N, side, side], with
/// `inputs = side * side`, a sequence of `side` tokens of `side` numbers (the lines of a small picture, for instance), to `logits`
/// [N, classes]. A linear layer to `hidden` units, positions that are learnt, `layers` layers of attention (heads of 16 units) and of two
/// linear layers with four times as many units and a rectifier between them, a last layer norm, the mean over the tokens and a linear layer.
///
/// # Errors
/// [`GraphError::Option`] when a size is out of range, `inputs` is no square, or `hidden` is no multiple of 16.
pub fn encoder(inputs: usize, hidden: usize, classes: usize, layers: usize, seed: u64) -> Result<Vec<u8>, GraphError> {
    let sizes = [
        ("--inputs", inputs, 4),
        ("--hidden", hidden, HEAD),
        ("--classes", classes, 2),
        ("--depth", layers, 1),
    ];
    let mut sample = Sample::new(&sizes, seed)?;
    let refuse = |option, problem| Err(GraphError::Option { option, problem });
    let side = inputs.isqrt();
    if side * side != inputs {
        let problem = format!(
            "{inputs} was given; an encoder takes as many tokens as each has numbers, so a square number is wanted, such as 64 \
             for the lines of 8x8"
        );
        return refuse("--inputs", problem);
    }
    if !hidden.is_multiple_of(HEAD) {
        let problem = format!("{hidden} was given; a head has {HEAD} units, so a multiple of {HEAD} is wanted");
        return refuse("--hidden", problem);
    }
    if layers > MOST_LAYERS {
        return refuse("--depth", format!("{layers} was given, 1 to {MOST_LAYERS} is wanted"));
    }
    let x = sample.builder.input("x", Dtype::F32, &[ROWS, side, side])?;
    let mut value = sample.each("embed", x, hidden, Init::Last)?;
    let positions = sample.weight("positions", &[side, hidden], Init::Last)?;
    value = sample.builder.add(value, positions)?;
    for layer in 1..=layers {
        let name = format!("layer{layer}");
        let normal = sample.layer_norm(&format!("{name}.norm1"), value)?;
        let attended = sample.attention(&name, normal)?;
        value = sample.builder.add(value, attended)?;
        let normal = sample.layer_norm(&format!("{name}.norm2"), value)?;
        let wide = sample.each(&format!("{name}.fc1"), normal, 4 * hidden, Init::Rectified)?;
        let active = sample.builder.unary(Operator::Relu, wide)?;
        let narrow = sample.each(&format!("{name}.fc2"), active, hidden, Init::Last)?;
        value = sample.builder.add(value, narrow)?;
    }
    value = sample.layer_norm("norm", value)?;
    let pooled = sample.builder.reduce(Operator::ReduceMean, value, &[1], false)?;
    let logits = sample.linear("fc", pooled, classes, Init::Last)?;
    sample.finish(logits)
}

impl Sample {
    /// A linear layer for each token of `x` [N, tokens, units].
    fn each(&mut self, name: &str, x: ValueId, units: usize, init: Init) -> Result<ValueId, GraphError> {
        let inputs = self.builder.shape(x)[2];
        self.each_as_of(inputs, name, x, units, init)
    }

    /// The same, with weights that start as if each unit had `fan_in` inputs.
    fn each_as_of(
        &mut self,
        fan_in: usize,
        name: &str,
        x: ValueId,
        units: usize,
        init: Init,
    ) -> Result<ValueId, GraphError> {
        let inputs = self.builder.shape(x)[2];
        // The product wants inputs first.
        let weight = self.weight_for(&format!("{name}.weight"), &[inputs, units], fan_in, init)?;
        let bias = self.filled(&format!("{name}.bias"), units, 0.0)?;
        let product = self.builder.binary(Operator::MatMul, x, weight)?;
        self.builder.add(product, bias)
    }

    fn layer_norm(&mut self, name: &str, x: ValueId) -> Result<ValueId, GraphError> {
        let units = self.builder.shape(x)[2];
        let scale = self.filled(&format!("{name}.weight"), units, 1.0)?;
        let shift = self.filled(&format!("{name}.bias"), units, 0.0)?;
        let attributes = Attributes::none()
            .with_int("axis", -1)
            .with("epsilon", Attribute::Float(EPSILON));
        self.builder
            .node(Operator::LayerNormalization, &[x, scale, shift], attributes)
    }

    /// Every token looks at every token: softmax(q k') v in each head, and a linear layer over all. The factor of 1/sqrt(16) is in the
    /// weights that queries start with: a constant of its own would be one more parameter to whoever reads the file.
    fn attention(&mut self, name: &str, x: ValueId) -> Result<ValueId, GraphError> {
        let (tokens, units) = (self.builder.shape(x)[1], self.builder.shape(x)[2]);
        let heads = units / HEAD;
        let mut parts = Vec::with_capacity(3);
        for (part, order) in [("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3])] {
            let fan_in = if part == "query" { units * HEAD } else { units };
            let made = self.each_as_of(fan_in, &format!("{name}.{part}"), x, units, Init::Last)?;
            let split = self.builder.reshape(made, &[ROWS, tokens, heads, HEAD])?;
            parts.push(self.builder.transpose(split, &order)?);
        }
        let scores = self.builder.binary(Operator::MatMul, parts[0], parts[1])?;
        let shares = self
            .builder
            .node(Operator::Softmax, &[scores], Attributes::none().with_int("axis", -1))?;
        let mixed = self.builder.binary(Operator::MatMul, shares, parts[2])?;
        let beside = self.builder.transpose(mixed, &[0, 2, 1, 3])?;
        let joined = self.builder.reshape(beside, &[ROWS, tokens, units])?;
        self.each(&format!("{name}.out"), joined, units, Init::Last)
    }
}
