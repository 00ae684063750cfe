"""Training that skips pruned weights does what dense training does."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fggp
from fggp.acceleration import choices as choices_module
from fggp.acceleration.layout import is_images_last
from fggp.acceleration.measured import Times

STEPS = 12


class Net(nn.Module):
    """Convolutions with and without stride, a sum, in-place functions, both poolings, linear layers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding="same")
        self.pool = nn.MaxPool2d(2)
        self.third = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.last_norm = nn.BatchNorm2d(16, affine=False)
        self.average = nn.AvgPool2d(2)
        self.hidden = nn.Linear(16, 12)
        self.head = nn.Linear(12, 4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.relu(self.norm(self.first(x)))
        x = self.pool(x + self.relu(self.second(x)))
        x = self.average(self.relu(self.last_norm(self.third(x))))
        return self.head(self.relu(self.hidden(x.flatten(1))))


def made(method="fggp", seed=0, channels_last=False, **given):
    torch.manual_seed(seed)
    model = Net()
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return (
        model,
        optimizer,
        fggp.Pruner(model, optimizer, 0.9, begin=0, end=8, every=2, floor=0.05, method=method, **given),
    )


def batches(count=STEPS, n=20):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        yield torch.randn(n, 3, 8, 8, generator=generator), torch.randint(4, (n,), generator=generator)


def train(model, optimizer, steps, bf16=False):
    losses = []
    for x, y in steps:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(model(x).float(), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("method", ["fggp", "gmp", "taylor"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_run_is_the_dense_run(method, channels_last):
    model, optimizer, pruner = made(method, channels_last=channels_last)
    losses = train(model, optimizer, batches())
    same, other, accelerated = made(method, channels_last=channels_last)
    acceleration = accelerated.accelerate(below=1.0)
    assert train(same, other, batches()) == pytest.approx(losses, rel=1e-4)
    assert "5 of 5 layers" in str(acceleration)
    for name, mask in pruner.masks.items():
        assert torch.equal(mask, accelerated.masks[name]), name
    for (name, a), b in zip(model.state_dict().items(), same.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=name)
    model.eval(), same.eval()
    for x, _ in batches(1):
        torch.testing.assert_close(same(x), model(x), rtol=1e-3, atol=1e-4)


def test_gradients_of_pruned_weights_are_zero():
    model, optimizer, pruner = made()
    pruner.accelerate(below=1.0)
    train(model, optimizer, batches())
    x, y = next(batches(1))
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    names = dict(model.named_parameters())
    for name, mask in pruner.masks.items():
        assert not names[name].grad[~mask].any()
        assert names[name].grad[mask].any()


def test_bfloat16():
    model, optimizer, _ = made()
    losses = train(model, optimizer, batches(), bf16=True)
    same, other, pruner = made()
    pruner.accelerate(below=1.0)
    assert train(same, other, batches(), bf16=True) == pytest.approx(losses, rel=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        assert same(next(batches(1))[0]).dtype == torch.bfloat16


def test_the_layout_goes_through_the_network():
    model, _, pruner = made()
    pruner.accelerate(below=1.0)
    seen = {}
    for name, module in model.named_children():
        module.register_forward_hook(lambda module, given, y, name=name: seen.update({name: y}))
    x, y = next(batches(1))
    F.cross_entropy(model(x), y).backward()
    followed = ("first", "norm", "second", "pool", "third", "last_norm")
    assert [name for name in followed if not is_images_last(seen[name])] == []
    assert seen["first"].grad_fn.next_functions  # and autograd knows it


GAINS_BELOW_30 = Times(dense=0.3, low=0.02, high=0.2, conversion=0.0)


def test_it_goes_on_from_a_state_to_the_bit(monkeypatch):
    monkeypatch.setattr(choices_module, "measure", lambda *given: GAINS_BELOW_30)
    model, optimizer, pruner = made()
    pruner.accelerate()
    steps = list(batches())
    train(model, optimizer, steps[:7])
    saved = copy.deepcopy([model.state_dict(), optimizer.state_dict(), pruner.state_dict()])
    assert saved[2]["measured"]["times"]
    train(model, optimizer, steps[7:])
    monkeypatch.setattr(choices_module, "measure", lambda *given: pytest.fail("measured again"))
    again, other, resumed = made(seed=5)
    resumed.accelerate()
    for to, state in zip((again, other, resumed), saved, strict=True):
        to.load_state_dict(state)
    assert resumed.state_dict()["measured"] == saved[2]["measured"]
    train(again, other, steps[7:])
    for (name, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_a_state_without_measurements_forgets_those_of_another_run(monkeypatch):
    monkeypatch.setattr(choices_module, "measure", lambda *given: GAINS_BELOW_30)
    _, _, other = made()
    model, optimizer, pruner = made()
    pruner.accelerate()
    train(model, optimizer, batches(1))
    pruner.load_state_dict(other.state_dict())
    assert pruner.state_dict()["measured"] == {"times": {}, "kinds": {}}


def test_what_is_measured_decides(monkeypatch):
    found = []

    def measure(x, weight, *_):
        found.append(weight)
        gains = len(weight) >= 16  # at any density; others at the densities of the end
        return Times(dense=1.0, low=0.02, high=0.2, conversion=0.0) if gains else GAINS_BELOW_30

    monkeypatch.setattr(choices_module, "measure", measure)
    model, optimizer, pruner = made(scope="layer")
    acceleration = pruner.accelerate()
    assert "0 of 5 layers" in str(acceleration)
    train(model, optimizer, batches(1))
    assert "0 of 5 layers" in str(acceleration)  # at density 1 as fast as dense
    train(model, optimizer, batches())
    assert "5 of 5 layers" in str(acceleration)
    assert len(found) == 5
    train(model, optimizer, batches(2, n=17))  # up to 32 images are alike
    assert len(found) == 5
    train(model, optimizer, batches(1, n=33))
    assert len(found) == 10
    model.eval()(torch.zeros(3, 3, 8, 8))  # not measured: as in training
    assert "5 of 5 layers" in str(acceleration)
    assert len(found) == 10


def test_a_model_that_was_never_trained_is_dense():
    model, _, pruner = made()
    acceleration = pruner.accelerate()
    model.eval()(torch.zeros(3, 3, 8, 8))
    assert "0 of 5 layers" in str(acceleration)


def test_texts_of_all_lengths_are_measured_a_few_times(monkeypatch):
    found = []
    monkeypatch.setattr(choices_module, "measure", lambda *_: found.append(1) or GAINS_BELOW_30)
    model = nn.Sequential(nn.Linear(4, 4))
    pruner = fggp.Pruner(model, torch.optim.SGD(model.parameters(), 0.1), 0.5, begin=0, end=1, every=1)
    pruner.accelerate()
    for length in range(1, 130):
        model(torch.zeros(2, length, 4))
    assert len(found) == 9  # up to 2, 4, 8, … 512 vectors


def test_remove_gives_everything_back():
    model, optimizer, pruner = made()
    kinds, keys = [type(m) for m in model.modules()], list(model.state_dict())
    pruner.accelerate(below=1.0)
    assert all(isinstance(m, kind) for m, kind in zip(model.modules(), kinds, strict=True))
    assert list(model.state_dict()) == keys
    assert kinds != [type(m) for m in model.modules()]
    pruner.accelerate(below=0.5).remove()
    assert kinds == [type(m) for m in model.modules()]
    pruner.accelerate(below=1.0)
    train(model, optimizer, batches())
    pruner.remove()
    assert kinds == [type(m) for m in model.modules()]
    assert not any("fggp_layer" in vars(m) for m in model.modules())


def test_copies_are_dense():
    model, optimizer, pruner = made()
    pruner.accelerate(below=1.0)
    train(model, optimizer, batches())
    x, _ = next(batches(1))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.second.fggp_layer is None
        torch.testing.assert_close(other.eval()(x), model.eval()(x), rtol=1e-3, atol=1e-4)


def test_shipping_and_compiling_an_accelerated_model():
    model, optimizer, pruner = made()
    pruner.accelerate(below=1.0)
    train(model, optimizer, batches())
    model.eval()
    x, _ = next(batches(1))
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(fggp.compile(model, x)(x), expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(torch.compile(model, backend="eager")(x), expected)
        exported = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(exported(x), expected, rtol=1e-3, atol=1e-4)


def test_distributed_data_parallel(tmp_path):
    model, optimizer, pruner = made()
    pruner.accelerate(below=1.0)
    losses = train(model, optimizer, batches())
    dist = torch.distributed
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        same = Net()
        wrapped = nn.parallel.DistributedDataParallel(same)
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.05, momentum=0.9)
        other = fggp.Pruner(wrapped, optimizer, 0.9, begin=0, end=8, every=2, floor=0.05)
        acceleration = other.accelerate(below=1.0)
        assert train(wrapped, optimizer, batches()) == losses
        assert "5 of 5" in str(acceleration)
    finally:
        dist.destroy_process_group()
    for (name, a), b in zip(model.state_dict().items(), same.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_what_the_kernels_cannot_read_is_computed_densely():
    model, _, pruner = made(exclude="first.weight")
    pruner.accelerate(below=1.0)
    linear = model.head
    assert linear(torch.zeros(12)).shape == (4,)  # a vector alone is a batch without dimensions
    with pytest.raises(RuntimeError, match="shapes"):
        linear(torch.zeros(2, 13))
    assert linear(torch.zeros(0, 12)).shape == (0, 4)
    for dtype in (torch.bfloat16, torch.float64):
        with pytest.raises(RuntimeError, match="dtype"):
            linear(torch.zeros(2, 12, dtype=dtype))
    double = copy.deepcopy(model).double()
    assert double(torch.zeros(2, 3, 8, 8).double()).dtype == torch.float64


def test_a_layer_that_is_used_twice():
    layer = nn.Linear(6, 6)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner = fggp.Pruner(model, optimizer, 0.5, begin=0, end=1, every=1)
    acceleration = pruner.accelerate(below=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.ones(3, 6)).sum().backward()
        optimizer.step()
    assert "1 of 1 layers" in str(acceleration)
    pruner.remove()
    assert type(layer) is nn.Linear


def test_a_state_of_a_method_that_regrows_is_refused():
    _, _, other = made("rigl")
    state = other.state_dict()
    _, _, pruner = made()
    before = pruner.state_dict()
    pruner.accelerate(below=1.0)
    with pytest.raises(ValueError, match="'rigl' regrows weights"):
        pruner.load_state_dict(state)
    assert pruner.method.name == "fggp"
    after = pruner.state_dict()["masks"]
    assert all(torch.equal(mask, after[name]) for name, mask in before["masks"].items())
    pruner.accelerate(below=1.0).remove()


def test_it_is_refused_where_it_cannot_work():
    model, _, pruner = made("rigl")
    kinds = [type(m) for m in model.modules()]
    with pytest.raises(ValueError, match="'rigl' regrows weights"):
        pruner.accelerate()
    assert kinds == [type(m) for m in model.modules()]
    _, _, pruner = made()
    with pytest.raises(ValueError, match=r"below=1\.5 must be in \[0, 1\]"):
        pruner.accelerate(below=1.5)
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Conv1d(4, 4, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner = fggp.Pruner(model, optimizer, 0.5, begin=0, end=1, every=1)
    with pytest.raises(ValueError, match=r"no weight can be accelerated.*0\.weight \(Conv2d with groups\).*Conv1d"):
        pruner.accelerate()


def test_weights_of_other_kinds_are_named():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding_mode="circular"), nn.Conv2d(4, 4, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    acceleration = fggp.Pruner(model, optimizer, 0.5, begin=0, end=1, every=1).accelerate(below=1.0)
    assert acceleration.skipped == {"0.weight": "Conv2d with padding_mode='circular'"}
    assert "circular" in str(acceleration)
