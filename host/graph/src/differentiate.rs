//! Reverse-mode differentiation: a forward graph is written into a new one, then walked backwards.

use std::collections::{BTreeMap, BTreeSet};

use crate::bind::Bound;
use crate::builder::Builder;
use crate::error::GraphError;
use crate::ir::{Graph, Node, ValueId};
use crate::ops::{self, Derivative, Mode, Step, Written};

/// A forward graph within a new one.
#[derive(Debug)]
pub(crate) struct Replay<'a> {
    source: &'a Graph,
    /// Values of the source in the new graph.
    values: BTreeMap<ValueId, ValueId>,
    tape: Vec<(&'a Node, Vec<Option<ValueId>>, Written)>,
    /// Running statistics of the source, and their next values in the new graph.
    pub(crate) statistics: BTreeMap<ValueId, ValueId>,
}

impl<'a> Replay<'a> {
    /// Writes `bound` into `builder`: its inputs first, then its nodes in the form that `mode` wants.
    pub(crate) fn write(
        builder: &mut Builder,
        bound: &'a Bound,
        inputs: BTreeMap<ValueId, ValueId>,
        mode: Mode,
    ) -> Result<Self, GraphError> {
        let source = &bound.graph;
        let mut replay = Self {
            source,
            values: inputs,
            tape: Vec::new(),
            statistics: BTreeMap::new(),
        };
        for (&id, tensor) in &source.constants {
            let copy = builder.constant(tensor.clone())?;
            replay.values.insert(id, copy);
        }
        for node in &source.nodes {
            builder.at(&node.place);
            let mut inputs = Vec::with_capacity(node.inputs.len());
            for id in &node.inputs {
                inputs.push(match id {
                    Some(id) => Some(replay.value(builder, *id)?),
                    None => None,
                });
            }
            let written = match ops::rule(node.operator).rewrite {
                Some(rewrite) => rewrite(builder, node, &inputs, mode)?,
                None => {
                    let outputs = builder.nodes(
                        node.operator,
                        inputs.clone(),
                        node.attributes.clone(),
                        node.outputs.len(),
                    )?;
                    Written {
                        outputs,
                        ..Written::default()
                    }
                }
            };
            for (&old, &new) in node.outputs.iter().zip(&written.outputs) {
                replay.values.insert(old, new);
            }
            for &(at, next) in &written.statistics {
                if let Some(Some(id)) = node.inputs.get(at)
                    && replay.statistics.insert(*id, next).is_some()
                {
                    return Err(
                        builder.error("its running statistics are those of another node too; give each its own")
                    );
                }
            }
            replay.tape.push((node, inputs, written));
        }
        Ok(replay)
    }

    /// A value of the source in the new graph.
    pub(crate) fn value(&self, builder: &Builder, id: ValueId) -> Result<ValueId, GraphError> {
        self.values
            .get(&id)
            .copied()
            .ok_or_else(|| builder.error("a value of the forward graph was not written"))
    }

    /// Gradients of the source's `trained` inputs, given that of one of its values.
    pub(crate) fn backward(
        &self,
        builder: &mut Builder,
        trained: &BTreeSet<ValueId>,
        seed: (ValueId, ValueId),
    ) -> Result<BTreeMap<ValueId, ValueId>, GraphError> {
        let needed = self.needed(trained);
        let mut gradients: BTreeMap<ValueId, ValueId> = BTreeMap::from([seed]);
        for (node, inputs, written) in self.tape.iter().rev() {
            let Some(gradient) = node.outputs.first().and_then(|id| gradients.get(id)).copied() else {
                continue;
            };
            let wanted: Vec<bool> = node
                .inputs
                .iter()
                .map(|id| id.is_some_and(|id| needed.contains(&id)))
                .collect();
            if !wanted.contains(&true) {
                continue;
            }
            builder.at(&node.place);
            let rule = ops::rule(node.operator);
            let differentiate = match rule.derivative {
                Derivative::Rule(differentiate) => differentiate,
                Derivative::Stops => continue,
                Derivative::Missing => {
                    return Err(GraphError::NotDifferentiable {
                        place: node.place.clone(),
                        reason:
                            "there is no derivative for this operator yet; freeze the parameters before it (--freeze)"
                                .to_owned(),
                    });
                }
            };
            if let Some(at) = rule.configuration.iter().find(|&&at| wanted.get(at) == Some(&true)) {
                return Err(GraphError::NotDifferentiable {
                    place: node.place.clone(),
                    reason: format!(
                        "operand {at} says how to compute, and depends on a parameter here; freeze that (--freeze)"
                    ),
                });
            }
            let step = Step {
                node,
                inputs,
                outputs: &written.outputs,
                saved: &written.saved,
                gradient,
                wanted: &wanted,
            };
            let parts = differentiate(builder, &step)?;
            for ((id, part), wanted) in node.inputs.iter().zip(parts).zip(&wanted) {
                if let (Some(id), Some(part), true) = (id, part, wanted) {
                    let sum = match gradients.get(id) {
                        Some(&sum) => builder.add(sum, part)?,
                        None => part,
                    };
                    gradients.insert(*id, sum);
                }
            }
        }
        gradients.retain(|id, _| trained.contains(id));
        Ok(gradients)
    }

    /// Values that a trained input reaches along a differentiable path.
    fn needed(&self, trained: &BTreeSet<ValueId>) -> BTreeSet<ValueId> {
        let mut needed = trained.clone();
        for node in &self.source.nodes {
            let smooth = !matches!(ops::rule(node.operator).derivative, Derivative::Stops);
            if smooth && node.inputs.iter().flatten().any(|id| needed.contains(id)) {
                needed.extend(&node.outputs);
            }
        }
        needed
    }
}
