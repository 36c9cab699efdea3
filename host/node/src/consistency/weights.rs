//! Initial weights against the graphs that take them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use cloister_graph::{Port, PortKind};
use cloister_policy::agreement::Graph;
use cloister_tensor::{Digest, Dtype, ReadLimits, safetensors};
use miette::Report;

use super::{Ports, words};
use crate::files;
use crate::ui::{Exit, failed};

/// Tensors that a sentence names.
const NAMED: usize = 8;

/// What a file of weights holds.
#[derive(Debug)]
pub(super) struct Weights {
    pub(super) digest: Digest,
    tensors: BTreeMap<String, (Dtype, Vec<usize>)>,
}

impl Weights {
    /// Looks at a file.
    pub(super) fn read(path: &Path) -> Result<Self, Report> {
        let limits = ReadLimits::default();
        let bytes = files::read(path, limits.max_bytes)?;
        let digest = Digest::of(&bytes);
        let read = safetensors::read(bytes.into(), &limits).map_err(|error| {
            let help = "initial weights are a safetensors file, such as `cloister policy draft --onnx` writes";
            failed(Exit::Usage, format!("{}: {error}", path.display()), Some(help.into()))
        })?;
        let described = |(name, tensor): (String, cloister_tensor::Tensor)| {
            (name, (tensor.dtype(), tensor.shape().dims().to_vec()))
        };
        Ok(Self {
            digest,
            tensors: read.into_iter().map(described).collect(),
        })
    }

    /// Parameters and statistics that the graphs take, and these weights lack or have otherwise.
    pub(super) fn problems(&self, graphs: &[(&Graph, &Ports)]) -> Vec<String> {
        let mut taken: BTreeMap<&str, (&Graph, &Port)> = BTreeMap::new();
        for (graph, ports) in graphs {
            for port in &ports.inputs {
                if let PortKind::Parameter(name) | PortKind::Statistic(name) = &port.kind {
                    taken.entry(name).or_insert((graph, port));
                }
            }
        }
        let (mut missing, mut problems) = (Vec::new(), Vec::new());
        for (name, (graph, port)) in &taken {
            match self.tensors.get(*name) {
                None => missing.push(format!("{name} ({})", form(port.dtype, &port.shape))),
                Some((dtype, shape)) if (*dtype, shape) != (port.dtype, &port.shape) => problems.push(format!(
                    "the weights have {name} as {}, and graph {} takes {}",
                    form(*dtype, shape),
                    graph.name,
                    form(port.dtype, &port.shape)
                )),
                Some(_) => {}
            }
        }
        if !missing.is_empty() {
            let count = missing.len();
            missing.truncate(NAMED);
            let more = if count > NAMED { ", ..." } else { "" };
            let unused = self
                .tensors
                .keys()
                .map(String::as_str)
                .filter(|name| !taken.contains_key(name));
            let unused: BTreeSet<_> = unused.take(NAMED).collect();
            problems.insert(
                0,
                format!(
                    "the weights lack {count} of {} tensors that the graphs take: {}{more}; of what they have no graph takes {}",
                    taken.len(),
                    missing.join(", "),
                    words(&unused)
                ),
            );
        }
        let more = problems.len().saturating_sub(NAMED);
        if more > 0 {
            problems.truncate(NAMED);
            problems.push(format!(
                "the weights have {more} more tensors that are not as graphs take them"
            ));
        }
        problems
    }
}

fn form(dtype: Dtype, shape: &[usize]) -> String {
    format!("{} {shape:?}", dtype.name().to_ascii_lowercase())
}
