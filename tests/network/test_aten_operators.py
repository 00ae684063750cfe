"""What the network file says of each family of ATen operators: the library computes what PyTorch does."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from captured import Lambda
from exported import assert_same, described
from fggp.ship.network.description import UnsupportedError


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def integers(*shape, low=-5, high=6, seed=0):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def outputs(*results):
    """Results by their place."""
    return {f"result {i}": x for i, x in enumerate(results)}


def convolutions(m, x):
    line, volume = x.flatten(2), x.unsqueeze(2)
    return outputs(
        m.conv2d(x),
        m.uneven(x),
        F.conv2d(x, m.plain2d.weight, padding="valid"),
        m.conv1d(line),
        m.conv3d(volume),
        m.transposed1d(line),
        m.transposed2d(x),
        m.transposed3d(volume),
        m.conv2d(x[0]),
        m.norm(m.conv2d(x)),
        m.norm(x.repeat(1, 2, 1, 1)).relu(),
        m.norm1d(m.conv1d(line)),
        m.norm3d(volume * 2),
    )


CONVOLUTIONS = {
    "conv2d": nn.Conv2d(3, 6, 3, padding=1, stride=2, groups=3),
    "plain2d": nn.Conv2d(3, 2, 3),
    "uneven": nn.Conv2d(3, 2, (2, 4), padding="same"),
    "conv1d": nn.Conv1d(3, 4, 3, dilation=2, padding=1),
    "conv3d": nn.Conv3d(3, 2, (1, 3, 3), stride=(1, 2, 1), bias=False),
    "transposed1d": nn.ConvTranspose1d(3, 4, 3, stride=2, output_padding=1),
    "transposed2d": nn.ConvTranspose2d(3, 6, 2, stride=2, groups=3),
    "transposed3d": nn.ConvTranspose3d(3, 2, (1, 3, 2), padding=(0, 1, 0), dilation=(1, 1, 2)),
    "norm": nn.BatchNorm2d(6),
    "norm1d": nn.BatchNorm1d(4),
    "norm3d": nn.BatchNorm3d(3, affine=False),
}


def products(m, x, y):
    return outputs(
        m.linear(x),
        F.linear(x, m.linear.weight, m.linear.bias[:, None].expand(5, 4)[:, 0]),
        x @ y.mT,
        torch.bmm(x, y.transpose(1, 2)),
        x[0] @ m.linear.weight.t(),
        x @ y[0, 0],
        y[0, 0] @ y[0, 1],
        torch.mv(x[0], y[0, 0]),
        torch.addmm(x[0, :, :1].expand(-1, 3) * 2, x[0], y[0, :3].t(), alpha=0.5, beta=2),
        torch.baddbmm(x[:, :, :1], x, y.mT, beta=3),
        torch.outer(x[0, 0], y[0, 1]),
        torch.einsum("bse,bte->bst", x, y),
        torch.einsum("...se,oe->...so", x, m.linear.weight),
        torch.einsum("bse->es", x),
        torch.einsum("bse,bse->b", x, x),
        torch.einsum("i,j", x[0, 0], y[0, 0]),
        x.unsqueeze(1) @ y.mT,
    )


def attention(m, x, mask):
    q = x.unflatten(-1, (2, 4)).transpose(1, 2)
    k, v = q * 0.5, q + 1
    added = torch.zeros(mask.shape).masked_fill(~mask, -math.inf)[:, None, None]
    return outputs(
        F.scaled_dot_product_attention(q, k, v),
        F.scaled_dot_product_attention(q, k, v, is_causal=True),
        F.scaled_dot_product_attention(q, k, v, mask[:, None, None], scale=0.3),
        F.scaled_dot_product_attention(q, k, v, added),
        F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], enable_gqa=True),
        m.attention(x, x, x, need_weights=False)[0],
        *m.attention(x, x, x),
        m.encoder(x, src_key_padding_mask=~mask),
    )


def norms(m, x):
    return outputs(
        m.layer(x),
        F.layer_norm(x, x.shape[2:]),
        F.rms_norm(x, (6,)),
        F.rms_norm(x, (6,), m.layer.weight, 1e-3),
        m.group(x),
        F.group_norm(x, 2),
        m.instance(x),
        F.instance_norm(x),
        torch.native_layer_norm(x, [6], None, None, 1e-5)[0],
        x.softmax(1),
        x.log_softmax(-1),
        F.softmin(x, 2),
        torch.special.log_softmax(x, 0),
        F.normalize(x, dim=1),
        F.local_response_norm(x, 2),
        F.cosine_similarity(x, x + 1, 1),
    )


def activations(m, x):
    positive = x.abs() + 0.1
    return outputs(
        *(f(x) for f in (F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.hardsigmoid, F.hardswish, F.silu)),
        *(f(x) for f in (F.gelu, F.mish, torch.tanh, torch.sigmoid, F.softplus, F.logsigmoid, F.softsign, F.hardtanh)),
        F.gelu(x, approximate="tanh"),
        F.softplus(x, 2.0, 0.5),
        m.prelu(x),
        F.threshold(x, 0.1, 20.0),
        F.hardshrink(x, 0.3),
        F.softshrink(x, 0.3),
        F.tanhshrink(x),
        F.glu(x, 1),
        F.dropout(x, training=False) + 1,
        *(f(x) for f in (torch.exp, torch.expm1, torch.sin, torch.cos, torch.tan, torch.erf, torch.exp2, torch.abs)),
        *(f(positive) for f in (torch.log, torch.log1p, torch.sqrt, torch.rsqrt, torch.reciprocal, torch.log2)),
        *(f(x * 3) for f in (torch.floor, torch.ceil, torch.round, torch.trunc, torch.sign, torch.square, torch.neg)),
        torch.log10(positive),
        x.clamp(-0.5, 0.25),
        x.clamp(min=-0.5),
        x.clamp_max(0.25),
        x.clamp(-math.inf, 0.1),
        x.clamp(x.mean(), x.amax()),
    )


def arithmetic(m, x, i):
    y, b = x.flip(0), i > 0
    return outputs(
        x + y,
        x - 2,
        2 - x,
        torch.rsub(x, y, alpha=2),
        x.add(y, alpha=0.5),
        x * y * 3,
        x / y,
        3 / x,
        i / 2,
        i / i.abs().clamp(min=1),
        x // 0.3,
        i // 3,
        torch.div(i, 3, rounding_mode="trunc"),
        torch.div(x, 0.3, rounding_mode="trunc"),
        torch.div(x, 0.3, rounding_mode="floor"),
        x % 0.7,
        i % 3,
        torch.remainder(i, -3),
        x**2,
        x.abs() ** 0.7,
        2**x,
        i**2,
        x.abs().pow(y),
        i + x,
        i + 0.5,
        i + True,
        b + i,
        b.float() * x,
        i * 2 - 1,
        -i,
        i.abs(),
        i.relu(),
        i.sign(),
        i.clamp(-2, 2),
        torch.maximum(x, y),
        torch.minimum(i, i.flip(0)),
        torch.max(x, y),
        torch.addcmul(x, x, y, value=0.5),
        torch.addcdiv(x, x, y.abs() + 1),
        torch.lerp(x, y, 0.3),
        torch.sigmoid(i),
        torch.sqrt(i.abs()),
        m.table + i,
    )


def comparisons(m, x, i):
    b = x > 0
    holes = torch.where(x > 1, math.nan, torch.where(x < -1, math.inf, x))
    return outputs(
        *(f(x, 0.1) for f in (torch.eq, torch.ne, torch.lt, torch.le, torch.gt, torch.ge)),
        *(f(i, i.flip(0)) for f in (torch.eq, torch.ne, torch.lt, torch.le, torch.gt, torch.ge)),
        i > 0.5,
        x == i,
        b == (i > 0),
        b & (i > 0),
        b | (i > 0),
        b ^ (i > 0),
        ~b,
        ~i,
        torch.logical_and(x, i),
        torch.logical_or(b, i),
        torch.logical_xor(b, i),
        torch.logical_not(i),
        torch.where(b, x, 0.0),
        torch.where(b, x, i),
        torch.where(b, 1.0, -1.0),
        x.masked_fill(b, -math.inf).exp(),
        i.masked_fill(b, 7),
        x.masked_fill(b, torch.tensor(3.0)),
        holes.isnan(),
        holes.isinf(),
        holes.isfinite(),
        holes.nan_to_num(),
        holes.nan_to_num(1.0, 2.0),
        b.any(),
        b.all(1),
        b.any(-1, keepdim=True),
        i.any(0),
        b.sum(1),
        b.float().mean(),
        x.to(torch.int64),
        i.float(),
        i.bool(),
        b.long(),
        i.type_as(x),
        i.to(x),
        b.int() + 1,
    )


def reductions(m, x, i):
    return outputs(
        x.sum(),
        x.sum(1),
        x.sum((0, -1), keepdim=True),
        i.sum(0),
        x.mean(),
        x.mean((1, 2)),
        x.mean(-1, keepdim=True),
        x.prod(1),
        x.amax((0, 1)),
        x.amin(-1, keepdim=True),
        x.max(),
        x.min(),
        *x.max(1),
        *i.min(0, keepdim=True),
        x.argmax(),
        x.argmax(1),
        x.argmin(-1, keepdim=True),
        x.var(1),
        x.var((0, 1), correction=0),
        x.var(1, keepdim=True, correction=2),
        x.std(-1),
        x.std(),
        *torch.var_mean(x, 2, keepdim=True),
        x.norm(),
        x.norm(dim=1),
        x.norm(1, dim=(1, 2)),
        torch.linalg.vector_norm(x, math.inf, 1),
        torch.linalg.vector_norm(x, 3.0, -1, keepdim=True),
        torch.linalg.vector_norm(x, 0, 1),
        x.logsumexp(1),
        (x - math.inf).logsumexp((0, 1)),
        x.cumsum(1),
        i.cumsum(-1),
        (i > 0).cumsum(0),
        *x.topk(2, 1),
        *x.topk(3, -1, largest=False),
        *x.sort(-1),
        x.argsort(1, descending=True),
        x.diff(dim=1),
        torch.diff(i > 0, dim=1, prepend=i[:, :1] > 0),
    )


def movement(m, x, i):
    n, s, e = x.shape
    y = x.transpose(1, 2).contiguous()
    return outputs(
        x.reshape(n, -1),
        x.view(n, s, 2, e // 2).permute(0, 2, 1, 3).reshape(n * 2, s, -1),
        x.flatten(),
        x.flatten(1),
        x.unflatten(2, (2, -1)),
        x.unsqueeze(1).expand(-1, 3, -1, -1),
        x[:, :1].squeeze(1),
        x[:, :, :1].squeeze(),
        x.mT,
        x.movedim(0, -1),
        x.movedim((0, 1), (1, 2)),
        x.swapaxes(0, 1),
        x[0].t(),
        x[:, 1:],
        x[:, -2:],
        x[:, :-1],
        x[..., ::2],
        x[:, 0],
        x[:, -1],
        x[:, s // 2 :],
        x[:, : s - 1] + x[:, 1:],
        x.narrow(2, 1, 3),
        *x.split(4, 2),
        *x.split([1, 2, 3], 2),
        *x.chunk(4, 2),
        *x.chunk(2, 1),
        *x.tensor_split(4, 2),
        *x.unbind(2)[:2],
        torch.cat([x, x * 2], 1),
        torch.cat([x, i], -1),
        torch.stack([x, x + 1], 1),
        torch.stack([y, y + 1, y], -1),
        torch.hstack([x, x]),
        x.repeat(2, 1, 3),
        x.repeat(2, 1, 1, 1),
        x.tile(2),
        x.repeat_interleave(2, 1),
        x.repeat_interleave(3),
        x.roll(1, 1),
        x.roll((1, -2), (1, 2)),
        x.roll(2),
        x.flip(0, 2),
        x.fliplr(),
        F.pad(x, (1, 2)),
        F.pad(x, (1, 0, 2, 3), value=-1.5),
        F.pad(x, (-1, 1, 0, 1)),
        F.pad(i, (1, 1), value=3),
        F.pad(y, (1, 2), mode="reflect"),
        F.pad(y, (1, 2), mode="replicate"),
        F.pad(y, (1, 2), mode="circular"),
        x.unfold(1, 2, 1),
        x.unfold(2, 3, 2),
        x.tril(),
        x.triu(-1),
        (x > 0).tril(1),
        x.clone().detach(),
        x.new_zeros(n, 2) + 1,
        torch.broadcast_to(x[:, :1], x.shape),
        x.view_as(y),
    )


def windows(m, x):
    n, c, h, w = x.shape
    parts = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, c)
    back = parts.view(n, h // 2, w // 2, 2, 2, c).permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w)
    return outputs(
        parts,
        back.roll((1, -1), (2, 3)),
        F.pixel_unshuffle(x, 2),
        F.pixel_shuffle(x.repeat(1, 2, 1, 1), 2),
        F.channel_shuffle(x, 2),
        F.unfold(x, (2, 3), dilation=(1, 2), padding=1, stride=(2, 1)),
        x[:, [2, 0, 1]],
        F.pad(x, (1, 1, 2, 0), mode="reflect"),
        F.pad(x, (1, 1, 2, 0), mode="circular"),
        x.chunk(2, 1)[1],
        x.permute(0, 2, 3, 1)[..., 1:3],
    )


def lookups(m, x, i):
    n, s = i.shape
    columns = torch.arange(s)
    return outputs(
        m.embedding(i),
        F.embedding(i, m.table),
        m.table[i],
        x[:, i[0] % 3],
        x[:, m.order],
        x[..., m.order],
        x.index_select(2, m.order),
        x.gather(1, (i % 3)[..., None].expand(-1, -1, 4)),
        x.take_along_dim((i % 3)[..., None], 1),
        x[torch.arange(n)[:, None], i % 3],
        x[torch.arange(n), (i % 3)[:, -1]],
        x[torch.arange(n), :, i[:, 0] % 4],
        m.table[i % 5 - 5],
        m.table[i[:, :, None] % 3, columns[None, None] % 3],
        m.embedding(columns)[None] + m.embedding(i),
    )


def creation(m, x):
    n, s, e = x.shape
    row, column = torch.arange(s)[:, None], torch.arange(s)
    return outputs(
        x + torch.arange(s)[:, None],
        torch.arange(1, s, 2) + 0,
        torch.arange(s, dtype=torch.float32) * 0.1,
        torch.arange(0.0, 1.0, 0.25) + x[0, 0, 0],
        torch.full((n, s), -math.inf).softmax(0).isnan(),
        torch.full((s, s), float("-inf")).triu(1),
        x + torch.zeros(e),
        torch.ones(n, 2, dtype=torch.bool) & True,
        torch.zeros_like(x[..., :1]).long(),
        torch.ones_like(x) - x,
        torch.full_like(x, 2.5) * x,
        x.new_full((n, 1), 3),
        x.new_ones(s) + 1,
        torch.eye(s) + 1,
        torch.linspace(0, 1, 5) * x[0, 0, 0],
        torch.ones(s, s).tril() > 0,
        torch.where(row >= column, 0.0, -math.inf),
        x * (s / e),
        x / s,
        x.sum(1) / x.shape[1],
        torch.tensor([1.0, 2.0]) + x[0, 0, 0],
    )


def pools(m, x):
    line, volume = x.flatten(2), x.unsqueeze(2)
    return outputs(
        F.max_pool2d(x, 3, 2, 1),
        F.max_pool2d(x, 3, 2, ceil_mode=True, dilation=1),
        F.max_pool1d(line, 3),
        F.max_pool3d(volume, (1, 2, 2)),
        F.avg_pool2d(x, 2),
        F.avg_pool2d(x, 3, 2, 1, count_include_pad=False, ceil_mode=True),
        F.avg_pool2d(x, 2, divisor_override=3),
        F.avg_pool1d(line, 3, 2, 1),
        F.avg_pool3d(volume, (1, 2, 2)),
        F.adaptive_avg_pool2d(x, 1),
        F.adaptive_avg_pool2d(x, (3, 2)),
        F.adaptive_avg_pool2d(x, (None, 1)),
        F.adaptive_avg_pool1d(line, 3),
        F.adaptive_avg_pool3d(volume, 1),
        F.adaptive_max_pool2d(x, (2, 3)),
        F.adaptive_max_pool1d(line, 2),
        F.max_pool2d(x[0], 2),
        F.avg_pool2d(x[0], 2),
        F.adaptive_avg_pool2d(x[0], 2),
        F.lp_pool2d(x.abs() + 1, 2, 2),
    )


def resizes(m, x):
    line, volume = x.flatten(2), x.unsqueeze(2)
    return outputs(
        F.interpolate(x, scale_factor=2),
        F.interpolate(x, size=(5, 11)),
        F.interpolate(x, scale_factor=(1.5, 2), mode="nearest-exact"),
        F.interpolate(x, scale_factor=2, mode="bilinear"),
        F.interpolate(x, scale_factor=0.5, mode="bilinear"),
        F.interpolate(x, size=(5, 11), mode="bilinear", align_corners=True),
        F.interpolate(x, scale_factor=1.3, mode="bilinear"),
        F.interpolate(x, scale_factor=2, mode="bicubic"),
        F.interpolate(line, scale_factor=2, mode="linear"),
        F.interpolate(line, scale_factor=2),
        F.interpolate(volume, scale_factor=2, mode="trilinear"),
        F.interpolate(volume, size=(2, 5, 5)),
        m.upsample(x),
    )


def recurrent(m, x):
    swapped = x.transpose(0, 1)
    steps, (h, c) = m.lstm(x)
    both, last = m.gru(swapped)
    return outputs(steps, h, c, both, last, m.plain(x, (h[:1], c[:1]))[0], m.small(x)[1])


RECURRENT = {
    "lstm": nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True, dropout=0.5),
    "gru": nn.GRU(6, 5, bidirectional=True),
    "plain": nn.LSTM(6, 5, batch_first=True, bias=False),
    "small": nn.GRU(6, 3, 3, batch_first=True),
}
ENCODER = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=True)

# Family: (function, what it needs, examples: the second has other sizes).
FAMILIES = {
    "convolutions": (convolutions, CONVOLUTIONS, [(randn(2, 3, 8, 8),), (randn(3, 3, 8, 8),)]),
    "products": (
        products,
        {"linear": nn.Linear(4, 5)},
        [(randn(2, 3, 4), randn(2, 5, 4, seed=1)), (randn(3, 3, 4), randn(3, 5, 4, seed=1))],
    ),
    "attention": (
        attention,
        {"attention": nn.MultiheadAttention(8, 2, batch_first=True), "encoder": ENCODER},
        [(randn(2, 5, 8), torch.arange(5) < torch.tensor([[5], [3]]))],
    ),
    "norms": (
        norms,
        {"layer": nn.LayerNorm(6), "group": nn.GroupNorm(2, 4), "instance": nn.InstanceNorm2d(4, affine=True)},
        [(randn(2, 4, 5, 6),), (randn(3, 4, 5, 6),)],
    ),
    "activations": (activations, {"prelu": nn.PReLU(4)}, [(randn(2, 4, 9),), (randn(3, 4, 7),)]),
    "arithmetic": (
        arithmetic,
        {"table": torch.arange(7)},
        [(randn(2, 5, 7), integers(2, 5, 7)), (randn(3, 5, 7), integers(3, 5, 7))],
    ),
    "comparisons": (comparisons, {}, [(randn(4, 9), integers(4, 9)), (randn(3, 9, seed=3), integers(3, 9, seed=3))]),
    "reductions": (
        reductions,
        {},
        [(randn(2, 5, 7), integers(2, 5, 7)), (randn(3, 5, 7), integers(3, 5, 7, seed=1))],
    ),
    "movement": (movement, {}, [(randn(2, 4, 6), integers(2, 4, 6)), (randn(3, 4, 6), integers(3, 4, 6))]),
    "windows": (windows, {}, [(randn(2, 4, 6, 8),), (randn(1, 4, 8, 4),)]),
    "lookups": (
        lookups,
        {"embedding": nn.Embedding(9, 4), "table": randn(9, 4), "order": torch.tensor([2, 0, 1])},
        [(randn(2, 3, 4, seed=seed), integers(2, 5, low=0, high=9, seed=seed)) for seed in (0, 1)],
    ),
    "creation": (creation, {}, [(randn(2, 5, 3),), (randn(3, 4, 3),)]),
    "pools": (pools, {}, [(randn(2, 4, 9, 8),), (randn(3, 4, 9, 8),)]),
    "resizes": (resizes, {"upsample": nn.UpsamplingBilinear2d(scale_factor=2)}, [(randn(2, 3, 6, 7),)]),
    "recurrent": (recurrent, RECURRENT, [(randn(2, 5, 6),), (randn(3, 5, 6),)]),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family):
    function, layers, examples = FAMILIES[family]
    torch.manual_seed(0)
    for layer in layers.values():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 2)
    assert_same(Model(function, layers), *examples)


# What cannot be expressed.


def test_everything_that_cannot_be_expressed_is_named_with_its_place():
    model = nn.Sequential(OneInput(torch.fft.fft2), OneInput(torch.real), OneInput(torch.linalg.inv))
    with pytest.raises(UnsupportedError) as refused:
        described(model, randn(2, 4, 4))
    # PyTorch decides which operators of others they are; newer versions leave them whole.
    named = {place: operator for operator, place, _ in refused.value.found}
    assert sorted(named) == ["0", "1", "2"]
    found = [operator for operator, place, _ in refused.value.found if place == "2"]
    assert found[0].startswith("aten.linalg_inv")
    assert f"{found[0]} in 2: the network file has no operator for it" in str(refused.value)


@pytest.mark.parametrize(
    ("function", "example", "message"),
    [
        (lambda x: x.double() * 2, randn(2, 3), "numbers of type float64; the file has float32, int64 and bool"),
        (lambda x: x.half() + 1, randn(2, 3), "numbers of type float16"),
        (lambda x: x.bfloat16() @ x.mT.bfloat16(), randn(2, 3), "numbers of type bfloat16"),
        (lambda x: x.float() / 255, integers(2, 3).to(torch.uint8), "numbers of type uint8"),
        (lambda x: x[x > 0], randn(2, 3), "depends on the data"),
        (lambda x: x + torch.rand(3), randn(2, 3), "results of the file are not random"),
        (lambda x: x.nonzero(), randn(2, 3), "aten.nonzero.default"),
        (lambda x: F.max_pool2d(x, 2, return_indices=True)[1], randn(2, 3, 4, 4), "max_pool has no indices"),
        (lambda x: (x, 3), randn(2, 3), "the output 'output1'.*it is 3, and outputs of a network are tensors"),
    ],
)
def test_what_cannot_be_expressed(function, example, message):
    with pytest.raises(UnsupportedError, match=message):
        described(OneInput(function), example)


def test_integers_of_32_bits_are_written_with_64():
    description = assert_same(OneInput(lambda x: (x.int() * 3).cumsum(1, dtype=torch.int32)), integers(2, 3))
    assert {node.get("type", "I64") for node in description.network["nodes"]} == {"I64"}


# Names.


def test_tensors_have_the_names_of_the_models():
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.token = nn.Parameter(torch.ones(1, 4, 1, 1))
            self.inner = nn.ModuleList([nn.LayerNorm(6)])

        def forward(self, x):
            return self.inner[0](self.norm(self.conv(x)) * self.token.sigmoid().exp().expand(len(x), -1, 6, 6))

    tensors = described(Parts(), randn(2, 3, 8, 8)).tensors
    assert {"conv.weight", "conv.bias", "inner.0.weight", "inner.0.bias"} <= set(tensors)


def test_a_weight_that_is_read_twice_is_one_tensor():
    layer = nn.Linear(4, 4)
    description = described(nn.Sequential(layer, nn.ReLU(), layer), randn(2, 4))
    assert list(description.tensors) == ["0.weight", "0.bias"]


# Free sizes.


@pytest.mark.parametrize(
    ("function", "example", "shapes"),
    [
        (lambda x: x.relu(), randn(2, 3, 8, 8), ["N", 3, "H", "W"]),
        (lambda x: x.relu(), randn(2, 8, 4), ["N", "S", "S2"]),
        (lambda x: x + 1, integers(2, 8), ["N", "S"]),
        (lambda x: x * 2, randn(2, 8), ["N", 8]),
        (lambda x: x + x.transpose(2, 3), randn(2, 3, 8, 8), ["N", 3, "H", "H"]),
        (lambda x: x * 2 if x.shape[2] > 5 else x, randn(2, 3, 8, 8), ["N", 3, 8, 8]),
        (lambda x: x * 2 if x.shape[2] % 2 else x, randn(2, 3, 8, 8), ["N", 3, 8, 8]),
        (lambda x: x.view(2, 3, 64), randn(2, 3, 8, 8), [2, 3, 8, 8]),
    ],
)
def test_sizes_are_free_where_the_same_operations_serve_all(function, example, shapes):
    (given,) = described(OneInput(function), example).network["inputs"]
    assert given["shape"] == shapes


class Model(Lambda):
    """A function of named arguments."""

    def __init__(self, function, layers):
        super().__init__(function, **layers)


class OneInput(nn.Module):
    """A function of one input."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)
