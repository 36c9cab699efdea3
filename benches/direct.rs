//! A training step on an engine, called directly: forward, backward and optimizer in one run, parameters fed back.

use std::hint::black_box;

use cloister_engine::{Backend, CompileOptions, Compiled};
use cloister_graph::{EngineGraph, Model, PortKind};
use cloister_tensor::{Dtype, Shape, Tensor, TensorMap};

/// A training graph with the tensors that its next step takes.
pub struct Step {
    compiled: Box<dyn Compiled>,
    tensors: TensorMap,
}

impl Step {
    /// Compiles `graph` with these options; its rows are made up, of so many classes.
    pub fn new(
        backend: &dyn Backend,
        graph: &EngineGraph,
        model: &Model,
        classes: usize,
        options: &CompileOptions,
    ) -> Self {
        let mut tensors = model.initial_weights();
        for port in graph.inputs() {
            let shape = Shape::new(&port.shape).expect("a port's shape is in bounds");
            let tensor = match port.kind {
                PortKind::Data(_) => {
                    let values = (0..shape.elements()).map(|at| (at % 17) as f32 / 17.0).collect();
                    Tensor::from_f32(&port.shape, values).expect("as many values as elements")
                }
                PortKind::Labels => {
                    let labels = (0..shape.elements()).map(|row| (row % classes) as i64).collect();
                    Tensor::from_i64(&port.shape, labels).expect("as many labels as rows")
                }
                PortKind::LearningRate => Tensor::scalar_f32(1e-3),
                PortKind::Step => Tensor::scalar_i64(1),
                PortKind::State { .. } => Tensor::zeros(Dtype::F32, shape),
                _ => continue,
            };
            tensors.insert(port.name.clone(), tensor);
        }
        let compiled = backend.compile(graph, options).expect("the sample compiles");
        Self { compiled, tensors }
    }

    /// One step.
    pub fn run(&mut self) {
        let inputs: Vec<(&str, Tensor)> = self
            .tensors
            .iter()
            .map(|(name, tensor)| (name.as_str(), tensor.clone()))
            .collect();
        let outputs = self.compiled.run(&inputs, None).expect("the step runs");
        drop(inputs);
        for (name, tensor) in outputs {
            if let Some(of) = name.strip_prefix("next/") {
                self.tensors.insert(of.to_owned(), tensor);
            } else {
                black_box(tensor);
            }
        }
    }
}

impl std::fmt::Debug for Step {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Step").finish_non_exhaustive()
    }
}
