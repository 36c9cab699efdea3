//! Operators that are written out in others when a model is bound (see `lower`): only what may stand in a file is said here.

use super::bounds::{float, like_first};
use super::{Derivative, Rule};

const WRITTEN_OUT: Rule = Rule {
    attributes: &[],
    operands: (1, 1),
    configuration: &[],
    infer: |_| Err("it has to be written out in other operators first".to_owned()),
    rewrite: None,
    derivative: Derivative::Missing,
};

/// Sums and means of any number of values.
pub(crate) const ANY_NUMBER: Rule = Rule {
    operands: (1, 1 << 10),
    ..WRITTEN_OUT
};
/// Activations without attributes.
pub(crate) const PLAIN: Rule = WRITTEN_OUT;
pub(crate) const GELU: Rule = Rule {
    attributes: &["approximate"],
    ..WRITTEN_OUT
};
pub(crate) const WITH_ALPHA: Rule = Rule {
    attributes: &["alpha"],
    ..WRITTEN_OUT
};
pub(crate) const HARD_SIGMOID: Rule = Rule {
    attributes: &["alpha", "beta"],
    ..WRITTEN_OUT
};
pub(crate) const SELU: Rule = Rule {
    attributes: &["alpha", "gamma"],
    ..WRITTEN_OUT
};
pub(crate) const P_RELU: Rule = Rule {
    operands: (2, 2),
    ..WRITTEN_OUT
};
pub(crate) const LAYER_NORM: Rule = Rule {
    attributes: &["axis", "epsilon", "stash_type"],
    operands: (2, 3),
    // A sample is written with it as it is.
    infer: |operands| like_first(operands, float(operands, 0)?),
    ..WRITTEN_OUT
};
pub(crate) const RMS_NORM: Rule = Rule {
    operands: (2, 2),
    ..LAYER_NORM
};
pub(crate) const GROUP_NORM: Rule = Rule {
    attributes: &["epsilon", "num_groups", "stash_type"],
    operands: (3, 3),
    ..WRITTEN_OUT
};
pub(crate) const INSTANCE_NORM: Rule = Rule {
    attributes: &["epsilon"],
    operands: (3, 3),
    ..WRITTEN_OUT
};
/// Keys and values of earlier calls, which the further operands are, have no place in training.
pub(crate) const ATTENTION: Rule = Rule {
    attributes: &[
        "is_causal",
        "kv_num_heads",
        "q_num_heads",
        "qk_matmul_output_mode",
        "scale",
        "softcap",
        "softmax_precision",
    ],
    operands: (3, 4),
    ..WRITTEN_OUT
};
pub(crate) const EINSUM: Rule = Rule {
    attributes: &["equation"],
    operands: (1, 2),
    ..WRITTEN_OUT
};
pub(crate) const SPLIT: Rule = Rule {
    attributes: &["axis", "num_outputs"],
    operands: (1, 2),
    configuration: &[1],
    ..WRITTEN_OUT
};
pub(crate) const TILE: Rule = Rule {
    operands: (2, 2),
    configuration: &[1],
    ..WRITTEN_OUT
};
pub(crate) const TRILU: Rule = Rule {
    attributes: &["upper"],
    operands: (1, 2),
    configuration: &[1],
    ..WRITTEN_OUT
};
pub(crate) const DEPTH_AND_SPACE: Rule = Rule {
    attributes: &["blocksize", "mode"],
    ..WRITTEN_OUT
};
pub(crate) const CAST_LIKE: Rule = Rule {
    attributes: &["round_mode", "saturate"],
    operands: (2, 2),
    configuration: &[1],
    ..WRITTEN_OUT
};
pub(crate) const RESIZE: Rule = Rule {
    attributes: &[
        "antialias",
        "axes",
        "coordinate_transformation_mode",
        "cubic_coeff_a",
        "exclude_outside",
        "extrapolation_value",
        "keep_aspect_ratio_policy",
        "mode",
        "nearest_mode",
    ],
    operands: (1, 4),
    configuration: &[1, 2, 3],
    ..WRITTEN_OUT
};
/// Reductions that are made of sums and maxima.
pub(crate) const REDUCTION: Rule = Rule {
    attributes: &["axes", "keepdims", "noop_with_empty_axes"],
    operands: (1, 2),
    configuration: &[1],
    ..WRITTEN_OUT
};
