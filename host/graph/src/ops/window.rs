//! Sliding windows: the geometry that convolutions and pools share, and the way back from windows to what they slid over.

use std::collections::BTreeMap;

use super::bounds::sizes;
use crate::builder::{Builder, Piece};
use crate::error::GraphError;
use crate::ir::{Attribute, Attributes, ValueId};

/// Largest kernel, stride, dilation or padding along an axis.
pub(super) const MOST: usize = 1 << 16;

/// Most elements of a window that is taken apart.
const MOST_ELEMENTS: usize = 1 << 10;

/// How a window slides over the spatial axes (all but the first two).
#[derive(Clone, Debug)]
pub(crate) struct Window {
    pub(crate) kernel: Vec<usize>,
    pub(crate) strides: Vec<usize>,
    pub(crate) dilations: Vec<usize>,
    pub(crate) before: Vec<usize>,
    pub(crate) after: Vec<usize>,
}

impl Window {
    /// Reads strides, dilations and pads of a node for `kernel`. `auto_pad` must have been made explicit.
    pub(crate) fn of(attributes: &Attributes, kernel: &[usize]) -> Result<Self, String> {
        let rank = kernel.len();
        let list = |name: &str, default: usize, least: usize| -> Result<Vec<usize>, String> {
            let values = match attributes.ints(name)? {
                Some(values) => sizes(values, name, MOST)?,
                None => vec![default; rank],
            };
            if values.len() != rank || values.iter().any(|&value| value < least) {
                return Err(format!("{name} {values:?} for {rank} spatial axes"));
            }
            Ok(values)
        };
        if attributes.text("auto_pad", "NOTSET")? != "NOTSET" {
            return Err("auto_pad is not supported here; name the pads".to_owned());
        }
        let pads = match attributes.ints("pads")? {
            Some(values) => sizes(values, "pads", MOST)?,
            None => vec![0; 2 * rank],
        };
        if pads.len() != 2 * rank || kernel.iter().any(|&size| size == 0 || size > MOST) {
            return Err(format!("pads {pads:?} and kernel {kernel:?} for {rank} spatial axes"));
        }
        if let Some(declared) = attributes.ints("kernel_shape")?
            && sizes(declared, "kernel_shape", MOST)? != kernel
        {
            return Err(format!("kernel_shape {declared:?} beside a kernel of {kernel:?}"));
        }
        Ok(Self {
            kernel: kernel.to_vec(),
            strides: list("strides", 1, 1)?,
            dilations: list("dilations", 1, 1)?,
            before: pads[..rank].to_vec(),
            after: pads[rank..].to_vec(),
        })
    }

    /// Extent of the kernel with its dilation along an axis.
    pub(crate) fn reach(&self, axis: usize) -> usize {
        (self.kernel[axis] - 1) * self.dilations[axis] + 1
    }

    /// How many windows fit along each axis.
    pub(crate) fn count(&self, spatial: &[usize]) -> Result<Vec<usize>, String> {
        let along = |(axis, &size): (usize, &usize)| {
            let padded = size + self.before[axis] + self.after[axis];
            let room = padded.checked_sub(self.reach(axis));
            room.map(|room| room / self.strides[axis] + 1)
        };
        let counts: Option<Vec<usize>> = spatial.iter().enumerate().map(along).collect();
        counts.ok_or_else(|| format!("a window of {:?} does not fit into {spatial:?}", self.kernel))
    }

    /// Whether windows tile their ground: no padding, no dilation, no overlap and no gaps.
    pub(crate) fn tiles(&self) -> bool {
        self.kernel == self.strides
            && self.dilations.iter().all(|&one| one == 1)
            && self.before.iter().chain(&self.after).all(|&one| one == 0)
    }

    /// The offset of each element of the window from the window's corner, in row-major order.
    ///
    /// Each becomes nodes of its own, so there is a bound.
    pub(crate) fn offsets(&self) -> Result<Vec<Vec<usize>>, String> {
        let elements = self
            .kernel
            .iter()
            .try_fold(1usize, |product, &size| product.checked_mul(size));
        if elements.is_none_or(|elements| elements > MOST_ELEMENTS) {
            let kernel = &self.kernel;
            return Err(format!(
                "a window of {kernel:?}; at most {MOST_ELEMENTS} elements can be differentiated"
            ));
        }
        let mut offsets = vec![Vec::new()];
        for (axis, &size) in self.kernel.iter().enumerate() {
            offsets = offsets
                .iter()
                .flat_map(|start: &Vec<usize>| {
                    (0..size).map(move |at| [&start[..], &[at * self.dilations[axis]]].concat())
                })
                .collect();
        }
        Ok(offsets)
    }

    /// For each element of the window, the values it meets at all positions. `first` is the first spatial axis of `padded`.
    pub(crate) fn pick(
        &self,
        builder: &mut Builder,
        padded: ValueId,
        first: usize,
        offset: &[usize],
        count: &[usize],
    ) -> Result<ValueId, GraphError> {
        let axes: Vec<usize> = (first..first + offset.len()).collect();
        let piece = |axis: usize| Piece {
            start: offset[axis],
            end: offset[axis] + (count[axis] - 1) * self.strides[axis] + 1,
            step: self.strides[axis],
        };
        let pieces: Vec<Piece> = (0..offset.len()).map(piece).collect();
        builder.slice(padded, &axes, &pieces)
    }

    /// The way back: adds up what each element of the window has for the ground below it. `parts` are of shape
    /// `[N, C, count..]`, one an offset; the result has the shape `[N, C, spatial..]`.
    ///
    /// Parts are added up apart for each phase of the stride, and the phases are interleaved once at the end.
    pub(crate) fn scatter(
        &self,
        builder: &mut Builder,
        parts: &[(Vec<usize>, ValueId)],
        spatial: &[usize],
    ) -> Result<ValueId, GraphError> {
        let rank = spatial.len();
        let grid: Vec<usize> = (0..rank)
            .map(|axis| (spatial[axis] + self.before[axis] + self.after[axis]).div_ceil(self.strides[axis]))
            .collect();
        let mut phases: BTreeMap<Vec<usize>, ValueId> = BTreeMap::new();
        let mut shape = Vec::new();
        for (offset, part) in parts {
            let seen = builder.shape(*part).to_vec();
            let (mut before, mut after) = (vec![0; 2], vec![0; 2]);
            for axis in 0..rank {
                let start = offset[axis] / self.strides[axis];
                before.push(start);
                after.push(grid[axis].saturating_sub(start + seen[2 + axis]));
            }
            let placed = builder.pad(*part, &before, &after, 0.0)?;
            shape = builder.shape(placed).to_vec();
            let phase: Vec<usize> = (0..rank).map(|axis| offset[axis] % self.strides[axis]).collect();
            let sum = match phases.get(&phase) {
                Some(&sum) => builder.add(sum, placed)?,
                None => placed,
            };
            phases.insert(phase, sum);
        }
        for axis in (0..rank).rev() {
            let stride = self.strides[axis];
            let mut merged: BTreeMap<Vec<usize>, ValueId> = BTreeMap::new();
            let heads: std::collections::BTreeSet<Vec<usize>> =
                phases.keys().map(|phase| phase[..axis].to_vec()).collect();
            for head in heads {
                let column: Vec<Option<ValueId>> = (0..stride)
                    .map(|at| phases.get(&[&head[..], &[at]].concat()).copied())
                    .collect();
                merged.insert(head, interleave(builder, &column, 2 + axis, &shape)?);
            }
            shape[2 + axis] *= stride;
            phases = merged;
        }
        let whole = phases
            .into_values()
            .next()
            .ok_or_else(|| builder.error("a window of no elements"))?;
        let axes: Vec<usize> = (2..2 + rank).collect();
        let piece = |axis: usize| Piece {
            start: self.before[axis],
            end: self.before[axis] + spatial[axis],
            step: 1,
        };
        let pieces: Vec<Piece> = (0..rank).map(piece).collect();
        builder.slice(whole, &axes, &pieces)
    }
}

/// Takes elements in turn from each of `column` along `axis`; where there is none, zeros. Each has the shape `shape`.
fn interleave(
    builder: &mut Builder,
    column: &[Option<ValueId>],
    axis: usize,
    shape: &[usize],
) -> Result<ValueId, GraphError> {
    if let [Some(only)] = column {
        return Ok(*only);
    }
    let outer: usize = shape[..=axis].iter().product();
    let inner: usize = shape[axis + 1..].iter().product();
    let mut rows = Vec::with_capacity(column.len());
    for one in column {
        rows.push(match one {
            Some(value) => builder.reshape(*value, &[outer, 1, inner])?,
            None => {
                let zero = builder.scalar(0.0)?;
                builder.expand(zero, &[outer, 1, inner])?
            }
        });
    }
    let joined = builder.concat(&rows, 1)?;
    let mut shape = shape.to_vec();
    shape[axis] *= column.len();
    builder.reshape(joined, &shape)
}

/// Puts `step - 1` zeros behind each element along `axis`.
pub(crate) fn interleave_zeros(
    builder: &mut Builder,
    value: ValueId,
    axis: usize,
    step: usize,
) -> Result<ValueId, GraphError> {
    if step == 1 {
        return Ok(value);
    }
    let mut shape = builder.shape(value).to_vec();
    let outer: usize = shape[..=axis].iter().product();
    let inner: usize = shape[axis + 1..].iter().product();
    let column = builder.reshape(value, &[outer, 1, inner])?;
    let padded = builder.pad(column, &[0, 0, 0], &[0, step - 1, 0], 0.0)?;
    shape[axis] *= step;
    builder.reshape(padded, &shape)
}

/// Brings `auto_pad` and `ceil_mode` into explicit pads, so that rules and engines see one form only. Beside it, how much of the pads
/// behind is there for `ceil_mode` alone.
pub(crate) fn explicit_pads(
    mut attributes: Attributes,
    spatial: &[usize],
    kernel: &[usize],
) -> Result<(Attributes, Vec<usize>), String> {
    let automatic = attributes.text("auto_pad", "NOTSET")?.to_owned();
    attributes.0.remove("auto_pad");
    let rank = spatial.len();
    if kernel.len() != rank {
        return Err(format!("a kernel of {kernel:?} over {rank} spatial axes"));
    }
    match automatic.as_str() {
        "NOTSET" => {}
        "VALID" => {
            attributes.0.remove("pads");
        }
        "SAME_UPPER" | "SAME_LOWER" => {
            attributes.0.remove("pads");
            let window = Window::of(&attributes, kernel)?;
            let (mut before, mut after) = (Vec::new(), Vec::new());
            for (axis, &size) in spatial.iter().enumerate() {
                let stride = window.strides[axis];
                let covered = (size.div_ceil(stride) - 1) * stride + window.reach(axis);
                let total = covered.saturating_sub(size);
                let (small, large) = (total / 2, total - total / 2);
                let upper = automatic == "SAME_UPPER";
                before.push(if upper { small } else { large });
                after.push(if upper { large } else { small });
            }
            attributes = attributes.with_ints("pads", &[before, after].concat());
        }
        other => return Err(format!("auto_pad '{other}' is not supported")),
    }
    let mut added = vec![0; rank];
    let round_up = attributes.int("ceil_mode", 0)? != 0;
    attributes.0.remove("ceil_mode");
    if round_up {
        let mut window = Window::of(&attributes, kernel)?;
        window.count(spatial)?;
        for (axis, &size) in spatial.iter().enumerate() {
            let stride = window.strides[axis];
            let padded = size + window.before[axis] + window.after[axis];
            let rest = (padded - window.reach(axis)) % stride;
            let next_start = padded - window.reach(axis) - rest + stride;
            // As PyTorch has it: a window that would start in the padding behind does not count.
            if rest != 0 && next_start < size + window.before[axis] {
                added[axis] = stride - rest;
                window.after[axis] += stride - rest;
            }
        }
        attributes = attributes.with(
            "pads",
            Attribute::Ints(
                window
                    .before
                    .iter()
                    .chain(&window.after)
                    .map(|&pad| pad as i64)
                    .collect(),
            ),
        );
    }
    Ok((attributes, added))
}

/// Brings `auto_pad` of a transposed convolution into explicit pads: `SAME` makes each axis as long as the operand's times the stride.
/// A kernel that is shorter than the stride is made up for by padding of the output.
pub(crate) fn explicit_transposed_pads(
    mut attributes: Attributes,
    spatial: &[usize],
    kernel: &[usize],
) -> Result<Attributes, String> {
    let automatic = attributes.text("auto_pad", "NOTSET")?.to_owned();
    attributes.0.remove("auto_pad");
    let upper = match automatic.as_str() {
        "NOTSET" => return Ok(attributes),
        "VALID" => {
            attributes.0.remove("pads");
            return Ok(attributes);
        }
        "SAME_UPPER" => true,
        "SAME_LOWER" => false,
        other => return Err(format!("auto_pad '{other}' is not supported")),
    };
    attributes.0.remove("pads");
    let rank = spatial.len();
    if kernel.len() != rank {
        return Err(format!("a kernel of {kernel:?} over {rank} spatial axes"));
    }
    let window = Window::of(&attributes, kernel)?;
    let mut extra = match attributes.ints("output_padding")? {
        Some(values) => sizes(values, "output_padding", MOST)?,
        None => vec![0; rank],
    };
    if extra.len() != rank {
        return Err(format!("output_padding {extra:?}"));
    }
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for (axis, extra) in extra.iter_mut().enumerate() {
        // The operand's length times the stride is wanted; all but the last position take a stride each already.
        let (last, wanted) = (window.reach(axis) + *extra, window.strides[axis]);
        let total = last.saturating_sub(wanted);
        *extra += wanted.saturating_sub(last);
        let (small, large) = (total / 2, total - total / 2);
        before.push(if upper { small } else { large });
        after.push(if upper { large } else { small });
    }
    Ok(attributes
        .with_ints("pads", &[before, after].concat())
        .with_ints("output_padding", &extra))
}
