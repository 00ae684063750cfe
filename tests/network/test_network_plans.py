"""Plans: networks in the kernels' layout, dense ones in row-major order, reused memory, batches of any size."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from described import ACTIVATIONS, Described, assert_close
from networks import build, closing

BATCHES = st.sampled_from([1, 2, 3, 16, 33])
activations = st.sampled_from(ACTIVATIONS)
# Operations; convolutions and linear layers come more often.
KINDS = ["conv"] * 4 + ["pointwise", "depthwise", "linear", "last", "add", "activate", "affine", "scale", "gate"]
KINDS += ["concat", "channels", "slice", "max", "average", "adaptive"]
KINDS_ON_TOKENS = ["linear"] * 3 + ["norm"] * 2 + ["add", "activate", "concat", "slice", "scale", "depthwise"]
densities = st.sampled_from([0.0, 0.1, 0.3, 1.0])


def pairs(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def grow(draw, net, images, vectors):
    """Add one random operation that reads values of rank 4 (``images``) or of rank 2."""
    x = draw(st.sampled_from(images))
    channels, height, width = net.shapes[x]
    alike = [v for v in images if net.shapes[v] == net.shapes[x]]
    kind = draw(st.sampled_from(KINDS))
    activation, density = draw(activations), draw(densities)
    match kind:
        case "conv" | "depthwise":
            kernel = draw(pairs(1, 4))
            settings = {"stride": draw(pairs(1, 3)), "padding": draw(pairs(0, 2)), "dilation": draw(pairs(1, 2))}
            for axis, size in enumerate((height, width)):
                if size + 2 * settings["padding"][axis] < settings["dilation"][axis] * (kernel[axis] - 1) + 1:
                    return
            groups, outputs = (channels, channels) if kind == "depthwise" else (1, draw(st.integers(1, 20)))
            made = net.conv(
                x,
                outputs,
                kernel,
                density=density,
                activation=activation,
                groups=groups,
                bias=draw(st.booleans()),
                **settings,
            )
            images.append(made)
        case "pointwise":
            residual = draw(st.none() | st.sampled_from(alike))
            images.append(net.conv(x, channels, density=density, residual=residual, activation=activation))
        case "add":
            images.append(net.sum(x, draw(st.sampled_from(alike)), activation))
        case "activate":
            images.append(net.activate(x, activation or ("tanh",)))
        case "affine":
            images.append(net.affine(x, activation))
        case "gate":
            pooled = net.adaptive_average_pool(x, 1, 1)
            images.append(net.gate(x, net.conv(pooled, channels, density=density, activation=("sigmoid",))))
        case "concat":
            like = [v for v in images if net.shapes[v][1:] == net.shapes[x][1:]]
            images.append(net.concat(*draw(st.lists(st.sampled_from(like), min_size=1, max_size=3))))
        case "channels":
            index = draw(st.lists(st.integers(0, channels - 1), min_size=1, max_size=20))
            images.append(net.channels(index, x))
        case "max" | "average":
            kernel, stride, ceil = draw(pairs(1, 3)), draw(pairs(1, 3)), draw(st.booleans())
            padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
            if height + 2 * padding[0] < kernel[0] or width + 2 * padding[1] < kernel[1]:
                return
            if kind == "max":
                images.append(net.max_pool(x, kernel, stride=stride, padding=padding, ceil=ceil))
            else:
                count = draw(st.booleans())
                images.append(
                    net.average_pool(x, kernel, stride=stride, padding=padding, ceil=ceil, count_padding=count)
                )
        case "adaptive":
            images.append(net.adaptive_average_pool(x, *draw(pairs(1, 4))))
        case "linear":
            v = draw(st.sampled_from([*vectors, net.flatten(x)]))
            alike = [w for w in vectors if net.shapes[w] == (20,)]
            residual = draw(st.sampled_from([None, *alike]))
            vectors.append(net.linear(v, 20, density=density, residual=residual, activation=activation))
        case "scale":
            images.append(net.scale(x, 1, draw(st.sampled_from(["mul", "add", "sub"]))))
        case "slice":
            start = draw(st.integers(0, channels - 1))
            images.append(net.slice(x, 1, start, draw(st.integers(start + 1, channels)), draw(st.integers(1, 3))))
        case "last":  # a linear layer over the channels, which go last and come back
            last = net.permute(x, 0, 2, 3, 1)
            made = net.linear(last, channels, density=density, residual=draw(st.sampled_from([None, last])))
            images.append(net.permute(net.activate(made, ("gelu",)), 0, 3, 1, 2))


@st.composite
def networks(draw):
    """A random network, and some of its values to return."""
    shape = draw(st.integers(1, 6)), draw(st.integers(1, 12)), draw(st.integers(1, 20))
    net = Described(shape, shape, seed=draw(st.integers(0, 9)))
    images, vectors = [0, 1], []
    for _ in range(draw(st.integers(1, 8))):
        draw(grow(net, images, vectors))
    outputs = draw(st.lists(st.sampled_from([*images, *vectors]), min_size=1, max_size=3))
    return net, [(images + vectors)[-1], *outputs]


@st.composite
def networks_of_tokens(draw):
    """A random network of tokens, and some of its values to return."""
    places = draw(st.sampled_from([(5,), (20,), (3, 4), (7, 7)]))
    net = Described((*places, 8), (*places, 8), seed=draw(st.integers(0, 9)))
    tokens = [0, 1]
    for _ in range(draw(st.integers(1, 8))):
        x = draw(st.sampled_from(tokens))
        size, last = net.shapes[x][-1], len(places) + 1
        alike = [v for v in tokens if net.shapes[v] == net.shapes[x]]
        match draw(st.sampled_from(KINDS_ON_TOKENS)):
            case "linear":
                outputs = draw(st.sampled_from([8, 16]))
                residual = draw(st.sampled_from([v for v in tokens if net.shapes[v] == (*places, outputs)] or [None]))
                residual = residual if draw(st.booleans()) else None
                activation = draw(activations)
                density = draw(densities)
                tokens.append(net.linear(x, outputs, density=density, residual=residual, activation=activation))
            case "norm":
                tokens.append(net.layer_norm(x))
            case "add":
                tokens.append(net.sum(x, draw(st.sampled_from(alike)), draw(activations)))
            case "activate":
                tokens.append(net.activate(x, ("gelu",)))
            case "concat":
                tokens.append(net.concat(x, draw(st.sampled_from(tokens)), dim=-1))
            case "slice":
                tokens.append(net.slice(x, last, 0, draw(st.integers(1, size))))
            case "scale":
                tokens.append(net.scale(x, last))
            case "depthwise":  # of the same tokens as an image
                to_first, to_last = ((0, 2, 1), (0, 2, 1)) if len(places) == 1 else ((0, 3, 1, 2), (0, 2, 3, 1))
                kernel, padding = ([3] * len(places), [1] * len(places))
                first = net.permute(x, *to_first)
                made = net.conv(first, size, kernel, padding=padding, groups=size, density=1.0)
                tokens.append(net.permute(made, *to_last))
    outputs = draw(st.lists(st.sampled_from(tokens), min_size=1, max_size=3))
    return net, [tokens[-1], *outputs]


PLANS = st.fixed_dictionaries(
    {},
    optional={
        "memory": st.just("separate"),
        "lanes": st.sampled_from(["one", "vector"]),
        "products": st.sampled_from(["kernels", "operators"]),
        "pieces": st.just("no"),
    },
)


@given(
    made=networks() | networks_of_tokens(),
    plan=PLANS,
    batches=st.lists(BATCHES, min_size=1, max_size=3),
    threads=st.sampled_from([1, 2]),
)
def test_networks_compute_what_pytorch_does(made, plan, batches, threads):
    net, outputs = made
    net.plan = plan
    with closing(net.build(*outputs)) as network:
        for batch in batches:
            inputs = net.inputs(batch)
            first = network.run(inputs, threads)
            again = network.run(inputs, threads)  # on memory that the first run wrote
            for (name, y), right in zip(first.items(), net.expected(inputs, *outputs), strict=True):
                assert_close(y, right)
                assert torch.equal(again[name], y)


@given(made=networks() | networks_of_tokens(), batch=BATCHES, lanes=st.sampled_from(["one", "vector"]))
def test_memory_that_is_reused(made, batch, lanes):
    """Bits are equal to those of a run in which every tensor has memory of its own; pieces cannot tell either."""
    net, outputs = made
    inputs = net.inputs(batch)
    results = []
    for memory in ("separate", "reused"):
        net.plan = {"memory": memory, "lanes": lanes, "products": "kernels", "tilings": "first", "pieces": "no"}
        with closing(net.build(*outputs)) as network:
            network.run(net.inputs(batch))  # other numbers, which must not be left anywhere
            results.append(network.run(inputs))
    separate, reused = results
    assert all(torch.equal(separate[name], reused[name]) for name in separate)


def residual_network(plan=None):
    net = Described((3, 9, 9), plan=plan)
    x = net.conv(0, 8, (3, 3), padding=(1, 1), activation=("clamp", 0.0, "inf"))
    y = net.conv(net.conv(x, 8), 8, (3, 3), padding=(1, 1), residual=x)
    return net, y, net.linear(net.flatten(net.max_pool(y, (2, 2), stride=(2, 2), padding=(0, 0))), 5)


@pytest.mark.parametrize("batch", [16, 17, 33, 70])
@pytest.mark.parametrize("threads", [1, 2])
def test_pieces_of_a_batch(batch, threads):
    results = []
    for pieces in ("no", "yes"):
        net, *outputs = residual_network({"pieces": pieces})
        inputs = net.inputs(batch)
        with closing(net.build(*outputs, outputs[0])) as network:
            results.append(network.run(inputs, threads))
        for y, right in zip(results[-1].values(), net.expected(inputs, *outputs, outputs[0]), strict=True):
            assert_close(y, right)


@pytest.mark.parametrize("with_weight", [False, True])  # False: the batch runs in pieces
def test_outputs_that_are_inputs_or_weights(with_weight):
    net, y, _ = residual_network()
    description = net.description(0, y, y)
    if with_weight:
        description["outputs"].append({"name": "weight", "value": "t1"})
    inputs = net.inputs(40)
    with closing(build(description, net.tensors)) as network:
        x, first, second, *weight = network.run(inputs).values()
    assert torch.equal(x, inputs["x0"])
    assert torch.equal(first, second)
    assert not with_weight or torch.equal(weight[0], net.tensors["t1"])
    assert_close(first, net.expected(inputs, y)[0])


def test_fewer_images_than_the_plan_was_made_for():
    """The sanitizer sees whether an input is read beyond its images."""
    net, y, _ = residual_network({"lanes": "vector", "products": "kernels"})
    with closing(net.build(0, y)) as network:
        for batch in (5, 33, 1, 7):
            inputs = net.inputs(batch)
            results = network.run(inputs).values()
            for result, right in zip(results, net.expected(inputs, 0, y), strict=True):
                assert_close(result, right)


def test_more_sizes_than_plans_are_kept():
    net = Described((3, 1, 1))
    net.conv(net.conv(0, 4, (3, 3), padding=(1, 1), stride=(2, 2)), 4, (3, 3), padding=(1, 1))
    description = net.description(2)
    description["inputs"][0]["shape"] = ["N", 3, "H", "W"]
    with closing(build(description, net.tensors)) as network:
        for height, width in [(1, 1), (7, 5), (16, 3), *((4, side) for side in range(1, 12)), (7, 5), (1, 1)]:
            for batch in (1, 18):
                x = net.randn(batch, 3, height, width)
                (y,) = network.run({"x0": x}).values()
                assert_close(y, net.expected({"x0": x}, 2)[0])


def test_padding_between_rows_is_zero():
    """Memory that was another tensor's is not read as the padding between the rows of an image."""
    net = Described((4, 9, 9), plan={"products": "kernels"})
    x = net.conv(0, 4, (3, 3), padding=(1, 1))
    y = net.activate(net.activate(x, ("tanh",)), ("sigmoid",))
    z = net.conv(y, 4)
    w = net.conv(net.sum(z, y), 4, (3, 3), padding=(1, 1), residual=z)
    pooled = [net.adaptive_average_pool(v, 1, 1) for v in (net.sum(y, z), w, z)]
    inputs = net.inputs(1)
    with closing(net.build(*pooled)) as network:
        for _ in range(2):
            for result, right in zip(network.run(inputs).values(), net.expected(inputs, *pooled), strict=True):
                assert_close(result, right)


@pytest.mark.parametrize("size", [(24, 24), (33, 17)])
def test_depthwise_convolutions_of_stride_2_after_an_unfolded_one(size):
    """The unfolded input has rows as long as the output's, whose margin only the depthwise convolution asks for."""
    net = Described((3, *size), plan={"products": "kernels"})
    x = net.conv(0, 16, (3, 3), padding=(1, 1), stride=(2, 2))
    y = net.conv(x, 16, (3, 3), padding=(1, 1), stride=(2, 2), groups=16)
    inputs = net.inputs(1)
    with closing(net.build(y)) as network:
        (result,) = network.run(inputs).values()
    assert_close(result, net.expected(inputs, y)[0])
