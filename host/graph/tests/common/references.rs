//! The numbers of `tests/pytorch/references.py`, and what PyTorch made of them.

use std::path::Path;

pub const BATCH: usize = 2;
const CLASSES: usize = 5;
const VOCABULARY: usize = 11;
const TOKENS: usize = 6;

/// `count` numbers between -1 and 1, by SplitMix64 from the FNV-1a hash of the name.
pub fn units(name: &str, count: usize) -> Vec<f64> {
    let mut seed = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    (0..count)
        .map(|_| {
            seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^= mixed >> 31;
            (mixed >> 40) as f64 / f64::from(1 << 23) - 1.0
        })
        .collect()
}

/// The value of a parameter or running statistic.
pub fn values(name: &str, shape: &[usize]) -> Vec<f64> {
    let fan: usize = shape[1..].iter().product();
    let one = |raw: f64| {
        let value = if shape.len() > 1 {
            raw * (3.0 / fan as f64).sqrt()
        } else if name.ends_with("weight") {
            1.0 + raw / 8.0
        } else if name.ends_with("running_mean") {
            0.0
        } else if name.ends_with("running_var") {
            1.0
        } else {
            raw / 8.0
        };
        f64::from(value as f32)
    };
    units(name, shape.iter().product()).into_iter().map(one).collect()
}

pub fn labels() -> Vec<f64> {
    (0..BATCH).map(|row| ((7 * row + 3) % CLASSES) as f64).collect()
}

pub fn tokens() -> Vec<f64> {
    let token = |row: usize, at: usize| ((3 + 5 * row + 7 * at) % VOCABULARY) as f64;
    (0..BATCH)
        .flat_map(|row| (0..TOKENS).map(move |at| token(row, at)))
        .collect()
}

/// What PyTorch saw.
pub struct Reference {
    loss: f64,
    /// Name, L2 norm of the gradient, and its product with `units("along NAME")`.
    gradients: Vec<(String, f64, f64)>,
}

pub fn read(path: &Path) -> Reference {
    let text = std::fs::read_to_string(path).unwrap();
    let mut reference = Reference {
        loss: f64::NAN,
        gradients: Vec::new(),
    };
    for line in text.lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["torch", _] => {}
            ["loss", loss] => reference.loss = loss.parse().unwrap(),
            [name, norm, along] => {
                let gradient = (name.to_owned(), norm.parse().unwrap(), along.parse().unwrap());
                reference.gradients.push(gradient);
            }
            _ => panic!("{}: {line}", path.display()),
        }
    }
    reference
}

/// Compares a loss and gradients, by the names of their outputs. A gradient may be off by `tolerance` of the norm of all of
/// them at most.
pub fn compare(
    name: &str,
    reference: &Reference,
    tolerance: f64,
    parameters: usize,
    output: impl Fn(&str) -> Vec<f64>,
) {
    assert_eq!(parameters, reference.gradients.len(), "{name}: parameters");
    let loss = output("loss")[0];
    assert!(
        (loss - reference.loss).abs() <= tolerance * reference.loss,
        "{name}: a loss of {loss}, PyTorch's is {}",
        reference.loss
    );
    let total = reference.gradients.iter().map(|one| one.1 * one.1).sum::<f64>().sqrt();
    for (parameter, norm, along) in &reference.gradients {
        let gradient = output(&format!("grad/{parameter}"));
        let seen_norm = gradient.iter().map(|value| value * value).sum::<f64>().sqrt();
        let direction = units(&format!("along {parameter}"), gradient.len());
        let seen_along: f64 = gradient.iter().zip(direction).map(|(value, unit)| value * unit).sum();
        let room = tolerance * total;
        assert!(
            (seen_norm - norm).abs() <= room && (seen_along - along).abs() <= room,
            "{name}: {parameter}: {seen_norm} and {seen_along}, PyTorch's are {norm} and {along}"
        );
    }
}
