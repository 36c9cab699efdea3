//! Builds a [`Graph`] node by node: each node's operands are checked and its results typed when it is added.

mod operations;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use cloister_tensor::{Dtype, Tensor};

use crate::error::{GraphError, Place};
use crate::fold;
use crate::ir::{Attributes, Graph, Node, Operator, Value, ValueId};
use crate::limits::Limits;
use crate::ops::{self, Forms, Operands, Type};
use crate::port::DropRatio;

pub(crate) use operations::Piece;

/// Constants up to this size are kept once however often they are asked for, in bytes.
const SHARED_CONSTANT_BYTES: usize = 1 << 12;

/// Elements that may be computed as constants in one graph.
const MAX_FOLDED: usize = 1 << 22;

/// A graph under construction.
#[derive(Debug)]
pub(crate) struct Builder {
    graph: Graph,
    limits: Limits,
    shared: BTreeMap<(Dtype, Vec<usize>, Bytes), ValueId>,
    /// Forms of the gradients of convolution weights.
    pub(crate) forms: Forms,
    place: Place,
    /// Elements of the constants that were computed so far.
    folded: usize,
    promised: BTreeSet<String>,
    /// Masks of dropouts with their ratios; `None` where dropouts are left out.
    masks: Option<Vec<(ValueId, DropRatio)>>,
}

type Made = Result<ValueId, GraphError>;

impl Builder {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            graph: Graph::default(),
            limits: limits.clone(),
            shared: BTreeMap::new(),
            forms: Forms::default(),
            place: Place::default(),
            folded: 0,
            promised: BTreeSet::new(),
            masks: None,
        }
    }

    /// From now on dropouts take masks as inputs; without this they are left out.
    pub(crate) fn with_masks(&mut self) {
        self.masks = Some(Vec::new());
    }

    /// The masks so far, and the share of elements that each drops.
    pub(crate) fn masks(&self) -> Vec<(ValueId, DropRatio)> {
        self.masks.clone().unwrap_or_default()
    }

    /// A dropout, with a new input `mask/K` of the value's shape, K counting from 0.
    pub(crate) fn dropout(&mut self, value: ValueId, ratio: DropRatio) -> Made {
        let Some(count) = self.masks.as_ref().map(Vec::len) else {
            return Ok(value);
        };
        if count >= self.limits.ports {
            return Err(self.error(format!("more than {} dropouts", self.limits.ports)));
        }
        let shape = self.shape(value).to_vec();
        let mask = self.input(&format!("mask/{count}"), Dtype::F32, &shape)?;
        self.masks.get_or_insert_default().push((mask, ratio));
        let attributes = Attributes::none().with("ratio", crate::ir::Attribute::Float(ratio.get()));
        self.node(Operator::Dropout, &[value, mask], attributes)
    }

    /// A constant that was computed while reading; those count towards a limit of their own.
    pub(crate) fn computed(&mut self, tensor: Tensor) -> Made {
        self.folded += tensor.shape().elements();
        if self.folded > MAX_FOLDED {
            return Err(self.error(format!(
                "constants of more than {MAX_FOLDED} elements would be computed in all"
            )));
        }
        self.constant(tensor)
    }

    /// Names the node of the source model that what follows stems from, for error messages.
    pub(crate) fn at(&mut self, place: &Place) {
        self.place = place.clone();
    }

    pub(crate) fn error(&self, problem: impl Into<String>) -> GraphError {
        GraphError::Operand {
            place: self.place.clone(),
            problem: problem.into(),
        }
    }

    pub(crate) fn shape(&self, id: ValueId) -> &[usize] {
        &self.graph.value(id).shape
    }

    pub(crate) fn dtype(&self, id: ValueId) -> Dtype {
        self.graph.value(id).dtype
    }

    pub(crate) fn rank(&self, id: ValueId) -> usize {
        self.shape(id).len()
    }

    /// Asks a rule about operands in this graph.
    pub(crate) fn with_operands<T>(
        &self,
        inputs: &[Option<ValueId>],
        attributes: &Attributes,
        ask: impl FnOnce(&Operands<'_>) -> Result<T, String>,
    ) -> Result<T, String> {
        ask(&Operands {
            graph: &self.graph,
            inputs,
            attributes,
        })
    }

    pub(crate) fn constant_of(&self, id: ValueId) -> Option<&Tensor> {
        self.graph.constants.get(&id)
    }

    fn value(&mut self, name: &str, dtype: Dtype, shape: &[usize]) -> Made {
        if shape.len() > self.limits.rank {
            return Err(self.error(format!(
                "a value of rank {}, at most {} is allowed",
                shape.len(),
                self.limits.rank
            )));
        }
        let elements = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
        match elements {
            Some(elements) if elements <= self.limits.elements => {}
            _ => {
                let most = self.limits.elements;
                return Err(self.error(format!(
                    "a value of shape {shape:?}, at most {most} elements are allowed"
                )));
            }
        }
        self.graph.values.push(Value {
            name: name.to_owned(),
            dtype,
            shape: shape.to_vec(),
        });
        Ok(ValueId(self.graph.values.len() - 1))
    }

    /// A graph input.
    pub(crate) fn input(&mut self, name: &str, dtype: Dtype, shape: &[usize]) -> Made {
        if shape.contains(&0) {
            return Err(GraphError::Interface(format!(
                "'{name}' has the shape {shape:?}, which holds nothing"
            )));
        }
        let id = self.value(name, dtype, shape)?;
        self.graph.inputs.push(id);
        Ok(id)
    }

    /// A constant; small equal ones are one value.
    pub(crate) fn constant(&mut self, tensor: Tensor) -> Made {
        if tensor.bytes().len() > SHARED_CONSTANT_BYTES {
            return self.named_constant("", tensor);
        }
        let key = (tensor.dtype(), tensor.shape().dims().to_vec(), tensor.bytes().clone());
        if let Some(&id) = self.shared.get(&key) {
            return Ok(id);
        }
        let id = self.named_constant("", tensor)?;
        self.shared.insert(key, id);
        Ok(id)
    }

    /// A constant with a name that is kept in the file.
    pub(crate) fn named_constant(&mut self, name: &str, tensor: Tensor) -> Made {
        let id = self.value(name, tensor.dtype(), tensor.shape().dims())?;
        self.graph.constants.insert(id, tensor);
        Ok(id)
    }

    pub(crate) fn scalar(&mut self, value: f32) -> Made {
        self.constant(Tensor::from_f32(&[], vec![value])?)
    }

    pub(crate) fn ints(&mut self, values: &[i64]) -> Made {
        self.constant(Tensor::from_i64(&[values.len()], values.to_vec())?)
    }

    /// Adds a node with one result.
    pub(crate) fn node(&mut self, operator: Operator, inputs: &[ValueId], attributes: Attributes) -> Made {
        let inputs = inputs.iter().map(|&id| Some(id)).collect();
        let outputs = self.nodes(operator, inputs, attributes, 1)?;
        outputs.first().copied().ok_or_else(|| self.error("no result"))
    }

    /// Adds a node with any number of results. Constant integer arithmetic is computed at once instead.
    pub(crate) fn nodes(
        &mut self,
        operator: Operator,
        inputs: Vec<Option<ValueId>>,
        attributes: Attributes,
        outputs: usize,
    ) -> Result<Vec<ValueId>, GraphError> {
        let rule = ops::rule(operator);
        let operands = Operands {
            graph: &self.graph,
            inputs: &inputs,
            attributes: &attributes,
        };
        let folded = fold::fold(operator, &operands, self.limits.attribute_values);
        if let Some(tensor) = folded.map_err(|problem| self.error(problem))? {
            let one = if operator == Operator::Constant {
                self.constant(tensor)?
            } else {
                self.computed(tensor)?
            };
            return Ok(vec![one]);
        }
        let is_empty = |at: usize| operands.optional(at).is_some_and(|one| one.shape.contains(&0));
        let is_float = |at: usize| operands.optional(at).is_some_and(|one| one.dtype.is_float());
        if let Some(at) = (0..inputs.len()).find(|&at| is_empty(at) && (at == 0 || is_float(at))) {
            return Err(self.error(format!("operand {at} holds nothing")));
        }
        let types = (rule.infer)(&operands).map_err(|problem| self.error(problem))?;
        if types.len() != outputs {
            return Err(self.error(format!(
                "{} results are asked for, {} are supported",
                outputs,
                types.len()
            )));
        }
        if self.graph.nodes.len() >= self.limits.nodes {
            return Err(GraphError::Limit {
                what: "nodes in the graph that was made of it",
                seen: self.graph.nodes.len() as u64 + 1,
                limit: self.limits.nodes as u64,
            });
        }
        let mut made = Vec::with_capacity(types.len());
        for Type { dtype, shape } in types {
            if shape.contains(&0) {
                return Err(self.error(format!("the result has the shape {shape:?}, which holds nothing")));
            }
            made.push(self.value("", dtype, &shape)?);
        }
        let place = self.place.clone();
        self.graph.nodes.push(Node {
            operator,
            inputs,
            outputs: made.clone(),
            attributes,
            place,
        });
        Ok(made)
    }

    /// Promises a value under a name. One that is an input, a constant or promised already gets a node of its own.
    pub(crate) fn output(&mut self, name: &str, value: ValueId) -> Result<(), GraphError> {
        if !self.promised.insert(name.to_owned()) {
            return Err(GraphError::Interface(format!(
                "two outputs are called '{name}'; rename the model's"
            )));
        }
        self.graph.outputs.push((name.to_owned(), value));
        Ok(())
    }

    /// The graph with these metadata, without nodes and constants that no output needs.
    pub(crate) fn finish(mut self, metadata: BTreeMap<String, String>) -> Result<Graph, GraphError> {
        let inputs: BTreeSet<ValueId> = self.graph.inputs.iter().copied().collect();
        let named = |name: &str| self.graph.inputs.iter().any(|id| self.graph.value(*id).name == name);
        if let Some((name, _)) = self.graph.outputs.iter().find(|(name, _)| named(name)) {
            // The copy below would be a second value of that name, and which one an engine takes would be the engine's to say.
            return Err(GraphError::Inconsistent(format!(
                "an input and an output are both called '{name}'; rename the output"
            )));
        }
        let mut promised = BTreeSet::new();
        for at in 0..self.graph.outputs.len() {
            let id = self.graph.outputs[at].1;
            let is_port = inputs.contains(&id) || self.graph.constants.contains_key(&id);
            if is_port || !promised.insert(id) {
                let copy = self.unary(Operator::Identity, id)?;
                promised.insert(copy);
                self.graph.outputs[at].1 = copy;
            }
        }
        self.graph.prune();
        self.graph.metadata = metadata;
        Ok(self.graph)
    }
}
