"""The processes of a run: this one alone, or the ranks that torchrun started, which train together."""

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
from fggp.lab.base.launch import launched

T = TypeVar("T")
P = ParamSpec("P")

REASON_SECONDS = 10
"""How long a failing rank waits for the one that prints the reason: torchrun ends all ranks once one has ended."""


def join(trains: bool) -> "World":
    """Connect to the other ranks and wait for all of them. A process that no launcher started is alone.

    Args:
        trains: whether the command trains. Other commands connect only if torchrun itself started them, so that they
            are refused once and not by every rank; the variables alone may be set in any container of a cluster.

    Raises:
        UsageError: the variables are wrong, or the others cannot be reached.
    """
    if not launched() or not (trains or dist.is_torchelastic_launched()):
        return ALONE
    # torchrun's store outlives the ranks, so a rank that fails can leave a message for the others. It also outlives
    # restarts (--max-restarts): the ranks of this attempt must not find the addresses of the last one.
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
    return World(rank, size, int(os.environ.get("LOCAL_RANK", "0")), PrefixStore(f"{attempt}/fggp", store))


class World:
    """The ranks of a run, as one of them sees them.

    A method whose description says "all ranks call it" is a collective: if one rank does not call it, the others wait
    for ever.

    Args:
        rank: number of this process over all machines; only rank 0 writes and prints.
        size: number of processes.
        local_rank: number of this process on its machine.
        store: where ranks leave messages for one another; None for a process that is alone.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, store: Store | None = None) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self._store = store
        if rank != 0:
            warnings.simplefilter("ignore")  # rank 0 gives the same warnings

    def device(self, name: str) -> torch.device:
        """Return the device that this rank trains on.

        Args:
            name: cpu, or cuda, which gives each rank on a machine its own GPU.

        Raises:
            UsageError: there is no such GPU for this rank.
        """
        if self._store is None or name == "cpu":
            return torch.device(name)
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

    def once(self, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Call a function on rank 0 only."""
        if self.rank == 0:
            function(*args, **kwargs)

    def shared(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function on rank 0 only and return its result on all ranks; all ranks call it."""
        if self._store is None:
            return function(*args, **kwargs)
        box: list[Any] = [function(*args, **kwargs) if self.rank == 0 else None]
        dist.broadcast_object_list(box, src=0)
        result: T = box[0]
        return result

    def in_turn(self, load: Callable[[], T]) -> T:
        """Call a function on all ranks, first on local rank 0 of each machine; all ranks call it."""
        if self.local_rank == 0:
            result = load()
            self._wait_for_all()
            return result
        self._wait_for_all()
        return load()

    def _wait_for_all(self) -> None:
        if self._store is not None:
            dist.all_reduce(torch.zeros(1))  # on the CPU: a barrier would use a GPU, which may not be this run's

    def total(self, sums: Tensor) -> Tensor:
        """Return the sum over ranks; all ranks call it."""
        if self._store is not None:
            sums = sums.clone()
            dist.all_reduce(sums)
        return sums

    def even_out(self, model: nn.Module) -> None:
        """Make buffers equal on all ranks; all ranks call it.

        Each rank has seen its share of the images, so running statistics become their mean over ranks: rank 0's alone,
        as DDP uses them, would be of ``size`` times fewer images. Other buffers become rank 0's.
        """
        if self._store is None:
            return
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

    def check_same(self, settings: dict[str, Any]) -> None:
        """Compare settings with those of rank 0; all ranks call it.

        Raises:
            UsageError: naming what differs.
        """
        first = self.shared(lambda: settings)
        for name, value in settings.items():
            if value != first[name]:
                raise UsageError(f"{name} is {value!r} for rank {self.rank}; it must be {first[name]!r}, as for rank 0")

    def print_error(self, text: str) -> None:
        """Print why this process ends; of ranks that fail together, only the first prints.

        The first rank to fail knows the reason; the others may only know that it is gone.
        """
        with suppress(RuntimeError):  # the store is gone, and with it the rank that held it and printed the reason
            if self._store is None or self._store.add("complaints", 1) == 1:
                print(text, file=sys.stderr, flush=True)
                self._announce_printed()
            else:
                self._wait_for_print()

    def lost(self, error: RuntimeError) -> bool:
        """Whether an error only says that another rank is gone."""
        # Gloo's errors have no class of their own; their text begins with the source file.
        return self._store is not None and (isinstance(error, dist.DistError) or "gloo" in str(error))

    def silenced(self) -> AbstractContextManager[object]:
        """Return a context in which only rank 0 prints."""
        if self.rank == 0:
            return nullcontext()
        streams = ExitStack()
        for redirect in (redirect_stdout, redirect_stderr):
            streams.enter_context(redirect(StringIO()))
        return streams

    def wait_for_output(self) -> None:
        """Wait until rank 0 has printed what it printed before this call; all ranks call it."""
        with suppress(RuntimeError):
            if self.rank == 0:
                self._announce_printed()
            else:
                self._wait_for_print()

    def _announce_printed(self) -> None:
        if self._store is not None:
            self._store.set("told", "")

    def _wait_for_print(self) -> None:
        assert self._store is not None
        self._store.wait(["told"], timedelta(seconds=REASON_SECONDS))

    def leave(self) -> None:
        """End together, when everything is done; all ranks call it."""
        if self._store is not None:
            self._wait_for_all()  # a rank that ends while another still reads its answer would look like a failure
            dist.destroy_process_group()


ALONE = World()
