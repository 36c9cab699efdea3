//! Takes one call of a step apart.

use super::operators;
use super::read::{Problem, shown, within};
use super::{Operand, Ref};
use crate::limits::Limits;

/// What a number may be written with.
const MAX_NUMBER_BYTES: usize = 32;

/// Takes the operands of one call apart.
pub(super) struct Scanner<'a> {
    pub(super) rest: &'a str,
    pub(super) limits: &'a Limits,
    pub(super) inputs: usize,
    pub(super) made: usize,
}

type Operands = (Vec<Operand>, Vec<(&'static str, Operand)>);

impl<'a> Scanner<'a> {
    /// Up to the closing parenthesis, which ends the line.
    pub(super) fn operands(&mut self) -> Result<Operands, Problem> {
        let (mut operands, mut named) = (Vec::new(), Vec::new());
        loop {
            let word = self.word();
            if let Some(rest) = self.rest.strip_prefix('=') {
                self.rest = rest;
                let name = operators::named(word).ok_or_else(|| format!("{} is no operand's name", shown(word)))?;
                let value = self.word();
                named.push((name, self.operand(value)?));
            } else if !named.is_empty() {
                return Err("operands without a name come first".into());
            } else {
                operands.push(self.operand(word)?);
            }
            within("operands", operands.len() + named.len(), self.limits.operands)?;
            if let Some(rest) = self.rest.strip_prefix(", ") {
                self.rest = rest;
            } else if self.rest == ")" {
                return Ok((operands, named));
            } else {
                return Err(format!("wanted a comma or the end of the call, seen {}", shown(self.rest)).into());
            }
        }
    }

    /// What stands before the next mark.
    fn word(&mut self) -> &'a str {
        let end = self
            .rest
            .find([',', ')', ']', '[', '=', '('])
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    fn operand(&mut self, word: &str) -> Result<Operand, Problem> {
        if word.is_empty()
            && let Some(rest) = self.rest.strip_prefix('[')
        {
            self.rest = rest;
            return self.list();
        }
        let quoted = word.strip_prefix('"').and_then(|word| word.strip_suffix('"'));
        let operand = match word {
            "True" => Operand::Bool(true),
            "False" => Operand::Bool(false),
            "None" => Operand::Nothing,
            _ => match (self.value(word), quoted.and_then(operators::word)) {
                (Some(value), _) => Operand::Value(value),
                (_, Some(word)) => Operand::Word(word),
                _ => number(word).ok_or_else(|| format!("{} is no operand", shown(word)))?,
            },
        };
        Ok(operand)
    }

    fn list(&mut self) -> Result<Operand, Problem> {
        if let Some(rest) = self.rest.strip_prefix(']') {
            self.rest = rest;
            return Ok(Operand::Ints(Vec::new()));
        }
        let (mut values, mut numbers) = (Vec::new(), Vec::new());
        loop {
            let word = self.word();
            match (self.value(word), number(word)) {
                (Some(value), _) => values.push(value),
                (None, Some(Operand::Int(number))) => numbers.push(number),
                _ => return Err(format!("{} is neither a value nor a whole number", shown(word)).into()),
            }
            within("elements of a list", values.len() + numbers.len(), self.limits.ports)?;
            if let Some(rest) = self.rest.strip_prefix(", ") {
                self.rest = rest;
                continue;
            }
            self.rest = self.rest.strip_prefix(']').ok_or("a list that does not end")?;
            return match (values.is_empty(), numbers.is_empty()) {
                (false, true) => Ok(Operand::Values(values)),
                (true, false) => Ok(Operand::Ints(numbers)),
                _ => Err("a list of values and numbers".into()),
            };
        }
    }

    /// `i3` or `v7`, if there is such a value.
    pub(super) fn value(&self, word: &str) -> Option<Ref> {
        let place = |digits: &str| {
            let canonical = digits == "0" || !digits.starts_with(['0', '+']);
            digits.parse::<usize>().ok().filter(|_| canonical)
        };
        if let Some(at) = word.strip_prefix('i').and_then(place) {
            return (at < self.inputs).then_some(Ref::Input(at));
        }
        let at = word.strip_prefix('v').and_then(place)?;
        (at < self.made).then_some(Ref::Made(at))
    }
}

/// A number: whole, or finite with a point or an exponent.
fn number(word: &str) -> Option<Operand> {
    let plain = |symbol: char| symbol.is_ascii_digit() || "+-.eE".contains(symbol);
    if word.len() > MAX_NUMBER_BYTES
        || !word.contains(|symbol: char| symbol.is_ascii_digit())
        || !word.chars().all(plain)
    {
        return None;
    }
    if word.contains(['.', 'e', 'E']) {
        return word
            .parse()
            .ok()
            .filter(|number: &f64| number.is_finite())
            .map(Operand::Float);
    }
    word.parse().ok().map(Operand::Int)
}
