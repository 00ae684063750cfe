"""fggp.compile: the compiled network computes the same as the model for any input."""

import copy
import multiprocessing
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from compiled import assert_agrees, cnn, images, pruned, runs
from torch import nn

import fggp
from helpers import bits
from models import IMAGE_MODELS, randomised

FAST = ["resnet18", "vgg11_bn", "mobilenet_v3_small", "convnext_tiny", "vit", "lab vgg19", "lab resnet50"]


@pytest.mark.parametrize("name", FAST)
def test_real_networks(name):
    build, side, channels = IMAGE_MODELS[name]
    model = pruned(build())
    fast = fggp.compile(model, images(1, side, channels))
    assert fast._engine is not None
    for batch in (1, 5, 20):
        x = images(batch, side, channels, batch)
        assert_agrees(fast, model, x)
        assert "PyTorch" not in runs(fast, x)
        assert "kernels" in runs(fast, x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_transformer_with_an_attention_mask():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    model = pruned(transformers.BertModel(config))

    def given(batch, length=12):
        generator = torch.Generator().manual_seed(batch)
        mask = (torch.rand(batch, length, generator=generator) < 0.7).long()
        mask[:, 0] = 1
        return {"attention_mask": mask, "input_ids": torch.randint(50, (batch, length), generator=generator)}

    fast = fggp.compile(model, given(2))
    assert fast._engine is not None
    for batch in (1, 2, 20):
        assert_agrees(fast, model, given(batch))
    with pytest.raises(TypeError, match="keywords"):
        fast(input_ids=given(2)["input_ids"])
    for length in (5, 30):
        assert_agrees(fast, model, given(3, length))
    with pytest.raises(ValueError, match="the size N is 2 in the input 'input_ids' and 3 in 'attention_mask'"):
        fast(input_ids=given(2)["input_ids"], attention_mask=given(3)["attention_mask"])


# The model, before and after.


def test_the_model_is_left_as_it_was_and_its_changes_later_do_not_matter():
    model = cnn().train()
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    x = images(4)
    fast = fggp.compile(model, x)
    assert torch.equal(random, torch.get_rng_state())
    assert model.training
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(model.state_dict().values(), before.values(), strict=True))
    expected = fast(x)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(7)
    assert torch.equal(fast(x), expected)
    assert torch.equal(fast(images(20))[:1].isfinite(), torch.ones(1, 5, dtype=torch.bool))
    assert_agrees(fggp.compile(model, x), model, x)


def test_the_inputs_are_left_as_they_were_and_outputs_are_the_callers():
    model = cnn().eval()
    fast = fggp.compile(model, images(2))
    for batch in (2, 20, 40):
        x = images(batch)
        first = fast(x)
        kept = first.clone()
        first += 1
        assert torch.equal(fast(x), kept)
        assert torch.equal(x, images(batch))


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_nothing_and_everything_left(density):
    model = randomised(cnn(1.0))
    if not density:
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.weight.data.zero_()
    fast = fggp.compile(model, images(3))
    for batch in (1, 3, 33):
        assert_agrees(fast, model, images(batch))


# Inputs.


def test_batches_of_any_size():
    model = cnn()
    fast = fggp.compile(model, images(1))
    for batch in (1, 2, 15, 16, 17, 31, 32, 33, 100):
        assert_agrees(fast, model, images(batch, seed=batch))
    assert fast(images(0)).shape == (0, 5)


# With PyTorch 2.10, torch.export fixes the heights and widths of networks with pools.
fixed_by_2_10 = pytest.mark.skipif(
    torch.__version__.startswith("2.10."), reason="PyTorch 2.10 fixes heights and widths"
)


@fixed_by_2_10
def test_heights_and_widths_that_the_model_leaves_free():
    model = cnn()
    fast = fggp.compile(model, images(1))
    for side in (9, 10, 16, 33):
        for batch in (1, 3):
            assert_agrees(fast, model, images(batch, side))


def test_inputs_that_lie_in_memory_otherwise():
    model = cnn()
    fast = fggp.compile(model, images(4))
    for batch in (1, 4, 40):
        x = images(batch)
        right = fast(x)
        assert torch.equal(fast(x.to(memory_format=torch.channels_last)), right)
        assert torch.equal(fast(x.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)), right)
        assert torch.equal(fast(x.clone().requires_grad_()), right)
        with torch.inference_mode():
            assert torch.equal(fast(x * 1), right)


@pytest.mark.parametrize(
    ("x", "error", "says"),
    [
        (images(2, channels=4), ValueError, r"\(2, 4, 10, 10\) .* must be torch.float32 \(N, 3, (H, W|10, 10)\)"),
        (images(2, side=3), ValueError, r"do not fit the network|must be torch.float32 \(N, 3, 10, 10\)"),
        (images(1)[0], ValueError, r"\(3, 10, 10\)"),
        (torch.tensor(1.0), ValueError, r"\(\)"),
        (images(2).double(), ValueError, "torch.float64"),
        (images(2).half(), ValueError, "torch.float16"),
        (images(2).to("meta"), ValueError, "on meta"),
        (images(2).numpy(), TypeError, "is of type ndarray; it must be a tensor"),
        (None, TypeError, "is of type NoneType"),
    ],
)
def test_inputs_unlike_the_example(x, error, says):
    fast = fggp.compile(cnn(), images(2))
    with pytest.raises(error, match=says):
        fast(x)


def test_other_arguments_than_the_examples():
    fast = fggp.compile(cnn(), images(2))
    for args, kwargs in [((), {}), ((images(2), images(2)), {}), ((images(2),), {"more": images(2)})]:
        with pytest.raises(TypeError, match="captured with 1"):
            fast(*args, **kwargs)
    for example in ("image", 3, None):
        with pytest.raises(TypeError, match="must be a tensor, a tuple of tensors"):
            fggp.compile(cnn(), example)


# Outputs.


class Outputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.register_buffer("constant", torch.arange(3.0))

    def forward(self, x, scale):
        y = self.conv(x)
        return {"y": y, "x": x, "again": (y, F.relu(y)), "constant": self.constant, "none": None, "s": y.mean() * scale}


def test_outputs_of_any_structure_inputs_and_constants_among_them():
    model = pruned(Outputs(), 0.2)
    fast = fggp.compile(model, (images(2), torch.tensor(2.0)))
    for batch in (1, 2, 40):
        x, scale = images(batch), torch.tensor(3.0)
        ours, right = fast(x, scale), model(x, scale)
        assert list(ours) == list(right)
        torch.testing.assert_close(ours, {**right, "none": None}, rtol=1e-5, atol=1e-5)
        ours["constant"] += 1
        assert torch.equal(fast(x, scale)["constant"], torch.arange(3.0))


def test_a_model_that_returns_its_input():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return x, self.conv(x)

    model = pruned(Pair(), 0.2)
    fast = fggp.compile(model, images(2))
    for batch in (1, 16, 100):
        x = images(batch)
        returned, y = fast(x)
        assert torch.equal(returned, images(batch))
        torch.testing.assert_close(y, model(x)[1], rtol=1e-5, atol=1e-5)


# Networks that are made for one batch size.


class Fixed(nn.Module):
    """Its tracing fixes the batch size, as a Python loop over images does."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return torch.stack([self.conv(image[None])[0] for image in x])


def test_a_network_captured_for_one_batch_size():
    model = pruned(Fixed(), 0.2)
    fast = fggp.compile(model, images(4))
    assert fast._graph.batch == 4
    for batch in (1, 3, 4, 5, 18):
        assert_agrees(fast, model, images(batch))


# Threads and processes.


def test_calls_from_several_threads_at_once():
    model = cnn()
    fast = fggp.compile(model, images(2))
    with torch.no_grad():
        right = {batch: model(images(batch)) for batch in (1, 2, 5, 16, 40)}
    wrong = []

    def call(batch):
        for _ in range(20):
            y = fast(images(batch))
            if not torch.allclose(y, right[batch], rtol=1e-4, atol=1e-4):
                wrong.append(batch)

    threads = [threading.Thread(target=call, args=(batch,)) for batch in right]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_any_number_of_threads_gives_the_same():
    fast = fggp.compile(cnn(), images(4))
    for batch in (1, 4, 20):
        x = images(batch)
        expected = fast(x)
        for count in (2, 3, 5):
            torch.set_num_threads(count)
            try:
                y = fast(x)
            finally:
                torch.set_num_threads(1)
            torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)


def in_child(fast, x, queue):
    torch.set_num_threads(1)
    queue.put(fast(x).tolist())


# torch and others leave threads behind, which newer versions of Python warn of when forked; these children need none.
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_calls_in_forked_processes():
    fast = fggp.compile(cnn(), images(2))
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    inputs = [images(2, seed=seed) for seed in range(3)]
    right = [fast(x).tolist() for x in inputs]
    processes = [context.Process(target=in_child, args=(fast, x, queue)) for x in inputs]
    for process in processes:
        process.start()
    results = [queue.get() for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(results) == sorted(right)
    assert [fast(x).tolist() for x in inputs] == right


def test_it_is_not_copied_or_pickled():
    fast = fggp.compile(cnn(), images(2))
    for copier in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"cannot be copied or pickled; write a network file"):
            copier(fast)


def test_the_check_of_a_large_batch_bears_constants_among_the_outputs():
    class WithConstant(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)
            self.conv.weight.data *= torch.rand_like(self.conv.weight) < 0.1
            self.register_buffer("classes", torch.arange(5.0))

        def forward(self, x):
            return self.conv(x), self.classes

    model = WithConstant().eval()
    x = torch.randn(40, 3, 6, 6)
    fast = fggp.compile(model, x)
    for ours, theirs in zip(fast(x), model(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert "on the sparse" in repr(fast)


def test_an_empty_example_is_refused():
    with pytest.raises(ValueError, match="batch of 0"):
        fggp.compile(nn.Conv2d(3, 8, 3), torch.randn(0, 3, 8, 8))
