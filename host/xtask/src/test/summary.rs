//! What test runners say at their end.

use std::fmt;

/// Tests counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Those that passed.
    pub passed: u64,
    /// Those that failed.
    pub failed: u64,
    /// Those that were left out.
    pub skipped: u64,
}

impl Counts {
    /// Adds others up.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    /// Reads a line of nextest (`Summary [ 1.2s] 9 tests run: 8 passed, 1 failed, 2 skipped`) or of libtest
    /// (`test result: ok. 8 passed; 0 failed; 2 ignored; ...`); other lines say nothing.
    pub fn of_line(line: &str) -> Option<Self> {
        let line = line.trim();
        let (_, counts) = line
            .strip_prefix("Summary [")
            .or_else(|| line.strip_prefix("test result: "))?
            .split_once([':', '.'])?;
        let mut found = Self::default();
        let words: Vec<&str> = counts
            .split([' ', ',', ';', '(', ')', ':'])
            .filter(|word| !word.is_empty())
            .collect();
        for pair in words.windows(2) {
            let Ok(count) = pair[0].parse::<u64>() else { continue };
            match pair[1] {
                "passed" => found.passed = count,
                "failed" | "timed" | "exec" => found.failed += count,
                "skipped" | "ignored" => found.skipped = count,
                _ => {}
            }
        }
        Some(found)
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(passed: u64, failed: u64, skipped: u64) -> Option<Counts> {
        Some(Counts {
            passed,
            failed,
            skipped,
        })
    }

    #[test]
    fn nextest_is_read() {
        assert_eq!(
            Counts::of_line("     Summary [   0.021s] 3 tests run: 3 passed, 0 skipped"),
            counts(3, 0, 0)
        );
        assert_eq!(
            Counts::of_line("     Summary [   3.1s] 9 tests run: 6 passed (1 slow), 1 failed, 2 timed out, 4 skipped"),
            counts(6, 3, 4)
        );
        assert_eq!(Counts::of_line("        PASS [   0.004s] xtask test::a"), None);
    }

    #[test]
    fn libtest_is_read() {
        let line = "test result: FAILED. 5 passed; 1 failed; 2 ignored; 0 measured; 7 filtered out; finished in 0.00s";
        assert_eq!(Counts::of_line(line), counts(5, 1, 2));
        assert_eq!(Counts::of_line("test a ... ok"), None);
    }
}
