"""One way of training one model in PyTorch, a step at a time, for benches/training.rs.

    python pytorch.py MODEL WAY THREADS
    python pytorch.py MODEL export FILE.onnx
    python pytorch.py MODEL torchstep FILE.torchstep

MODEL is mlp, cnn, resnet56 or resnet50; WAY is eager, channels_last or compile. `export` writes the model as it starts, so that all
engines train the same network; it needs nothing but PyTorch itself. `torchstep` writes the whole step for the engine around libtorch. Reads a line from standard input for each request:
`step N` takes N steps and answers `{"wall_s": S, "cpu_s": S, "loss": X}`, both a step; `memory` answers `{"peak_bytes": N}`. The first
line that it writes says how long the first step took, compiling included, from the moment at which the model was there.
"""

import json
import resource
import sys
import time
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

WEIGHT_DECAY = 2e-4


def norm(channels, decay=0.9):
    return nn.BatchNorm2d(channels, eps=1e-5, momentum=1 - decay)


class PreActivation(nn.Module):
    """A block of ResNet v2: batch norm and rectifier before each of two 3x3 convolutions."""

    def __init__(self, before, channels, stride, projects):
        super().__init__()
        self.bn1, self.bn2 = norm(before, 0.997), norm(channels, 0.997)
        self.conv1 = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(before, channels, 1, stride, bias=False) if projects else None

    def forward(self, x):
        active = functional.relu(self.bn1(x))
        beside = self.shortcut(active) if self.shortcut is not None else x
        return self.conv2(functional.relu(self.bn2(self.conv1(active)))) + beside


def resnet56():
    layers, before = [nn.Conv2d(3, 16, 3, 1, 1, bias=False)], 16
    for stage in range(3):
        for block in range(9):
            channels = 16 << stage
            layers.append(PreActivation(before, channels, 2 if stage and not block else 1, not block))
            before = channels
    layers += [norm(64, 0.997), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(*layers), (128, 3, 24, 24)


class Bottleneck(nn.Module):
    """A block of ResNet-50."""

    def __init__(self, before, channels, stride, projects):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, channels, 1, bias=False), norm(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False), norm(channels)
        self.conv3, self.bn3 = nn.Conv2d(channels, 4 * channels, 1, bias=False), norm(4 * channels)
        self.shortcut = None
        if projects:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, 4 * channels, 1, stride, bias=False), norm(4 * channels)
            )

    def forward(self, x):
        beside = self.shortcut(x) if self.shortcut is not None else x
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.relu(self.bn2(self.conv2(x)))
        return functional.relu(self.bn3(self.conv3(x)) + beside)


def resnet50():
    layers = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), norm(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    before = 64
    for stage, blocks in enumerate([3, 4, 6, 3]):
        for block in range(blocks):
            channels = 64 << stage
            layers.append(Bottleneck(before, channels, 2 if stage and not block else 1, not block))
            before = 4 * channels
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 10)]
    return nn.Sequential(*layers), (64, 3, 32, 32)


def cnn():
    layers = []
    for before, channels in [(1, 16), (16, 32)]:
        layers += [nn.Conv2d(before, channels, 3, 1, 1, bias=False), norm(channels), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 4, 10)), (64, 1, 8, 8)


def mlp():
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)), (64, 64)


def main():
    name, way, last = sys.argv[1:]
    torch.manual_seed(1)
    model, shape = {"mlp": mlp, "cnn": cnn, "resnet56": resnet56, "resnet50": resnet50}[name]()
    if way == "export":
        torch.onnx.export(
            model, torch.randn(shape), last, opset_version=17, dynamo=False,
            training=torch.onnx.TrainingMode.TRAINING, do_constant_folding=False,
            input_names=["x"], output_names=["logits"], dynamic_axes={"x": {0: "N"}, "logits": {0: "N"}},
        )
        return
    if way == "torchstep":
        sys.path.insert(0, str(Path(__file__).parent.parent))
        import torch_step  # not for the ways above: it brings the tests' networks

        warnings.filterwarnings("ignore")
        Path(last).write_text(torch_step.step(model, torch.zeros(shape), 10, "momentum", weight_decay=WEIGHT_DECAY))
        return
    torch.set_num_threads(int(last))
    x = torch.randn(shape)
    labels = torch.arange(shape[0]) % 10
    if way != "eager":
        x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
        model = model.to(memory_format=torch.channels_last)
    run = torch.compile(model) if way == "compile" else model
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=WEIGHT_DECAY)
    model.train()

    def step():
        optimizer.zero_grad()
        loss = functional.cross_entropy(run(x), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    begin = time.perf_counter()
    step()
    print(json.dumps({"first_s": time.perf_counter() - begin}), flush=True)
    for line in sys.stdin:
        words = line.split()
        if words[:1] == ["step"]:
            count = int(words[1])
            begin, cpu = time.perf_counter(), time.process_time()
            for _ in range(count):
                loss = step()
            wall, cpu = time.perf_counter() - begin, time.process_time() - cpu
            print(json.dumps({"wall_s": wall / count, "cpu_s": cpu / count, "loss": loss}), flush=True)
        elif words == ["memory"]:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            print(json.dumps({"peak_bytes": peak}), flush=True)
        else:
            return


main()
