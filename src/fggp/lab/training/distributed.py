"""The processes of a run: this one alone, or as many as torchrun started, which train together as its ranks."""

import os
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from io import StringIO
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from fggp.lab.base.errors import UsageError

T = TypeVar("T")
P = ParamSpec("P")

# How long a rank that fails waits for the one that tells why: torchrun ends all ranks as soon as one has ended.
TELL_SECONDS = 10


def launched() -> bool:
    """Whether torchrun, or whoever sets the same variables, started this process as one of several."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def join(trains: bool) -> "World":
    """Meet the other ranks, and wait until all are there; alone where nobody launched any.

    Args:
        trains: whether ranks have something to do together. If not, they meet only where torchrun started them, to be
            told so once; the variables alone may be those of a cluster's container that runs any command.

    Raises:
        UsageError: the variables are wrong, or the others cannot be reached.
    """
    if not launched() or not (trains or dist.is_torchelastic_launched()):
        return ALONE
    # The store outlives the ranks (it is torchrun's), so one that fails can leave word of it to the others.
    # It also outlives restarts (--max-restarts), and must not give the ranks of this one the addresses of the last.
    attempt = f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    on_gpus = torch.cuda.is_available() and dist.is_nccl_available()
    try:
        store, rank, size = next(rendezvous("env://"))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpus else "gloo",
            store=PrefixStore(f"{attempt}/group", store),
            rank=rank,
            world_size=size,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"rank {os.environ['RANK']} cannot meet the other ranks: {reason}") from error
    return Ranks(rank, size, int(os.environ.get("LOCAL_RANK", "0")), PrefixStore(f"{attempt}/fggp", store))


class World:
    """This process alone: there is nobody to wait for. `Ranks` is the same for one of many.

    What says "all ranks call it" is a collective: a rank that leaves it out makes the others wait for ever.

    Attributes:
        rank: number of this process; the first one, 0, is the one that writes and prints.
        size: how many processes there are.
    """

    rank = 0
    size = 1

    def device(self, name: str) -> torch.device:
        """Return the device that this rank trains on.

        Args:
            name: cpu, or cuda, which gives each rank on a machine a GPU of its own.

        Raises:
            UsageError: there is no such GPU for this rank.
        """
        return torch.device(name)

    def once(self, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Call a function on the first rank only."""
        function(*args, **kwargs)

    def shared(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function on the first rank only and return its result on all; all ranks call it."""
        return function(*args, **kwargs)

    def in_turn(self, load: Callable[[], T]) -> T:
        """Call a function on all ranks, on the first one of each machine before the others; all ranks call it."""
        return load()

    def total(self, sums: Tensor) -> Tensor:
        """Return the sum over ranks; all ranks call it."""
        return sums

    def even_out(self, model: nn.Module) -> None:
        """Make buffers the same on all ranks, which have seen different images; all ranks call it."""

    def check_same(self, settings: dict[str, Any]) -> None:
        """Refuse settings that are not those of the first rank; all ranks call it.

        Raises:
            UsageError: naming what differs.
        """

    def complain(self, text: str) -> None:
        """Print why this ends; of ranks that fail together only one does."""
        print(text, file=sys.stderr, flush=True)

    def lost(self, error: RuntimeError) -> bool:
        """Whether an error is only that another rank is gone."""
        return False

    def hushed(self) -> AbstractContextManager[object]:
        """Return a context in which only the first rank is heard."""
        return nullcontext()

    def heard(self) -> None:
        """Wait until what the first rank said before it calls this is printed; all ranks call it."""

    def leave(self) -> None:
        """End together, when all is done; all ranks call it."""


ALONE = World()


class Ranks(World):
    """One of the processes that torchrun started.

    Args:
        rank: its number, counted over all machines.
        size: how many there are.
        local_rank: its number on this machine.
        store: where ranks leave word to one another without waiting.
    """

    def __init__(self, rank: int, size: int, local_rank: int, store: Store) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self._store = store
        if rank != 0:
            warnings.simplefilter("ignore")  # the first rank has the same to say

    def device(self, name: str) -> torch.device:  # noqa: D102 (inherited)
        if name == "cpu":
            return torch.device("cpu")
        if name != "cuda":
            raise UsageError(f"device is {name!r}; under torchrun it must be cpu, or cuda, a GPU for each rank")
        count = torch.cuda.device_count()
        if self.local_rank >= count:
            raise UsageError(
                f"there is no GPU for rank {self.rank}: start at most {count} on its machine, or add --device cpu"
            )
        device = torch.device("cuda", self.local_rank)
        torch.cuda.set_device(device)
        return device

    def once(self, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:  # noqa: D102
        if self.rank == 0:
            function(*args, **kwargs)

    def shared(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:  # noqa: D102
        box: list[Any] = [function(*args, **kwargs) if self.rank == 0 else None]
        dist.broadcast_object_list(box, src=0)
        result: T = box[0]
        return result

    def in_turn(self, load: Callable[[], T]) -> T:  # noqa: D102
        if self.local_rank == 0:
            result = load()
            self._meet()
            return result
        self._meet()
        return load()

    def _meet(self) -> None:
        dist.all_reduce(torch.zeros(1))  # on the CPU: a barrier would be a GPU's, which may not be this run's

    def total(self, sums: Tensor) -> Tensor:  # noqa: D102
        sums = sums.clone()
        dist.all_reduce(sums)
        return sums

    def even_out(self, model: nn.Module) -> None:
        """See `World`: running statistics become their mean over the ranks, as each has seen its share of the images.

        The first rank's alone, as DDP would have them, are of so many times fewer images. Other buffers become the
        first rank's.
        """
        statistics: list[Tensor] = []
        others: list[Tensor] = []
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                running = isinstance(module, nn.modules.batchnorm._NormBase) and name.startswith("running_")
                (statistics if running else others).append(buffer)
        if statistics:
            means = self.total(torch.cat([buffer.reshape(-1) for buffer in statistics])) / self.size
            for buffer, mean in zip(statistics, torch.split(means, [b.numel() for b in statistics]), strict=True):
                buffer.copy_(mean.view_as(buffer))
        for buffer in others:
            value = buffer.contiguous()
            dist.broadcast(value, src=0)
            buffer.copy_(value)

    def check_same(self, settings: dict[str, Any]) -> None:  # noqa: D102
        first = self.shared(lambda: settings)
        for name, value in settings.items():
            if value != first[name]:
                raise UsageError(f"{name} is {value!r} for rank {self.rank}; it must be {first[name]!r}, as for rank 0")

    def complain(self, text: str) -> None:
        """See `World`: the first to fail knows why, the others perhaps only that it is gone."""
        with suppress(RuntimeError):  # the store is gone: so is the rank that had it, and that has told
            if self._store.add("complaints", 1) == 1:
                super().complain(text)
                self._store.set("told", "")
            else:
                self._store.wait(["told"], timedelta(seconds=TELL_SECONDS))

    def lost(self, error: RuntimeError) -> bool:  # noqa: D102
        # Gloo's errors are of no kind of their own; their text begins with the source file.
        return isinstance(error, dist.DistError) or "gloo" in str(error)

    def hushed(self) -> AbstractContextManager[object]:  # noqa: D102
        if self.rank == 0:
            return nullcontext()
        unheard = ExitStack()
        for stream in (redirect_stdout, redirect_stderr):
            unheard.enter_context(stream(StringIO()))
        return unheard

    def heard(self) -> None:  # noqa: D102
        with suppress(RuntimeError):
            if self.rank == 0:
                self._store.set("told", "")
            else:
                self._store.wait(["told"], timedelta(seconds=TELL_SECONDS))

    def leave(self) -> None:  # noqa: D102
        self._meet()  # a rank that goes while another still reads its answer would look like a failure
        dist.destroy_process_group()
