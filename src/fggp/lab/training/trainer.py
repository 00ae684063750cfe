"""One run in memory: a network, its optimizer and its pruner, trained an epoch at a time."""

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fggp
from fggp.lab.base.errors import UsageError
from fggp.lab.training import methods, models
from fggp.lab.training.batches import batch_sizes, epoch_seeds, training_batches
from fggp.lab.training.data import ImageData, Split
from fggp.lab.training.distributed import ALONE, World
from fggp.lab.training.objective import Distilled, make_optimizer, make_scheduler
from fggp.lab.training.parallel import copy_to_ranks, distributed_like, gathered, shard_over_ranks
from fggp.lab.training.settings import PRUNE_END_SHARE, ResolvedSettings
from fggp.lab.training.start import load_start
from fggp.lab.training.step import CapturedStep, EagerStep, Step
from fggp.masks.packing import pack
from fggp.native import KernelsMissingError

# The protocol updates masks 31 times: every 1,000 steps in 80 epochs of CIFAR-10. Shorter runs keep that number.
UPDATES = 31
TEST_BATCH = 500
NORM_STEPS = 50
"""Steps after which PyTorch's batch norms have forgotten all but 0.9^50 = 0.5 % of older statistics."""


@dataclass
class Tally:
    """Sums over the images seen so far, by this rank until the epoch is over, then by all.

    They are on the device: reading ``loss`` or ``accuracy`` waits for it.
    """

    loss_sum: Tensor
    hits: Tensor
    images: int
    seconds: float

    @classmethod
    def empty(cls, device: torch.device) -> "Tally":
        """Return sums of zero."""
        zero = torch.zeros((), dtype=torch.float64, device=device)
        return cls(loss_sum=zero, hits=zero.clone(), images=0, seconds=0.0)

    @property
    def loss(self) -> float:
        """Mean loss, nats: the cross-entropy, unless the run smooths labels or distils."""
        return float(self.loss_sum) / self.images

    @property
    def accuracy(self) -> float:
        """Percent of the images."""
        return 100 * float(self.hits) / self.images


class Trainer:
    """A network in training. Settings, data and the number of ranks determine everything it does.

    All ranks of a run create one and call its methods together.

    Args:
        settings: what to train and how.
        data: on any device; copied to the run's.
        world: the ranks that train.
        measure_start: whether to measure the trained weights that the run starts from. A run that continues knows their
            accuracy from its checkpoint.

    Attributes:
        parallel: how the network is spread over the ranks: "single", "ddp" or "fsdp".
        model: the network itself; under FSDP2 with sharded parameters.
        network: the module that training calls: the model, or DDP's wrapper of it.
        pruner: None for method "dense".
        start: the trained weights it started from; None if it started untrained.
        distilled: the loss with a teacher; None without one.
        compute: how gradients are computed: captured on a GPU, eagerly on a CPU.
        steps_per_epoch: optimizer steps.
        lr: learning rate of the latest step.
        begin, end: optimizer steps at which pruning begins and at which the final sparsity is met.
        every: steps between mask updates.

    Raises:
        UsageError: the model cannot take the images, the pruner refuses its settings, or a batch has fewer images than
            there are ranks.
    """

    def __init__(
        self, settings: ResolvedSettings, data: ImageData, world: World = ALONE, *, measure_start: bool = False
    ) -> None:
        self.settings, self.world = settings, world
        self.device = world.device(settings.device)
        self.data = data.to(self.device)
        self.mean, self.std = self.data.moments()
        self.batch_sizes = batch_sizes(len(data.train), settings.batch_size)
        if min(self.batch_sizes) < world.size:
            raise UsageError(
                f"batch_size is {settings.batch_size}, which makes batches of {min(self.batch_sizes)} of the "
                f"{len(data.train)} training images; each of the {world.size} ranks needs one at least"
            )
        self.steps_per_epoch = len(self.batch_sizes)
        steps = settings.epochs * self.steps_per_epoch

        torch.manual_seed(settings.seed)
        shape = len(data.classes), data.train.images.shape[1]
        model = models.create(settings.model, *shape)
        self.start = None if settings.weights is None else load_start(settings.weights, settings.model, model, *shape)
        if self.start is not None and self.start.mean is not None:
            self.mean, self.std = (
                torch.tensor(x).view_as(self.mean).to(self.mean) for x in (self.start.mean, self.start.std)
            )
        self.parallel = "fsdp" if settings.fsdp else "ddp" if world.size > 1 else "single"
        memory_format = torch.contiguous_format if settings.fsdp else torch.channels_last
        self.model = model.to(self.device, memory_format=memory_format)  # type: ignore[call-overload]
        self._try_model()
        self.distilled = self._distilled()
        self.network = self._spread_over_ranks()
        self.optimizer = make_optimizer(self.model, settings)
        self.scheduler = make_scheduler(self.optimizer, settings, steps, self.steps_per_epoch)
        self.begin = round(settings.prune_begin * self.steps_per_epoch)
        self.end = round(settings.prune_end * self.steps_per_epoch)
        # Methods that move weights for longer do so as often as the others.
        phase = steps // 2 if settings.method in PRUNE_END_SHARE else self.end
        self.every = settings.every or max(1, (phase - self.begin) // UPDATES)
        if measure_start:
            self._measure_start()  # before the pruner, which may set weights to zero already
        self.pruner = self._pruner()
        kind = CapturedStep if self.device.type == "cuda" and self.parallel == "single" else EagerStep
        self.compute: Step = kind(self.model, self.loss_and_hits)
        self.lr = settings.lr

    def _measure_start(self) -> None:
        if self.start is not None and not self.start.replaced and self.data.val is not None:
            self.start = replace(self.start, val_accuracy=self.accuracy(self.data.val))
            self.model.train()

    def _distilled(self) -> Distilled | None:
        if not self.settings.distill:
            return None
        if self.start is not None and self.start.replaced:
            raise UsageError(
                f"distill needs weights of the run's classes, but {', '.join(self.start.replaced)} of "
                f"{self.start.source} are missing, or of another number of them; leave --distill out"
            )
        return Distilled(self.model, self.settings.label_smoothing)

    def _spread_over_ranks(self) -> nn.Module:
        model: nn.Module = self.model
        if self.parallel == "single":
            return model
        if self.parallel == "ddp":
            return copy_to_ranks(model, self._trial)
        return shard_over_ranks(model, self._trial, self.world.size)

    def _try_model(self) -> None:
        """Run two images through the model, so that a model that cannot take them is an error for the user."""
        try:
            with torch.no_grad():
                logits = self._trial(copy.deepcopy(self.model))
        except (RuntimeError, ValueError, AssertionError) as error:
            pixels = "×".join(map(str, self.data.train.images.shape[1:]))
            reason = str(error).partition("\n")[0]
            raise UsageError(f"model {self.settings.model!r} cannot take images of {pixels}: {reason}") from error
        shape = (min(2, len(self.data.train)), len(self.data.classes))
        if not isinstance(logits, Tensor) or logits.shape != shape:
            raise UsageError(f"model {self.settings.model!r} must return one tensor [N, classes] in training")

    def _trial(self, network: nn.Module) -> Tensor:
        """Run a network on two images, in training mode."""
        logits: Tensor = network.train()(self._normalised(self.data.train.images[:2]))
        return logits

    def _pruner(self) -> "fggp.Pruner | None":
        settings = self.settings
        if settings.method == "dense":
            return None
        once = methods.acts_once(settings.method)
        keep = self.start is not None and self.start.pruned and not once
        zeros: Literal["keep", "erk"] = "keep" if keep else "erk"
        default = settings.sparsity if methods.starts_sparse(settings.method) else 0.0
        if keep and settings.init_sparsity != default:
            raise UsageError(
                f"init_sparsity is {settings.init_sparsity:g}, but the weights that the run starts from are pruned "
                f"already, and it starts with their zeros; leave it out"
            )
        try:
            pruner = fggp.Pruner(
                self.network,  # not the model: the pruner finds the other ranks by the wrapper
                self.optimizer,
                settings.sparsity,
                begin=None if once else self.begin,
                end=None if once else self.end,
                every=None if once else self.every,
                method=self._method(),
                init=zeros,
                init_sparsity=None if once or keep else settings.init_sparsity,
                scope=settings.scope,
                granularity=methods.granularity_of(settings.granularity),
                exclude=None if settings.exclude is None else settings.exclude.split(","),
                seed=settings.seed,
            )
            if settings.accelerate:
                pruner.accelerate()
        except (ValueError, KernelsMissingError) as error:
            raise UsageError(str(error)) from error
        return pruner

    def _method(self) -> "fggp.Method | fggp.OneShot":
        """Create the method with the arguments that its constructor names."""
        settings, train = self.settings, self.data.train
        generator = torch.Generator().manual_seed(settings.seed)
        batch = train[torch.randperm(len(train), generator=generator)[: settings.batch_size].to(self.device)]
        offered = {
            "rate": settings.rate,
            "total_steps": settings.epochs * self.steps_per_epoch,
            "loss_fn": F.cross_entropy,
            "batch": (self._normalised(batch.images), batch.labels),
            "input_shape": tuple(batch.images.shape[1:]),
        }
        return methods.make(settings.method, offered)

    def _normalised(self, images: Tensor) -> Tensor:
        return ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type,
            torch.bfloat16,
            enabled=self.settings.precision == "bf16",
            cache_enabled=self.device.type == "cpu",  # a captured step must cast again, so all steps on a GPU do
        )

    def loss_and_hits(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss of a uint8 batch, and hits."""
        with self._autocast():
            normalised = self._normalised(images)
            logits = self.network(normalised)
            if self.distilled is None:
                loss = F.cross_entropy(logits, labels, label_smoothing=self.settings.label_smoothing)
            else:
                loss = self.distilled(normalised, logits, labels)
        return loss, (logits.argmax(1) == labels).sum()

    @property
    def execution(self) -> str:
        """How steps are made: "eager", "captured", or "accelerated", which are eager ones that skip pruned weights."""
        return "accelerated" if self.settings.accelerate else self.compute.name

    @property
    def sparsity(self) -> float:
        """Share of the prunable weights that is pruned now."""
        return 0.0 if self.pruner is None else self.pruner.sparsity

    @property
    def target(self) -> float:
        """The schedule's sparsity now."""
        return 0.0 if self.pruner is None else self.pruner.schedule.sparsity_at(self.step)

    @property
    def step(self) -> int:
        """Optimizer steps made."""
        return self.scheduler.last_epoch

    def densities(self) -> dict[str, float]:
        """Share of the weights that is kept, by layer; empty without a pruner."""
        return {} if self.pruner is None else self.pruner.densities()

    @property
    def masks_changed(self) -> bool:
        """Whether the latest step updated the masks."""
        return self.pruner is not None and self.pruner.last_update == self.pruner.step

    def train_epoch(self, epoch: int, on_step: Callable[[Tally], None]) -> Tally:
        """Train on every image once.

        Args:
            epoch: counted from 0; with the seed it determines all random draws.
            on_step: called after every optimizer step with this rank's tally of the epoch so far.

        Returns:
            The tally of all ranks.
        """
        order_seed, layers_seed = epoch_seeds(self.settings.seed, epoch, self.world.rank)
        torch.manual_seed(layers_seed)  # dropout draws from the global generators
        batches = self._batches(order_seed)
        self.network.train()
        tally = Tally.empty(self.device)
        start = time.perf_counter()
        for batch, size in zip(batches, self.batch_sizes, strict=True):
            loss, hits = self.compute(batch.images, batch.labels, self.world.size * len(batch) / size)
            self.optimizer.step()
            self.lr = self.optimizer.param_groups[0]["lr"]
            self.scheduler.step()
            tally.loss_sum += loss * len(batch)
            tally.hits += hits
            tally.images += len(batch)
            tally.seconds = time.perf_counter() - start
            on_step(tally)
        if epoch + 1 == self.settings.epochs and self.norms_are_late:
            self._estimate_norms(order_seed)
        self.world.even_out(self.model)
        images = torch.tensor(tally.images, dtype=torch.float64, device=self.device)
        tally.loss_sum, tally.hits, images = self.world.total(
            torch.stack([tally.loss_sum, tally.hits, images])
        ).unbind()
        tally.images = int(images)  # waits for a GPU, so that the time below includes all of its work
        tally.seconds = time.perf_counter() - start
        return tally

    @property
    def norms_are_late(self) -> bool:
        """Whether a run from trained weights ends before batch norms' statistics have followed its last mask update."""
        if self.start is None or self.pruner is None or self.pruner.last_update is None:
            return False
        return self.settings.epochs * self.steps_per_epoch - self.pruner.last_update < NORM_STEPS

    def _estimate_norms(self, seed: int) -> None:
        """Replace batch norms' running statistics by those of an epoch of training images, augmented as these are."""
        with self._autocast():
            torch.optim.swa_utils.update_bn(
                (self._normalised(batch.images) for batch in self._batches(seed)), self.model
            )

    def _batches(self, seed: int) -> Iterator[Split]:
        """Return this rank's part of the batches of an epoch."""
        generator = torch.Generator().manual_seed(seed)
        train, augmentation, world = self.data.train, self.data.augmentation, self.world
        return training_batches(train, self.settings.batch_size, augmentation, generator, world.rank, world.size)

    # Not inference_mode: weights that FSDP2 gathers in it cannot be trained afterwards.
    @torch.no_grad()
    def accuracy(self, split: Split) -> float:
        """Return the percentage of a split's images that the network classifies correctly."""
        self.model.eval()
        hits = torch.zeros((), dtype=torch.int64, device=self.device)
        # Under FSDP2 a pass is a collective: all ranks make equally many, if need be on an image that is not counted.
        for rows in torch.split(torch.arange(len(split)), TEST_BATCH * self.world.size):
            own = rows.tensor_split(self.world.size)[self.world.rank]
            batch = split[(own if len(own) else rows[:1]).to(self.device)]
            with self._autocast():
                correct = self.model(self._normalised(batch.images)).argmax(1) == batch.labels
            hits += correct[: len(own)].sum()
        return 100 * int(self.world.total(hits)) / len(split)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that changes between epochs; it loads with ``torch.load(weights_only=True)``.

        Its form does not depend on the number of ranks or on DDP and FSDP. It is complete on rank 0 only.
        """
        keep = self.world.rank == 0
        state: dict[str, Any] = {name: gathered(part.state_dict(), keep) for name, part in self._parts()}
        if self.start is not None:
            state["start_accuracy"] = self.start.val_accuracy
        if self.pruner is not None and keep:
            masks = state["pruner"]["masks"]  # those of sharded weights are not packed yet
            state["pruner"]["masks"] = {n: pack(m) if m.dtype == torch.bool else m for n, m in masks.items()}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Return to the moment when ``state`` was taken, by any number of ranks."""
        own = self.model.state_dict()
        network = {name: distributed_like(own[name], t) if name in own else t for name, t in state["model"].items()}
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        slots = {
            i: {
                name: distributed_like(parameters[i], t) if _is_shaped(t, parameters[i]) else t
                for name, t in slot.items()
            }
            for i, slot in state["optimizer"]["state"].items()
        }
        if self.start is not None:  # checkpoints of older versions have no accuracy of it
            self.start = replace(self.start, val_accuracy=state.get("start_accuracy"))
        placed = {**state, "model": network, "optimizer": {**state["optimizer"], "state": slots}}
        for name, part in self._parts():
            part.load_state_dict(placed[name])

    def network_state(self) -> dict[str, Tensor]:
        """Return the network's state dict with plain tensors; it is complete on rank 0 only."""
        state: dict[str, Tensor] = gathered(self.model.state_dict(), keep=self.world.rank == 0)
        return state

    def _parts(self) -> list[tuple[str, Any]]:
        parts = [("model", self.model), ("optimizer", self.optimizer), ("scheduler", self.scheduler)]
        return parts if self.pruner is None else [*parts, ("pruner", self.pruner)]


def _is_shaped(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape
