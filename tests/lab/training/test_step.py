"""Steps: eager ones are the loop written by hand, captured ones the same, and capturing leaves no trace."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fggp.lab.training import batches as batches_module
from fggp.lab.training import step as step_module
from fggp.lab.training.batches import epoch_seeds, training_batches
from fggp.lab.training.data import Augmentation, ImageData, Split
from fggp.lab.training.settings import TrainSettings
from fggp.lab.training.step import Captured, CapturedStep, EagerStep, capture, no_waiting, unchanged
from fggp.lab.training.trainer import Trainer

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def images(count: int = 21) -> ImageData:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    split = Split(pixels, torch.randint(4, (count,), generator=generator))
    return ImageData("random", tuple("0123"), split, None, split, Augmentation(shift=1, flip=True))


def trainer(device: str = "cpu", count: int = 21, **settings) -> Trainer:
    """21 images in batches of up to 8 make three of 7; 22 make one of 8 and two of 7."""
    chosen = {"method": "fggp", "epochs": 3, "batch_size": 8, "precision": "fp32", "model": "digits-cnn", **settings}
    return Trainer(TrainSettings(device=device, **chosen).resolve(), images(count))


def trained(run: Trainer, epochs: int = 3) -> dict:
    tallies = [run.train_epoch(epoch, lambda tally: None) for epoch in range(epochs)]
    return {"state": run.state_dict(), "tallies": [(tally.loss, tally.accuracy) for tally in tallies]}


def flat(value) -> list:
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in (key, *flat(item))]
    return [leaf for item in value for leaf in flat(item)] if isinstance(value, list | tuple) else [value]


def same(one, other) -> bool:
    """Whether both hold the same, tensors to the bit."""
    pairs = list(zip(flat(one), flat(other), strict=True))
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("count", [21, 22])
def test_an_epoch_is_the_loop_written_by_hand(count, precision):
    run, plain = (trainer(count=count, precision=precision) for _ in range(2))
    found = trained(run)
    for epoch in range(3):
        order, layers = epoch_seeds(0, epoch)
        torch.manual_seed(layers)
        plain.model.train()
        generator = torch.Generator().manual_seed(order)
        for batch in training_batches(plain.data.train, 8, plain.data.augmentation, generator):
            plain.optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                x = ((batch.images - plain.mean) / plain.std).contiguous(memory_format=torch.channels_last)
                loss = F.cross_entropy(plain.model(x), batch.labels)
            loss.backward()
            plain.optimizer.step()
            plain.scheduler.step()
    assert same(found["state"], plain.state_dict())


def replayed_on_the_cpu(model: nn.Module, step: EagerStep, images: torch.Tensor, labels: torch.Tensor) -> Captured:
    """What `capture` returns, with a replay that does as a CUDA graph's: it reads and writes its own tensors only."""
    images, labels = images.clone(), labels.clone()
    with unchanged(model, images.device):
        loss, hits = (result.clone() for result in step(images, labels))
        gradients = [p.grad for p in model.parameters()]
    own = [gradient for gradient in gradients if gradient is not None]

    def replay() -> None:
        held = [p.grad for p in model.parameters()]
        results = [*step(images, labels), *(p.grad for p in model.parameters() if p.grad is not None)]
        for target, result in zip([loss, hits, *own], results, strict=True):
            target.copy_(result)
        for p, gradient in zip(model.parameters(), held, strict=True):
            p.grad = gradient

    return Captured(images, labels, loss, hits, gradients, replay)


@pytest.mark.parametrize("count", [21, 22, 5])
def test_replays_of_one_graph_a_size_train_the_same_bits(monkeypatch, count):
    sizes = []

    def capture(model, step, images, labels):
        sizes.append(len(images))
        return replayed_on_the_cpu(model, step, images, labels)

    expected = trained(trainer(count=count))
    monkeypatch.setattr(step_module, "capture", capture)
    run = trainer(count=count)
    run.compute = CapturedStep(run.model, run.loss_and_hits)
    assert same(trained(run), expected)
    assert sizes == {21: [7], 22: [8, 7], 5: [5]}[count]
    assert run.compute.name == "captured"


def test_a_weighted_step_among_captured_ones_changes_nothing_for_them(monkeypatch):
    monkeypatch.setattr(step_module, "capture", replayed_on_the_cpu)
    run = trainer()
    run.compute = CapturedStep(run.model, run.loss_and_hits)
    batch = run.data.train

    def gradients(weight: float) -> list[torch.Tensor]:
        run.compute(batch.images, batch.labels, weight)
        return [p.grad.clone() for p in run.model.parameters()]

    run.model.eval()
    whole, half, again = gradients(1.0), gradients(0.5), gradients(1.0)
    assert same(whole, again)
    assert same([gradient / 2 for gradient in whole], half)


def test_what_cannot_be_captured_is_stepped_eagerly_and_says_so_once(monkeypatch):
    def capture(*args):
        raise RuntimeError("called a synchronizing CUDA operation\nand much more")

    expected = trained(trainer())
    monkeypatch.setattr(step_module, "capture", capture)
    run = trainer()
    run.compute = CapturedStep(run.model, run.loss_and_hits)
    with pytest.warns(
        RuntimeWarning, match=r"not captured, which is slower: called a synchronizing CUDA operation$"
    ) as w:
        assert same(trained(run), expected)
    assert len(w) == 1
    assert run.compute.name == "eager"


def test_unchanged_puts_buffers_gradients_and_generators_back():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5))
    for p in model[0].parameters():
        p.grad = torch.ones_like(p)
    before = copy.deepcopy(dict(model.named_buffers())), torch.get_rng_state()
    held = [p.grad for p in model.parameters()]
    addresses = [b.data_ptr() for b in model.buffers()]
    with unchanged(model, torch.device("cpu")):
        model.zero_grad()
        model(torch.randn(4, 1, 5, 5)).sum().backward()
        assert not same(before[0], dict(model.named_buffers()))
    assert same(before, (dict(model.named_buffers()), torch.get_rng_state()))
    assert all(p.grad is gradient for p, gradient in zip(model.parameters(), held, strict=True))
    assert addresses == [b.data_ptr() for b in model.buffers()]


def test_batches_made_together_are_those_made_one_by_one(monkeypatch):
    def epoch() -> list[Split]:
        return list(training_batches(images(50).train, 8, Augmentation(1, True), torch.Generator().manual_seed(3)))

    one_by_one = epoch()
    for at_once in (2, 3, 100):
        monkeypatch.setattr(batches_module, "_batches_at_once", lambda split, size, n=at_once: n)
        assert same([(b.images, b.labels) for b in epoch()], [(b.images, b.labels) for b in one_by_one])


class Dropping(nn.Module):
    """A small network with running statistics and random draws."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5))
        self.head = nn.Linear(8 * 36, 4)

    def forward(self, x):
        return self.head(self.body(x))


def dropping_loss(model):
    def loss(images, labels):
        logits = model(images / 255)
        return F.cross_entropy(logits, labels), (logits.argmax(1) == labels).sum()

    return loss


@on_gpu
def test_capturing_leaves_no_trace_on_a_gpu():
    torch.manual_seed(0)
    model = Dropping().cuda()
    split = images().train.to(torch.device("cuda"))
    before = copy.deepcopy(model.state_dict()), torch.get_rng_state(), torch.cuda.get_rng_state()
    capture(model, EagerStep(model, dropping_loss(model)), split.images, split.labels)
    assert same(before, (model.state_dict(), torch.get_rng_state(), torch.cuda.get_rng_state()))
    assert all(p.grad is None for p in model.parameters())


@on_gpu
def test_captured_and_eager_steps_agree_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    found = []
    for kind in (EagerStep, CapturedStep):
        torch.manual_seed(0)
        model = Dropping().cuda()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
        step = kind(model, dropping_loss(model))
        losses = []
        split = images(40).train.to(torch.device("cuda"))
        for size in (9, 9, 8, 8, 9, 8):
            torch.manual_seed(size)
            loss, _ = step(split.images[:size], split.labels[:size])
            optimizer.step()
            losses.append(loss.item())
        found.append((losses, [t.cpu() for t in model.state_dict().values()]))
        assert step.name == ("eager" if kind is EagerStep else "captured")
    torch.testing.assert_close(found[0], found[1])


@on_gpu
def test_a_model_that_reads_the_gpu_is_stepped_eagerly():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).cuda()

    def loss(images, labels):
        logits = model(images / images.max().item())
        return F.cross_entropy(logits, labels), (logits.argmax(1) == labels).sum()

    step = CapturedStep(model, loss)
    split = images().train.to(torch.device("cuda"))
    with pytest.warns(RuntimeWarning, match="not captured"):
        first = step(split.images, split.labels)[0].item()
    assert step(split.images, split.labels)[0].item() == pytest.approx(first)


@on_gpu
def test_no_waiting_finds_a_wait_and_is_over_afterwards():
    value = torch.ones((), device="cuda")
    with pytest.raises(RuntimeError), no_waiting():
        value.item()
    assert value.item() == 1


@on_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_on_a_gpu_is_captured_and_can_be_resumed(precision):
    whole = trainer("cuda", precision=precision)
    whole.train_epoch(0, lambda tally: None)
    half = copy.deepcopy(whole.state_dict())
    whole.train_epoch(1, lambda tally: None)
    again = trainer("cuda", precision=precision)
    again.load_state_dict(half)
    again.train_epoch(1, lambda tally: None)
    assert whole.compute.name == again.compute.name == "captured"
    for one, other in zip(whole.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.01)
    assert whole.sparsity == again.sparsity
    assert 0 <= whole.accuracy(whole.data.test) <= 100
