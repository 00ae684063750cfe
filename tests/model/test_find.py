"""Which weights are pruned, and their names."""

import re
import sys
import types

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import fggp
import helpers
from fggp.model.find import find_prunable


def names(model, **filters):
    return [w.name for w in find_prunable(model, **filters)]


class Zoo(nn.Module):
    """One layer of every kind."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv1d(2, 3, 3)
        self.conv2 = nn.Conv2d(4, 6, 3, groups=2)
        self.conv3 = nn.Conv3d(2, 3, 1)
        self.up1 = nn.ConvTranspose1d(2, 3, 3)
        self.up2 = nn.ConvTranspose2d(2, 3, 3)
        self.up3 = nn.ConvTranspose3d(2, 3, 1)
        self.fc = nn.Linear(4, 5)
        self.norms = nn.Sequential(
            nn.BatchNorm2d(3), nn.LayerNorm(4), nn.GroupNorm(1, 3), nn.InstanceNorm1d(3, affine=True)
        )
        self.embedding = nn.Embedding(7, 4)
        self.bag = nn.EmbeddingBag(7, 4)
        self.act = nn.PReLU(3)
        self.lstm = nn.LSTM(4, 5)
        self.cell = nn.GRUCell(4, 5)
        self.attention = nn.MultiheadAttention(8, 2, add_bias_kv=True)
        self.cross = nn.MultiheadAttention(8, 2, kdim=6, vdim=4)
        self.register_module("nothing", None)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))


CONVS = [f"{kind}{d}.weight" for kind in ("conv", "up") for d in (1, 2, 3)]
ATTENTION = [
    "attention.in_proj_weight",
    "attention.out_proj.weight",
    "cross.q_proj_weight",
    "cross.k_proj_weight",
    "cross.v_proj_weight",
    "cross.out_proj.weight",
]


def test_convolutions_linear_layers_and_attention_projections_are_pruned_and_nothing_else():
    assert names(Zoo()) == [*CONVS, "fc.weight", *ATTENTION]


def test_the_order_is_the_models_parameter_order():
    model = Zoo()
    order = [n for n, _ in model.named_parameters()]
    found = names(model, include=["*"])
    assert found == sorted(found, key=order.index)


def test_subclasses_count_as_what_they_are():
    class MyLinear(nn.Linear):
        pass

    assert names(nn.Sequential(MyLinear(2, 2))) == ["0.weight"]


def test_the_transformers_librarys_conv1d(monkeypatch):
    module = types.ModuleType("transformers.pytorch_utils")

    class Conv1D(nn.Module):
        __module__ = "transformers.pytorch_utils"

        def __init__(self):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(2))

    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert names(nn.Sequential(Conv1D())) == ["0.weight"]
    Conv1D.__module__ = "elsewhere"
    with pytest.raises(ValueError, match="nothing to prune"):
        find_prunable(nn.Sequential(Conv1D()))


def test_every_default_kind_trains_pruned():
    """Transposed convolutions and attention, through forward, backward and an update."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose2d(2, 4, 2)
            self.down = nn.Conv1d(4, 8, 1)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.cross = nn.MultiheadAttention(8, 2, kdim=4, vdim=4, batch_first=True)

        def forward(self, x):
            x = self.up(x).flatten(2)
            q = self.down(x).transpose(1, 2)
            q = self.attention(q, q, q, need_weights=False)[0]
            return self.cross(q, x.transpose(1, 2), x.transpose(1, 2))[0].square().mean()

    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters())
    pruner = fggp.Pruner(model, optimizer, 0.7, begin=0, end=2, every=1, floor=1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(2, 2, 3, 3)).backward()
        optimizer.step()
        helpers.assert_exactly_zero(pruner, optimizer)
    assert len(pruner.masks) == 8
    total = sum(m.numel() for m in pruner.masks.values())
    assert sum(int(m.sum()) for m in pruner.masks.values()) == round(0.3 * total)


# Filters


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"include": "conv*"}, CONVS[:3]),
        ({"include": "*2.weight"}, ["conv2.weight", "up2.weight"]),
        ({"include": ["fc.*", "conv1.weight"]}, ["conv1.weight", "fc.weight"]),
        ({"include": "*"}, [*CONVS, "fc.weight", *ATTENTION]),
        ({"include": "*.bias"}, "every bias"),
        ({"include": "embedding.weight"}, ["embedding.weight"]),
        ({"include": "token"}, ["token"]),
        ({"include": nn.LSTM}, ["lstm.weight_ih_l0", "lstm.weight_hh_l0"]),
        ({"include": [nn.GRUCell, nn.Embedding]}, ["embedding.weight", "cell.weight_ih", "cell.weight_hh"]),
        ({"include": "lstm.weight_hh*"}, ["lstm.weight_hh_l0"]),
        ({"include": (nn.Linear, "embedding.*")}, "linear and embedding"),
        ({"include": nn.Conv2d}, ["conv2.weight"]),
        ({"exclude": ["up?.weight", nn.MultiheadAttention, nn.Linear]}, CONVS[:3]),
        ({"exclude": "fc.weight"}, [*CONVS, *ATTENTION]),
        ({"include": "conv*", "exclude": nn.Conv2d}, ["conv1.weight", "conv3.weight"]),
        (
            {"exclude": (nn.Conv1d, nn.Conv3d)},
            [n for n in CONVS if n[:-7] not in ("conv1", "conv3")] + ["fc.weight", *ATTENTION],
        ),
    ],
    ids=str,
)
def test_include_and_exclude(filters, expected):
    model = Zoo()
    if expected == "every bias":
        expected = [n for n, _ in model.named_parameters() if n.endswith(".bias")]
    if expected == "linear and embedding":
        expected = ["fc.weight", "embedding.weight", "attention.out_proj.weight", "cross.out_proj.weight"]
    assert names(model, **filters) == expected


@pytest.mark.parametrize(
    ("filters", "told"),
    [
        ({"include": "feature.*"}, "include='feature.*' matches no trainable weight; the model has '0.weight'"),
        ({"exclude": "6.wieght"}, "exclude='6.wieght' matches no trainable weight"),
        ({"include": nn.LSTM}, "include=<class 'torch.nn.modules.rnn.LSTM'> matches no trainable weight"),
        ({"include": ["0.weight", ""]}, "include='' matches no"),
        ({"include": []}, "nothing to prune"),
        ({"exclude": "*"}, "nothing to prune with include=None, exclude='*'"),
        ({"include": "0.*", "exclude": nn.Conv2d}, "nothing to prune with include='0.*', exclude="),
    ],
    ids=str,
)
def test_a_filter_that_matches_nothing_or_leaves_nothing_is_refused(filters, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        find_prunable(helpers.convnet(), **filters)


@pytest.mark.parametrize("bad", [3, nn.Linear(2, 2), int, [None]], ids=str)
@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_a_filter_of_the_wrong_kind_is_refused(argument, bad):
    with pytest.raises(TypeError, match=f"{argument}=.* must be a pattern of weight names or a module type"):
        find_prunable(helpers.convnet(), **{argument: bad})


@pytest.mark.parametrize(
    "model",
    [nn.Sequential(), nn.ReLU(), nn.BatchNorm1d(3), nn.Embedding(3, 3)],
    ids=lambda m: type(m).__name__,
)
def test_a_model_with_nothing_to_prune_is_refused(model):
    with pytest.raises(ValueError, match=f"model={type(model).__name__} has nothing to prune"):
        find_prunable(model)


# Frozen, lazy, empty, computed


def test_frozen_weights_are_left_alone():
    model = helpers.convnet()
    model[3].weight.requires_grad_(False)
    optimizer = helpers.sgd(model)
    with pytest.warns(RuntimeWarning, match=r"only 47\.7% of the model's 461 parameters .* frozen: 216"):
        pruner = helpers.make_pruner(model, optimizer)
    before = model[3].weight.clone()
    helpers.train(model, optimizer, 6)
    assert list(pruner.masks) == ["0.weight", "6.weight"]
    assert torch.equal(model[3].weight, before)
    assert sum(int(m.sum()) for m in pruner.masks.values()) == round(0.2 * 220)


def test_lazy_modules_are_refused_until_they_have_a_shape():
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"'0\.weight' has no shape yet"):
        find_prunable(model)
    model(torch.zeros(1, 2))
    assert names(model) == ["0.weight"]


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_empty_weights_are_left_out():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 0))
    pruner = helpers.make_pruner(model, helpers.sgd(model))
    assert list(pruner.masks) == list(pruner.densities()) == ["0.weight"]
    with pytest.raises(ValueError, match="nothing to prune"):
        find_prunable(model[1])


def test_scalars_are_left_out():
    """Adam's step counter has a scalar's shape and would be zeroed with it."""
    model = nn.Sequential(nn.Linear(4, 3))
    model.register_parameter("scale", nn.Parameter(torch.tensor(1.0)))
    pruner = helpers.make_pruner(model, torch.optim.Adam(model.parameters()), include=["0.*", "scale"])
    assert list(pruner.masks) == ["0.weight"]
    with pytest.raises(ValueError, match="nothing to prune with include='scale'"):
        find_prunable(model, include="scale")


def test_complex_weights_are_refused():
    model = nn.Sequential(nn.Linear(2, 2, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"'0\.weight' is torch\.complex64"):
        find_prunable(model)


def spectral(layer):
    return nn.utils.parametrizations.spectral_norm(layer)


def spectral_of_old(layer):
    return nn.utils.spectral_norm(layer)


def masked(layer):
    return prune.l1_unstructured(layer, "weight", amount=2)


@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.(spectral_norm|weight_norm)")
@pytest.mark.parametrize(
    ("make", "told"),
    [
        (spectral, "'1.parametrizations.weight.original' (SpectralNorm)"),
        (spectral_of_old, "'1.weight_orig' (SpectralNorm)"),
        (masked, "'1.weight_orig' (L1Unstructured)"),
    ],
)
def test_parametrized_weights_are_left_out_with_a_warning(make, told):
    model = nn.Sequential(nn.Linear(3, 3), make(nn.Linear(3, 3)))
    with pytest.warns(UserWarning, match=re.escape(f"{told} will not be pruned: the weight that is used is computed")):
        assert names(model) == ["0.weight"]
    assert names(model, include=["1.*weight*"]) == [told.split("'")[1]]  # not warned of: it is what the user asks for


# Tied weights


class Tied(nn.Module):
    """Two linear layers share a weight; an embedding shares its weight with the output layer."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 6)
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.out = nn.Linear(6, 9)
        self.b.weight = self.a.weight
        self.out.weight = self.embedding.weight

    def forward(self, x):
        return self.out(self.b(self.a(self.embedding(x)).tanh())).logsumexp(-1).mean()


def test_tied_weights_are_counted_once_and_a_linear_tied_to_an_embedding_is_left_alone():
    model = Tied()
    assert names(model) == ["a.weight"]
    assert names(model, include="b.weight") == ["a.weight"]
    assert names(model, include=nn.Embedding) == ["embedding.weight"]
    optimizer = helpers.sgd(model)
    with pytest.warns(RuntimeWarning, match=r"only 32\.4% .* embeddings: 54 in 1"):
        pruner = fggp.Pruner(model, optimizer, 0.75, begin=0, end=2, every=1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.arange(9)).backward()
        optimizer.step()
        helpers.assert_exactly_zero(pruner, optimizer)
    assert model.a.weight is model.b.weight
    assert int((model.b.weight != 0).sum()) == 9
    assert (model.embedding.weight != 0).all()


def test_a_module_used_twice_is_counted_once():
    linear = nn.Linear(4, 4)
    assert names(nn.Sequential(linear, nn.ReLU(), linear)) == ["0.weight"]


# Wrappers


def wrapped(model, kind):
    if kind == "compiled":
        return torch.compile(model, backend="eager")
    if kind == "data-parallel":
        return nn.DataParallel(model)
    if kind == "data-parallel compiled":
        return torch.compile(nn.DataParallel(model), backend="eager")
    if kind == "part compiled":
        model[3] = torch.compile(model[3], backend="eager")
        return model
    raise KeyError(kind)


@pytest.mark.parametrize("kind", ["compiled", "data-parallel", "data-parallel compiled", "part compiled"])
def test_names_are_plain_under_wrappers(kind):
    assert names(wrapped(helpers.convnet(), kind)) == list(helpers.CONVNET_WEIGHTS)


def test_a_child_that_happens_to_be_called_module_keeps_its_name():
    model = nn.Sequential()
    model.add_module("module", nn.Linear(2, 2))
    assert names(model) == ["module.weight"]


@pytest.mark.parametrize("prune_the_wrapper", [True, False])
def test_a_compiled_model_trains_as_a_plain_one(prune_the_wrapper):
    plain, inner = helpers.convnet(), helpers.convnet()
    compiled = torch.compile(inner, backend="eager")
    masks = []
    for model, target in ((plain, plain), (compiled, compiled if prune_the_wrapper else inner)):
        optimizer = helpers.sgd(model)
        pruner = helpers.make_pruner(target, optimizer)
        helpers.train(model, optimizer, 7)
        helpers.assert_exactly_zero(pruner, optimizer)
        masks.append(dict(pruner.masks))
    assert helpers.identical(*masks)
    assert helpers.identical(plain.state_dict(), inner.state_dict())


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without distributed")
def test_distributed_data_parallel_in_one_process(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        plain, inner = helpers.mlp(), helpers.mlp()
        masks = []
        for model in (plain, nn.parallel.DistributedDataParallel(inner)):
            optimizer = helpers.sgd(model)
            pruner = helpers.make_pruner(model, optimizer)
            helpers.train(model, optimizer, 7)
            helpers.assert_exactly_zero(pruner, optimizer)
            masks.append(dict(pruner.masks))
        assert list(masks[1]) == ["0.weight", "2.weight"]
        assert helpers.identical(*masks)
        assert helpers.identical(plain.state_dict(), inner.state_dict())
    finally:
        torch.distributed.destroy_process_group()


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)
        self.fc = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)


class TestATypeCoversAllBelowIt:
    @staticmethod
    def model():
        return nn.ModuleDict({"block": Block(), "head": nn.Linear(4, 2)})

    def test_excluded(self):
        assert [w.name for w in find_prunable(self.model(), exclude=nn.MultiheadAttention)] == [
            "block.fc.weight",
            "head.weight",
        ]
        assert [w.name for w in find_prunable(self.model(), exclude=Block)] == ["head.weight"]

    def test_included_but_for_what_is_left_alone_by_default(self):
        names = ["block.attention.in_proj_weight", "block.attention.out_proj.weight"]
        assert [w.name for w in find_prunable(self.model(), include=nn.MultiheadAttention)] == names
        assert [w.name for w in find_prunable(self.model(), include=Block)] == [*names, "block.fc.weight"]
        assert [w.name for w in find_prunable(self.model(), include=nn.LayerNorm)] == ["block.norm.weight"]
