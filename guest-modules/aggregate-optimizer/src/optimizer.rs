//! One step on some elements.

use cloister_guest::aggregator::Part;
use cloister_guest::prelude::*;

use crate::Settings;

const MOMENTUM: Slot = Slot::named("momentum");
const FIRST: Slot = Slot::named("m");
const SECOND: Slot = Slot::named("v");

enum Method {
    Sgd,
    Momentum {
        kept: f32,
        nesterov: bool,
    },
    Adam {
        beta1: f64,
        beta2: f64,
        epsilon: f32,
        /// 1 over the root of the second moment's bias correction.
        second: f32,
    },
}

/// An optimizer at one update.
pub(crate) struct Optimizer {
    method: Method,
    /// Step size: the learning rate, for Adam divided by the first moment's bias correction.
    size: f32,
    /// What is added to the gradient, by the parameter.
    decay: f32,
    /// What is left of a parameter that decays beside the moments.
    left: f32,
}

impl Optimizer {
    /// `update` counts from 1.
    pub(crate) fn new(settings: &Settings, rate: f64, update: u32) -> Self {
        let Settings { beta1, beta2, .. } = *settings;
        let mut size = rate;
        let method = match settings.optimizer.as_str() {
            "adam" | "adamw" => {
                let updates = f64::from(update.max(1));
                size /= 1.0 - beta1.powf(updates);
                Method::Adam {
                    beta1,
                    beta2,
                    epsilon: settings.epsilon as f32,
                    second: (1.0 / (1.0 - beta2.powf(updates)).sqrt()) as f32,
                }
            }
            "momentum" | "nesterov" => Method::Momentum {
                kept: settings.momentum as f32,
                nesterov: settings.optimizer == "nesterov",
            },
            _ => Method::Sgd,
        };
        let apart = settings.optimizer == "adamw";
        let (decay, left) = if apart {
            (0.0, 1.0 - rate * settings.weight_decay)
        } else {
            (settings.weight_decay, 1.0)
        };
        Self {
            method,
            size: size as f32,
            decay: decay as f32,
            left: left as f32,
        }
    }

    /// Moves the elements of a part, and what the optimizer keeps for them.
    pub(crate) fn step(&self, part: Part, values: &mut [f32], mut gradient: Vec<f32>, decays: bool) {
        if decays {
            if self.decay != 0.0 {
                vector::axpy(self.decay, values, &mut gradient);
            }
            if self.left != 1.0 {
                vector::scale(self.left, values);
            }
        }
        let direction = match self.method {
            Method::Sgd => gradient,
            Method::Momentum { kept, nesterov } => {
                let mut momentum = MOMENTUM.read(part);
                vector::zip(&mut momentum, &gradient, |momentum, gradient| {
                    kept * momentum + gradient
                });
                MOMENTUM.write(part, &momentum);
                if nesterov {
                    vector::axpy(kept, &momentum, &mut gradient);
                    gradient
                } else {
                    momentum
                }
            }
            Method::Adam {
                beta1,
                beta2,
                epsilon,
                second,
            } => {
                let mut mean = FIRST.read(part);
                vector::mix((1.0 - beta1) as f32, &gradient, &mut mean);
                FIRST.write(part, &mean);
                let (kept, fresh) = (beta2 as f32, (1.0 - beta2) as f32);
                let mut square = SECOND.read(part);
                vector::zip(&mut square, &gradient, |square, gradient| {
                    kept * square + fresh * gradient * gradient
                });
                SECOND.write(part, &square);
                vector::zip(&mut square, &mean, |square, mean| {
                    mean / (square.sqrt() * second + epsilon)
                });
                square
            }
        };
        vector::axpy(-self.size, &direction, values);
    }
}
