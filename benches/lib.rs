//! Shared set-up of the benches: what is measured stands beside what it is compared with, in one run and in turn, so that a
//! ratio holds whatever the machine does meanwhile. Nothing here fails because it is slow.
#![allow(clippy::expect_used, clippy::print_stdout, clippy::print_stderr, reason = "benches")]

pub mod direct;

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, SamplingMode};

/// The rows that a bench prints at its end.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<[String; 5]>,
}

impl Table {
    /// Measures `ours` and `reference` in turn, lets criterion report `ours`, and remembers the ratio of the medians.
    /// Both give the time that counts.
    pub fn side_by_side(
        &mut self,
        group: &mut BenchmarkGroup<'_, WallTime>,
        name: &str,
        aim: &str,
        mut ours: impl FnMut() -> Duration,
        mut reference: impl FnMut() -> Duration,
    ) {
        let (mut own, mut other) = (Vec::new(), Vec::new());
        group.sampling_mode(SamplingMode::Flat);
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| {
                (0..iterations)
                    .map(|_| {
                        own.push(ours());
                        other.push(reference());
                        own.last().copied().unwrap_or_default()
                    })
                    .sum()
            });
        });
        // Nothing where the command line left this one out.
        if let (Some(own), Some(other)) = (median(&mut own), median(&mut other)) {
            let ratio = own.as_secs_f64() / other.as_secs_f64();
            self.row(name, milliseconds(own), milliseconds(other), format!("{ratio:.3}"), aim);
        }
    }

    /// Adds a row in words.
    pub fn row(
        &mut self,
        name: &str,
        ours: impl fmt::Display,
        reference: impl fmt::Display,
        ratio: impl fmt::Display,
        aim: &str,
    ) {
        self.rows.push([
            name.to_owned(),
            ours.to_string(),
            reference.to_string(),
            ratio.to_string(),
            aim.to_owned(),
        ]);
    }

    /// Prints all rows.
    pub fn print(&self) {
        if self.rows.is_empty() {
            return;
        }
        let head = ["name", "ours", "reference", "ratio", "aim"].map(str::to_owned);
        let all = || std::iter::once(&head).chain(&self.rows);
        let width = |column: usize| all().map(|row| row[column].chars().count()).max().unwrap_or_default();
        let widths: [usize; 5] = std::array::from_fn(width);
        for row in all() {
            let cells: Vec<String> = row
                .iter()
                .zip(widths)
                .map(|(cell, width)| format!("{cell:width$}"))
                .collect();
            println!("{}", cells.join("  ").trim_end());
        }
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{:.3} ms", time.as_secs_f64() * 1e3)
}

/// The middle one of these times; `None` of none.
pub fn median(times: &mut [Duration]) -> Option<Duration> {
    times.sort_unstable();
    times.get(times.len() / 2).copied()
}

/// How long it takes.
pub fn timed<T>(work: impl FnOnce() -> T) -> Duration {
    let start = Instant::now();
    std::hint::black_box(work());
    start.elapsed()
}

/// OpenVINO's folder, if `CLOISTER_OPENVINO_DIR` names one.
pub fn openvino_dir() -> Option<PathBuf> {
    std::env::var_os("CLOISTER_OPENVINO_DIR").map(PathBuf::from)
}

/// A built guest; nothing (and a line on stderr) where none are built.
pub fn guest(name: &str) -> Option<Vec<u8>> {
    let Some(dir) = std::env::var_os("CLOISTER_GUESTS_DIR") else {
        eprintln!("SKIPPED: CLOISTER_GUESTS_DIR is not set; `cargo xtask bench` builds the guests and sets it");
        return None;
    };
    Some(std::fs::read(PathBuf::from(dir).join(format!("{name}.wasm"))).expect("the guest is built"))
}

/// A line of `/proc/self/status` in bytes: `VmRSS` is what the process has in memory, `VmHWM` the most that it had.
pub fn memory_bytes(line: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc is there");
    let found = status
        .lines()
        .find_map(|other| other.strip_prefix(line)?.strip_prefix(':'));
    let kib = found.and_then(|value| value.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.expect("the kernel says it in kB") * 1024
}

/// Makes `VmHWM` start anew.
pub fn forget_peak_memory() {
    std::fs::write("/proc/self/clear_refs", "5").expect("the kernel takes 5: reset the peak");
}
