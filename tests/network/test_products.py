"""`linear`, `matmul` and `attention` against PyTorch: shapes, broadcasting, masks, and what is refused."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import gelu, linear, scaled_dot_product_attention

from networks import Refused, run_one

SMALL = st.integers(0, 5)


def close(result, expected, magnitude=None):
    """Whether a result is a float64 one within 1e-6 of its magnitude: the sum of the terms' magnitudes."""
    assert result.shape == expected.shape
    assert torch.equal(result.isnan(), expected.isnan())
    same = (result == expected) | expected.isnan()
    magnitude = expected.abs() if magnitude is None else magnitude
    assert (same | ((result.double() - expected).abs() <= 1e-6 * magnitude + 1e-30)).all()


@given(leading=st.lists(SMALL, max_size=3), sizes=st.tuples(SMALL, SMALL), constant=st.booleans())
def test_linear_of_any_rank(leading, sizes, constant):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(*leading, sizes[0]), torch.randn(sizes[1], sizes[0]), torch.randn(sizes[1])
    result = run_one("linear", [x, weight, bias], (1, 2) if constant else ())
    magnitude = linear(x.double().abs(), weight.double().abs(), bias.double().abs())
    close(result, linear(x.double(), weight.double(), bias.double()), magnitude)


@pytest.mark.parametrize("rows", [1, 3, 50])
def test_linear_with_an_activation_in_its_own_pass(rows):
    torch.manual_seed(rows)
    x, weight, bias, residual = torch.randn(rows, 300), torch.randn(90, 300), torch.randn(90), torch.randn(rows, 90)
    result = run_one("linear", [x, weight, bias, residual], (1, 2), activation=["gelu"])
    expected = gelu(linear(x.double(), weight.double(), bias.double()) + residual)
    magnitude = linear(x.double().abs(), weight.double().abs(), bias.double().abs()) + residual.abs() + 1
    assert ((result - expected).abs() < 1.2e-6 * magnitude).all()


def test_a_sparse_weight():
    torch.manual_seed(0)
    x, weight = torch.randn(7, 40), torch.randn(30, 40) * (torch.rand(30, 40) < 0.1)
    close(
        run_one("linear", [x, weight], (1,)),
        linear(x.double(), weight.double()),
        linear(x.abs(), weight.abs()).double(),
    )


@st.composite
def broadcast(draw):
    """Leading dimensions of two tensors that can be broadcast."""
    both = draw(st.lists(st.integers(0, 4), max_size=3))
    pair = []
    for _ in range(2):
        mine = [draw(st.sampled_from((size, 1))) for size in both]
        pair.append(mine[draw(st.integers(0, len(mine))) :])
    return pair


@given(
    leading=broadcast(),
    sizes=st.tuples(SMALL, SMALL, SMALL),
    transposed=st.tuples(st.booleans(), st.booleans()),
    constant=st.sampled_from(((), (0,), (1,))),
    threads=st.sampled_from((1, 2)),
)
def test_matmul_is_broadcast(leading, sizes, transposed, constant, threads):
    torch.manual_seed(0)
    a, b = torch.randn(*leading[0], *sizes[:2]), torch.randn(*leading[1], *sizes[1:])
    result = run_one(
        "matmul",
        [a.mT.contiguous() if transposed[0] else a, b.mT.contiguous() if transposed[1] else b],
        constant,
        threads=threads,
        transpose_a=transposed[0],
        transpose_b=transposed[1],
    )
    close(result, a.double() @ b.double(), a.double().abs() @ b.double().abs())


def test_a_large_batch():
    torch.manual_seed(0)
    a, b = torch.randn(6, 5, 33, 40), torch.randn(5, 40, 50)
    close(run_one("matmul", [a, b]), a.double() @ b.double(), a.double().abs() @ b.double().abs())


def reference(q, k, v, mask=None, causal=False, scale=None):
    """PyTorch's attention of float64."""
    with sdpa_kernel(SDPBackend.MATH):
        return scaled_dot_product_attention(
            q.double(),
            k.double(),
            v.double(),
            attn_mask=None if mask is None else mask if mask.dtype == torch.bool else mask.double(),
            is_causal=causal,
            scale=scale,
            enable_gqa=q.dim() > 2,
        )


def values(v):
    """The magnitude of what attention of such values may be wrong by: rounding of scores moves weights between them."""
    return 4 * v.double().abs().amax() if v.numel() else torch.tensor(0.0)


@given(
    batch=st.integers(1, 2),
    heads=st.sampled_from(((1, 1), (2, 2), (4, 2), (3, 1))),
    sizes=st.tuples(*[st.one_of(st.integers(1, 9), st.sampled_from((16, 33, 70, 130)))] * 4),
    mask=st.sampled_from((None, "bool", "float")),
    mask_shape=st.tuples(*[st.booleans()] * 4),
    mask_rank=st.integers(1, 4),
    causal=st.booleans(),
    scale=st.sampled_from((None, 0.3, -0.5)),
    threads=st.sampled_from((1, 2)),
)
def test_attention(batch, heads, sizes, mask, mask_shape, mask_rank, causal, scale, threads):
    torch.manual_seed(0)
    queries, keys, depth, width = sizes
    q = torch.randn(batch, heads[0], queries, depth)
    k, v = torch.randn(batch, heads[1], keys, depth), torch.randn(batch, heads[1], keys, width)
    inputs, given_mask = [q, k, v], None
    if mask:
        full = (batch, heads[0], queries, keys)
        shape = [size if whole else 1 for size, whole in zip(full, mask_shape, strict=True)][-mask_rank:]
        given_mask = torch.rand(shape) < 0.6 if mask == "bool" else torch.randn(shape)
        inputs.append(given_mask)
        given_mask = given_mask.expand(full)
    attributes = {} if scale is None else {"scale": scale}
    result = run_one("attention", inputs, threads=threads, causal=causal, **attributes)
    both = given_mask
    if causal and mask:
        triangle = torch.ones(queries, keys, dtype=torch.bool).tril()
        both = given_mask & triangle if mask == "bool" else given_mask.masked_fill(~triangle, -torch.inf)
    close(result, reference(q, k, v, both, causal and not mask, scale), values(v))


@pytest.mark.parametrize(("queries", "keys"), [(300, 300), (1, 1000), (600, 2500), (90, 400), (400, 90)])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_in_blocks(queries, keys, causal):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, queries, 40), torch.randn(3, keys, 40), torch.randn(3, keys, 33)
    for threads in (1, 2):
        result = run_one("attention", [q, k, v], threads=threads, causal=causal)
        close(result, reference(q, k, v, causal=causal), values(v))


@pytest.mark.parametrize("place", ["q", "k", "v"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_what_is_not_finite(place, value, causal, masked):
    torch.manual_seed(0)
    tensors = {"q": torch.rand(300, 4) + 1, "k": torch.rand(300, 4) + 1, "v": torch.rand(300, 4) + 1}
    tensors[place][-1, 0] = value
    mask = torch.ones(300, 300, dtype=torch.bool)
    mask[:, -1] = not masked
    inputs = list(tensors.values())
    result = run_one("attention", [*inputs, mask], causal=causal, scale=1.0)
    if causal:
        mask = mask.tril()
    with sdpa_kernel(SDPBackend.MATH):
        expected = scaled_dot_product_attention(*inputs, attn_mask=mask, scale=1.0)
    assert torch.equal(result.isnan(), expected.isnan())
    assert torch.equal(result.isinf(), expected.isinf())
    finite = expected.isfinite() & (expected.abs() < 1e30)
    assert torch.allclose(result[finite], expected[finite], rtol=1e-5)


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("queries", [3, 30])
def test_a_query_that_may_see_no_key_gives_zeros(kind, queries):
    torch.manual_seed(0)
    q, k, v = torch.randn(queries, 4), torch.randn(20, 4), torch.randn(20, 6)
    mask = torch.ones(queries, 20, dtype=torch.bool)
    mask[1] = False
    if kind == "float":
        mask = torch.zeros(queries, 20).masked_fill(~mask, -torch.inf)
    result = run_one("attention", [q, k, v, mask])
    assert (result[1] == 0).all()
    close(result, reference(q, k, v, mask), values(v))
    k[3] = torch.nan
    assert run_one("attention", [q, k, v, mask]).isnan().all()


@pytest.mark.parametrize(
    ("queries", "keys", "depth", "width"), [(0, 3, 4, 5), (3, 0, 4, 5), (3, 2, 0, 5), (3, 2, 4, 0), (0, 0, 0, 0)]
)
def test_attention_of_nothing(queries, keys, depth, width):
    q, k, v = torch.randn(2, queries, depth), torch.randn(2, keys, depth), torch.randn(2, keys, width)
    with sdpa_kernel(SDPBackend.MATH):
        expected = scaled_dot_product_attention(q, k, v, scale=1.0)
    close(run_one("attention", [q, k, v], scale=1.0), expected.double(), values(v))
    assert run_one("attention", [q, k, v]).shape == expected.shape


def test_a_default_scale():
    torch.manual_seed(0)
    q, k, v = torch.randn(5, 9), torch.randn(7, 9), torch.randn(7, 3)
    assert torch.equal(run_one("attention", [q, k, v]), run_one("attention", [q, k, v], scale=1 / math.sqrt(9)))


X, W = torch.zeros(2, 3, 4), torch.zeros(5, 4)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "message"),
    [
        ("linear", [X], {}, r"tested \(linear\): it reads 2 or more tensors"),
        ("linear", [X, None], {}, "it reads 2 or more tensors"),
        ("linear", [X, W[:, :3]], {}, r"its input is F32 \[2, 3, 4\] and its weight F32 \[5, 3\], and they must be"),
        ("linear", [X, W[0]], {}, r"its weight F32 \[4\]"),
        ("linear", [X.long(), W], {}, r"its input is I64 \[2, 3, 4\], and must be F32"),
        ("linear", [X, W > 0], {}, r"its weight is BOOL \[5, 4\], and must be F32"),
        ("linear", [X, W, X[0, 0]], {}, r"its bias is F32 \[4\], and must be F32 \[5\]"),
        ("linear", [X, W, None, X], {}, r"its residual is F32 \[2, 3, 4\], and must be F32 \[2, 3, 5\]"),
        ("linear", [X, W], {"activation": ["hop"]}, 'no activation "hop"'),
        ("matmul", [X, W], {}, r"\[2, 3, 4\] and F32 \[5, 4\], and they must be \[…, M, K\] and \[…, K, N\]"),
        ("matmul", [X, torch.zeros(3, 4, 5)], {}, "they must be"),
        ("matmul", [X, torch.zeros(5, 3)], {"transpose_a": True}, r"\(transposed\) and"),
        ("matmul", [X, W[0]], {}, r"its second input is F32 \[4\], and must have 2 dimensions or more"),
        ("matmul", [X, W], {"transpose_b": 1}, '"transpose_b" is not true or false'),
        ("attention", [X, X], {}, "it reads 3 or more tensors"),
        ("attention", [X, X, W], {}, r"and v is F32 \[5, 4\], and they must be"),
        ("attention", [X, X, X[:, :2]], {}, "they must be"),
        ("attention", [X, torch.zeros(0, 3, 4), X], {}, "they must be"),
        ("attention", [torch.zeros(3, 3, 4), X, X], {}, "they must be"),
        ("attention", [X, X, X, X], {}, r"its mask is F32 \[2, 3, 4\], and must be BOOL or F32 and fit \[2, 3, 3\]"),
        ("attention", [X, X, X, torch.zeros(3, 3).long()], {}, "its mask is I64"),
        ("attention", [X, X, X, torch.zeros(1, 1, 1, 1)], {}, r"its mask is F32 \[1, 1, 1, 1\]"),
        ("attention", [X, X, X], {"scale": "large"}, '"scale" is no number'),
        ("attention", [X, X, X], {"causal": 1}, '"causal" is not true or false'),
        ("attention", [X, X.long(), X], {}, "one of q, k and v is I64"),
    ],
)
def test_what_does_not_fit_is_refused(op, inputs, attributes, message):
    with pytest.raises(Refused, match=message):
        run_one(op, inputs, **attributes)
