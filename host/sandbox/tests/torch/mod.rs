//! PyTorch's optimizers in f64.
#![allow(unreachable_pub, clippy::unwrap_used, reason = "a module of tests")]

use std::collections::BTreeMap;

/// Elements by the names of the tensors.
pub type Values = BTreeMap<&'static str, Vec<f64>>;

/// `torch.optim` and `clip_grad_norm_`, as their documentation defines them.
pub struct Torch {
    pub optimizer: &'static str,
    pub rate: f64,
    pub weight_decay: f64,
    pub decay_vectors: bool,
    pub clip_norm: f64,
    /// Momentum, or first and second moment.
    pub kept: BTreeMap<&'static str, (Vec<f64>, Vec<f64>)>,
    pub step: i32,
}

impl Torch {
    pub fn step(&mut self, parameters: &mut Values, mut gradients: Values) {
        const MOMENTUM: f64 = 0.9;
        let (beta1, beta2, epsilon) = (0.9_f64, 0.999_f64, 1e-8);
        self.step += 1;
        gradients.remove("running");
        let norm = gradients.values().flatten().map(|g| g * g).sum::<f64>().sqrt();
        let clip = if self.clip_norm > 0.0 {
            (self.clip_norm / (norm + 1e-6)).min(1.0)
        } else {
            1.0
        };
        for (name, gradient) in gradients {
            // What is frozen has no gradient in PyTorch, so nothing happens to it.
            if name == "still" {
                continue;
            }
            let decay = if self.decay_vectors || name == "matrix" {
                self.weight_decay
            } else {
                0.0
            };
            let length = gradient.len();
            let (one, two) = self
                .kept
                .entry(name)
                .or_insert_with(|| (vec![0.0; length], vec![0.0; length]));
            let values = parameters.get_mut(name).unwrap();
            for at in 0..length {
                let (p, mut g) = (&mut values[at], gradient[at] * clip);
                if self.optimizer == "adamw" {
                    *p -= self.rate * decay * *p;
                } else {
                    g += decay * *p;
                }
                let direction = match self.optimizer {
                    "momentum" | "nesterov" => {
                        one[at] = MOMENTUM * one[at] + g;
                        if self.optimizer == "nesterov" {
                            g + MOMENTUM * one[at]
                        } else {
                            one[at]
                        }
                    }
                    "adam" | "adamw" => {
                        one[at] = beta1 * one[at] + (1.0 - beta1) * g;
                        two[at] = beta2 * two[at] + (1.0 - beta2) * g * g;
                        let first = one[at] / (1.0 - beta1.powi(self.step));
                        let second = two[at] / (1.0 - beta2.powi(self.step));
                        first / (second.sqrt() + epsilon)
                    }
                    _ => g,
                };
                *p -= self.rate * direction;
            }
        }
    }
}
