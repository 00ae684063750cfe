"""Runs of several ranks, as torchrun would start them: `python ranks.py FOLDER` leaves them in FOLDER.

All ranks are forked from one process: importing PyTorch is what takes the time. Unlike torchrun, nobody ends the ranks
that are left when one has failed: they have to notice.
"""

import os
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import sklearn.datasets  # noqa: F401 (here, as all that a run imports, and not in every rank)
import torch
import torch.distributed as dist
import tyro  # noqa: F401
from torch import nn

from fggp.lab import cli
from fggp.lab.training import models, pictures, train, trainer
from fggp.lab.training.data import Augmentation, ImageData, Split
from fggp.lab.training.distributed import World, join
from fggp.lab.training.settings import TrainSettings
from fggp.lab.training.trainer import Trainer

HANGS_AFTER = 300
COMMAND = ("train", "--epochs", "2", "--prune-end", "2", "--sparsity", "0.9", "--device", "cpu")
SMALL = 2
"""Images that `trained` tests at a time, so that ranks have unlike numbers of them."""
KILLED_STEP = 17
"""In the second epoch, of 11 steps each."""


def launch(size: int, log: Path, work: Callable[[], int], attempts: int = 1) -> list[int]:
    """Call a function on several ranks, with their output in one file; return exit codes, negative for signals.

    If one fails, all are started again, up to the number of attempts.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # As with torchrun, the store is in a process of its own: it outlives a rank that dies.
    agent = _forked({}, log, lambda: _keep_store(port))
    codes = [1]
    for attempt in range(attempts):
        if any(codes):
            variables = {"TORCHELASTIC_RESTART_COUNT": attempt, "WORLD_SIZE": size}
            place = {**variables, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            ranks = [_forked({**place, "RANK": rank, "LOCAL_RANK": rank}, log, work) for rank in range(size)]
            codes = _ended(ranks)
    os.kill(agent, signal.SIGKILL)
    os.waitpid(agent, 0)
    return codes


def _ended(ranks: Sequence[int]) -> list[int]:
    codes: dict[int, int] = {}
    deadline = time.monotonic() + HANGS_AFTER
    while len(codes) < len(ranks):
        for rank in set(ranks) - set(codes):
            pid, status = os.waitpid(rank, os.WNOHANG)
            if pid:
                codes[rank] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                os.kill(rank, signal.SIGKILL)
        time.sleep(0.02)
    return [codes[rank] for rank in ranks]


def _keep_store(port: int) -> int:
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    time.sleep(2 * HANGS_AFTER)
    del store
    return 0


def _forked(variables: dict[str, object], log: Path, work: Callable[[], int]) -> int:
    child = os.fork()
    if child:
        return child
    torchruns = {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    os.environ.update(torchruns, **{name: str(value) for name, value in variables.items()})
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    code = 1
    try:
        code = work()
    except SystemExit as exit_:
        code = exit_.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(
    out: Path,
    size: int,
    *options: str,
    command: Sequence[str] = COMMAND,
    second: Sequence[str] = (),
    dies: bool = False,
    attempts: int = 1,
) -> list[int]:
    """Train on digits.

    Args:
        out: the run folder; beside it OUT.log, and OUT.end.RANK, the masks and buffers that each rank ends with.
        size: how many ranks.
        options: further ones.
        command: the rest of the command line.
        second: options of the second rank only.
        dies: whether the second rank is killed in step `KILLED_STEP` of the first attempt.
        attempts: see `launch`.
    """

    def work() -> int:
        rank = int(os.environ["RANK"])
        if dies and rank == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            masks_changed = Trainer.masks_changed.fget
            Trainer.masks_changed = property(lambda t: die() if t.step == KILLED_STEP else masks_changed(t))
        if rank == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] != "0":
            time.sleep(1)  # the first rank must not take it for who it was before
        make_record = train.make_record

        def make_record_and_tell(run: str, trainer: Trainer, *others):
            masks = trainer.pruner.masks.items()
            tensors = {n: m.full_tensor() if hasattr(m, "full_tensor") else m.clone() for n, m in masks}
            torch.save({**tensors, **dict(trainer.model.named_buffers())}, f"{out}.end.{rank}")
            return make_record(run, trainer, *others)

        train.make_record = make_record_and_tell
        pictures.draw_run = lambda *others: None
        return cli.main([*command, "--out", str(out), *options, *(second if rank == 1 else ())])

    return launch(size, Path(f"{out}.log"), work, attempts)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Plain(nn.Module):
    """A network without batch statistics; one part of it is never used."""

    def __init__(self, classes: int, channels: int):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 32))
        self.head = nn.Linear(32, classes)
        self.unused = nn.Linear(3, 3)

    def forward(self, x):
        return self.head(self.body(x).tanh())


def trained(world: World, fsdp: bool = False) -> dict:
    """Train the model "plain" for two epochs on 15 images in batches of 5 (3 and 2 on two ranks), and test it."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (22, 3, 8, 8), generator=generator, dtype=torch.uint8)
    images = Split(pixels, torch.randint(4, (22,), generator=generator))
    train, test = images[torch.arange(15)], images[torch.arange(15, 22)]
    data = ImageData("random", tuple("0123"), train, None, test, Augmentation(shift=1, flip=True))
    chosen = {"method": "fggp", "sparsity": 0.5, "epochs": 2, "batch_size": 5, "precision": "fp32", "fsdp": fsdp}
    one = Trainer(TrainSettings(device="cpu", model="plain", **chosen).resolve(), data, world)
    tallies = [one.train_epoch(epoch, lambda tally: None) for epoch in range(2)]
    return {
        "tallies": [(tally.loss, tally.accuracy, tally.images) for tally in tallies],
        "accuracy": one.accuracy(data.test),
        "state": one.state_dict(),
    }


def steps(out: Path, fsdp: bool) -> list[int]:
    """Leave what `trained` returns on two ranks in OUT, and in OUT.norm what became of a batch norm's buffers."""

    def work() -> int:
        models.OURS["plain"], trainer.TEST_BATCH = Plain, SMALL
        world = join(trains=True)
        world.once(torch.save, trained(world, fsdp), out)
        norm = nn.BatchNorm2d(2)
        norm.register_buffer("own", torch.full((3,), world.rank))
        norm.running_mean.fill_(world.rank)
        norm.running_var.fill_(3 + world.rank)
        world.even_out(norm)
        torch.save(norm.state_dict(), f"{out}.norm.{world.rank}")
        world.leave()
        return 0

    return launch(2, Path(f"{out}.log"), work)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    codes = {}
    # Three ranks add three numbers, and in another order to another sum.
    for kind, size, options, others in (("ddp", 3, (), ("--fsdp",)), ("fsdp", 2, ("--fsdp",), ())):
        codes[f"{kind}.steps"] = steps(folder / f"{kind}.steps", fsdp=kind == "fsdp")
        codes[kind] = run(folder / kind, size, *options)
        codes[f"{kind}-killed"] = run(folder / f"{kind}-killed", size, *options, dies=True)
        for name in ("resumed", "elsewhere"):
            shutil.copytree(folder / f"{kind}-killed", folder / f"{kind}-{name}")
        codes[f"{kind}-resumed"] = run(folder / f"{kind}-resumed", size, "--resume", *options)
        codes[f"{kind}-elsewhere"] = run(folder / f"{kind}-elsewhere", 2, "--resume", *others)
    codes["restarted"] = run(folder / "restarted", 2, "--fsdp", "--resume", dies=True, attempts=2)
    wrong = {
        "option": ("--epcohs", "3"),
        "value": ("--sparsity", "2"),
        "model": ("--model", "vgg19"),
        "batches": ("--batch-size", "1"),
    }
    for name, options in wrong.items():
        codes[name] = run(folder / name, 2, *options)
    codes["command"] = run(folder / "command", 2, command=("demo",))
    codes["second"] = run(folder / "second", 2, second=("--lr", "0.3"))
    shutil.copytree(folder / "fsdp", folder / "taken")
    codes["taken"] = run(folder / "taken", 2)
    torch.save(codes, folder / "codes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
