//! The check between a caller's tensors and an engine: nothing passes that does not fit its port.

use std::collections::HashMap;

use cloister_graph::Port;
use cloister_tensor::{Dtype, Tensor};

use crate::EngineError;

/// Names shown in an error at most.
const MAX_NAMES_SHOWN: usize = 12;

/// The inputs of a graph, by name: what every backend asks before it touches a tensor.
#[derive(Debug)]
pub struct Intake {
    ports: Vec<Port>,
    index: HashMap<String, usize>,
}

impl Intake {
    /// The check of these inputs.
    pub fn new(ports: &[Port]) -> Self {
        let index = ports
            .iter()
            .enumerate()
            .map(|(at, port)| (port.name.clone(), at))
            .collect();
        Self {
            ports: ports.to_vec(),
            index,
        }
    }

    /// The inputs, in their order.
    pub fn ports(&self) -> &[Port] {
        &self.ports
    }

    /// The tensors in the order of the ports: each there once, of its port's type and shape.
    ///
    /// # Errors
    /// One is missing, unknown, given twice, or of another type or shape; the error names the port.
    pub fn arrange<'a>(&self, inputs: &'a [(&str, Tensor)]) -> Result<Vec<&'a Tensor>, EngineError> {
        let mut arranged: Vec<Option<&Tensor>> = vec![None; self.ports.len()];
        for (name, tensor) in inputs {
            let Some(&at) = self.index.get(*name) else {
                return Err(EngineError::UnknownInput {
                    name: (*name).to_owned(),
                    known: self.known(),
                });
            };
            let port = &self.ports[at];
            if tensor.dtype() != port.dtype || tensor.shape().dims() != port.shape {
                return Err(EngineError::Shape {
                    port: port.name.clone(),
                    seen: described(tensor.dtype(), tensor.shape().dims()),
                    wanted: described(port.dtype, &port.shape),
                });
            }
            if arranged[at].replace(tensor).is_some() {
                return Err(EngineError::RepeatedInput {
                    port: port.name.clone(),
                });
            }
        }
        arranged
            .into_iter()
            .zip(&self.ports)
            .map(|(tensor, port)| {
                tensor.ok_or_else(|| EngineError::MissingInput {
                    port: port.name.clone(),
                    wanted: described(port.dtype, &port.shape),
                })
            })
            .collect()
    }

    fn known(&self) -> String {
        let names: Vec<String> = self
            .ports
            .iter()
            .take(MAX_NAMES_SHOWN)
            .map(|port| format!("`{}`", port.name))
            .collect();
        let more = self.ports.len().saturating_sub(MAX_NAMES_SHOWN);
        if more == 0 {
            names.join(", ")
        } else {
            format!("{} and {more} more", names.join(", "))
        }
    }
}

/// Type and shape in words: `F32 [32, 64]`.
pub fn described(dtype: Dtype, dims: &[usize]) -> String {
    format!("{dtype} {dims:?}")
}
