//! Stages with their times, and the table that closes a run.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::problem::{Outcome, Problem};
use crate::process::say;

use super::summary::Counts;

/// Characters of a reason that the table shows.
const REASON_CHARS: usize = 100;

/// A stage of `cargo xtask test`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Stage {
    /// Formatting of host and guests.
    Format,
    /// The house rules of ARCHITECTURE.md.
    Layers,
    /// Licences, bans and sources of the dependencies.
    Licences,
    /// The compiler of the guests.
    Toolchain,
    /// The OpenVINO runtime.
    Openvino,
    /// The guest modules.
    Guests,
    /// Clippy over the host.
    Lints,
    /// Clippy over the guests.
    GuestLints,
    /// The tests of the guests' kit, on this machine.
    GuestTests,
    /// The fuzz targets, which are a workspace of their own, as far as the compiler looks.
    FuzzTargets,
    /// The `cloister` binary.
    Build,
    /// The tests, compiled.
    BuildTests,
    /// The tests, run.
    Tests,
    /// The examples in the documentation.
    DocTests,
}

impl Stage {
    fn name(self) -> String {
        self.to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    }

    /// The stages that provide what this one needs.
    fn needs(self) -> &'static [Self] {
        match self {
            Self::Guests | Self::GuestLints => &[Self::Toolchain],
            Self::BuildTests | Self::Tests | Self::DocTests => {
                &[Self::Toolchain, Self::Openvino, Self::Guests, Self::Build]
            }
            _ => &[],
        }
    }
}

/// What a check that could not be made answers instead of a result.
#[derive(Debug)]
pub enum Checked {
    /// It was made and passed.
    Passed,
    /// It was not made, and why.
    Skipped(String),
}

impl From<()> for Checked {
    fn from((): ()) -> Self {
        Self::Passed
    }
}

#[derive(Debug)]
enum End {
    Passed,
    Failed(String),
    Skipped(String),
}

/// The stages so far.
#[derive(Debug)]
pub struct Stages {
    chosen: Vec<Stage>,
    done: Vec<(Stage, Duration, End)>,
    counts: Counts,
}

impl Stages {
    /// A run of the chosen stages; of all when none is chosen.
    pub fn new(chosen: &[Stage]) -> Self {
        Self {
            chosen: chosen.to_vec(),
            done: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// Runs a check.
    pub fn check<T: Into<Checked>>(&mut self, stage: Stage, work: impl FnOnce() -> Outcome<T>) {
        if self.wanted(stage) {
            let started = start(stage);
            let end = match work().map(Into::into) {
                Ok(Checked::Passed) => End::Passed,
                Ok(Checked::Skipped(why)) => End::Skipped(why),
                Err(problem) => failed(&problem),
            };
            self.done.push((stage, started.elapsed(), end));
        }
    }

    /// Runs a step whose result others need.
    pub fn provide<T>(&mut self, stage: Stage, work: impl FnOnce() -> Outcome<T>) -> Option<T> {
        if !self.wanted(stage) {
            return None;
        }
        let started = start(stage);
        let (result, end) = match work() {
            Ok(result) => (Some(result), End::Passed),
            Err(problem) => (None, failed(&problem)),
        };
        self.done.push((stage, started.elapsed(), end));
        result
    }

    /// Runs tests, and adds up what they count.
    pub fn tests(&mut self, stage: Stage, work: impl FnOnce() -> Outcome<(Counts, bool)>) {
        if self.wanted(stage) {
            let started = start(stage);
            let end = match work() {
                Ok((counts, passed)) => {
                    self.counts.add(counts);
                    if passed {
                        End::Passed
                    } else {
                        End::Failed(format!("{counts}"))
                    }
                }
                Err(problem) => failed(&problem),
            };
            self.done.push((stage, started.elapsed(), end));
        }
    }

    /// Notes that a stage cannot run.
    pub fn skip(&mut self, stage: Stage, why: &str) {
        if self.wanted(stage) {
            self.done.push((stage, Duration::ZERO, End::Skipped(why.to_owned())));
        }
    }

    /// Prints the table and the closing line.
    pub fn finish(self) -> ExitCode {
        say("");
        for (stage, time, end) in &self.done {
            let words = match end {
                End::Passed => "passed".to_owned(),
                End::Failed(why) => format!("FAILED   {}", cut(why)),
                End::Skipped(why) => format!("skipped  {why}"),
            };
            say(format_args!(
                "{:<12} {:>8.1} s  {words}",
                stage.name(),
                time.as_secs_f64()
            ));
        }
        let total: Duration = self.done.iter().map(|(_, time, _)| *time).sum();
        say(format_args!("{:<12} {:>8.1} s", "total", total.as_secs_f64()));
        let failed = self
            .done
            .iter()
            .filter(|(_, _, end)| matches!(end, End::Failed(_)))
            .count();
        let stages = if failed == 0 {
            String::new()
        } else {
            format!("; {failed} stages failed")
        };
        say(format_args!("{}{stages}", self.counts));
        if failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }

    fn wanted(&self, stage: Stage) -> bool {
        let chosen = &self.chosen;
        chosen.is_empty()
            || chosen
                .iter()
                .any(|other| *other == stage || other.needs().contains(&stage))
    }
}

/// The first line of a reason, at the width of a table; the whole of it stands further up.
fn cut(why: &str) -> String {
    let line = why.lines().next().unwrap_or_default();
    match line.char_indices().nth(REASON_CHARS) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line.to_owned(),
    }
}

fn start(stage: Stage) -> Instant {
    say(format_args!("\n== {}", stage.name()));
    Instant::now()
}

fn failed(problem: &Problem) -> End {
    say(problem);
    End::Failed(problem.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_stage_fails_the_run() {
        let mut stages = Stages::new(&[]);
        stages.check(Stage::Format, || Ok(()));
        stages.check(Stage::Licences, || Ok(Checked::Skipped("not installed".into())));
        assert!(stages.done.iter().all(|(_, _, end)| !matches!(end, End::Failed(_))));
        let provided: Option<()> = stages.provide(Stage::Guests, || Err(Problem::new("a", "b")));
        assert!(provided.is_none());
        assert!(matches!(stages.done[2].2, End::Failed(_)));
    }

    #[test]
    fn chosen_stages_bring_their_setup() {
        let stages = Stages::new(&[Stage::Tests]);
        assert!(stages.wanted(Stage::Guests) && stages.wanted(Stage::Tests) && !stages.wanted(Stage::Format));
        let stages = Stages::new(&[Stage::Guests]);
        assert!(stages.wanted(Stage::Toolchain) && !stages.wanted(Stage::Build));
        let stages = Stages::new(&[Stage::Format]);
        assert!(stages.wanted(Stage::Format) && !stages.wanted(Stage::Guests));
    }
}
