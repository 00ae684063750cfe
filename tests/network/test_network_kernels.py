"""The kernels against PyTorch's dense operators: every build, layout and tiling, each tensor in memory of its own."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st

from builds import build_name, every_build
from fggp.ship.graph.interpret import execute
from fggp.ship.graph.operations import (
    RELU,
    Activate,
    AdaptiveAvgPool2d,
    Add,
    Affine,
    AvgPool2d,
    Channels,
    Concat,
    Flatten,
    Gate,
    Linear,
    MaxPool2d,
)
from models import ACTIVATIONS, Builder, exact
from networks import closing, network_of

BUILDS = every_build()
# The largest tiles that the kernels have.
MAX_ROWS, MAX_COLUMNS = 4, 8


def run(graph, inputs, build, lanes="vector", tiling=None, threads=1, memory="separate"):
    """Run a graph twice on the kernels: the second run, on the memory of the first one, must return the same.

    With separate memory, there is NaN before and after each tensor: a read beyond it makes NaN, and a write is refused.
    """
    plan = {"products": "kernels", "lanes": lanes, "pieces": "no", "memory": memory, **(tiling or FIRST)}
    with closing(network_of(graph, plan, build)) as network:
        given = dict(zip((v.name for v in graph.inputs), inputs, strict=True))
        first = list(network.run(given, threads).values())
        second = list(network.run(given, threads).values())
        steps = network.profile(given, threads)["steps"]
    assert not [step for step in steps if step["runs"] == "operator"]
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.view(torch.int32), b.view(torch.int32))
    return first, [step for step in steps if step["runs"] == "kernels"]


FIRST = {"tilings": "first", "chains": "no"}


@st.composite
def tilings(draw, chains="no"):
    """Any valid tiling, and the tilings that the tuner tries."""
    if draw(st.booleans()):
        return {"candidate": draw(st.integers(0, 99)), "chains": chains}
    tile = (
        draw(st.integers(1, MAX_ROWS)),
        draw(st.integers(1, MAX_COLUMNS)),
        draw(st.sampled_from([1, 2, 3, 5, 8, 100])),
    )
    return {"tile": tile, "chains": chains}


def activations():
    """No activation, or any."""
    return st.none() | st.sampled_from(ACTIVATIONS)


def assert_rounded(actual, expected, most):
    """Equal within the rounding of float32 sums and of activations.

    Args:
        actual: what the kernels computed.
        expected: the same in float64.
        most: the sum of the terms' magnitudes, times the number of terms.
    """
    assert actual.shape == expected.shape
    assert actual.isfinite().all()
    assert ((actual.double() - expected).abs() <= 2**-23 * (1.5 * most + 2 * expected.abs()) + 1e-30).all()


# Convolutions.


def sizes(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def geometries(draw):
    """A convolution's settings, its input's shape and its weight's."""
    kernel, stride, padding, dilation = draw(sizes(1, 4)), draw(sizes(1, 3)), draw(sizes(0, 3)), draw(sizes(1, 2))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    least = [max(1, r - 2 * p) for r, p in zip(reach, padding, strict=True)]
    height, width = (n + more for n, more in zip(least, draw(sizes(0, 12)), strict=True))
    inputs, outputs = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    many = draw(st.sampled_from([1, 1, 8]))  # channels enough for several tasks
    settings = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return settings, (inputs * groups, height, width), (outputs * groups * many, inputs, *kernel)


CASES = {
    "build": st.sampled_from(BUILDS),
    "lanes": st.sampled_from(["one", "vector"]),
    "geometry": geometries(),
    "density": st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    "batch": st.integers(1, 35),
    "activation": activations(),
    "residual": st.sampled_from(["none", "other", "input"]),
    "threads": st.sampled_from([1, 2, 5]),
    "tilings": tilings(),
    "seed": st.integers(0, 9),
}


def quick_batch(batch, lanes):
    """A number of images that is quick to run: up to 35 in vectors, up to three as single images."""
    return batch if lanes == "vector" else 1 + batch % 3


@given(**CASES)
def test_convolution(build, lanes, geometry, density, batch, activation, residual, threads, tilings, seed):
    settings, shape, weight = geometry
    batch = quick_batch(batch, lanes)
    b = Builder(batch, seed)
    weight, bias = b.sparse(*weight, density=density), b.randn(weight[0])
    x = b.input(*shape)
    read = (x,)
    made = b.conv(x, weight=weight, **settings)
    b.ops.clear()
    if residual == "other":
        read = (x, b.input(*made.shape[1:]))
    elif residual == "input" and made.shape == x.shape:
        read = (x, x)
    graph = b.graph(b.conv(*read, weight=weight, bias=bias, activation=activation, **settings))
    inputs = [b.randn(*v.shape) for v in graph.inputs]
    (y,), _ = run(graph, inputs, build, lanes, tilings, threads)
    terms = weight[0].numel() + 3
    (size,) = sizes_of_terms(graph, inputs)
    assert_rounded(y, exact(graph, inputs)[0], terms * size)


@given(
    build=st.sampled_from(BUILDS),
    kernel=sizes(1, 5),
    padding=sizes(0, 3),
    dilation=sizes(1, 2),
    plane=st.tuples(st.integers(9, 20), st.integers(9, 200)),
    groups=st.integers(1, 9),
    outputs=st.integers(1, 2),
    batch=st.integers(1, 2),
    density=st.sampled_from([0.1, 1.0]),
    activation=activations(),
    residual=st.booleans(),
    threads=st.sampled_from([1, 2, 5]),
)
def test_depthwise_convolutions_of_single_images_with_stride_2(
    build, kernel, padding, dilation, plane, groups, outputs, batch, density, activation, residual, threads
):
    b = Builder(batch)
    x = b.input(groups, *plane)
    weight = b.sparse(groups * outputs, 1, *kernel, density=density)
    settings = {"weight": weight, "stride": 2, "padding": padding, "dilation": dilation, "groups": groups}
    made = b.conv(x, **settings)
    b.ops.clear()
    read = (x, b.input(*made.shape[1:])) if residual else (x,)
    graph = b.graph(b.conv(*read, **settings, bias=b.randn(len(weight)), activation=activation))
    inputs = [b.randn(*v.shape) for v in graph.inputs]
    (y,), steps = run(graph, inputs, build, "one", FIRST, threads)
    assert len(steps) == 1  # nothing is unfolded
    (size,) = sizes_of_terms(graph, inputs)
    assert_rounded(y, exact(graph, inputs)[0], 28 * size)


def sizes_of_terms(graph, inputs):
    """Bounds of the sums of the magnitudes of each output's terms; an activation adds up to 1."""
    values = {v: x.double().abs() for v, x in zip(graph.inputs, inputs, strict=True)}
    for op in graph.ops:
        positive = replace(op, activation=None).with_constants(lambda t: t.double().abs())
        values[op.output] = execute(positive, values) + (op.activation is not None)
    return [values[v] for v in graph.outputs]


@given(
    build=st.sampled_from(BUILDS),
    length=st.integers(2, 3),
    geometry=geometries(),
    channels=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    batch=st.integers(1, 35),
    residuals=st.lists(st.sampled_from(["none", "new", "input", "first"]), min_size=3, max_size=3),
    then=st.tuples(activations(), activations(), activations()),
    returned=st.booleans(),
    threads=st.sampled_from([1, 2, 5]),
    tilings=tilings("yes"),
    memory=st.sampled_from(["separate", "reused"]),
)
@example(  # the last one adds the first one's output, which is also returned
    build=BUILDS[0],
    length=3,
    geometry=({"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}, (1, 1, 1), (1, 1, 1, 1)),
    channels=(1, 1),
    density=0.0,
    batch=1,
    residuals=["none", "none", "first"],
    then=(None, None, None),
    returned=True,
    threads=1,
    tilings={"tile": (1, 1, 100), "chains": "yes"},
    memory="separate",
)
def test_pointwise_products_after_a_convolution_are_done_with_it(
    build, length, geometry, channels, density, batch, residuals, then, returned, threads, tilings, memory
):
    settings, shape, weight = geometry
    b = Builder(batch)
    x = b.input(*shape)
    values = [x]
    for i in range(length):
        if i:
            weight, settings = (channels[i - 1], values[-1].shape[1], 1, 1), {}
        w, bias = b.sparse(*weight, density=density), b.randn(weight[0])
        made = b.conv(values[-1], weight=w, **settings)
        b.ops.pop()
        before = {"new": None, "input": x, "first": values[min(1, i)]}
        read = (values[-1],)
        if residuals[i] != "none":
            added = before[residuals[i]]
            if added is None:
                added = b.input(*made.shape[1:])
            if added.shape == made.shape:
                read = (*read, added)
        values.append(b.conv(*read, weight=w, bias=bias, activation=then[i], **settings))
    graph = b.graph(values[-1], *values[1 : 1 + returned])
    inputs = [b.randn(*v.shape) for v in graph.inputs]
    results, steps = run(graph, inputs, build, "vector", tilings, threads, memory)
    if "new" not in residuals[:length]:  # which is loaded in between
        assert [len(step["names"]) for step in steps if "conv" in step["operators"]][-1] == length
    for y, right, size in zip(results, exact(graph, inputs), sizes_of_terms(graph, inputs), strict=True):
        assert_rounded(y, right, 100 * size)


@given(
    build=st.sampled_from(BUILDS),
    lanes=st.sampled_from(["one", "vector"]),
    tokens=st.booleans(),
    features=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    density=st.sampled_from([0.0, 0.1, 1.0]),
    batch=st.integers(1, 35),
    places=st.integers(1, 40),
    activation=activations(),
    residual=st.booleans(),
    threads=st.sampled_from([1, 2, 5]),
    tilings=tilings(),
)
def test_linear(build, lanes, tokens, features, density, batch, places, activation, residual, threads, tilings):
    batch = quick_batch(batch, lanes)
    b = Builder(batch)
    between = (places,) if tokens else ()
    x = b.input(*between, features[0])
    read = (x, b.input(*between, features[1])) if residual else (x,)
    weight, bias = b.sparse(features[1], features[0], density=density), b.randn(features[1])
    graph = b.graph(b.add(Linear, *read, weight=weight, bias=bias, activation=activation))
    inputs = [b.randn(*v.shape) for v in graph.inputs]
    (y,), _ = run(graph, inputs, build, lanes, tilings, threads)
    (size,) = sizes_of_terms(graph, inputs)
    assert_rounded(y, exact(graph, inputs)[0], (features[0] + 3) * size)


@pytest.mark.parametrize("build", BUILDS, ids=build_name)
@pytest.mark.parametrize("stride", [1, 2])
def test_every_tile(build, stride):
    """All tile shapes, on images whose sizes are no multiples of them."""
    b = Builder(build.fggp_lanes() + 1)
    weight = b.sparse(10, 6, 3, 3)
    x = b.input(6, 11, 19)
    graph = b.graph(b.conv(x, weight=weight, padding=1, stride=stride, bias=b.randn(10)))
    inputs = [b.randn(*x.shape)]
    (right,), (size,) = exact(graph, inputs), sizes_of_terms(graph, inputs)
    for rows in range(1, MAX_ROWS + 1):
        for columns in range(1, MAX_COLUMNS + 1):
            if rows * columns <= build.fggp_registers():
                (y,), _ = run(graph, inputs, build, "vector", {"tile": (rows, columns, 4)}, 2)
                assert_rounded(y, right, 60 * size)


@pytest.mark.parametrize("build", BUILDS, ids=build_name)
@pytest.mark.parametrize("lanes", ["one", "vector"])
@pytest.mark.parametrize(
    ("height", "width", "kernel", "stride"),
    [(1, 1, 1, 1), (7, 7, 3, 1), (224, 224, 3, 2), (5, 300, 1, 1), (3, 1, 3, 1)],
)
def test_tilings_that_are_tried_fit(build, lanes, height, width, kernel, stride):
    """Those of every number: a tile that the kernels do not have, or an empty chunk, would not compute this."""
    b = Builder(1)
    x = b.input(60, height, width)
    made = b.conv(x, weight=b.sparse(4, 60, kernel, kernel, density=0.05), padding=kernel // 2, stride=stride)
    graph = b.graph(made)
    inputs = [b.randn(*x.shape)]
    (right,), (size,) = exact(graph, inputs), sizes_of_terms(graph, inputs)
    for candidate in range(12):  # there are at most that many
        (y,), _ = run(graph, inputs, build, lanes, {"candidate": candidate})
        assert_rounded(y, right, 60 * size)


# What is done plane by plane: exact where PyTorch is, with NaN and infinities.


@st.composite
def pools(draw, largest):
    kernel = draw(sizes(1, 4))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    dilation = draw(sizes(1, 3)) if largest else (1, 1)
    stride, ceil = draw(sizes(1, 3)), draw(st.booleans())
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    least = [max(1, r - 2 * p) for r, p in zip(reach, padding, strict=True)]
    size = tuple(n + more for n, more in zip(least, draw(sizes(0, 9)), strict=True))
    settings = {"kernel": kernel, "stride": stride, "padding": padding, "ceil_mode": ceil}
    if largest:
        return MaxPool2d, settings | {"dilation": dilation}, size
    counts = {"count_include_pad": draw(st.booleans()), "divisor_override": draw(st.sampled_from([None, None, 3, -2]))}
    return AvgPool2d, settings | counts, size


@st.composite
def plane_wise_operations(draw):
    kind, settings = draw(
        st.tuples(st.sampled_from([Add, Gate, Affine]), st.fixed_dictionaries({"activation": activations()}))
        | st.tuples(st.just(Activate), st.fixed_dictionaries({"activation": st.sampled_from(ACTIVATIONS)}))
        | st.sampled_from([(Concat, {"dim": 1}), (Flatten, {})])
        | st.tuples(st.just(Channels), st.fixed_dictionaries({"index": st.lists(st.integers(0, 99), min_size=1)}))
        | (st.just((1, 1)) | sizes(1, 9)).map(lambda size: (AdaptiveAvgPool2d, {"size": size}))
    )
    return kind, settings, draw(sizes(1, 9))


@given(
    operation=pools(True) | pools(False) | plane_wise_operations(),
    build=st.sampled_from(BUILDS),
    lanes=st.sampled_from(["one", "vector"]),
    batch=st.integers(1, 35),
    channels=st.integers(1, 4),
    odd=st.sampled_from([0, 0.1]),
    threads=st.sampled_from([1, 3]),
)
def test_plane_wise_operations(operation, build, lanes, batch, channels, odd, threads):
    kind, settings, size = operation
    batch = quick_batch(batch, lanes)
    b = Builder(batch)
    if kind is Affine:
        settings = {"scale": b.randn(channels), "shift": b.randn(channels), **settings}

    def copied(value):  # on the kernels' side, as only what is there already is handed to them
        return b.conv(value, weight=torch.eye(channels)[:, :, None, None])

    if kind is Channels:
        settings = {"index": tuple(i % (2 * channels) for i in settings["index"])}
    shapes = {Concat: [size] * 3, Channels: [size] * 2, Add: [size] * 2, Gate: [size, (1, 1)]}.get(kind, [size])
    read = [copied(b.input(channels, *shape)) for shape in shapes]
    graph = b.graph(b.add(kind, *read, **settings))
    inputs = []
    for value in graph.inputs:
        x = b.randn(*value.shape)
        kinds = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0])
        at = torch.rand(x.shape, generator=b.generator) < odd
        inputs.append(x.where(~at, kinds[torch.randint(4, x.shape, generator=b.generator)]))
    (y,), _ = run(graph, inputs, build, lanes, FIRST, threads)
    op = graph.ops[-1].with_constants(torch.Tensor.double)
    expected = execute(op, {v: x.double() for v, x in zip(op.inputs, inputs, strict=True)})
    torch.testing.assert_close(y, expected.float(), rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("build", BUILDS, ids=build_name)
@pytest.mark.parametrize("lanes", ["one", "vector"])
def test_nan_and_infinities_go_through_a_convolution(build, lanes):
    b = Builder(3)
    x = b.input(2, 5, 7)
    weight = torch.zeros(4, 2, 3, 3)
    weight[0, 0], weight[1, 1], weight[2] = 0.5, -1.0, 1.0  # and the last sees nothing
    graph = b.graph(b.conv(x, weight=weight, bias=torch.ones(4), padding=1, activation=RELU))
    plan = {"products": "kernels", "lanes": lanes, "memory": "separate", **FIRST}
    with closing(network_of(graph, plan, build)) as network:
        clean = b.randn(*x.shape)
        (before,) = network.run({"x0": clean}).values()
        dirty = clean.clone()
        dirty[0, 0, 2, 3], dirty[1, 1, 0, 0], dirty[2, 0, 4, 6] = torch.nan, torch.inf, -torch.inf
        (y,) = network.run({"x0": dirty}).values()
        ours = F.relu(F.conv2d(dirty[:, :1], weight[:1, :1], padding=1) + 1)
        torch.testing.assert_close(y[:, :1], ours, equal_nan=True)
        assert (y[:, 3] == 1).all()
        (after,) = network.run({"x0": clean}).values()
    assert torch.equal(before, after)
