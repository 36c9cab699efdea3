//! An aggregator that misbehaves, for tests: the setting `attack` says how.

use cloister_guest::aggregator::Part;
use cloister_guest::bindings::aggregator::cloister::federation::slots as host_slots;
use cloister_guest::prelude::*;

cloister_guest::settings! {
    struct Settings {
        /// What to do.
        attack: String in [
            "none", "loop", "trap", "nothing", "nan", "read_past_end", "write_past_end", "far_offset", "huge_range",
            "hoard_updates", "allocate", "ask_again", "give_up", "slot_not_finite", "five_slots", "slot_past_end", "slot_far_offset",
            "slot_huge_range", "slot_odd_name", "slots_without_end", "count_calls"
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
        "slot_not_finite" => {
            host_slots::write("m", 1, &[f32::INFINITY]);
            model.write(whole, &update.read(whole));
        }
        "five_slots" => {
            for name in ["a", "b", "c", "d", "e"] {
                host_slots::write(name, 0, &[1.0]);
            }
        }
        "slot_past_end" => host_slots::write("m", 1, &vec![0.0; whole.count as usize]),
        "slot_far_offset" => drop(host_slots::read("m", u64::MAX, 2)),
        "slot_huge_range" => drop(host_slots::read("m", 0, u32::MAX)),
        "slot_odd_name" => host_slots::write("row 7: 1.5\n", 0, &[1.0]),
        "slots_without_end" => {
            for at in 0_u64.. {
                drop(host_slots::read(&at.to_string(), 0, 1));
            }
        }
        // Keeps how often it was called, and writes it into the model.
        "count_calls" => {
            let calls = host_slots::read("calls", 0, 1)[0] + 1.0;
            host_slots::write("calls", 0, &[calls]);
            model.write(Part { offset: 0, count: 1 }, &[calls]);
        }
        "give_up" => return Err(Failure::new("not today")),
        _ => model.write(whole, &update.read(whole)),
    }
    Ok(())
}

cloister_guest::export_aggregator!(aggregate);
