"""Apple's GPUs have no float64: no step of an update makes a tensor of it, unless a weight is float64 itself."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fggp
import helpers
from builds import without_kernels
from fggp.methods import REGISTRY, OneShot
from fggp.selection import bracket, chains, kth, one_gpu

METHODS = [name for name, kind in REGISTRY.items() if not issubclass(kind, OneShot)]


class NoFloat64(TorchDispatchMode):
    """Refuse every operation that makes a float64 tensor."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64:
                raise AssertionError(f"{func} makes a float64 tensor")
        return result


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(2).double(),
        lambda: torch.arange(3, dtype=torch.float64),
        lambda: torch.tensor([1.0], dtype=torch.float64),
        lambda: torch.zeros(2, dtype=torch.int64).view(torch.float64),
        lambda: torch.zeros(2).to(torch.float64),
    ],
)
def test_float64_would_be_seen(make):
    with NoFloat64(), pytest.raises(AssertionError, match="makes a float64 tensor"):
        make()


@pytest.fixture(params=["CPU", "CPU without kernels", "GPU"])
def passes(request, monkeypatch):
    """The three ways to select, with samples so small that these weights need them."""
    monkeypatch.setattr(bracket, "SAMPLE_SIZE", 64)
    monkeypatch.setattr(kth, "DIRECT_SEARCH_MAX", 8)
    monkeypatch.setattr(kth, "REFINING_SAMPLE_SIZE", 4)
    if request.param == "GPU":
        monkeypatch.setattr(one_gpu, "TIE_SORT_MAX", 3)
        monkeypatch.setattr(chains, "_on_one_gpu", lambda tensors: True)
    if request.param == "CPU without kernels":
        with without_kernels():
            yield
    else:
        yield


@pytest.mark.usefixtures("passes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("method", "scope"), [*((m, "global") for m in METHODS), ("running averages", "global"), ("fggp", "layer")]
)
def test_updates_of_every_method(method, scope, dtype):
    model = helpers.convnet(dtype=dtype)
    optimizer = helpers.sgd(model)
    options = {"method": method, "scope": scope, "init_sparsity": 0.5}
    if method in ("rigl", "set"):
        options["init_sparsity"] = 0.8  # they keep their sparsity
    if method == "granet":
        options["method"] = fggp.GraNet(total_steps=12)
    if method == "running averages":
        options["method"] = helpers.Running()
    with NoFloat64():
        pruner = helpers.make_pruner(model, optimizer, every=1, **options)
        for t in range(1, 8):
            optimizer.zero_grad()
            loss = helpers.loss_of(model, t)
            loss.backward()
            if t % 2:  # ties
                for p in model.parameters():
                    p.grad.sign_()
            optimizer.step()
        pruner.load_state_dict(pruner.state_dict())
    assert pruner.sparsity == 1 - 87 / 436
    assert pruner.last_update >= 6
