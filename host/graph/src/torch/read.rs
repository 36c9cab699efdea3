//! Reads a step, line by line, within limits.

use cloister_tensor::Dtype;

use super::operators::{self, BATCH_NORM, CLONE, STATISTICS};
use super::scan::Scanner;
use super::{Declared, MAGIC, Operand, Ref, Statement, Step};
use crate::error::GraphError;
use crate::limits::Limits;

/// Bytes of a file at most; a step of ResNet-152 has a tenth of that.
const MAX_BYTES: usize = 16 << 20;
/// What a step calls beside operators.
const OWN: [&str; 2] = [LEAF, GRADIENTS];
const LEAF: &str = "leaf";
const GRADIENTS: &str = "gradients";

/// What is known while reading.
struct Reader<'a> {
    limits: &'a Limits,
    step: Step,
    /// What made each value so far.
    made: Vec<Maker>,
}

/// What matters about how a value was made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Maker {
    Leaf,
    Clone,
    Other,
}

pub(super) fn step(file: &[u8], limits: &Limits) -> Result<Step, GraphError> {
    let most = limits.bytes.min(MAX_BYTES);
    within("bytes in a TorchScript step", file.len(), most)?;
    let refused = |line: usize, problem: String| GraphError::Torch { line, problem };
    let text = std::str::from_utf8(file).map_err(|error| {
        let line = file[..error.valid_up_to()].split(|byte| *byte == b'\n').count();
        refused(line, "is not UTF-8 text".to_owned())
    })?;
    let body = text
        .strip_prefix(MAGIC)
        .ok_or_else(|| refused(1, format!("wanted {:?}", MAGIC.trim_end())))?;
    let mut reader = Reader {
        limits,
        step: Step {
            inputs: Vec::new(),
            outputs: Vec::new(),
            classes: None,
            statements: Vec::new(),
            returned: Vec::new(),
        },
        made: Vec::new(),
    };
    let mut lines = body.lines().zip(2..);
    for (line, number) in lines.by_ref() {
        let at_line = |problem: Problem| match problem {
            Problem::Here(problem) => refused(number, problem),
            Problem::Limit(error) => error,
        };
        if let Some(values) = line.strip_prefix("return ") {
            reader.end(values).map_err(at_line)?;
            return match lines.next() {
                Some((_, number)) => Err(refused(number, "something follows the return".to_owned())),
                None => Ok(reader.step),
            };
        }
        reader.line(line).map_err(at_line)?;
    }
    Err(refused(
        body.lines().count() + 1,
        "the step ends without a return".to_owned(),
    ))
}

/// Why a line is refused.
pub(super) enum Problem {
    Here(String),
    Limit(GraphError),
}

impl From<String> for Problem {
    fn from(problem: String) -> Self {
        Self::Here(problem)
    }
}

impl From<&str> for Problem {
    fn from(problem: &str) -> Self {
        Self::Here(problem.to_owned())
    }
}

impl From<GraphError> for Problem {
    fn from(error: GraphError) -> Self {
        Self::Limit(error)
    }
}

pub(super) fn within(what: &'static str, seen: usize, limit: usize) -> Result<(), GraphError> {
    if seen <= limit {
        return Ok(());
    }
    Err(GraphError::Limit {
        what,
        seen: seen as u64,
        limit: limit as u64,
    })
}

/// A stranger's text in an error, cut.
pub(super) fn shown(text: &str) -> String {
    let cut: String = text.chars().take(48).collect();
    format!("{cut:?}")
}

impl Reader<'_> {
    fn line(&mut self, line: &str) -> Result<(), Problem> {
        let mut fields = line.split('\t');
        match fields.next() {
            Some("input") => {
                let port = self.port(fields)?;
                self.step.inputs.push(port);
                Ok(within("inputs", self.step.inputs.len(), self.limits.ports)?)
            }
            Some("output") => {
                let port = self.port(fields)?;
                self.step.outputs.push(port);
                Ok(within("outputs", self.step.outputs.len(), self.limits.ports)?)
            }
            Some("classes") => {
                let classes = fields.next().and_then(|number| number.parse().ok());
                self.step.classes = Some(
                    classes
                        .filter(|classes| *classes > 0)
                        .ok_or("wanted a number of classes")?,
                );
                Ok(())
            }
            _ => self.statement(line),
        }
    }

    fn port<'a>(&self, mut fields: impl Iterator<Item = &'a str>) -> Result<Declared, Problem> {
        let (Some(name), Some(dtype), Some(shape), Some(kind), None) = (
            fields.next(),
            fields.next(),
            fields.next(),
            fields.next(),
            fields.next(),
        ) else {
            return Err("a port is a name, a type, a shape and a kind, each behind a tab".into());
        };
        within("bytes in a port's name", name.len(), self.limits.name_bytes)?;
        within("bytes in a port's kind", kind.len(), 2 * self.limits.name_bytes)?;
        if name.is_empty() || !self.step.statements.is_empty() {
            return Err("a port has a name, and stands before all statements".into());
        }
        let same = |port: &&Declared| port.name == name;
        if self
            .step
            .inputs
            .iter()
            .chain(&self.step.outputs)
            .any(|port| same(&port))
        {
            return Err(format!("the port {} is there already", shown(name)).into());
        }
        let dtype = Dtype::from_name(dtype).ok_or_else(|| format!("{} is no type", shown(dtype)))?;
        let shape = self.shape(shape)?;
        Ok(Declared {
            name: name.to_owned(),
            dtype,
            shape,
            kind: kind.to_owned(),
        })
    }

    fn shape(&self, text: &str) -> Result<Vec<usize>, Problem> {
        let wanted = || format!("{} is no shape: wanted numbers as in [4, 64]", shown(text));
        let inner = text
            .strip_prefix('[')
            .and_then(|text| text.strip_suffix(']'))
            .ok_or_else(wanted)?;
        let dims = inner
            .split(", ")
            .filter(|_| !inner.is_empty())
            .take(self.limits.rank + 1);
        let dims: Vec<usize> = dims
            .map(|dim| dim.parse().map_err(|_| wanted()))
            .collect::<Result<_, _>>()?;
        within("dimensions", dims.len(), self.limits.rank)?;
        let elements = dims
            .iter()
            .try_fold(1usize, |all, dim| all.checked_mul(*dim))
            .unwrap_or(usize::MAX);
        within("elements in a port", elements, self.limits.elements)?;
        Ok(dims)
    }

    /// `v3 = conv2d(v1, v2, None)` and `v4, v5 = gradients(v3, [v1, v2])`.
    fn statement(&mut self, line: &str) -> Result<(), Problem> {
        let (left, right) = line
            .split_once(" = ")
            .ok_or_else(|| format!("{} is no statement", shown(line)))?;
        let (name, rest) = right
            .split_once('(')
            .ok_or_else(|| format!("{} calls nothing", shown(right)))?;
        let operator = operators::operator(name);
        if operator.is_none() && !OWN.contains(&name) {
            return Err(format!("{} is no operator that a step may call", shown(name)).into());
        }
        let mut scanner = Scanner {
            rest,
            limits: self.limits,
            inputs: self.step.inputs.len(),
            made: self.made.len(),
        };
        let (operands, named) = scanner.operands()?;
        let (statement, maker) = match (name, &operands[..]) {
            (LEAF, [Operand::Value(of)]) if named.is_empty() => (Statement::Leaf(*of), Maker::Leaf),
            (GRADIENTS, [Operand::Value(of), Operand::Values(leaves)]) if named.is_empty() => {
                let leaf = |leaf: &Ref| self.maker(*leaf) == Some(Maker::Leaf);
                if !leaves.iter().all(leaf) {
                    return Err("gradients are taken with respect to leaves".into());
                }
                let leaves = leaves.clone();
                (Statement::Gradients { of: *of, leaves }, Maker::Other)
            }
            _ => {
                let operator = operator.ok_or("leaf takes a value; gradients takes a value and a list of leaves")?;
                self.check_writes(operator, &operands)?;
                let maker = if operator == CLONE { Maker::Clone } else { Maker::Other };
                let call = Statement::Call {
                    operator,
                    operands,
                    named,
                };
                (call, maker)
            }
        };
        let first = self.made.len();
        let wanted: Vec<String> = (first..first + statement.makes()).map(|at| format!("v{at}")).collect();
        if left != wanted.join(", ") {
            return Err(format!(
                "the values made here are called {}, seen {}",
                wanted.join(", "),
                shown(left)
            )
            .into());
        }
        self.made.resize(first + statement.makes(), maker);
        self.step.statements.push(statement);
        within("statements", self.step.statements.len(), self.limits.nodes)?;
        Ok(within("values", self.made.len(), self.limits.nodes)?)
    }

    /// The memory of inputs is others', and is only lent: what an operator writes to has to be a clone.
    fn check_writes(&self, operator: &str, operands: &[Operand]) -> Result<(), Problem> {
        if operator != BATCH_NORM {
            return Ok(());
        }
        let own = |operand: &Operand| match operand {
            Operand::Nothing => true,
            Operand::Value(of) => self.maker(*of) == Some(Maker::Clone),
            _ => false,
        };
        let given = STATISTICS.map(|at| operands.get(at));
        if given.into_iter().all(|operand| operand.is_some_and(own)) {
            return Ok(());
        }
        Err("batch_norm writes to its running statistics, operands 4 and 5: each has to be the result of a clone, or None".into())
    }

    fn maker(&self, of: Ref) -> Option<Maker> {
        match of {
            Ref::Made(at) => self.made.get(at).copied(),
            Ref::Input(_) => None,
        }
    }

    fn end(&mut self, values: &str) -> Result<(), Problem> {
        let scanner = Scanner {
            rest: "",
            limits: self.limits,
            inputs: self.step.inputs.len(),
            made: self.made.len(),
        };
        let returned = values.split(", ").take(self.limits.ports + 1);
        let returned: Vec<Ref> = returned
            .map(|name| {
                scanner
                    .value(name)
                    .ok_or_else(|| format!("{} is no value made so far", shown(name)))
            })
            .collect::<Result<_, _>>()?;
        if returned.len() != self.step.outputs.len() {
            let (seen, wanted) = (returned.len(), self.step.outputs.len());
            return Err(format!("{seen} values are returned, and {wanted} outputs declared").into());
        }
        self.step.returned = returned;
        Ok(())
    }
}
