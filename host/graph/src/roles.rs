//! Which initializers are parameters, which are running statistics, and which are neither.

use std::collections::{BTreeMap, BTreeSet};

use cloister_tensor::{Dtype, Tensor, TensorMap};

use crate::document::{Document, NamedNode};
use crate::error::{GraphError, Place};
use crate::ir::Operator;
use crate::ops::{self, Derivative, STATISTICS};

/// Names and shapes of the initializers that training reads and writes, in the order of the file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Roles {
    /// The float initializers that reach an output, less batch norm's statistics.
    pub(crate) parameters: Vec<(String, Vec<usize>)>,
    /// Running means and variances.
    pub(crate) statistics: Vec<(String, Vec<usize>)>,
    names: BTreeSet<String>,
    /// Scales and shifts of normalisations.
    norms: BTreeSet<String>,
    /// Parameters and statistics with elements of another type than f32.
    not_f32: Vec<(String, Dtype)>,
    /// What looks like a parameter and reaches an output only where no gradient passes; and the node where gradients stop.
    out_of_reach: Vec<(String, Place)>,
}

impl Roles {
    /// Finds them by walking back from the outputs. Operands that only say how to compute (axes, dropout ratios, clipping
    /// bounds, exponents) are not followed, nor are comparisons: no gradient passes there.
    pub(crate) fn of(document: &Document) -> Result<Self, GraphError> {
        let mut makers = BTreeMap::new();
        for node in &document.nodes {
            for output in &node.outputs {
                makers.insert(output.as_str(), node);
            }
        }
        let floats: BTreeMap<&str, &Tensor> = document
            .initializers
            .iter()
            .filter(|(_, tensor)| tensor.dtype().is_float())
            .map(|(name, tensor)| (name.as_str(), tensor))
            .collect();
        let mut found: BTreeMap<&str, bool> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        let mut open: Vec<(&str, bool)> = document.outputs.iter().map(|name| (name.as_str(), false)).collect();
        while let Some((name, statistic)) = open.pop() {
            if floats.contains_key(name) && *found.entry(name).or_insert(statistic) != statistic {
                return Err(GraphError::Interface(format!(
                    "'{name}' is a running statistic and a parameter at once; give each its own tensor"
                )));
            }
            if !seen.insert((name, statistic)) {
                continue;
            }
            let Some(node) = makers.get(name) else { continue };
            let rule = ops::rule(node.operator);
            if matches!(rule.derivative, Derivative::Stops) {
                continue;
            }
            let configuration = rule.configuration;
            for (at, input) in node.inputs.iter().enumerate() {
                if !input.is_empty() && !configuration.contains(&at) {
                    let statistic = node.operator == Operator::BatchNormalization && STATISTICS.contains(&at);
                    open.push((input, statistic));
                }
            }
        }
        let mut roles = Self::default();
        let beyond = beyond_gradients(document, &makers);
        for (name, tensor) in &document.initializers {
            if let (false, Some(node), true) = (
                found.contains_key(name.as_str()),
                beyond.get(name.as_str()),
                looks_trained(tensor),
            ) {
                roles.out_of_reach.push((name.clone(), node.place.clone()));
            }
            let Some(&statistic) = found.get(name.as_str()) else {
                continue;
            };
            roles.names.insert(name.clone());
            let list = if statistic {
                &mut roles.statistics
            } else {
                &mut roles.parameters
            };
            list.push((name.clone(), tensor.shape().dims().to_vec()));
            if tensor.dtype() != Dtype::F32 {
                roles.not_f32.push((name.clone(), tensor.dtype()));
            }
        }
        for node in document.nodes.iter().filter(|node| is_normalization(node.operator)) {
            let affine = node.inputs.iter().skip(1).take(2);
            roles
                .norms
                .extend(affine.filter(|name| roles.names.contains(*name)).cloned());
        }
        Ok(roles)
    }

    /// Whether a parameter is the scale or shift of a normalisation.
    pub(crate) fn scales_a_norm(&self, name: &str) -> bool {
        self.norms.contains(name)
    }

    /// Names of the initializers that look like parameters and that no gradient can reach.
    pub(crate) fn out_of_reach(&self) -> impl Iterator<Item = &str> {
        self.out_of_reach.iter().map(|(name, _)| name.as_str())
    }

    /// Refuses a model of which something would stay as it is without anybody having said so.
    pub(crate) fn all_reached(&self, is_frozen: impl Fn(&str) -> bool) -> Result<(), GraphError> {
        let Some((name, place)) = self.out_of_reach.iter().find(|(name, _)| !is_frozen(name)) else {
            return Ok(());
        };
        Err(GraphError::NotDifferentiable {
            place: place.clone(),
            reason: format!(
                "no gradient passes here, and '{name}' reaches the outputs in no other way, so it would not be trained; if it \
                 should stay as it is, freeze it (--freeze '{name}'), else export the model without this operator"
            ),
        })
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// Refuses parameters that can't be trained in f32.
    pub(crate) fn all_f32(&self) -> Result<(), GraphError> {
        match self.not_f32.first() {
            None => Ok(()),
            Some((name, dtype)) => Err(GraphError::Interface(format!(
                "the parameter '{name}' has elements of type {}, f32 is wanted; convert the model before it is exported",
                dtype.name()
            ))),
        }
    }

    /// The values of parameters and statistics; scalars as shape `[1]`, as they pass through ports.
    pub(crate) fn values(&self, document: &Document) -> TensorMap {
        let mut values = TensorMap::new();
        for (name, tensor) in document.initializers.iter().filter(|(name, _)| self.contains(name)) {
            let tensor = if tensor.shape().rank() == 0 {
                tensor
                    .clone()
                    .reshaped(cloister_tensor::Shape::one())
                    .unwrap_or_else(|_| tensor.clone())
            } else {
                tensor.clone()
            };
            values.insert(name.clone(), tensor);
        }
        values
    }
}

/// The float initializers that reach an output over a place where no gradient passes, and one such place for each.
fn beyond_gradients<'a>(
    document: &'a Document,
    makers: &BTreeMap<&'a str, &'a NamedNode>,
) -> BTreeMap<&'a str, &'a NamedNode> {
    let mut beyond = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let mut open: Vec<(&str, Option<&NamedNode>)> = document.outputs.iter().map(|name| (name.as_str(), None)).collect();
    while let Some((name, stop)) = open.pop() {
        if !seen.insert((name, stop.is_some())) {
            continue;
        }
        let Some(&node) = makers.get(name) else {
            if let Some(stop) = stop {
                beyond.insert(name, stop);
            }
            continue;
        };
        let rule = ops::rule(node.operator);
        for (at, input) in node.inputs.iter().enumerate().filter(|(_, input)| !input.is_empty()) {
            let configures = rule.configuration.contains(&at);
            if configures && !computes_with(node.operator) {
                continue;
            }
            let stops = configures || matches!(rule.derivative, Derivative::Stops);
            open.push((input, stop.or(stops.then_some(node))));
        }
    }
    beyond
}

/// Whether the operands that say how to compute can be computed themselves. Elsewhere they are axes, shapes and scales, known while a
/// model is read.
fn computes_with(operator: Operator) -> bool {
    matches!(operator, Operator::Clip | Operator::Pow | Operator::ScatterElements)
}

/// Whether somebody may have meant a tensor to be trained: exporters write exponents, bounds and the like as single numbers.
fn looks_trained(tensor: &Tensor) -> bool {
    tensor.dtype().is_float() && (tensor.shape().rank() > 1 || tensor.shape().elements() > 1)
}

fn is_normalization(operator: Operator) -> bool {
    matches!(
        operator,
        Operator::BatchNormalization
            | Operator::GroupNormalization
            | Operator::InstanceNormalization
            | Operator::LayerNormalization
            | Operator::RMSNormalization
    )
}
