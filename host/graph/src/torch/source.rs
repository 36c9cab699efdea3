//! Writes the program that libtorch compiles, out of a step that was read and checked.

use std::fmt::Write;

use super::{Operand, Ref, Statement, Step};

const HEAD: &str = "\
class Step(Module):
  __parameters__ = []
  __buffers__ = []
  training : bool
  def forward(self: __torch__.Step,
    inputs: List[Tensor]) -> List[Tensor]:
";

pub(super) fn of(step: &Step) -> String {
    let mut text = HEAD.to_owned();
    // Writing to a string does not fail.
    for at in 0..step.inputs.len() {
        let _ = writeln!(text, "    i{at} = inputs[{at}]");
    }
    let mut made = 0;
    for statement in &step.statements {
        let _ = match statement {
            Statement::Call {
                operator,
                operands,
                named,
            } => {
                let operands = operands.iter().map(operand);
                let named = named.iter().map(|(name, value)| format!("{name}={}", operand(value)));
                writeln!(text, "    v{made} = torch.{operator}({})", list(operands.chain(named)))
            }
            Statement::Leaf(of) => writeln!(text, "    v{made} = torch.requires_grad_(torch.detach({}))", value(*of)),
            Statement::Gradients { of, leaves } => {
                let leaves = list(leaves.iter().copied().map(value));
                writeln!(text, "    g{made} = torch.autograd.grad([{}], [{leaves}])", value(*of))
            }
        };
        if let Statement::Gradients { leaves, .. } = statement {
            for at in 0..leaves.len() {
                let _ = writeln!(text, "    v{} = unchecked_cast(Tensor, g{made}[{at}])", made + at);
            }
        }
        made += statement.makes();
    }
    let _ = writeln!(text, "    return [{}]", list(step.returned.iter().copied().map(value)));
    text
}

fn list(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(", ")
}

fn value(of: Ref) -> String {
    match of {
        Ref::Input(at) => format!("i{at}"),
        Ref::Made(at) => format!("v{at}"),
    }
}

fn operand(operand: &Operand) -> String {
    match operand {
        Operand::Value(of) => value(*of),
        Operand::Values(of) => format!("[{}]", list(of.iter().copied().map(value))),
        Operand::Int(number) => number.to_string(),
        Operand::Ints(numbers) if numbers.is_empty() => "annotate(List[int], [])".to_owned(),
        Operand::Ints(numbers) => format!("{numbers:?}"),
        // The shortest text that reads back as the same number; always with a point or an exponent.
        Operand::Float(number) => format!("{number:?}"),
        Operand::Bool(true) => "True".to_owned(),
        Operand::Bool(false) => "False".to_owned(),
        Operand::Nothing => "None".to_owned(),
        Operand::Word(word) => format!("\"{word}\""),
    }
}
