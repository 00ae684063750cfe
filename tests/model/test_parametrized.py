"""Weight norm: its direction is pruned, and nothing else of it. Other parametrizations are left out."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.nn.utils.parametrizations import orthogonal, spectral_norm
from torch.nn.utils.parametrize import register_parametrization
from torch.testing._internal.distributed.fake_pg import FakeStore

from fggp.model.find import find_prunable

pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")

NEW, OLD = nn.utils.parametrizations.weight_norm, nn.utils.weight_norm
NAMES = {NEW: "layer.parametrizations.weight.original1", OLD: "layer.weight_v"}


def in_model(layer):
    return nn.ModuleDict({"layer": layer})


@pytest.mark.parametrize("norm", [NEW, OLD], ids=["parametrization", "hook"])
@pytest.mark.parametrize(
    ("make", "dim", "norm_dim", "rows"),
    [
        (lambda: nn.Linear(4, 3), 0, 0, 3),
        (lambda: nn.Linear(4, 3), 1, 1, 4),
        (lambda: nn.Linear(4, 3), None, -1, 1),
        (lambda: nn.Linear(4, 3), -2, 0, 3),
        (lambda: nn.Conv1d(4, 6, 3, groups=2), 2, 2, 3),
        (lambda: nn.ConvTranspose2d(2, 3, 3), 1, 1, 3),
    ],
)
def test_the_direction_is_pruned_and_its_rows_are_those_of_the_norm(norm, make, dim, norm_dim, rows):
    layer = norm(make(), dim=dim)
    [weight] = find_prunable(in_model(layer))
    assert weight.name == NAMES[norm]
    assert weight.parameter.shape == make().weight.shape
    assert (weight.norm_dim, weight.rows) == (norm_dim, rows)
    assert not weight.rows_are_cut
    # Emptying a row gives NaN in this row and nowhere else: the rows are the ones that torch divides by their norms.
    with torch.no_grad():
        (weight.parameter if norm_dim == -1 else weight.parameter.select(norm_dim, 1)).zero_()
    if norm is OLD:
        used = next(iter(layer._forward_pre_hooks.values())).compute_weight(layer)
    else:
        used = layer.weight
    assert used.isnan().any()
    if norm_dim != -1:
        assert [bool(row.isnan().any()) for row in used.unbind(norm_dim)] == [i == 1 for i in range(rows)]


@pytest.mark.parametrize("norm", [NEW, OLD], ids=["parametrization", "hook"])
def test_filters_know_the_direction_by_the_weights_name_too(norm):
    model = nn.ModuleDict({"layer": norm(nn.Linear(4, 3)), "other": nn.Linear(3, 2)})
    for include in ("layer.weight", "layer.*", NAMES[norm]):
        assert [w.name for w in find_prunable(model, include=include)] == [NAMES[norm]]
    assert [w.name for w in find_prunable(model, include=nn.Linear)] == [NAMES[norm], "other.weight"]
    assert [w.name for w in find_prunable(model, exclude="layer.weight")] == ["other.weight"]
    assert [w.name for w in find_prunable(model, exclude="other.*")] == [NAMES[norm]]


@pytest.mark.parametrize("norm", [NEW, OLD], ids=["parametrization", "hook"])
def test_what_is_not_pruned_by_default_is_not_under_weight_norm_either(norm):
    model = nn.ModuleDict(
        {
            "fc": nn.Linear(4, 3),
            "lstm": norm(nn.LSTM(4, 5), name="weight_hh_l0"),
            "embedding": norm(nn.Embedding(6, 4)),
        }
    )
    assert [w.name for w in find_prunable(model)] == ["fc.weight"]
    # A type selects weights; the lengths g, one of each row, are not among them.
    found = find_prunable(model, include=[nn.LSTM])
    assert len(found) == 2
    assert {w.parameter.shape for w in found} == {torch.Size([20, 4]), torch.Size([20, 5])}


def test_attention_under_weight_norm():
    attention = NEW(nn.MultiheadAttention(4, 2), name="in_proj_weight")
    assert [w.name for w in find_prunable(attention)] == [
        "out_proj.weight",
        "parametrizations.in_proj_weight.original1",
    ]


@pytest.fixture
def mesh():
    """Two processes of which only this one is there."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="torch is built without distributed")
@pytest.mark.parametrize(
    ("dim", "placement", "cut"),
    [
        (0, Shard(0), None),
        (0, Replicate(), None),
        (None, Replicate(), None),
        (0, Shard(1), "a norm for each index of dimension 0, and its shards cut that"),
        (1, Shard(0), "a norm for each index of dimension 1, and its shards cut that"),
        (None, Shard(0), "a norm for all of it, and its shards cut that"),
    ],
)
def test_shards_that_cut_rows_are_refused(mesh, dim, placement, cut):
    layer = NEW(nn.Linear(4, 6), dim=dim)
    part = torch.ones(6, 4) if placement.is_replicate() else torch.ones(6, 4).chunk(2, placement.dim)[0]
    v = DTensor.from_local(part.contiguous(), mesh, [placement], run_check=False)
    layer.parametrizations.weight.original1 = nn.Parameter(v)
    if cut is None:
        assert [w.rows_are_cut for w in find_prunable(layer)] == [False]
        return
    with pytest.raises(ValueError, match=rf"'parametrizations.weight.original1' is the direction .* {cut}"):
        find_prunable(layer)


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


@pytest.mark.parametrize(
    ("parametrized", "by"),
    [
        (lambda: spectral_norm(nn.Linear(4, 3)), "SpectralNorm"),
        (lambda: orthogonal(nn.Linear(4, 4)), "Orthogonal"),
        (lambda: register_parametrization(nn.Linear(4, 3), "weight", Doubled()), "Doubled"),
        (
            lambda: register_parametrization(NEW(nn.Linear(4, 3)), "weight", Doubled()),
            "weight norm, Doubled",
        ),
    ],
)
def test_other_parametrizations_are_left_out_and_named(parametrized, by):
    model = nn.ModuleDict({"layer": parametrized(), "fc": nn.Linear(4, 3)})
    with pytest.warns(UserWarning, match=rf"'layer\.parametrizations\.weight\.original\d?' \({by}\).* not be pruned"):
        assert [w.name for w in find_prunable(model)] == ["fc.weight"]


def test_a_direction_that_is_tied_to_a_plain_weight():
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": NEW(nn.Linear(4, 4))})
    model["b"].parametrizations.weight.original1 = model["a"].weight
    [weight] = find_prunable(model)
    assert (weight.name, weight.norm_dim) == ("a.weight", 0)


def test_one_direction_of_two_norms_over_different_rows():
    model = nn.ModuleDict({"a": NEW(nn.Linear(4, 4)), "b": NEW(nn.Linear(4, 4), dim=1), "fc": nn.Linear(4, 4)})
    model["b"].parametrizations.weight.original1 = model["a"].parametrizations.weight.original1
    with pytest.warns(UserWarning, match="two weight norms"):
        assert [w.name for w in find_prunable(model)] == ["fc.weight"]
