//! An aggregator that misbehaves, for tests: the setting `attack` says how.

use cloister_guest::aggregator::Part;
use cloister_guest::prelude::*;

cloister_guest::settings! {
    struct Settings {
        /// What to do.
        attack: String in [
            "none", "loop", "trap", "nothing", "nan", "read_past_end", "write_past_end", "far_offset", "huge_range",
            "hoard_updates", "allocate", "ask_again", "give_up"
        ] = "none",
    }
}

fn aggregate(_round: Round, model: &mut FlatModel) -> Result<()> {
    let settings = Settings::read()?;
    let whole = Part {
        offset: 0,
        count: model.length() as u32,
    };
    let update = updates().next().ok_or_else(|| Failure::new("no update"))?;
    match settings.attack.as_str() {
        "loop" => loop {
            std::hint::black_box(());
        },
        "trap" => core::arch::wasm32::unreachable(),
        "nothing" => return Ok(()),
        "nan" => model.write(whole, &vec![f32::NAN; whole.count as usize]),
        "read_past_end" => drop(update.read(Part {
            offset: 1,
            count: whole.count,
        })),
        "write_past_end" => model.write(
            Part {
                offset: 1,
                count: whole.count,
            },
            &vec![0.0; whole.count as usize],
        ),
        "far_offset" => drop(model.previous(Part {
            offset: u64::MAX,
            count: 2,
        })),
        "huge_range" => drop(model.written(Part {
            offset: 0,
            count: u32::MAX,
        })),
        "hoard_updates" => drop(updates().collect::<Vec<_>>()),
        "allocate" => {
            let mut hoard = Vec::new();
            loop {
                hoard.push(std::hint::black_box(vec![1_u8; 1 << 20]));
            }
        }
        "ask_again" => {
            while updates().next().is_some() {}
            drop(updates().next());
            model.write(whole, &update.read(whole));
        }
        "give_up" => return Err(Failure::new("not today")),
        _ => model.write(whole, &update.read(whole)),
    }
    Ok(())
}

cloister_guest::export_aggregator!(aggregate);
