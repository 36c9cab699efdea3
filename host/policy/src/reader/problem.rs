//! What is wrong in a document, and where.

use std::fmt;

/// One thing that is wrong in a document, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line, counted from 1.
    pub line: usize,
    /// Column, counted from 1 in characters.
    pub column: usize,
    /// The value that it is about, such as `rounds.quorum` or `node[1].role`; empty for the document as a whole.
    pub path: String,
    /// What is there, what was wanted, what to do.
    pub message: String,
}

/// A document that cannot be taken: every problem found, in the order of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyError {
    file: String,
    problems: Vec<Problem>,
}

impl PolicyError {
    pub(crate) fn new(file: &str, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| (problem.line, problem.column));
        Self {
            file: file.to_owned(),
            problems,
        }
    }

    /// The file's name, as it was given to the parser.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The problems without their places, for a text that nobody has.
    pub fn without_places(&self) -> String {
        let messages: Vec<_> = self.problems.iter().map(|problem| problem.message.as_str()).collect();
        messages.join("\n")
    }

    /// What is wrong; at least one problem.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(
                f,
                "{}:{}:{}: {}",
                self.file, problem.line, problem.column, problem.message
            )?;
        }
        Ok(())
    }
}

impl std::error::Error for PolicyError {}
