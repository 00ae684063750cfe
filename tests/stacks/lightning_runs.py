"""LightningModules, trainers and data for the tests in Lightning, whichever of its two packages."""

from importlib.util import find_spec

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import fggp
from fggp.training_shares import steps_of_shares
from helpers import mlp

BATCHES, BATCH, WEIGHTS = 8, 4, 90
WARNINGS = [
    # What Lightning says about small data and few workers. fggp's warnings stay errors.
    *(
        f"ignore::{package}.utilities.warnings.PossibleUserWarning"
        for package in ("lightning.fabric", "lightning_fabric")
        if find_spec(package.partition(".")[0])
    ),
    # Lightning uses what PyTorch has deprecated.
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
]


def data():
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(BATCHES * BATCH, 6, generator=generator)
    return TensorDataset(x, torch.randint(3, (len(x),), generator=generator))


class Loader(DataLoader):
    """One that goes on in the middle of an epoch, as Lightning lets loaders with a state do."""

    at = resume_at = 0

    def __iter__(self):
        start, self.resume_at = self.resume_at, 0
        for i, batch in enumerate(super().__iter__()):
            if i >= start:
                self.at = (i + 1) % len(self)
                yield batch

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.resume_at = state["at"]


def loader(batch_size=BATCH):
    return Loader(data(), batch_size)


class Stream(IterableDataset):
    """The same data without a length."""

    def __iter__(self):
        return iter(data())


def make_module(pl, optimizer=None, net=mlp, **methods):
    """A LightningModule of 90 prunable weights, without a word about pruning."""

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net()

        def loss(self, batch):
            x, y = batch
            return nn.functional.cross_entropy(self.net(x).float(), y)

        def training_step(self, batch, batch_idx):
            return self.loss(batch)

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", self.loss(batch))

        def test_step(self, batch, batch_idx):
            self.log("test_loss", self.loss(batch))

        def configure_optimizers(self):
            return (optimizer or make_adam)(self.parameters())

    for name, method in methods.items():
        setattr(Module, name, method)
    return Module()


def worsening(self, batch, batch_idx):
    """A validation step whose number is best at the beginning, as a loss may be when pruning starts."""
    self.log("worse", float(self.trainer.global_step))


def manual(steps):
    """A training step of manual optimization, with ``steps(batch_idx)`` optimizer steps."""

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.manual_backward(loss)
        for _ in range(steps(batch_idx)):
            self.optimizers().step()
        if steps(batch_idx):
            self.optimizers().zero_grad()

    return {"training_step": training_step, "automatic_optimization": property(lambda self: False)}


def make_adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


def make_sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def make_trainer(pl, *callbacks, **settings):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    if not any(isinstance(c, pl.callbacks.ModelCheckpoint) for c in callbacks):
        quiet["enable_checkpointing"] = False
    return pl.Trainer(**{**quiet, "callbacks": list(callbacks), "max_epochs": 4, **settings})


def plain_loop(total, batches=BATCHES, accumulate=1, optimizer=make_adam, clip=None, dtype=None, **arguments):
    """What the callback should amount to: the Pruner in a loop without Lightning, and the same data."""
    model = mlp()
    opt = optimizer(model.parameters())
    pruner = fggp.Pruner(model, opt, 0.9, **steps_of_shares(total, 0.0, 0.5, None)._asdict(), **arguments)
    while pruner.step < total:
        for i, (x, y) in enumerate(loader()):
            if i == batches or pruner.step == total:
                break
            with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
                loss = nn.functional.cross_entropy(model(x).float(), y)
            (loss / accumulate).backward()
            if (i + 1) % accumulate == 0 or i + 1 == batches:
                if clip:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                opt.step()
                opt.zero_grad()
    return model, pruner


def zeros(module):
    """The zeros of the prunable weights: their number, and where they are."""
    weights = [m.weight.detach() for m in module.modules() if isinstance(m, nn.Linear)]
    return sum(int((w == 0).sum()) for w in weights), [w == 0 for w in weights]


def assert_same(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert list(a) == list(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name


def plain_weights(module):
    """All parameters as they are, sharded ones gathered."""
    values = [p.detach() for p in module.parameters()]
    return [v.full_tensor() if isinstance(v, DTensor) else v for v in values]


def assert_settled(pruning, module):
    """As many weights are kept as 90 % leave, and the others are zero."""
    assert pruning.pruner.finished
    masks = [m.full_tensor() if isinstance(m, DTensor) else m for m in pruning.pruner.masks.values()]
    assert sum(int(m.sum()) for m in masks) == 9
    weights = [w for w in plain_weights(module) if w.ndim == 2]
    assert not any(w[~m].any() for w, m in zip(weights, masks, strict=True))
    assert pruning.pruner.check() == []


def assert_done(pruning, module):
    """That, and no kept weight is zero by itself."""
    assert_settled(pruning, module)
    assert zeros(module.net)[0] == 81


class SaveAt:
    """Saves a checkpoint after one of the batches."""

    def __new__(cls, pl, batch, path):
        class Save(pl.Callback):
            def on_train_batch_end(self, trainer, *_):
                if trainer.fit_loop.total_batch_idx + 1 == batch:
                    trainer.save_checkpoint(path)

        return Save()


class Stop:
    """Stops training after a batch."""

    def __new__(cls, pl, batch):
        class Stopping(pl.Callback):
            def on_train_batch_end(self, trainer, *_):
                trainer.should_stop = trainer.fit_loop.total_batch_idx + 1 == batch

        return Stopping()
