//! What a step may call.

/// The operators, by their names in `torch`: functions of their operands and nothing else. None of them reads or writes a file, draws a
/// random number, or writes into an operand, but for `batch_norm`, whose running statistics have to be clones.
const OPERATORS: &[&str] = &[
    "abs",
    "adaptive_avg_pool2d",
    "add",
    "addcdiv",
    "addcmul",
    "addmm",
    "amax",
    "argmax",
    "avg_pool2d",
    BATCH_NORM,
    "binary_cross_entropy_with_logits",
    "bmm",
    "cat",
    "clamp",
    CLONE,
    "constant_pad_nd",
    "contiguous",
    "conv1d",
    "conv2d",
    "conv_transpose2d",
    "cross_entropy_loss",
    "detach",
    "div",
    "embedding",
    "eq",
    "erf",
    "exp",
    "expand",
    "flatten",
    "ge",
    "gelu",
    "group_norm",
    "gt",
    "hardswish",
    "hardtanh",
    "layer_norm",
    "le",
    "leaky_relu",
    "linear",
    "log",
    "log_softmax",
    "lt",
    "matmul",
    "max_pool2d",
    "maximum",
    "mean",
    "minimum",
    "mm",
    "mse_loss",
    "mul",
    "narrow",
    "ne",
    "neg",
    "nll_loss",
    "permute",
    "pow",
    "reciprocal",
    "relu",
    "reshape",
    "rsqrt",
    "select",
    "sigmoid",
    "silu",
    "slice",
    "softmax",
    "softplus",
    "sqrt",
    "square",
    "squeeze",
    "stack",
    "sub",
    "sum",
    "t",
    "tanh",
    "to",
    "transpose",
    "unsqueeze",
    "var",
    "where",
];

/// Operands that are given by name. `out`, which would be written to, is none of them.
const NAMED: [&str; 7] = [
    "alpha",
    "approximate",
    "correction",
    "keepdim",
    "memory_format",
    "unbiased",
    "value",
];

/// Texts that an operand may be.
const WORDS: [&str; 2] = ["none", "tanh"];

/// Writes the statistics of the batch into its operands 3 and 4.
pub(super) const BATCH_NORM: &str = "batch_norm";
/// Where those operands stand.
pub(super) const STATISTICS: [usize; 2] = [3, 4];
/// Makes memory of its own.
pub(super) const CLONE: &str = "clone";

pub(super) fn operator(name: &str) -> Option<&'static str> {
    OPERATORS.iter().copied().find(|known| *known == name)
}

pub(super) fn named(name: &str) -> Option<&'static str> {
    NAMED.into_iter().find(|known| *known == name)
}

pub(super) fn word(text: &str) -> Option<&'static str> {
    WORDS.into_iter().find(|known| *known == text)
}
