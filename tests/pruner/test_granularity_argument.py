"""The Pruner with granularity=: whole runs beside the reference, starts, exchanges, states, errors, the table."""

import pytest
import torch
from torch import nn

import fggp
import helpers
from helpers import convnet, identical, make_pruner, sgd, train, twin

# The groups of `convnet`'s weights [6, 2, 3, 3], [4, 6, 3, 3] and [7, 16].
BLOCKS = {"granularity": fggp.Blocks(4), "extents": [(1, 2, 1, 1), (1, 4, 1, 1), (1, 4)]}
ROWS = {"granularity": fggp.Rows(), "extents": [(1, 2, 3, 3), (1, 6, 3, 3), (1, 16)]}
PATTERN = {"granularity": fggp.NM(2, 4), "extents": [(1, 2, 1, 1), (1, 4, 1, 1), (1, 4)], "limit": 2}
GROUPS = {"0.weight": 54, "3.weight": 72, "6.weight": 28}
"""The blocks of 4: those of the first weight have 2 weights, every second of the second has 2."""


def tied(t, model, optimizer):
    """Weights of few values, so that many groups tie in magnitude; pruned ones stay zero."""
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.copy_(torch.where(p == 0, p, (p * 4).floor().add(0.5).div(4)))


@pytest.mark.filterwarnings("ignore:no weight is left")
@pytest.mark.parametrize("options", [BLOCKS, ROWS], ids=["blocks", "rows"])
@pytest.mark.parametrize("method", [("fggp", 0.5), ("gmp",), ("magnitude-first", 0.5), ("gradient-only",), ("taylor",)])
@pytest.mark.parametrize("before_step", [None, tied])
def test_a_whole_run_in_groups_is_the_reference_to_the_bit(method, options, before_step):
    helpers.run_beside_the_reference(convnet, sgd, 7, method, before_step, sparsity=0.7, **options)


@pytest.mark.filterwarnings("ignore:no weight is left")
@pytest.mark.parametrize("method", [("fggp", 0.5), ("gmp",), ("gradient-only",)])
@pytest.mark.parametrize("before_step", [None, tied])
def test_a_whole_run_to_a_pattern_is_the_reference_to_the_bit(method, before_step):
    pruner = helpers.run_beside_the_reference(convnet, sgd, 7, method, before_step, sparsity=0.6, **PATTERN)
    assert_pattern(pruner)


@pytest.mark.parametrize("options", [BLOCKS, ROWS], ids=["blocks", "rows"])
def test_layer_by_layer_in_channels_last_and_double(options):
    def model():
        return convnet(dtype=torch.float64).to(memory_format=torch.channels_last)

    helpers.run_beside_the_reference(model, sgd, 7, scope="layer", sparsity=0.7, **options)


def test_single_weights_are_the_default():
    (model, optimizer), (other, other_optimizer) = twin(convnet, sgd)
    pruner, given = make_pruner(model, optimizer), make_pruner(other, other_optimizer, granularity=None)
    train(model, optimizer, 7)
    train(other, other_optimizer, 7)
    assert identical(dict(pruner.masks), dict(given.masks))


def in_blocks(mask, size):
    """The blocks of a mask along dimension 1, [..., blocks, size]; missing ones are False."""
    moved = mask.movedim(1, -1)
    return nn.functional.pad(moved, [0, -moved.shape[-1] % size]).unflatten(-1, (-1, size))


def assert_whole_blocks(pruner, size=4):
    for mask in pruner.masks.values():
        n = mask.shape[1]
        blocks = in_blocks(mask, size)
        extents = torch.tensor([min(size, n - i) for i in range(0, n, size)])
        assert ((blocks.sum(-1) == 0) | (blocks.sum(-1) == extents)).all()


def assert_pattern(pruner, limit=2, size=4):
    for mask in pruner.masks.values():
        assert in_blocks(mask, size).sum(-1).max() <= limit


def kept_blocks(pruner, size=4):
    return [int(in_blocks(mask, size).any(-1).sum()) for mask in pruner.masks.values()]


EXCHANGES = [fggp.GraNet(total_steps=12), fggp.RigL(), fggp.SET()]


@pytest.mark.parametrize("method", [*EXCHANGES, fggp.FGGP(), fggp.Random(), helpers.Running()], ids=lambda m: m.name)
@pytest.mark.parametrize("init", ["erk", "uniform"])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_counts_are_exact_in_groups(method, init, scope):
    model = convnet()
    optimizer = sgd(model)
    pruner = make_pruner(
        model,
        optimizer,
        0.8,
        method=method,
        init=init,
        scope=scope,
        init_sparsity=None if method.constant else 0.3,
        granularity=fggp.Blocks(4),
        floor=3,
    )
    total = sum(GROUPS.values())
    for t in range(1, 9):
        assert_whole_blocks(pruner)
        assert sum(kept_blocks(pruner)) == pruner.schedule.active_at(pruner.last_update, total)
        assert min(kept_blocks(pruner)) >= 3
        train(model, optimizer, range(t, t + 1))
        helpers.assert_exactly_zero(pruner, optimizer)
    assert pruner.finished
    assert sum(kept_blocks(pruner)) == round(0.2 * total)


@pytest.mark.parametrize("method", [*EXCHANGES, fggp.FGGP(), fggp.Random()], ids=lambda m: m.name)
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("init_sparsity", [None, 0.2, 0.6])
def test_counts_are_exact_under_a_pattern_which_holds_in_the_end(method, scope, init_sparsity):
    model = convnet()
    optimizer = sgd(model)
    pruner = make_pruner(
        model,
        optimizer,
        0.65,
        method=method,
        scope=scope,
        init_sparsity=init_sparsity,
        granularity=fggp.NM(2, 4),
        floor=0.02,
    )
    for t in range(1, 9):
        assert sum(int(m.sum()) for m in pruner.masks.values()) == pruner.schedule.active_at(pruner.last_update, 436)
        if pruner.sparsity >= 0.55:
            assert_pattern(pruner)
        train(model, optimizer, range(t, t + 1))
    assert pruner.finished
    assert_pattern(pruner)


def test_two_in_four_exactly():
    """Where channels divide, a sparsity of 50 % leaves two in every group of four: what a GPU's units run."""
    model = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4))
    optimizer = sgd(model)
    pruner = make_pruner(model, optimizer, 0.5, granularity=fggp.NM(2, 4))
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        optimizer.zero_grad()
        model(torch.randn(8, 16, generator=generator)).square().sum().backward()
        optimizer.step()
    for name, mask in pruner.masks.items():
        assert (in_blocks(mask, 4).sum(-1) == 2).all()
        weight = model.get_parameter(name)
        assert (weight.view(-1, 4).count_nonzero(-1) <= 2).all()


def test_gradients_of_a_block_count_by_their_size_whatever_their_signs():
    """|g| is added up, not g: opposite gradients do not cancel."""
    linear = nn.Linear(12, 1, bias=False)
    linear.weight.data.fill_(1.0)
    linear.weight.grad = torch.tensor([[3.0, -3, 3, -3, 0, 0, 0, 8, 1, 1, 1, 1]])
    optimizer = torch.optim.SGD(linear.parameters(), lr=0)
    pruner = make_pruner(linear, optimizer, 2 / 3, 0, 2, 1, method="gradient-only", granularity=fggp.Blocks(4))
    optimizer.step()
    optimizer.step()
    assert pruner.masks["weight"].tolist() == [[True] * 4 + [False] * 8]


def test_the_norm_of_gradients_is_a_score_of_their_squares():
    linear = nn.Linear(8, 1, bias=False)
    linear.weight.grad = torch.tensor([[3.0, -3, 3, -3, 0, 0, 0, 8]])  # sums 12 and 8, norms 6 and 8

    class ByNorm(fggp.Method):
        name = "by-norm"

        def chain(self, now):
            squares = fggp.Score("g²", lambda block: block.grad.square(), needs_gradient=True)
            return [fggp.TopK(squares, now.excess)]

    optimizer = torch.optim.SGD(linear.parameters(), lr=0)
    pruner = make_pruner(linear, optimizer, 0.5, 0, 1, 1, method=ByNorm(), granularity=fggp.Blocks(4))
    optimizer.step()
    assert pruner.masks["weight"].tolist() == [[False] * 4 + [True] * 4]


def test_a_shorter_block_competes_by_its_mean():
    """So that it is not pruned only because it has fewer weights."""
    linear = nn.Linear(6, 1, bias=False)
    linear.weight.data = torch.tensor([[1.0, 1, 1, 1, 1.5, 1.5]])
    linear.weight.grad = torch.ones(1, 6)
    optimizer = torch.optim.SGD(linear.parameters(), lr=0)
    pruner = make_pruner(linear, optimizer, 0.5, 0, 1, 1, method="gmp", granularity=fggp.Blocks(4))
    optimizer.step()
    assert pruner.masks["weight"].tolist() == [[False] * 4 + [True] * 2]
    assert pruner.finished
    assert pruner.sparsity == pytest.approx(4 / 6)  # of weights; half of the blocks


# Starts


def test_masks_and_zeros_to_start_from():
    model = convnet()
    masks = {
        name: torch.rand(p.shape[0], *[1] * (p.ndim - 1)).ge(0.4).expand(p.shape).clone()
        for name, p in model.named_parameters()
        if name in GROUPS
    }
    pruner = make_pruner(model, sgd(model), 0.9, init=masks, granularity=fggp.Rows())
    assert identical(dict(pruner.masks), masks)
    kept = make_pruner(model, torch.optim.SGD(model.parameters(), lr=0.1), 0.9, init="keep", granularity=fggp.Rows())
    assert identical(dict(kept.masks), masks)
    # One weight that is not zero keeps its whole block.
    with torch.no_grad():
        model[6].weight.zero_()[2, 5] = 1.0
    kept = make_pruner(
        model, torch.optim.SGD(model.parameters(), lr=0.1), 0.99, init="keep", granularity=fggp.Blocks(4)
    )
    assert kept.masks["6.weight"].nonzero().tolist() == [[2, 4], [2, 5], [2, 6], [2, 7]]


def one_shots():
    batch = (torch.randn(8, 2, 6, 6), torch.randint(3, (8,)))
    loss = nn.functional.cross_entropy
    return [fggp.SNIP(loss, batch), fggp.GraSP(loss, batch), fggp.SynFlow((2, 6, 6), rounds=5), fggp.StaticERK()]


@pytest.mark.parametrize("method", one_shots(), ids=lambda m: m.name)
def test_methods_that_act_once(method):
    for granularity, sparsity in ((fggp.Blocks(4), 0.7), (fggp.Rows(), 0.5), (fggp.NM(2, 4), 0.6)):
        model = convnet()
        pruner = fggp.Pruner(model, sgd(model), sparsity, method=method, granularity=granularity)
        assert pruner.finished
        if isinstance(granularity, fggp.Blocks):
            assert_whole_blocks(pruner)
            assert sum(kept_blocks(pruner)) == round(0.3 * sum(GROUPS.values()))
        elif isinstance(granularity, fggp.NM):
            assert_pattern(pruner)
            assert sum(int(m.sum()) for m in pruner.masks.values()) == round(0.4 * 436)


def test_snip_keeps_the_blocks_with_the_largest_mean_saliency():
    model = convnet()
    x, y = torch.randn(8, 2, 6, 6), torch.randint(3, (8,))
    nn.functional.cross_entropy(model(x), y).backward()
    means = []
    for p in (model[0].weight, model[3].weight, model[6].weight):
        saliency = in_blocks((p * p.grad).abs().detach(), 4)
        means.append(saliency.sum(-1) / in_blocks(torch.ones_like(p), 4).sum(-1))
    threshold = torch.cat([m.flatten() for m in means]).sort(descending=True).values[46]
    method = fggp.SNIP(nn.functional.cross_entropy, (x, y))
    model.zero_grad()
    model[1].reset_running_stats()
    pruner = fggp.Pruner(model, sgd(model), 0.7, method=method, granularity=fggp.Blocks(4))
    for mask, mean in zip(pruner.masks.values(), means, strict=True):
        assert torch.equal(in_blocks(mask, 4).any(-1), mean > threshold)


# In mid-run


def test_thawed_weights_are_taken_in_with_groups():
    model = convnet()
    model[6].weight.requires_grad_(False)
    optimizer = sgd(model)
    pruner = make_pruner(model, optimizer, 0.8, end=8, granularity=fggp.Blocks(4))
    train(model, optimizer, 3)
    model[6].weight.requires_grad_(True)
    pruner.attach(optimizer)
    train(model, optimizer, range(4, 9))
    assert_whole_blocks(pruner)
    assert sum(kept_blocks(pruner)) == round(0.2 * sum(GROUPS.values()))


def test_finish_and_reschedule_count_groups():
    model = convnet()
    optimizer = sgd(model)
    pruner = make_pruner(model, optimizer, 0.5, granularity=fggp.Blocks(4))
    train(model, optimizer, 2)
    pruner.reschedule(sparsity={"0.*": 0.6, "*": 0.9})
    pruner.finish()
    assert kept_blocks(pruner)[0] == round(0.4 * 54)
    assert sum(kept_blocks(pruner)[1:]) == round(0.1 * 100)
    assert_whole_blocks(pruner)


@pytest.mark.parametrize("granularity", [fggp.Blocks(4), fggp.Rows(), fggp.NM(2, 4)], ids=str)
def test_a_resumed_run_is_the_unbroken_one(granularity, tmp_path):
    (model, optimizer), (other, other_optimizer) = twin(convnet, sgd)
    pruner = make_pruner(model, optimizer, 0.7, granularity=granularity, floor=1)
    train(model, optimizer, 3)
    torch.save([model.state_dict(), optimizer.state_dict(), pruner.state_dict()], tmp_path / "state")
    train(model, optimizer, range(4, 8))
    resumed = make_pruner(other, other_optimizer, 0.7, granularity=granularity, floor=1)
    for owner, state in zip((other, other_optimizer, resumed), torch.load(tmp_path / "state"), strict=True):
        owner.load_state_dict(state)
    train(other, other_optimizer, range(4, 8))
    assert identical(dict(model.state_dict()), dict(other.state_dict()))
    assert identical(dict(pruner.masks), dict(resumed.masks))


@pytest.mark.parametrize(
    ("saved", "own", "message"),
    [
        (fggp.Blocks(4), None, r"saved with granularity=Blocks\(size=4\); this Pruner has granularity=None"),
        (None, fggp.Rows(), r"saved with granularity=None; this Pruner has granularity=Rows\(\)"),
        (fggp.Blocks(4), fggp.Blocks(2), r"granularity=Blocks\(size=4\); this Pruner has granularity=Blocks\(size=2\)"),
        (fggp.NM(2, 4), fggp.NM(1, 4), r"granularity=NM\(n=2, m=4\); this Pruner has granularity=NM\(n=1, m=4\)"),
    ],
)
def test_a_state_of_another_granularity_is_refused(saved, own, message):
    model = convnet()
    optimizer = sgd(model)
    state = make_pruner(model, optimizer, granularity=saved).state_dict()
    other = convnet()
    pruner = make_pruner(other, sgd(other), granularity=own)
    before = pruner.state_dict()
    with pytest.raises(ValueError, match=message):
        pruner.load_state_dict(state)
    assert identical(before, pruner.state_dict())


def test_a_state_from_before_groups_is_one_of_single_weights():
    model = convnet()
    state = make_pruner(model, sgd(model)).state_dict()
    del state["granularity"]
    other = convnet()
    make_pruner(other, sgd(other)).load_state_dict(state)


# Errors


SHAPES = {name: p.shape for name, p in convnet().named_parameters() if name in GROUPS}
HALVES = {name: (torch.arange(shape.numel()) % 2 == 0).view(shape) for name, shape in SHAPES.items()}
HALF_EMPTY = {name: torch.ones(shape, dtype=torch.bool) for name, shape in SHAPES.items()}
HALF_EMPTY["6.weight"][:, 8:] = False  # half of its groups are empty


class Cutting(fggp.OneShot):
    name = "cutting"

    def masks(self, model, weights, sparsity, seed):
        return [HALVES[w.name] for w in weights]


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"granularity": "blocks:4"}, TypeError, r"granularity='blocks:4' must be fggp.Blocks\(size\), fggp.Rows\(\)"),
        ({"granularity": fggp.Blocks}, TypeError, r"granularity=<class .* must be fggp.Blocks\(size\)"),
        (
            {"granularity": fggp.NM(2, 4), "sparsity": 0.25},
            ValueError,
            r"sparsity=0.25 leaves 327 of 436 weights; granularity= lets 308",
        ),
        (
            {"granularity": fggp.NM(1, 4), "sparsity": {"6.*": 0.5, "*": 0.9}},
            ValueError,
            r"sparsity=0.5 leaves 56 of 112 weights; granularity= lets 28 of them stay: it must be at least 0.75",
        ),
        (
            {"granularity": fggp.NM(1, 4), "floor": 0.5, "sparsity": 0.8},
            ValueError,
            r"floor=0.5 keeps 108 of the 216 weights of '3.weight'; granularity= lets 72 of them stay",
        ),
        (
            {"granularity": fggp.Blocks(4), "floor": 60, "sparsity": 0.5},
            ValueError,
            r"leaves 77 of 154 weights; floor=60 keeps 142",
        ),
        (
            {"granularity": fggp.Rows(), "init": HALVES},
            ValueError,
            r"a mask in init keeps a part of a group of 1×2×3×3 weights of '0.weight'",
        ),
        (
            {"granularity": fggp.NM(2, 4), "init": HALF_EMPTY, "sparsity": 0.33},
            ValueError,
            r"granularity= lets only 280 of the 380 weights stay that init keeps; sparsity=0.33 leaves 292",
        ),
    ],
)
def test_what_cannot_be(options, kind, message):
    model = convnet()
    optimizer = sgd(model)
    with helpers.untouched(model, optimizer), pytest.raises(kind, match=message):
        make_pruner(model, optimizer, **options)


def test_a_one_shot_method_that_cuts_groups():
    model = convnet()
    optimizer = sgd(model)
    with pytest.raises(ValueError, match="method='cutting' returned a mask that keeps a part of a group of 1×2×1×1"):
        fggp.Pruner(model, optimizer, 0.5, method=Cutting(), granularity=fggp.Blocks(4))


# The table


def test_the_table_shows_groups():
    model = convnet()
    optimizer = sgd(model)
    pruner = make_pruner(model, optimizer, granularity=fggp.Blocks(4))
    train(model, optimizer, 6)
    lines = str(pruner).splitlines()
    assert "granularity=Blocks(size=4)" in lines[0]
    assert lines[1].split() == ["weight", "shape", "weights", "kept", "sparsity", "group", "groups", "kept"]
    assert lines[2].split()[:3] == ["0.weight", "6×2×3×3", "108"]
    assert lines[2].split()[5:7] == ["1×2×1×1", "54"]
    assert lines[5].split()[-2:] == ["154", "31"]
    assert [int(line.split()[-1]) for line in lines[2:5]] == kept_blocks(pruner)


def test_the_table_shows_a_pattern():
    model = convnet()
    lines = str(make_pruner(model, sgd(model), granularity=fggp.NM(2, 4))).splitlines()
    assert lines[1].split()[-3:] == ["at", "most", "in"]
    assert lines[3].split()[-2:] == ["2", "1×4×1×1"]
    assert "granularity=NM(n=2, m=4)" in lines[0]
