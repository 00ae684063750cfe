"""Wrong arguments: the message names the argument and its value; no bit of model and optimizer changes."""

import math
import re

import pytest
import torch
from torch import nn

import fggp
import helpers

SHAPES = {name: p.shape for name, p in helpers.convnet().named_parameters() if name in helpers.CONVNET_WEIGHTS}


def masks(**changes):
    found = {name: torch.rand(shape) < 0.5 for name, shape in SHAPES.items()}
    found.update(changes)
    return {name: m for name, m in found.items() if m is not None}


REFUSED = [
    # sparsity
    ({"sparsity": 1.0}, ValueError, "sparsity=1.0 must lie in [init_sparsity, 1) = [0.0, 1)"),
    ({"sparsity": 95}, ValueError, "sparsity=95 must lie in"),
    ({"sparsity": -0.1}, ValueError, "sparsity=-0.1 must lie in"),
    ({"sparsity": math.nan}, ValueError, "sparsity=nan must lie in"),
    ({"sparsity": "0.9"}, TypeError, "sparsity='0.9' must be a number"),
    ({"sparsity": None}, TypeError, "sparsity=None must be a number"),
    ({"sparsity": 0.5, "init_sparsity": 0.6}, ValueError, "sparsity=0.5 must lie in [init_sparsity, 1) = [0.6, 1)"),
    ({"init_sparsity": -0.5}, ValueError, "init_sparsity=-0.5 must lie in [0, 1)"),
    ({"init_sparsity": 1.0}, ValueError, "init_sparsity=1.0 must lie in [0, 1)"),
    ({"init_sparsity": math.nan}, ValueError, "init_sparsity=nan must lie in"),
    ({"init_sparsity": "erk"}, TypeError, "init_sparsity='erk' must be a number"),
    # steps
    ({"begin": 5, "end": 5}, ValueError, "end=5 must be greater than begin=5"),
    ({"begin": 6, "end": 5}, ValueError, "end=5 must be greater than begin=6"),
    ({"begin": -1}, ValueError, "begin=-1 must be 0 or more"),
    ({"every": 0}, ValueError, "every=0 must be at least 1"),
    ({"every": -3}, ValueError, "every=-3 must be at least 1"),
    ({"begin": 0.0}, TypeError, "begin=0.0 must be an int"),
    ({"end": 1e3}, TypeError, "end=1000.0 must be an int"),
    ({"every": "10"}, TypeError, "every='10' must be an int"),
    ({"every": True}, TypeError, "every=True must be an int"),
    ({"end": None}, TypeError, "method='fggp' needs end: numbers of optimizer steps"),
    # method, schedule, scope, seed
    ({"method": "magnitude"}, ValueError, "method='magnitude' must be a fggp.Method or one of 'fggp', 'gmp'"),
    ({"method": None}, ValueError, "method=None must be"),
    ({"method": fggp.GMP}, ValueError, "GMP'> must be a fggp.Method or one of"),
    ({"schedule": "cubic"}, TypeError, "schedule='cubic' must be a function"),
    ({"schedule": None}, TypeError, "schedule=None must be a function"),
    ({"schedule": lambda p: 1 - 2 * p}, ValueError, "at a progress of 0.51; it must give the share still to prune"),
    ({"scope": "local"}, ValueError, "scope='local' must be 'global' or 'layer'"),
    ({"scope": None}, ValueError, "scope=None must be"),
    ({"seed": 1.5}, TypeError, "seed=1.5 must be an int"),
    ({"seed": None}, TypeError, "seed=None must be an int"),
    # init
    ({"init": "random"}, ValueError, "init='random' must be 'erk', 'uniform', 'keep' or a mapping"),
    ({"init": None}, ValueError, "init=None must be"),
    ({"init": torch.ones(3)}, ValueError, "init=tensor([1., 1., 1.]) must be"),
    ({"init": masks(**{"9.weight": torch.ones(2)})}, ValueError, "no weight is called ['9.weight']"),
    ({"init": masks(**{"3.weight": None})}, ValueError, "must cover every weight to prune: ['3.weight'] have none"),
    ({"init": {}}, ValueError, "must cover every weight to prune"),
    (
        {"init": masks(**{"0.weight": torch.ones(SHAPES["0.weight"])})},
        ValueError,
        "init mask of '0.weight' is torch.float32 [6, 2, 3, 3]; it must be a bool tensor [6, 2, 3, 3]",
    ),
    (
        {"init": masks(**{"6.weight": torch.ones(16, 7, dtype=torch.bool)})},
        ValueError,
        "init mask of '6.weight' is torch.bool [16, 7]; it must be a bool tensor [7, 16]",
    ),
    ({"init": masks(**{"6.weight": [True]})}, ValueError, "init mask of '6.weight' is list"),
    (
        {"init": {n: torch.zeros(s, dtype=torch.bool) for n, s in SHAPES.items()}},
        ValueError,
        "sparsity=0.8 must be at least 1.0",
    ),
    ({"init": masks(), "sparsity": 0.2}, ValueError, "sparsity=0.2 must be at least 0."),
    ({"init": masks(), "init_sparsity": 0.7}, ValueError, "init_sparsity=0.7 contradicts init"),
    ({"init": "keep", "init_sparsity": 0.7}, ValueError, "init_sparsity=0.7 contradicts init"),
    # what to prune
    ({"include": "conv*"}, ValueError, "include='conv*' matches no trainable weight; the model has '0.weight'"),
    ({"exclude": nn.LSTM}, ValueError, "exclude=<class 'torch.nn.modules.rnn.LSTM'> matches no trainable weight"),
    ({"exclude": "*"}, ValueError, "model=Sequential has nothing to prune with include=None, exclude='*'"),
    ({"include": 3}, TypeError, "include=3 must be a pattern"),
]


@pytest.mark.parametrize(("options", "kind", "told"), REFUSED, ids=[t[2] for t in REFUSED])
def test_bad_arguments_are_refused(options, kind, told):
    model = helpers.convnet()
    optimizer = helpers.sgd(model)
    helpers.train(model, optimizer, 1)
    with helpers.untouched(model, optimizer), pytest.raises(kind, match=re.escape(told)):
        helpers.make_pruner(model, optimizer, **options)


def test_settings_are_keywords():
    model = helpers.mlp()
    with pytest.raises(TypeError):
        fggp.Pruner(model, helpers.sgd(model), 0.9, 0, 10, 1)


@pytest.mark.parametrize(
    ("held", "told"),
    [
        (lambda m: m[0].parameters(), "optimizer=SGD does not hold '3.weight', '6.weight'"),
        (lambda m: [m[0].weight, m[3].weight, m[6].bias], "optimizer=SGD does not hold '6.weight'"),
        (lambda m: helpers.convnet().parameters(), "optimizer=SGD does not hold '0.weight', '3.weight', '6.weight'"),
    ],
)
def test_an_optimizer_that_does_not_hold_a_weight_is_refused(held, told):
    model = helpers.convnet()
    optimizer = torch.optim.SGD(held(model), lr=0.1)
    with helpers.untouched(model, optimizer), pytest.raises(ValueError, match=re.escape(told)):
        helpers.make_pruner(model, optimizer)


def test_leaving_out_what_the_optimizer_does_not_hold_helps():
    model = helpers.convnet()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    assert list(helpers.make_pruner(model, optimizer, exclude=["3.*", "6.*"]).masks) == ["0.weight"]


def test_a_refused_pruner_leaves_the_way_free_for_another():
    model = helpers.convnet()
    optimizer = helpers.sgd(model)
    with pytest.raises(ValueError, match="init"):
        helpers.make_pruner(model, optimizer, init="no")
    pruner = helpers.make_pruner(model, optimizer)
    helpers.train(model, optimizer, 6)
    assert pruner.sparsity == 1 - 87 / 436
