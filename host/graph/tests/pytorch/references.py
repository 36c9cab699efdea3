"""Makes the models and reference gradients in this folder: `pip install torch==2.15.0 onnx onnxscript`, `python references.py`.

Every model is exported in training mode: by the TorchScript exporter with opset 17 (NAME.17.onnx), by the dynamo exporter with
its own choice of opset, 20 (NAME.20.onnx), and where that makes a difference with the newest that it can write
(NAME.24.onnx). Weights in the files are zero: values come by the formula `values`, which
the Rust tests have too, so nothing depends on PyTorch's random numbers. NAME.txt holds the loss and, for each parameter, the
L2 norm of its gradient and its product with a fixed vector, computed by PyTorch in float64.
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import nn

HERE = Path(__file__).parent
BATCH = 2
CLASSES = 5
VOCABULARY = 11
TOKENS = 6
MASK = (1 << 64) - 1


def units(name, count):
    """`count` numbers between -1 and 1 that look random, by SplitMix64 from the FNV-1a hash of the name."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x100000001B3) & MASK
    numbers = []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) & MASK
        mixed = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & MASK
        mixed ^= mixed >> 31
        numbers.append((mixed >> 40) / (1 << 23) - 1)
    return np.array(numbers)


def values(name, shape):
    """The value of a parameter or running statistic, exact in float32."""
    raw = units(name, int(np.prod(shape)))
    if len(shape) > 1:
        raw = raw * np.sqrt(3 / np.prod(shape[1:]))
    elif name.endswith("weight"):
        raw = 1 + raw / 8
    elif name.endswith("running_mean"):
        raw = raw * 0
    elif name.endswith("running_var"):
        raw = raw * 0 + 1
    else:
        raw = raw / 8
    return raw.astype(np.float32).astype(np.float64).reshape(shape)


class Basic(nn.Module):
    """The block of ResNet-18."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet18(nn.Module):
    """ResNet-18, narrow."""

    def __init__(self, width=2):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        layers, inputs = [], width
        for stage in range(4):
            for block in range(2):
                outputs = width << stage
                layers.append(Basic(inputs, outputs, 2 if stage > 0 and block == 0 else 1))
                inputs = outputs
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(inputs, CLASSES)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(self.layers(x), 1), 1))


class Bottleneck(nn.Module):
    """The pre-activation bottleneck block of ResNet v2."""

    def __init__(self, inputs, inner, outputs, stride, first):
        super().__init__()
        self.bn1 = None if first else nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, inner, 1, stride, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, 1, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs or stride != 1 else None

    def forward(self, x):
        y = x if self.bn1 is None else F.relu(self.bn1(x))
        y = self.conv1(y)
        y = self.conv2(F.relu(self.bn2(y)))
        y = self.conv3(F.relu(self.bn3(y)))
        return y + (x if self.shortcut is None else self.shortcut(x))


class ResNetV2(nn.Module):
    """ResNet v2 of bottleneck blocks: depth 9 n + 2."""

    def __init__(self, blocks=6, width=2):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        layers, inputs = [], width
        for stage in range(3):
            inner = width << stage
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(Bottleneck(inputs, inner, 2 * inner, stride, stage == 0 and block == 0))
                inputs = 2 * inner
        self.layers = nn.Sequential(*layers)
        self.last = nn.BatchNorm2d(inputs)
        self.fc = nn.Linear(inputs, CLASSES)

    def forward(self, x):
        x = self.layers(F.relu(self.bn(self.conv(x))))
        return self.fc(F.relu(self.last(x)).mean((2, 3)))


class Inverted(nn.Module):
    """The inverted residual of MobileNetV2."""

    def __init__(self, inputs, outputs, stride, expand):
        super().__init__()
        inner = inputs * expand
        layers = []
        if expand != 1:
            layers += [nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU6()]
        layers += [nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False), nn.BatchNorm2d(inner), nn.ReLU6()]
        layers += [nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.layers = nn.Sequential(*layers)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.layers(x) if self.adds else self.layers(x)


class MobileNetV2(nn.Module):
    """MobileNetV2, narrow and short; dropout before the classifier as in the original."""

    def __init__(self):
        super().__init__()
        layers, inputs = [nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU6()], 4
        for expand, outputs, count, stride in [(1, 2, 1, 1), (6, 3, 2, 2), (6, 4, 2, 1)]:
            for block in range(count):
                layers.append(Inverted(inputs, outputs, stride if block == 0 else 1, expand))
                inputs = outputs
        layers += [nn.Conv2d(inputs, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(12, CLASSES))

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


class Encoder(nn.Module):
    """A pre-norm transformer layer over scaled_dot_product_attention."""

    def __init__(self, size, heads):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(size)
        self.qkv = nn.Linear(size, 3 * size)
        self.proj = nn.Linear(size, size)
        self.norm2 = nn.LayerNorm(size)
        self.fc1 = nn.Linear(size, 2 * size)
        self.fc2 = nn.Linear(2 * size, size)

    def forward(self, x, mask=None):
        batch, tokens, size = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, size // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.proj(y.transpose(1, 2).reshape(batch, tokens, size))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """A small vision transformer with a class token."""

    def __init__(self, size=8):
        super().__init__()
        self.patch = nn.Conv2d(3, size, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, size))
        self.position = nn.Parameter(torch.zeros(1, 17, size))
        self.layers = nn.ModuleList([Encoder(size, 2) for _ in range(2)])
        self.norm = nn.LayerNorm(size)
        self.head = nn.Linear(size, CLASSES)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x)[:, 0])


class Bert(nn.Module):
    """A BERT-like encoder: embeddings, a padding mask out of the tokens (0 is padding), post-norm layers, a tanh pooler."""

    def __init__(self, size=8):
        super().__init__()
        self.word = nn.Embedding(VOCABULARY, size)
        self.place = nn.Embedding(TOKENS, size)
        self.norm = nn.LayerNorm(size)
        self.drop = nn.Dropout(0.1)
        self.layers = nn.ModuleList(
            [nn.TransformerEncoderLayer(size, 2, 2 * size, dropout=0.1, activation="gelu", batch_first=True)]
        )
        self.pooler = nn.Linear(size, size)
        self.head = nn.Linear(size, CLASSES)

    def forward(self, x):
        places = torch.arange(TOKENS, device=x.device).unsqueeze(0)
        y = self.drop(self.norm(self.word(x) + self.place(places)))
        for layer in self.layers:
            y = layer(y, src_key_padding_mask=x == 0)
        return self.head(torch.tanh(self.pooler(y[:, 0])))


class Groups(nn.Module):
    """Group and instance norm, dilated, transposed and strided convolutions, average pool, both resizes, swish."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=2, dilation=2)
        self.norm1 = nn.GroupNorm(2, 4)
        self.conv2 = nn.Conv2d(4, 4, 3, 2, 1, groups=2)
        self.norm2 = nn.InstanceNorm2d(4, affine=True)
        self.up = nn.ConvTranspose2d(4, 3, 3, 2, 1, output_padding=1)
        self.slope = nn.PReLU(3)
        self.fc = nn.Linear(3 * 9, CLASSES)

    def forward(self, x):
        x = F.silu(self.norm1(self.conv1(x)))
        x = F.hardswish(self.norm2(self.conv2(x)))
        y = self.slope(self.up(F.avg_pool2d(x, 2)))
        y = F.interpolate(y, scale_factor=2, mode="nearest")
        y = F.interpolate(y, size=(6, 6), mode="bilinear", align_corners=False)
        y = F.softplus(F.elu(F.leaky_relu(F.avg_pool2d(y, 2, 2), 0.1)))
        return self.fc(y.flatten(1))


def image(side):
    return torch.tensor(units("x", BATCH * 3 * side * side).reshape(BATCH, 3, side, side))


def tokens():
    return torch.tensor([[(3 + 5 * row + 7 * at) % VOCABULARY for at in range(TOKENS)] for row in range(BATCH)])


def main():
    warnings.filterwarnings("ignore")
    models = {
        "resnet18": (ResNet18(), image(32)),
        "resnet56v2": (ResNetV2(), image(8)),
        "mobilenetv2": (MobileNetV2(), image(16)),
        "vit": (ViT(), image(16)),
        "bert": (Bert(), tokens()),
        "groups": (Groups(), image(8)),
    }
    for name, (model, x) in models.items():
        if len(sys.argv) > 1 and name not in sys.argv[1:]:
            continue
        reference(name, model, x)
        export(name, model, x)


def reference(name, model, x):
    """Loss and gradients in float64; dropout is left out."""
    model = model.double().train()
    state = {key: torch.tensor(values(key, tuple(value.shape))) for key, value in model.state_dict().items() if value.is_floating_point()}
    model.load_state_dict(state, strict=False)
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        if isinstance(part, nn.MultiheadAttention):
            part.dropout = 0.0
    labels = torch.tensor([(7 * row + 3) % CLASSES for row in range(BATCH)])
    loss = F.cross_entropy(model(x), labels)
    loss.backward()
    lines = [f"torch {torch.__version__}", f"loss {loss.item():.12e}"]
    for key, parameter in model.named_parameters():
        gradient = parameter.grad.flatten().numpy()
        along = float(gradient @ units(f"along {key}", gradient.size))
        lines.append(f"{key} {np.linalg.norm(gradient):.12e} {along:.12e}")
    (HERE / f"{name}.txt").write_text("\n".join(lines) + "\n")


def export(name, model, x):
    model = model.float().train()
    for part in model.modules():
        if isinstance(part, (nn.Dropout,)):
            part.p = 0.2
        if isinstance(part, nn.MultiheadAttention):
            part.dropout = 0.1
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.zero_()
    x = x.float() if x.is_floating_point() else x
    common = {"input_names": ["x"], "output_names": ["logits"], "training": torch.onnx.TrainingMode.TRAINING, "do_constant_folding": False}
    torch.onnx.export(model, (x,), str(HERE / f"{name}.17.onnx"), opset_version=17, dynamo=False, dynamic_axes={"x": {0: "N"}, "logits": {0: "N"}}, **common)
    newest = {"dynamo": True, "external_data": False, "optimize": False, "verbose": False}
    newest["dynamic_shapes"] = ({0: torch.export.Dim("N")},)
    torch.onnx.export(model, (x,), str(HERE / f"{name}.20.onnx"), **newest, **common)
    kinds = ["17", "20"]
    if name in ("vit", "groups"):
        torch.onnx.export(model, (x,), str(HERE / f"{name}.24.onnx"), opset_version=24, **newest, **common)
        kinds.append("24")
    for kind in kinds:
        path = HERE / f"{name}.{kind}.onnx"
        proto = onnx.load(path)
        slim(proto)
        onnx.save(proto, path)
        operators = sorted({node.op_type for node in proto.graph.node})
        print(path.name, proto.opset_import[0].version, path.stat().st_size, *operators)


def slim(proto):
    """Leaves out what is not read: shapes in between, texts, metadata."""
    del proto.graph.value_info[:]
    for node in proto.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    del proto.graph.metadata_props[:]
    for one in [*proto.graph.initializer, *proto.graph.input, *proto.graph.output]:
        del one.metadata_props[:]


if __name__ == "__main__":
    main()
