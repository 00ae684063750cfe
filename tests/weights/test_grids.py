"""What the groups of each kind of weight are."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import fggp
from fggp.model.find import find_prunable
from fggp.weights.granularity import divide


def grid_of(module, granularity, **options):
    [weight] = find_prunable(module, **options)
    divide([weight], granularity)
    return weight.grid


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 5, 8))


class Conv1D(nn.Module):
    """Weights [in, out], as in the Transformers library."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 5))


Conv1D.__module__ = "transformers.pytorch_utils"

KINDS = [
    # module, blocks of 4, their number, rows, 2:4 (the extents of a group)
    (nn.Linear(10, 3), (1, 4), 9, (1, 10), (1, 4)),
    (nn.Conv2d(8, 6, 3), (1, 4, 1, 1), 108, (1, 8, 3, 3), (1, 4, 1, 1)),
    (nn.Conv1d(8, 6, 3), (1, 4, 1), 36, (1, 8, 3), (1, 4, 1)),
    (nn.Conv2d(3, 6, 3), (1, 3, 1, 1), 54, (1, 3, 3, 3), (1, 3, 1, 1)),  # an image: blocks of 3
    (nn.Conv2d(1, 6, 3), (1, 1, 1, 1), 54, (1, 1, 3, 3), (1, 1, 1, 1)),  # a grey one: single weights
    (nn.Conv2d(8, 6, 3, groups=2), (1, 4, 1, 1), 54, (1, 4, 3, 3), (1, 4, 1, 1)),
    # Depthwise: blocks of neighbouring channels; no sum over channels, so a pattern asks for nothing.
    (nn.Conv2d(6, 6, 3, groups=6), (4, 1, 1, 1), 18, (1, 1, 3, 3), (1, 1, 1, 1)),
    (nn.Conv2d(6, 12, 3, groups=6), (1, 1, 1, 1), 108, (1, 1, 3, 3), (1, 1, 1, 1)),
    (nn.ConvTranspose2d(8, 6, 3), (4, 1, 1, 1), 108, (8, 1, 3, 3), (4, 1, 1, 1)),
    (nn.ConvTranspose2d(12, 6, 3, groups=2), (2, 1, 1, 1), 162, (6, 1, 3, 3), (2, 1, 1, 1)),  # 6 inputs an output
    (nn.ConvTranspose2d(6, 6, 3, groups=6), (4, 1, 1, 1), 18, (1, 1, 3, 3), (1, 1, 1, 1)),
    (Conv1D(), (4, 1), 10, (8, 1), (4, 1)),
    (Experts(), (1, 1, 4), 30, (1, 1, 8), (1, 1, 4)),
]


@pytest.mark.parametrize(("module", "blocks", "count", "rows", "pattern"), KINDS, ids=lambda v: type(v).__name__)
def test_groups_run_along_the_input(module, blocks, count, rows, pattern):
    grid = grid_of(module, fggp.Blocks(4))
    assert (grid.steps, grid.units) == (blocks, count)
    assert grid_of(module, fggp.Rows()).steps == rows
    grid = grid_of(module, fggp.NM(2, 4))
    assert (grid.steps, grid.limit, grid.units) == (pattern, 2, module.weight.numel())


def test_the_output_of_a_layer_loses_what_a_row_held():
    """A row is all that one output channel reads: without it, the output is the bias."""
    for module, x in (
        (nn.Conv2d(4, 6, 3), torch.randn(1, 4, 5, 5)),
        (nn.Conv2d(4, 6, 3, groups=2), torch.randn(1, 4, 5, 5)),
        (nn.Conv2d(4, 4, 3, groups=4), torch.randn(1, 4, 5, 5)),
        (nn.ConvTranspose2d(4, 6, 3), torch.randn(1, 4, 5, 5)),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), torch.randn(1, 4, 5, 5)),
        (nn.Linear(4, 6), torch.randn(1, 4)),
    ):
        optimizer = torch.optim.SGD(module.parameters(), lr=0)
        pruner = fggp.Pruner(module, optimizer, 0.5, begin=0, end=1, every=1, method="gmp", granularity=fggp.Rows())
        module.weight.grad = torch.ones_like(module.weight)
        optimizer.step()
        y = module(x).flatten(2) if x.ndim > 2 else module(x)[..., None]
        silent = (y == module.bias[:, None]).all(-1).sum()
        assert silent == module.bias.numel() // 2
        assert pruner.sparsity == 0.5


def test_how_many_weights_a_pattern_lets_stay():
    for module, most in ((nn.Linear(10, 3), 18), (nn.Linear(9, 3), 15), (nn.Conv2d(3, 6, 3), 108)):
        assert grid_of(module, fggp.NM(2, 4)).most == most
    assert grid_of(nn.Conv2d(1, 6, 3), fggp.NM(2, 4)).most == 54
    assert grid_of(nn.Linear(16, 2), fggp.NM(1, 8)).most == 4
    assert grid_of(nn.Linear(10, 3), fggp.Blocks(4)).most == 9


def test_a_vector_is_pruned_in_single_weights():
    for granularity in (fggp.Blocks(4), fggp.Rows(), fggp.NM(2, 4)):
        assert grid_of(nn.Linear(4, 6), granularity, include="bias").steps == (1,)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: fggp.Blocks(1), r"size=1 must be an int, at least 2"),
        (lambda: fggp.Blocks(4.0), r"size=4.0 must be an int"),
        (lambda: fggp.Blocks(True), r"size=True must be an int"),
        (lambda: fggp.NM(4, 4), r"n=4 must be an int, from 1 to 3"),
        (lambda: fggp.NM(0, 4), r"n=0 must be an int, from 1 to 3"),
        (lambda: fggp.NM(1, 1), r"m=1 must be an int, at least 2"),
        (lambda: fggp.NM(1, "4"), r"m='4' must be an int"),
    ],
)
def test_sizes_are_checked(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


def test_a_direction_of_weight_norm_is_refused():
    with pytest.raises(ValueError, match=r"granularity=Rows\(\) does not apply to 'parametrizations.weight.original1'"):
        grid_of(weight_norm(nn.Linear(4, 3)), fggp.Rows())
