"""Exports one training step of a PyTorch model as a TorchScript step, for the engine around libtorch.

    pip install torch numpy
    python benches/torch_step.py resnet56v2 --batch 128 --optimizer momentum -o train.torchstep

The step has the ports of the ONNX training graph that `cloister graph train` makes of the same model: the model's input `x`, `labels`,
parameters and running statistics by their names in PyTorch, `learning_rate`, `step` and the optimizer's state with an optimizer; out
come `loss`, `grad/...` or `next/...`. Forward is what PyTorch's tracer sees; gradients are taken by libtorch's own automatic
differentiation where the step runs; convolutions run in channels_last unless `--rows-first` says otherwise. `--eager N` measures
PyTorch itself on the same model.

For a model of your own: `from torch_step import step` and write what `step(model, x, ...)` returns to a file. The format, and which
operators it may use, stand in host/graph/src/torch.
"""

import argparse
import sys
import time
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent / "host/graph/tests/pytorch"))
import references  # noqa: E402: the networks that the tests of differentiation have

NAMES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"}
CHANNELS_LAST, ROWS_FIRST = 2, 0


class Program:
    """The lines of a step."""

    def __init__(self):
        self.ports, self.lines, self.made, self.inputs = [], [], 0, 0

    def input(self, name, like, kind):
        self.ports.append(f"input\t{name}\t{NAMES[like.dtype]}\t{list(like.shape)}\t{kind}")
        self.inputs += 1
        return f"i{self.inputs - 1}"

    def output(self, name, like, kind, value, returned):
        self.ports.append(f"output\t{name}\t{NAMES[like.dtype]}\t{list(like.shape)}\t{kind}")
        returned.append(value)

    def call(self, operator, *operands, **named):
        words = [shown(operand) for operand in operands] + [f"{name}={shown(value)}" for name, value in named.items()]
        self.made += 1
        self.lines.append(f"v{self.made - 1} = {operator}({', '.join(words)})")
        return f"v{self.made - 1}"

    def gradients(self, of, leaves):
        values = [f"v{self.made + at}" for at in range(len(leaves))]
        self.made += len(leaves)
        self.lines.append(f"{', '.join(values)} = gradients({of}, [{', '.join(leaves)}])")
        return values

    def text(self, classes, returned):
        head = ["cloister torchscript step 1", *self.ports]
        if classes:
            head.append(f"classes\t{classes}")
        return "\n".join([*head, *self.lines, f"return {', '.join(returned)}"]) + "\n"


def shown(operand):
    if isinstance(operand, list):
        return f"[{', '.join(shown(one) for one in operand)}]"
    if operand is None or isinstance(operand, (bool, int, float)):
        return repr(operand)
    return operand if operand[:1] in "iv" and operand[1:].isdigit() else f'"{operand}"'


def emit(program, graph, values):
    """Writes the traced nodes that the graph's result needs, and gives its name."""
    (result,) = graph.outputs()
    needed, nodes = {result.debugName()}, []
    for node in reversed(list(graph.nodes())):
        if any(output.debugName() in needed for output in node.outputs()):
            needed.update(value.debugName() for value in node.inputs())
            nodes.append(node)
    for node in reversed(nodes):
        operands = [values[value.debugName()] for value in node.inputs()]
        kind = node.kind()
        if kind == "prim::Constant":
            made = node.output().toIValue()
        elif kind == "prim::ListConstruct":
            made = operands
        elif kind == "aten::_convolution":
            x, weight, bias, stride, padding, dilation, transposed, extra, groups = operands[:9]
            if transposed:
                made = program.call("conv_transpose2d", x, weight, bias, stride, padding, extra, groups, dilation)
            else:
                made = program.call("conv2d", x, weight, bias, stride, padding, dilation, groups)
        elif kind.startswith("aten::") and not kind.endswith("_"):
            arguments = torch._C.parse_schema(node.schema()).arguments
            plain = [value for value, argument in zip(operands, arguments) if not argument.kwarg_only]
            named = {argument.name: value for value, argument in zip(operands, arguments) if argument.kwarg_only}
            named = {name: value for name, value in named.items() if value is not None}
            made = program.call(kind.removeprefix("aten::"), *plain, **named)
        else:
            sys.exit(f"the model uses {kind}, which a step has not: {node}")
        values[node.output().debugName()] = made
    return values[result.debugName()]


def step(model, x, classes, optimizer="none", loss=F.cross_entropy, channels_last=True, weight_decay=0.0):
    """The text of a step: `x` is a batch as the model takes it, `loss` a function of its outputs and of i64 labels. Pictures go through
    convolutions in channels_last, which pays where maps are large, or rows first. Weight decay is of every parameter, as in PyTorch."""
    model = model.train()
    for part in model.modules():
        if getattr(part, "num_batches_tracked", None) is not None:
            part.num_batches_tracked = None
    parameters, statistics = dict(model.named_parameters()), dict(model.named_buffers())
    names = [*parameters, *statistics]
    labels = torch.zeros(x.shape[0], dtype=torch.int64)

    def forward(x, labels, *tensors):
        for name, tensor in zip(names, tensors):
            owner, _, own = name.rpartition(".")
            owner = model.get_submodule(owner)
            owner._parameters.pop(own, None)
            owner._buffers.pop(own, None)
            setattr(owner, own, tensor)
        return loss(model(x), labels)

    tensors = [tensor.detach().clone() for tensor in [*parameters.values(), *statistics.values()]]
    graph = torch.jit.trace(forward, (x, labels, *tensors), check_trace=False).inlined_graph

    program, returned = Program(), []
    data, target = program.input("x", x, "data"), program.input("labels", labels, "labels")
    given = {name: program.input(name, tensor, "parameter") for name, tensor in parameters.items()}
    running = {name: program.input(name, tensor, "statistic") for name, tensor in statistics.items()}
    one, slots = torch.zeros(1), {"none": [], "sgd": [], "momentum": ["momentum"], "adam": ["m", "v"]}[optimizer]
    if optimizer != "none":
        rate = program.input("learning_rate", one, "learning-rate")
        count = program.input("step", torch.zeros(1, dtype=torch.int64), "step")
    state = {}
    for slot in slots:
        for name, tensor in parameters.items():
            state[slot, name] = program.input(f"state/{slot}/{name}", tensor, f"state {slot} {name}")

    images = channels_last and x.dim() == 4
    leaves, own = {}, {}
    for name, tensor in parameters.items():
        laid = given[name]
        if images and tensor.dim() == 4:
            laid = program.call("contiguous", laid, memory_format=CHANNELS_LAST)
        leaves[name] = program.call("leaf", laid)
    for name in statistics:
        own[name] = program.call("clone", running[name])
    fed = program.call("contiguous", data, memory_format=CHANNELS_LAST) if images else data
    values = dict(zip((value.debugName() for value in graph.inputs()), [fed, target, *leaves.values(), *own.values()]))
    value = emit(program, graph, values)
    gradients = dict(zip(leaves, program.gradients(value, list(leaves.values()))))
    for name, tensor in parameters.items():
        if images and tensor.dim() == 4:
            gradients[name] = program.call("contiguous", gradients[name], memory_format=ROWS_FIRST)

    program.output("loss", one, "loss", program.call("reshape", program.call("detach", value), [1]), returned)
    later = {}
    if optimizer == "adam":
        corrections = [program.call("add", program.call("neg", program.call("pow", beta, count)), 1.0) for beta in (0.9, 0.999)]
    for name in parameters:
        gradient, old = gradients[name], given[name]
        if optimizer == "none":
            continue
        change = program.call("add", gradient, old, alpha=weight_decay) if weight_decay else gradient
        if optimizer == "momentum":
            change = program.call("add", change, state["momentum", name], alpha=0.9)
            later["momentum", name] = change
        if optimizer == "adam":
            first = program.call("add", program.call("mul", state["m", name], 0.9), change, alpha=0.1)
            second = program.call("addcmul", program.call("mul", state["v", name], 0.999), change, change, value=0.001)
            later["m", name], later["v", name] = first, second
            root = program.call("add", program.call("sqrt", program.call("div", second, corrections[1])), 1e-8)
            change = program.call("div", program.call("div", first, corrections[0]), root)
        later["next", name] = program.call("addcmul", old, change, rate, value=-1.0)
    for name, tensor in parameters.items():
        if optimizer == "none":
            program.output(f"grad/{name}", tensor, f"gradient {name}", gradients[name], returned)
        else:
            program.output(f"next/{name}", tensor, f"next-parameter {name}", later["next", name], returned)
    for slot in slots:
        for name, tensor in parameters.items():
            program.output(f"next/state/{slot}/{name}", tensor, f"next-state {slot} {name}", later[slot, name], returned)
    for name, tensor in statistics.items():
        program.output(f"next/{name}", tensor, f"next-statistic {name}", own[name], returned)
    return program.text(classes, returned)


class Mlp(nn.Module):
    """`cloister graph sample mlp`."""

    def __init__(self, inputs=64, hidden=24, classes=4):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(inputs, hidden), nn.Linear(hidden, classes)

    def forward(self, x):
        return self.fc2(F.relu(self.fc1(x)))


class Cnn(nn.Module):
    """`cloister graph sample cnn`."""

    def __init__(self, side=8, hidden=4, classes=4):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, hidden, 3, padding=1, bias=False), nn.BatchNorm2d(hidden)
        self.conv2, self.bn2 = nn.Conv2d(hidden, 2 * hidden, 3, padding=1, bias=False), nn.BatchNorm2d(2 * hidden)
        self.fc = nn.Linear(2 * hidden * (side // 4) ** 2, classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        return self.fc(x.flatten(1))


class Wide(nn.Module):
    """The bottleneck block of ResNet-50."""

    def __init__(self, inputs, inner, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, 4 * inner, 1, bias=False), nn.BatchNorm2d(4 * inner)
        self.downsample = None
        if stride != 1 or inputs != 4 * inner:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, 4 * inner, 1, stride, bias=False), nn.BatchNorm2d(4 * inner))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet50(nn.Module):
    """ResNet-50 with its 7x7 stem."""

    def __init__(self, classes=10):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        layers, inputs = [], 64
        for inner, count, stride in [(64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)]:
            for block in range(count):
                layers.append(Wide(inputs, inner, stride if block == 0 else 1))
                inputs = 4 * inner
        self.layers, self.fc = nn.Sequential(*layers), nn.Linear(inputs, classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.fc(F.adaptive_avg_pool2d(self.layers(x), 1).flatten(1))


def resnet56v2():
    """The reference workload's network: 16, 32 and 64 channels, ten classes."""
    references.CLASSES = 10
    return references.ResNetV2(width=16)


# A model, the shape of one row, and its classes. `narrow-` ones are the tests'.
MODELS = {
    "mlp": (Mlp, (64,), 4),
    "cnn": (Cnn, (1, 8, 8), 4),
    "narrow-resnet18": (references.ResNet18, (3, 32, 32), 5),
    "narrow-resnet56v2": (references.ResNetV2, (3, 8, 8), 5),
    "resnet56v2": (resnet56v2, (3, 24, 24), 10),
    "resnet50": (ResNet50, (3, 32, 32), 10),
}


def eager(model, row, batch, classes, count, channels_last):
    """The median of seconds a step in PyTorch itself: forward, backward, momentum."""
    torch.manual_seed(1)
    model = model.train()
    x, labels = torch.randn(batch, *row), torch.arange(batch) * 7 % classes
    if channels_last:
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    optimizer, times = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), []
    for _ in range(count + 2):
        begin = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()
        times.append(time.perf_counter() - begin)
    return sorted(times[2:])[count // 2]


def main():
    parser = argparse.ArgumentParser(description="Exports a training step of one of the models here as a TorchScript step.")
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--optimizer", choices=["none", "sgd", "momentum", "adam"], default="none")
    parser.add_argument("--rows-first", action="store_true", help="no channels_last")
    parser.add_argument("-o", "--output", type=Path, help="where the step goes")
    parser.add_argument("--eager", type=int, metavar="STEPS", help="say how long so many steps take in PyTorch itself instead")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch, for --eager")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    model, row, classes = MODELS[args.model]
    if args.eager:
        torch.set_num_threads(args.threads)
        for layout in (False, True):
            median = eager(model(), row, args.batch, classes, args.eager, layout)
            print(f"{args.model} batch {args.batch} PyTorch {torch.__version__} eager{' channels_last' * layout}: median {median:.3f} s")
        return
    if args.output is None:
        parser.error("--output or --eager is wanted")
    text = step(model(), torch.zeros(args.batch, *row), classes, args.optimizer, channels_last=not args.rows_first)
    args.output.write_text(text)


if __name__ == "__main__":
    main()
