"""Small networks to compile: random ones, and those of torchvision, transformers and the lab."""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
import torchvision
from hypothesis import strategies as st
from torch import nn
from torch.utils._pytree import tree_leaves, tree_structure

from fggp.lab.training.models import create
from fggp.ship.graph.calls import Call
from fggp.ship.graph.interpret import execute, run
from fggp.ship.graph.operations import RELU, Activation, Conv2d, Graph, Value


def randomised(model, seed=0):
    """The model in evaluation mode, its norms' statistics and weights random, and no parameter left at zero."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            if module.affine:
                module.weight.data.uniform_(-1.5, 1.5, generator=generator)
                module.bias.data.normal_(0, 0.3, generator=generator)
    for parameter in model.parameters():
        if not parameter.any():
            parameter.data.normal_(0, 0.1, generator=generator)
    return model.eval()


def vit():
    return torchvision.models.VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64)


def vgg11_bn():
    """torchvision's, without the 100 M weights of its first linear layer."""
    model = vision("vgg11_bn")
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.classifier[0] = nn.Linear(512, 4096)
    return model


def inception(name):
    return torchvision.models.get_model(name, weights=None, aux_logits=False, init_weights=False, num_classes=10)


def vision(name):
    return torchvision.models.get_model(name, weights=None, num_classes=10)


# Name: (how it is built, side of its images, channels).
IMAGE_MODELS = {
    "resnet18": (lambda: vision("resnet18"), 64, 3),
    "resnet50": (lambda: vision("resnet50"), 32, 3),
    "vgg11_bn": (vgg11_bn, 32, 3),
    "mobilenet_v3_small": (lambda: vision("mobilenet_v3_small"), 64, 3),
    "convnext_tiny": (lambda: vision("convnext_tiny"), 32, 3),
    "efficientnet_b0": (lambda: vision("efficientnet_b0"), 32, 3),
    "shufflenet_v2_x0_5": (lambda: vision("shufflenet_v2_x0_5"), 32, 3),
    "vit": (vit, 32, 3),
    "densenet121": (lambda: vision("densenet121"), 32, 3),
    "googlenet": (lambda: inception("googlenet"), 32, 3),
    "inception_v3": (lambda: inception("inception_v3"), 96, 3),
    "lab vgg19": (lambda: create("vgg19", 10), 32, 3),
    "lab resnet50": (lambda: create("resnet50", 10), 16, 3),
    "lab resnet20": (lambda: create("resnet20", 10), 16, 3),
    "lab digits-cnn": (lambda: create("digits-cnn", 10, 1), 8, 1),
}


class Net(nn.Module):
    """A network of a list of steps, each on one or two of the values before it, all [N, 4, 6, 6]. Returns the last two.

    Args:
        steps: tuples (kind, first value, second value); values are counted back from the last one.
    """

    def __init__(self, steps):
        super().__init__()
        self.steps = steps
        make = {
            "conv": lambda: nn.Conv2d(4, 4, 3, padding=1, bias=False),
            "conv+bias": lambda: nn.Conv2d(4, 4, 1),
            "grouped": lambda: nn.Conv2d(4, 4, 3, padding="same", groups=2),
            "bn": lambda: nn.BatchNorm2d(4),
            "bn, not affine": lambda: nn.BatchNorm2d(4, affine=False),
            "dropout": nn.Dropout,
        }
        self.layers = nn.ModuleList([make.get(kind, nn.Identity)() for kind, *_ in steps])

    def forward(self, x):
        values = [x * 1]
        for layer, (kind, i, j) in zip(self.layers, self.steps, strict=True):
            a, b = (values[-1 - k % len(values)] for k in (i, j))
            if kind == "add":
                y = a + b
            elif kind == "add_":
                y = a.add_(b)
            elif kind == "relu":
                y = F.relu(a)
            elif kind == "relu_":
                y = F.relu_(a)
            elif kind == "part_":  # writes through a view
                a[:, 1].mul_(2)
                y = a.view(a.size(0), 4, 36).view(a.size(0), 4, 6, 6)
            elif kind == "concat":
                y = torch.cat([a, b], 1)[:, ::2].contiguous()
            elif kind == "scale":
                y = 0.5 * a - 2
            else:
                y = layer(a)
            values.append(y)
        return values[-1], values[-2]


KINDS = ["conv", "conv+bias", "grouped", "bn", "bn, not affine", "dropout", "add", "relu", "relu_", "concat", "scale"]


def nets(kinds=KINDS):
    """Random networks of these kinds of steps."""
    # Mostly the last value, because chains are fused.
    back = st.sampled_from([0, 0, 0, 1, 2, 5])
    steps = st.lists(st.tuples(st.sampled_from(kinds), back, back), min_size=3, max_size=10)
    return st.builds(lambda plan, seed: randomised(Net(plan), seed), steps, st.integers(0, 99))


class Builder:
    """Builds a graph operation by operation, as `capture` and `simplify` would, in less time.

    Args:
        batch: the number of images of the example.
        seed: of the random weights and inputs.
    """

    def __init__(self, batch=2, seed=0):
        self.batch, self.ops, self.inputs = batch, [], []
        self.generator = torch.Generator().manual_seed(seed)

    def randn(self, *shape):
        return torch.randn(shape, generator=self.generator)

    def sparse(self, *shape, density=0.3):
        """A random weight with about this density."""
        nonzero = torch.rand(shape, generator=self.generator) < density
        return self.randn(*shape) * nonzero / max(1, (density * math.prod(shape[1:])) ** 0.5)

    def input(self, *shape):
        """Add an input. shape: without the batch."""
        self.inputs.append(Value(f"x{len(self.inputs)}", (self.batch, *shape), torch.float32, ("N", *shape)))
        return self.inputs[-1]

    def add(self, kind, *inputs, **settings):
        """Add an operation, and return its output."""
        op = kind(inputs, None, **settings)
        shape = execute(op, {v: torch.zeros(v.shape) for v in inputs}).shape
        return self._add(op, shape)

    def call(self, target, *args):
        """Add a call of an operator, and return its output."""
        op = Call.of(target, args, {}, None)
        return self._add(op, execute(op, {v: torch.zeros(v.shape) for v in op.inputs}).shape)

    def _add(self, op, shape):
        value = Value(f"v{len(self.ops)}", tuple(shape), torch.float32, ("N", *shape[1:]))
        self.ops.append(replace(op, output=value))
        return value

    def conv(self, *inputs, weight, stride=1, padding=0, dilation=1, groups=1, activation=None, bias=None):
        """Add a convolution of (x,) or (x, residual), and return its output."""
        pair = [(x, x) if isinstance(x, int) else tuple(x) for x in (stride, padding, dilation)]
        settings = dict(zip(PAIRS, pair, strict=True), groups=groups, activation=activation)
        return self.add(Conv2d, *inputs, weight=weight, bias=bias, **settings)

    def graph(self, *outputs):
        """The graph of all that has been added, with these outputs."""
        return Graph(tuple(self.inputs), (), tuple(self.ops), outputs, tree_structure(list(outputs)))


PAIRS = ("stride", "padding", "dilation")


def exact(graph, inputs):
    """A graph's outputs, computed in float64."""
    wide = replace(graph, ops=tuple(op.with_constants(lambda t: t.double()) for op in graph.ops))
    return tree_leaves(run(wide, [x.double() for x in inputs]))


# One of each kind; all slopes are below 1.5, and no result is farther from 0 than its argument plus 1.
ACTIVATIONS = [
    RELU,
    Activation("clamp", (0, 6)),
    Activation("clamp", (-0.5, 0.25)),
    Activation("leaky_relu", (0.3,)),
    Activation("elu", (0.7, 1.3, 0.5)),
    *map(Activation, ["hard_sigmoid", "hard_swish", "sigmoid", "silu", "tanh", "gelu", "gelu_tanh", "mish"]),
]
