"""Networks of which the library runs some parts and PyTorch the others compute what the model computes."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fggp
from captured import Lambda, assert_close
from fggp.ship.graph.calls import Call
from fggp.ship.graph.simplify import simplify
from fggp.ship.network.describe import captured
from fggp.ship.runtime.parts import divide


def images(batch, height=8, width=8, seed=0):
    return torch.randn(batch, 4, height, width, generator=torch.Generator().manual_seed(seed))


def sparse_conv(seed=0):
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Conv2d(4, 4, 3, padding=1)
    layer.weight.data = torch.randn(4, 4, 3, 3, generator=generator) * (
        torch.rand(4, 4, 3, 3, generator=generator) < 0.15
    )
    layer.bias.data = torch.randn(4, generator=generator)
    return layer


def parts_of(model, *args):
    return divide(simplify(captured(model.eval(), args, {})))


def where(model, *args):
    """What runs each part."""
    return ["library" if part.native else "PyTorch" for part in parts_of(model, *args)]


@torch.no_grad()
def assert_agrees(fast, model, *args):
    assert_close(fast(*args), model.eval()(*args))


def spectrum(x):
    """An operation that the library does not have."""
    return torch.fft.fft2(x).abs()


def test_the_library_runs_everything_that_it_has():
    model = Lambda(lambda m, x: F.relu(m.a(x)).mean((2, 3)).softmax(1), a=sparse_conv())
    assert where(model, images(1)) == ["library"]


def test_what_the_library_lacks_runs_on_pytorch_between_its_parts():
    model = Lambda(lambda m, x: m.b(F.gelu(spectrum(m.a(x)))), a=sparse_conv(0), b=sparse_conv(1))
    assert where(model, images(1)) == ["library", "PyTorch", "library"]
    fast = fggp.compile(model, images(2))
    for batch, height, width in [(1, 8, 8), (2, 8, 8), (20, 8, 8), (3, 5, 9)]:
        assert_agrees(fast, model, images(batch, height, width))
    assert {step.runs for step in fast._engine.profile([images(2)])} >= {"kernels", "PyTorch"}
    assert "aten.abs" in str(fast)


def test_branches_are_not_cut_where_they_need_not_be():
    def forward(m, x):
        y = spectrum(m.a(x))
        z = m.b(x)  # does not depend on what PyTorch computes, so it is in the first part
        return F.relu(m.c(z)) * y

    model = Lambda(forward, a=sparse_conv(0), b=sparse_conv(1), c=sparse_conv(2))
    first, second, *_ = parts_of(model, images(1))
    assert first.native
    assert sum(type(op).__name__ == "Conv2d" for op in first.graph.ops) == 3
    assert not second.native
    assert_agrees(fggp.compile(model, images(1)), model, images(3))


def test_a_part_without_a_product_is_not_worth_the_way_to_the_library():
    model = Lambda(lambda m, x: spectrum(F.relu(spectrum(x))))
    assert where(model, images(1)) == ["PyTorch"]
    assert_agrees(fggp.compile(model, images(1)), model, images(3))


def test_sizes_that_a_part_needs_and_no_input_of_it_has():
    def forward(m, x):
        y = spectrum(m.a(x)).flatten(1)  # [N, 4 · H · W]
        z = y.view(x.shape[0], 4, x.shape[2], x.shape[3])
        return m.b(z) * x.shape[2], x.shape[3]

    model = Lambda(forward, a=sparse_conv(0), b=sparse_conv(1))
    fast = fggp.compile(model, images(2))
    for height, width in [(8, 8), (6, 11)]:
        assert_agrees(fast, model, images(3, height, width))


def test_numbers_of_sizes_on_pytorch():
    model = Lambda(lambda m, x: spectrum(m.a(x)).square_() / (x.shape[2] * x.shape[3] + 1), a=sparse_conv())
    fast = fggp.compile(model, images(2))
    for height, width in [(8, 8), (6, 11)]:
        assert_agrees(fast, model, images(3, height, width))


def test_tuples_of_tensors_on_both_sides():
    def forward(m, x):
        a, b = m.a(x).chunk(2, 1)
        values, places = torch.sort(a, dim=3)
        top, index = values.topk(2, dim=2)
        return {"sorted": m.b(torch.cat([values, b], 1)), "places": places, "top": top, "index": index}

    model = Lambda(forward, a=sparse_conv(0), b=sparse_conv(1))
    fast = fggp.compile(model, images(2))
    for batch in (1, 2, 18):
        assert_agrees(fast, model, images(batch))


def test_types_that_the_library_lacks():
    def forward(m, x, chosen):
        y = m.a(x)
        return y.double().sum(1), (y > 0).sum((1, 2, 3)).int(), y[:, chosen.long()], chosen + 1

    model = Lambda(forward, a=sparse_conv())
    fast = fggp.compile(model, (images(2), torch.tensor([0, 2, 3], dtype=torch.int32)))
    for batch in (1, 2, 18):
        assert_agrees(fast, model, images(batch), torch.tensor([1, 1, 3], dtype=torch.int32))


def test_later_changes_of_the_models_tensors_do_not_reach_what_pytorch_runs():
    model = Lambda(lambda m, x: (spectrum(m.a(x)) * m.scale, m.scale), a=sparse_conv(), scale=torch.randn(8))
    fast = fggp.compile(model, images(2))
    before = fast(images(2))
    model.scale.zero_()
    assert_close(fast(images(2)), before)


def test_whether_images_are_independent():
    """Also where heights and widths are free."""
    for forward, independent in [
        (lambda m, x: F.relu(m.a(x)), True),
        (lambda m, x: m.a(x) - m.a(x).mean(0), False),
        (lambda m, x: (m.a(x), x.shape[0]), False),
    ]:
        fast = fggp.compile(Lambda(forward, a=sparse_conv()), images(2))
        assert fast._engine.images_are_independent == independent
        assert fast._graph.inputs[0].sizes == ("N", 4, "H", "W")


def test_inputs_without_elements():
    model = Lambda(lambda m, x: (spectrum(m.a(x)), x.shape[0]), a=sparse_conv())
    fast = fggp.compile(model, images(2))
    y, count = fast(images(0))
    assert (y.shape, count) == ((0, 4, 8, 8), 0)
    model = Lambda(lambda m, x: m.a(x).sum(0), a=sparse_conv())
    with pytest.raises(ValueError, match=r"no elements, and an output of shape \(4, 8, 8\)"):
        fggp.compile(model, images(2))(images(0))


STEPS = {
    "conv": lambda layer, a, b: layer(a),
    "relu": lambda layer, a, b: F.relu(a),
    "add": lambda layer, a, b: a + b,
    "spectrum": lambda layer, a, b: spectrum(a) / 8,
    "sort": lambda layer, a, b: a.sort(3)[0],
    "halves": lambda layer, a, b: torch.cat([x.roll(1, 2) for x in a.chunk(2, 1)], 1),
}


@settings(max_examples=settings.default.max_examples // 4)
@given(
    st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=7),
    st.integers(1, 3),
)
def test_parts_of_random_networks(steps, batch):
    layers = {f"layer{i}": sparse_conv(i) for i in range(len(steps))}

    def forward(m, x):
        values = [m.first(x)]
        for i, (kind, j, k) in enumerate(steps):
            a, b = (values[-1 - n % len(values)] for n in (j, k))
            values.append(STEPS[kind](getattr(m, f"layer{i}"), a, b))
        return values[-1], values[-2]

    model = Lambda(forward, first=sparse_conv(), **layers)
    parts = parts_of(model, images(2))
    known = set(parts[0].graph.inputs)
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        assert following is None or part.native != following.native
        assert {v for v in part.graph.inputs if not v.name.startswith("size of")} <= known
        assert part.native or all(isinstance(op, Call) for op in part.graph.ops if "sort" in str(op))
        known |= set(part.graph.outputs)
    assert_agrees(fggp.compile(model, images(2)), model, images(batch))
