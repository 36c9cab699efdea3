//! Which form the gradient of a convolution's weight takes: by a rule, or as chosen for a kind of layer.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use super::window::{MOST, Window};

/// How the gradient of a convolution's weight is computed. Which form is fastest depends on the layer, the engine and the
/// processor; where a layer can't take a form it takes [`Self::Conv`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum WeightGradient {
    /// By a rule: a matrix product for 1x1 kernels and for a single window; else [`Self::Spatial`] where the layer can take it, in
    /// parts of 16 rows where neither side has more than 16 channels; else [`Self::Conv`].
    #[default]
    Auto,
    /// A convolution of the input with the gradient, batch and channels swapped.
    Conv,
    /// The windows laid out as a matrix, and one matrix product.
    Gemm,
    /// A convolution along the rows of the batch, in which the input's channels are one more spatial axis: what was last stays
    /// last but for one transpose of a matrix, and the engine's inner loop runs over channels rather than over the few
    /// elements of a kernel.
    Spatial {
        /// Parts of the batch that are convolved apart, as groups, and added up. A divisor of the batch.
        parts: usize,
    },
    /// As [`Self::Spatial`], with the channels laid along the last spatial axis instead of beside it.
    Interleaved,
}

impl fmt::Display for WeightGradient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Conv => f.write_str("conv"),
            Self::Gemm => f.write_str("gemm"),
            Self::Spatial { parts: 1 } => f.write_str("spatial"),
            Self::Spatial { parts } => write!(f, "spatial/{parts}"),
            Self::Interleaved => f.write_str("interleaved"),
        }
    }
}

impl FromStr for WeightGradient {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}'; auto, conv, gemm, spatial, spatial/PARTS or interleaved is wanted");
        Ok(match text {
            "auto" => Self::Auto,
            "conv" => Self::Conv,
            "gemm" => Self::Gemm,
            "spatial" => Self::Spatial { parts: 1 },
            "interleaved" => Self::Interleaved,
            _ => {
                let parts = text.strip_prefix("spatial/").and_then(|parts| parts.parse().ok());
                let parts = parts.filter(|parts| (2..=MOST).contains(parts)).ok_or_else(wrong)?;
                Self::Spatial { parts }
            }
        })
    }
}

/// Layers with this many channels at most, one vector register, are convolved in parts of [`ROWS_A_PART`] rows by the rule.
const NARROW: usize = 16;
const ROWS_A_PART: usize = 16;

/// A convolution as its weight's gradient sees it: what two layers have alike that take the same time.
///
/// Its text is `128x16x24x24 kernel 16x16x3x3 strides 1x1 dilations 1x1 pads 1x1x1x1 groups 1`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConvLayer {
    /// Shape of what is convolved, `[N, C, spatial...]`.
    pub(crate) value: Vec<usize>,
    /// Shape of the kernel, `[O, C / groups, spatial...]`.
    pub(crate) kernel: Vec<usize>,
    pub(crate) strides: Vec<usize>,
    pub(crate) dilations: Vec<usize>,
    /// Padding before each spatial axis, then behind each.
    pub(crate) pads: Vec<usize>,
    pub(crate) groups: usize,
}

impl ConvLayer {
    pub(super) fn of(value: &[usize], window: &Window, kernel: &[usize], groups: usize) -> Self {
        Self {
            value: value.to_vec(),
            kernel: kernel.to_vec(),
            strides: window.strides.clone(),
            dilations: window.dilations.clone(),
            pads: [&window.before[..], &window.after[..]].concat(),
            groups,
        }
    }

    /// Windows along each spatial axis; `None` where the numbers do not fit each other.
    pub(crate) fn count(&self) -> Option<Vec<usize>> {
        let rank = self.value.len().checked_sub(2)?;
        let axis = |axis: usize| {
            let padded = self.value[2 + axis] + self.pads[axis] + self.pads[rank + axis];
            let reach = (self.kernel[2 + axis] - 1) * self.dilations[axis] + 1;
            Some(padded.checked_sub(reach)? / self.strides[axis] + 1)
        };
        (0..rank).map(axis).collect()
    }

    /// Whether the layer can take a form as it stands. [`WeightGradient::Auto`] and [`WeightGradient::Conv`] always.
    pub fn takes(&self, form: WeightGradient) -> bool {
        let spatial = self.value.len() - 2;
        match form {
            WeightGradient::Auto | WeightGradient::Conv => true,
            WeightGradient::Gemm => self.groups == 1,
            WeightGradient::Spatial { parts } => {
                self.groups == 1 && spatial <= 2 && parts > 0 && self.value[0].is_multiple_of(parts)
            }
            WeightGradient::Interleaved => {
                let channels = self.value[1];
                let last = spatial - 1;
                let widest = [self.strides[last], self.pads[last], self.pads[2 * spatial - 1]];
                self.groups == 1
                    && self.dilations[last] == 1
                    && widest.iter().all(|size| size.saturating_mul(channels) <= MOST)
            }
        }
    }

    /// The forms that are worth measuring, the one by the rule first.
    pub fn candidates(&self) -> Vec<WeightGradient> {
        let rows = self.value[0];
        let split = [16, 32].map(|rows_a_part| WeightGradient::Spatial {
            parts: rows / rows_a_part,
        });
        let [few, more] = split;
        let all = [
            self.by_rule(),
            WeightGradient::Conv,
            WeightGradient::Gemm,
            WeightGradient::Spatial { parts: 1 },
            few,
            more,
            WeightGradient::Interleaved,
        ];
        let mut candidates = Vec::new();
        for form in all {
            if self.takes(form) && !candidates.contains(&form) {
                candidates.push(form);
            }
        }
        candidates
    }

    fn by_rule(&self) -> WeightGradient {
        let (rows, widest) = (self.value[0], self.value[1].max(self.kernel[0]));
        let parts = if widest <= NARROW && rows.is_multiple_of(ROWS_A_PART) {
            rows / ROWS_A_PART
        } else {
            1
        };
        let single = |sizes: &[usize]| sizes.iter().all(|&size| size == 1);
        let one_window = self.count().is_some_and(|count| single(&count));
        if self.takes(WeightGradient::Gemm) && (single(&self.kernel[2..]) || one_window) {
            WeightGradient::Gemm
        } else if self.takes(WeightGradient::Spatial { parts }) {
            WeightGradient::Spatial { parts }
        } else {
            WeightGradient::Conv
        }
    }
}

impl fmt::Display for ConvLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let join = |sizes: &[usize]| sizes.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
        write!(
            f,
            "{} kernel {} strides {} dilations {} pads {} groups {}",
            join(&self.value),
            join(&self.kernel),
            join(&self.strides),
            join(&self.dilations),
            join(&self.pads),
            self.groups
        )
    }
}

impl FromStr for ConvLayer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "'{text}' is no layer; one reads `128x16x24x24 kernel 16x16x3x3 strides 1x1 dilations 1x1 pads 1x1x1x1 groups 1`"
            )
        };
        let words: Vec<&str> = text.split(' ').collect();
        let [
            value,
            "kernel",
            kernel,
            "strides",
            strides,
            "dilations",
            dilations,
            "pads",
            pads,
            "groups",
            groups,
        ] = words[..]
        else {
            return Err(wrong());
        };
        let sizes = |text: &str, least: usize| -> Result<Vec<usize>, String> {
            let size = |size: &str| size.parse().ok().filter(|size| (least..=MOST).contains(size));
            text.split('x').map(|one| size(one).ok_or_else(wrong)).collect()
        };
        let layer = Self {
            value: sizes(value, 1)?,
            kernel: sizes(kernel, 1)?,
            strides: sizes(strides, 1)?,
            dilations: sizes(dilations, 1)?,
            pads: sizes(pads, 0)?,
            groups: sizes(groups, 1)?.first().copied().ok_or_else(wrong)?,
        };
        let spatial = layer.value.len().checked_sub(2).filter(|axes| (1..=3).contains(axes));
        let alike = spatial.is_some_and(|axes| {
            layer.kernel.len() == axes + 2
                && layer.strides.len() == axes
                && layer.dilations.len() == axes
                && layer.pads.len() == 2 * axes
        });
        let fits = alike
            && layer.kernel[1].checked_mul(layer.groups) == Some(layer.value[1])
            && layer.kernel[0].is_multiple_of(layer.groups)
            && layer.count().is_some();
        // One text a layer: what does not read back as it was written is none.
        if fits && layer.to_string() == text {
            Ok(layer)
        } else {
            Err(wrong())
        }
    }
}

/// Which form each convolution of a graph takes, and what was chosen.
#[derive(Debug, Default)]
pub(crate) struct Forms {
    pub(crate) default: WeightGradient,
    pub(crate) chosen: BTreeMap<ConvLayer, WeightGradient>,
    /// Every layer whose weight has a gradient.
    pub(crate) layers: BTreeSet<ConvLayer>,
}

impl Forms {
    /// The form of a layer: as chosen for it, else the default, in each case as far as the layer can take it.
    pub(super) fn of(&self, layer: &ConvLayer) -> WeightGradient {
        let wanted = self.chosen.get(layer).copied().unwrap_or(self.default);
        match wanted {
            WeightGradient::Auto => layer.by_rule(),
            other if layer.takes(other) => other,
            _ => WeightGradient::Conv,
        }
    }
}
