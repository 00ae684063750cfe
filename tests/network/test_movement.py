"""Operators that move elements: what they compute is PyTorch's to the bit, and what does not fit is refused."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from networks import Refused, build, closing, run_one

HUGE = 2**59
shapes = st.lists(st.integers(0, 5), min_size=1, max_size=5)
full_shapes = st.lists(st.integers(1, 5), min_size=1, max_size=5)
dtypes = st.sampled_from([torch.float32, torch.int64, torch.bool])
threads = st.sampled_from([1, 2])


def numbered(shape, dtype=torch.float32):
    """A tensor whose elements differ, as far as the type can tell them apart."""
    x = torch.arange(torch.Size(shape).numel()).reshape(shape)
    return x % 3 == 1 if dtype is torch.bool else x.to(dtype)


def same(found, expected):
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert torch.equal(found, expected)


@given(shapes, dtypes, threads, st.data())
def test_permute(shape, dtype, threads, data):
    x = numbered(shape, dtype)
    dims = data.draw(st.permutations(range(len(shape))))
    signed = [d - len(shape) if data.draw(st.booleans()) else d for d in dims]
    same(run_one("permute", [x], threads=threads, dims=signed), x.permute(dims))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
@pytest.mark.parametrize(
    ("shape", "dims"),
    [
        ((2, 37, 70), (0, 2, 1)),
        ((64, 128), (1, 0)),
        ((1, 3, 40, 41), (0, 2, 3, 1)),
        ((2, 30, 35, 3), (0, 3, 1, 2)),
        ((3, 17, 4, 33), (2, 3, 0, 1)),
        ((3, 17, 4, 33), (3, 1, 2, 0)),
        ((2, 5, 700), (2, 0, 1)),
        ((1300, 70), (1, 0)),
        ((2, 49, 3, 4, 32), (2, 0, 3, 1, 4)),
        ((33, 1, 65, 1), (3, 2, 1, 0)),
    ],
)
def test_permute_of_large_tensors(shape, dims, dtype):
    x = torch.randint(0, 2**20, shape).to(dtype)
    for threads in (1, 2):
        same(run_one("permute", [x], threads=threads, dims=dims), x.permute(dims))


@given(full_shapes, dtypes, threads, st.data())
def test_expand(shape, dtype, threads, data):
    kept = [data.draw(st.booleans()) for _ in shape]
    x = numbered([size if keep else 1 for size, keep in zip(shape, kept, strict=True)], dtype)
    new = data.draw(st.lists(st.integers(0, 3), max_size=2)) + shape
    same(run_one("expand", [x], threads=threads, shape=new), x.expand(new))


@given(shapes, dtypes, threads, st.data())
def test_slice(shape, dtype, threads, data):
    x = numbered(shape, dtype)
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    ends = st.integers(-8, 8) | st.sampled_from([HUGE, -HUGE])
    start, stop, step = data.draw(ends), data.draw(ends), data.draw(st.integers(1, 4) | st.just(HUGE))
    places = torch.arange(shape[dim])[start:stop:step]
    expected = x.index_select(dim, places)
    same(run_one("slice", [x], threads=threads, dim=dim, start=start, stop=stop, step=step), expected)


def test_slice_by_free_sizes():
    description = {
        "inputs": [{"name": "x", "type": "F32", "shape": ["N", "M"]}],
        "nodes": [{"op": "slice", "in": [0], "dim": 1, "start": ["//", "M", 2], "stop": ["-", "M", 1], "step": 1}],
        "outputs": [{"name": "y", "value": 1}],
    }
    with closing(build(description)) as made:
        for shape in ((2, 6), (3, 9)):
            x = numbered(shape)
            same(made.run({"x": x})["y"], x[:, shape[1] // 2 : -1])


@given(shapes, dtypes, threads, st.data())
def test_flip(shape, dtype, threads, data):
    x = numbered(shape, dtype)
    dims = data.draw(st.lists(st.integers(0, len(shape) - 1), unique=True))
    same(run_one("flip", [x], threads=threads, dims=dims), x.flip(dims))


@given(shapes, dtypes, threads, st.data())
def test_roll(shape, dtype, threads, data):
    x = numbered(shape, dtype)
    dims = data.draw(st.lists(st.integers(0, len(shape) - 1), unique=True, min_size=1))
    shifts = [data.draw(st.integers(-12, 12)) for _ in dims]
    same(run_one("roll", [x], threads=threads, dims=dims, shifts=shifts), x.roll(shifts, dims))


def test_roll_by_far():
    x = numbered((3, 7))
    same(run_one("roll", [x], dims=[1, 0], shifts=[-HUGE, HUGE + 1]), x.roll((-HUGE % 7, (HUGE + 1) % 3), (1, 0)))


def flat(pads):
    """The library's list of pads, for each dimension before and after, as PyTorch's, which starts from the last."""
    return [number for pair in zip(pads[-2::-2], pads[-1::-2], strict=True) for number in pair]


@given(full_shapes, dtypes, threads, st.data())
def test_pad_with_a_constant(shape, dtype, threads, data):
    x = numbered(shape, dtype)
    pads = []
    for size in shape:
        before = data.draw(st.integers(-size, 4))
        pads += [before, data.draw(st.integers(-size - min(before, 0), 4))]
    value = data.draw(st.sampled_from([0, 1] if dtype is torch.bool else [0, 1, -3]))
    same(run_one("pad", [x], threads=threads, pads=pads, value=value), F.pad(x, flat(pads), value=value))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), dtypes, threads, st.data())
def test_pad_with_what_is_there(mode, shape, dtype, threads, data):
    x = numbered([2, 3, *shape], dtype)
    most = [{"reflect": size - 1, "replicate": 6, "circular": size}[mode] for size in shape]
    pads = [data.draw(st.integers(0, limit)) for limit in most for _ in range(2)]
    expected = F.pad(x.to(torch.float32), flat(pads), mode=mode).to(dtype)
    same(run_one("pad", [x], threads=threads, pads=[0, 0, 0, 0, *pads], mode=mode), expected)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_pad_before_and_cut_after(mode):
    x = numbered((1, 2, 8))
    for pads in ((-2, 3), (3, -2), (-1, -3)):
        same(run_one("pad", [x], pads=[0, 0, 0, 0, *pads], mode=mode), F.pad(x, pads, mode=mode))


def test_pad_with_numbers_that_are_none():
    x = torch.ones(2)
    for name in ("inf", "-inf", "nan"):
        found = run_one("pad", [x], pads=[1, 0], value=name)
        assert torch.equal(found.nan_to_num(7.0), F.pad(x, [1, 0], value=float(name)).nan_to_num(7.0))


@given(shapes, dtypes, threads, st.data())
def test_concat(shape, dtype, threads, data):
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    parts = []
    for i, size in enumerate(data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))):
        part = list(shape)
        part[dim] = size
        parts.append(numbered(part, dtype) if dtype is torch.bool else numbered(part, dtype) + 1000 * i)
    same(run_one("concat", parts, threads=threads, dim=dim), torch.cat(parts, dim))


@given(st.integers(0, 3), st.lists(st.integers(1, 4), min_size=1, max_size=3), threads, st.data())
def test_channels(images, counts, threads, data):
    parts = [numbered((images, count, 2, 3)) + 1000 * i for i, count in enumerate(counts)]
    index = data.draw(st.lists(st.integers(0, sum(counts) - 1), max_size=12))
    same(run_one("channels", parts, threads=threads, index=index), torch.cat(parts, 1)[:, index])


def test_large_tensors_are_joined_on_two_threads():
    parts = [torch.randn(3, count, 30, 31) for count in (7, 1, 12)]
    same(run_one("concat", parts, dim=1), torch.cat(parts, 1))
    index = torch.randperm(20).tolist() + list(range(20))
    same(run_one("channels", parts, index=index), torch.cat(parts, 1)[:, index])
    same(run_one("roll", [parts[0]], dims=[2, 3], shifts=[-3, 4]), parts[0].roll((-3, 4), (2, 3)))
    same(
        run_one("pad", [parts[0]], pads=[0, 0, 0, 0, 3, 3, 2, 1], mode="reflect"),
        F.pad(parts[0], (2, 1, 3, 3), "reflect"),
    )
    same(run_one("expand", [parts[0][:, :1]], shape=(3, 9, 30, 31)), parts[0][:, :1].expand(3, 9, 30, 31))


def test_flatten():
    x = numbered((2, 3, 4, 5))
    same(run_one("flatten", [x]), x.flatten(1))


@given(full_shapes, st.lists(st.integers(0, 4), max_size=3), dtypes, threads, st.data())
def test_take(shape, index_shape, dtype, threads, data):
    x = numbered(shape, dtype)
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    index = torch.randint(-shape[dim], shape[dim], index_shape)
    expected = x.movedim(dim, 0)[index]  # the index's dimensions come first
    place = dim % len(shape)
    order = list(range(index.dim(), index.dim() + place)) + list(range(index.dim()))
    order += list(range(index.dim() + place, expected.dim()))
    same(run_one("take", [x, index], threads=threads, dim=dim), expected.permute(order))


def test_take_from_a_table_of_the_network():
    table, index = torch.randn(50, 70), torch.randint(0, 50, (3, 90))
    same(run_one("take", [table, index], constant=[0], dim=0), F.embedding(index, table))
    same(run_one("take", [table, index], constant=[1], dim=1), table[:, index])


@given(full_shapes, dtypes, threads, st.data())
def test_gather(shape, dtype, threads, data):
    x = numbered(shape, dtype)
    dim = data.draw(st.integers(0, len(shape) - 1))
    index_shape = [data.draw(st.integers(0, 7 if d == dim else size)) for d, size in enumerate(shape)]
    index = torch.randint(0, shape[dim], index_shape)
    same(run_one("gather", [x, index], threads=threads, dim=dim - len(shape)), x.gather(dim, index))


@pytest.mark.parametrize("wrong", [5, -6, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("dim", [0, 1])
def test_an_index_outside_fails_the_run(wrong, dim):
    x = numbered((5, 5))
    index = torch.zeros(40, 5, dtype=torch.int64) if dim == 0 else torch.zeros(5, 40, dtype=torch.int64)
    index[3, 2] = wrong
    for threads in (1, 2):
        with pytest.raises(Refused, match=rf"^tested \(take\): the indices must be from -5 to 4, and one is {wrong}$"):
            run_one("take", [x, index], threads=threads, dim=dim)
        with pytest.raises(Refused, match=rf"^tested \(gather\): the indices must be from 0 to 4, and one is {wrong}$"):
            run_one("gather", [x, index], threads=threads, dim=dim)


def test_a_network_runs_again_after_a_wrong_index():
    description = {
        "inputs": [{"name": "x", "type": "F32", "shape": [4]}, {"name": "i", "type": "I64", "shape": [2]}],
        "nodes": [
            {"op": "take", "in": [0, 1], "dim": 0},
            {"op": "flip", "in": [2], "dims": [0]},
        ],
        "outputs": [{"name": "y", "value": 3}],
    }
    x = numbered((4,))
    with closing(build(description)) as made:
        for _ in range(2):
            with pytest.raises(Refused, match=r"^take: the indices must be from -4 to 3, and one is 9$"):
                made.run({"x": x, "i": torch.tensor([9, 0])})
            same(made.run({"x": x, "i": torch.tensor([-1, 1])})["y"], torch.tensor([1.0, 3.0]))


def test_from_nothing_nothing_can_be_taken():
    nothing, index = torch.zeros(0, 3), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(Refused, match="one is 0"):
        run_one("take", [nothing, index], dim=0)
    same(run_one("take", [nothing, index[:0]], dim=0), nothing)


X, INDEX = torch.zeros(2, 3, 4, 5), torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "message"),
    [
        ("reshape", [X], {"shape": [7, 17]}, r"F32 \[2, 3, 4, 5\] cannot have the shape \[7, 17\]"),
        ("reshape", [X], {"shape": [-1, 4]}, "cannot have the shape"),
        ("reshape", [X], {"shape": [HUGE, HUGE]}, "too large"),
        ("reshape", [X, X], {"shape": [120]}, "it reads 1 tensor"),
        ("reshape", [None], {"shape": [120]}, "it reads 1 tensor"),
        ("flatten", [INDEX], {}, "does not have 4 dimensions"),
        ("permute", [X], {"dims": [0, 1, 2]}, '"dims" has 3 dimensions'),
        ("permute", [X], {"dims": [0, 1, 2, 2]}, "twice"),
        ("permute", [X], {"dims": [0, 1, 2, 4]}, '"dims" is 4'),
        ("permute", [X], {"dims": []}, '"dims" has 0 dimensions'),
        ("permute", [X], {"dims": "all"}, "no list"),
        ("expand", [X], {"shape": [2, 3, 4, 6]}, "cannot be expanded to"),
        ("expand", [X], {"shape": [5]}, "cannot be expanded to"),
        ("expand", [X], {"shape": [-1, 2, 3, 4, 5]}, "cannot be expanded to"),
        ("expand", [X], {"shape": [HUGE, 2, 3, 4, 5]}, "too large"),
        ("slice", [X], {"dim": 4, "start": 0, "stop": 1, "step": 1}, '"dim" is 4'),
        ("slice", [X], {"dim": 0, "start": 0, "stop": 1, "step": 0}, '"step" is 0, and must be 1 or more'),
        ("slice", [X], {"dim": 0, "start": 0, "stop": 1, "step": -1}, '"step" is -1'),
        ("slice", [X], {"dim": 0, "stop": 1, "step": 1}, 'it has no "start"'),
        ("slice", [X], {"dim": 0, "start": ["//", 1, 0], "stop": 1, "step": 1}, "divided by 0"),
        ("concat", [X, X[:1]], {"dim": 1}, "does not fit"),
        ("concat", [X, INDEX], {"dim": 0}, "does not fit"),
        ("concat", [X, X.bool()], {"dim": 0}, "does not fit"),
        ("concat", [X, None], {"dim": 0}, "it reads one tensor or more"),
        ("concat", [], {"dim": 0}, "it reads one tensor or more"),
        ("channels", [], {"index": [0]}, "it reads one tensor or more"),
        ("channels", [X, X], {"index": [0, 6]}, '"index" has 6, and the inputs have 6 channels'),
        ("channels", [X], {"index": [-1]}, '"index" has -1'),
        ("channels", [X, X[:, :, :3]], {"index": [0]}, "does not fit"),
        ("channels", [INDEX], {"index": [0]}, "has no channels"),
        ("pad", [X], {"pads": [1, 1]}, '"pads" has 2 numbers'),
        ("pad", [X], {"pads": [0, 0, 0, 0, -2, -3, 0, 0]}, "cut more than there is"),
        ("pad", [X], {"pads": [0, 0, 0, 0, HUGE, 0, 0, 0]}, "too much"),
        ("pad", [X], {"pads": [0, 0, 0, 0, 0, 0, -HUGE, 0]}, "too much"),
        ("pad", [X], {"pads": [0] * 7 + [2**39]}, "too large"),
        ("pad", [X], {"pads": [0, 0, 0, 0, 4, 0, 0, 0], "mode": "reflect"}, "smaller than the size"),
        ("pad", [X], {"pads": [0, 0, 0, 0, 0, 5, 0, 0], "mode": "circular"}, "must not be larger"),
        ("pad", [X[:0]], {"pads": [1, 0, 0, 0, 0, 0, 0, 0], "mode": "replicate"}, "nothing to repeat"),
        ("pad", [X[:0]], {"pads": [1, 0, 0, 0, 0, 0, 0, 0], "mode": "reflect"}, "nothing to repeat"),
        ("pad", [X], {"pads": [0] * 8, "mode": "mirror"}, '"mode" is "mirror"'),
        ("pad", [INDEX], {"pads": [0, 1], "value": 0.5}, '"value" is 0.5'),
        ("pad", [INDEX], {"pads": [0, 1], "value": "nan"}, '"value" is'),
        ("pad", [INDEX == 0], {"pads": [0, 1], "value": 2}, "must be 0 or 1"),
        ("roll", [X], {"dims": [0, 1], "shifts": [1]}, '"shifts" has 1 numbers'),
        ("roll", [X], {"dims": [0, -4], "shifts": [1, 1]}, "twice"),
        ("flip", [X], {"dims": [7]}, '"dims" is 7'),
        ("take", [X, X], {"dim": 0}, "the index is F32"),
        ("take", [X], {"dim": 0}, "it reads 2 tensors"),
        ("take", [X, None], {"dim": 0}, "it reads 2 tensors"),
        ("take", [torch.tensor(1.0), INDEX], {"dim": 0}, '"dim" is 0'),
        ("gather", [X, INDEX], {"dim": 0}, "the index is I64"),
        ("gather", [INDEX, torch.zeros(2, 1, dtype=torch.int64)], {"dim": 0}, "which is larger"),
        (
            "gather",
            [torch.zeros(2, 2), torch.zeros(3, 3, dtype=torch.int64)],
            {"dim": 0},
            "in another dimension than 0",
        ),
    ],
)
def test_what_does_not_fit_is_refused(op, inputs, attributes, message):
    with pytest.raises(Refused, match=message):
        run_one(op, inputs, **attributes)
