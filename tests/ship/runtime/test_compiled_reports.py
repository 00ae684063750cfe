"""What fggp.compile says: warnings where it falls back to PyTorch, and the table that print shows."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from compiled import assert_agrees, cnn, images, pruned
from torch import nn

import fggp
from fggp import native
from fggp.native import KernelsMissingError

# What cannot be compiled.


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else -self.conv(x)


class Random(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return F.dropout(self.conv(x), 0.5, training=True)


def compiled_with_warning(model, x, says):
    with pytest.warns(UserWarning, match=says) as caught:
        fast = fggp.compile(model, x)
    assert [w.filename for w in caught] == [__file__]  # it points at the line that calls compile
    return fast


def test_control_flow_that_depends_on_data(capfd):
    model = pruned(Branching(), 0.2)
    fast = compiled_with_warning(
        model, images(2), "the whole model runs on PyTorch: torch.export cannot trace Branching"
    )
    assert capfd.readouterr() == ("", "")  # without PyTorch's pages of log
    for x in (images(3).abs(), -images(3).abs()):
        assert torch.equal(fast(x), model(x))
    assert "cannot trace" in str(fast)


def test_a_random_model():
    model = Random()
    fast = compiled_with_warning(model, images(2), "differs from the model's by .* the model draws random numbers")
    torch.manual_seed(0)
    ours = fast(images(2))
    torch.manual_seed(0)
    assert torch.equal(ours, model(images(2)))


def test_without_kernels(monkeypatch):
    def load():
        raise KernelsMissingError("there are none")

    monkeypatch.setattr(native, "load", load)
    model = cnn()
    fast = compiled_with_warning(model, images(2), "PyTorch's dense kernels: there are none")
    for batch in (0, 1, 2, 40):
        assert_agrees(fast, model, images(batch))
    assert "there are none" in str(fast)


def test_what_is_off_is_found_even_where_it_is_not_a_number(monkeypatch):
    """A wrong result of the kernels is never used."""
    engine = fggp.ship.runtime.engine.Engine
    right = engine.run
    monkeypatch.setattr(engine, "run", lambda self, inputs: [x * torch.nan for x in right(self, inputs)])
    model = cnn()
    fast = compiled_with_warning(model, images(2), "differs from the model's by inf")
    monkeypatch.undo()
    assert torch.equal(fast(images(2)), model(images(2)))


# What it tells.


def test_print_names_layers_operations_and_densities():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, bias=False)
            self.head = nn.Linear(8, 5)

        def forward(self, x):
            return self.head(F.relu(self.stem(x)).mean((2, 3)))

    model = Net()
    with torch.no_grad():
        model.stem.weight.zero_()[0, 0, 0] = 1  # 3 of 216
        model.head.weight.zero_()[:4, 0] = 1  # 4 of 40
    fast = fggp.compile(model, images(2))
    text = str(fast)
    assert text.startswith("Net compiled by fggp for inputs of 2×3×10×10: 2 of 2 convolutions and linear layers on the")
    stem, head = (next(line for line in text.splitlines() if line.startswith(name)) for name in ("stem", "head"))
    assert stem.split()[:3] == ["stem", "Conv2d", "8×3×3×3"]
    assert "1.4%" in stem
    assert head.split()[:3] == ["head", "Linear", "5×8"]
    assert "10.0%" in head
    assert "fggp " in stem
    assert "conversion of layout" in text
    assert text.splitlines()[-1].startswith("total")


def test_a_convolution_whose_input_is_unfolded_is_one_line():
    model = pruned(nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2)), 0.1)
    text = str(fggp.compile(model, images(1, side=32)))
    assert "2 of 2 convolutions" in text
    assert [line.split()[0] for line in text.splitlines() if "Conv2d" in line] == ["0", "2"]


def test_no_warning_where_all_is_well():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fggp.compile(cnn(), images(2))(images(3))
