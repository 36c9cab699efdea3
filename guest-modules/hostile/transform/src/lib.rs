//! A transform that misbehaves, for tests: the setting `attack` says how.

use std::sync::atomic::{AtomicU32, Ordering};

use cloister_guest::transform_prelude::*;

cloister_guest::settings! {
    struct Settings {
        /// What to do. Honest is: `x` doubled.
        attack: String in [
            "none", "loop", "allocate", "trap", "panic", "wrong_shape", "wrong_rows", "wrong_type", "short", "nan", "infinite",
            "missing", "twice", "unknown", "too_large", "log_rows", "log_without_end", "remember", "random", "labels",
            "give_up"
        ] = "none",
    }
}

static CALLS: AtomicU32 = AtomicU32::new(0);

fn transform(batch: &Batch, random: &mut Random) -> Result<Made> {
    let settings = Settings::read()?;
    let x = batch.array("x")?;
    let Elements::Floats(values) = &x.elements else {
        return Err(Failure::new("x is no float"));
    };
    let mut made: Vec<f32> = values.iter().map(|value| value * 2.0).collect();
    let (shape, rows) = (x.shape.clone(), batch.rows() as u32);
    let plain = |made: Vec<f32>| Ok(Made::new().array("x", shape.clone(), Elements::Floats(made)));
    match settings.attack.as_str() {
        "loop" => loop {
            std::hint::black_box(());
        },
        "allocate" => {
            let mut hoard = Vec::new();
            loop {
                hoard.push(vec![1_u8; 1 << 20]);
            }
        }
        "trap" => core::arch::wasm32::unreachable(),
        "panic" => panic!("the first value is {}", values[0]),
        "wrong_shape" => Ok(Made::new().array("x", vec![rows, 2, shape[1] / 2], Elements::Floats(made))),
        "wrong_rows" => {
            made.truncate(made.len() - shape[1] as usize);
            Ok(Made::new().array("x", vec![rows - 1, shape[1]], Elements::Floats(made)))
        }
        "wrong_type" => Ok(Made::new().array("x", shape, Elements::Bytes(vec![0; made.len()]))),
        "short" => plain(made[1..].to_vec()),
        "nan" => {
            made[3] = f32::NAN;
            plain(made)
        }
        "infinite" => {
            made[0] = f32::INFINITY;
            plain(made)
        }
        "missing" => Ok(Made::new()),
        "twice" => {
            let first = plain(made.clone())?;
            Ok(first.array("x", x.shape.clone(), Elements::Floats(made)))
        }
        "unknown" => Ok(plain(made)?.array("z", vec![rows], Elements::Floats(vec![0.0; rows as usize]))),
        "too_large" => plain(vec![0.0; 4 << 20]),
        "log_rows" => {
            log::info(&format!("row: {}", values[0]));
            plain(made)
        }
        "log_without_end" => loop {
            log::info("");
        },
        "remember" => {
            made.fill(CALLS.fetch_add(1, Ordering::Relaxed) as f32);
            plain(made)
        }
        // Honest, too: what an augmentation does, so that its bytes tell its seed.
        "random" => {
            made.fill_with(|| random.unit());
            plain(made)
        }
        "labels" => {
            let labels = Elements::Integers(vec![99; batch.rows()]);
            Ok(plain(made)?.array("labels", vec![rows], labels))
        }
        "give_up" => Err(Failure::new(format!("the first value is {}", values[0]))),
        _ => plain(made),
    }
}

cloister_guest::export_transform!(transform);
