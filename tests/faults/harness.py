"""Kill training runs, damage their files, fill their disk, and check that only time is lost: `make faults`.

$ python tests/faults/harness.py                          50 kills, all kinds of damage, full disks
$ python tests/faults/harness.py --seed 3 --only kill-17  one fault again, as it was

A killed run is resumed, sometimes killed again, and in the end compared with an unbroken run: weights bit for bit,
metrics and record without times. A run with a damaged file must end in the same way, or with one line that names the
file. The seed determines everything except when the timer strikes.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from damage import DAMAGES
from fggp.lab.base.errors import UsageError
from fggp.lab.base.machine import device_name
from fggp.lab.training import checkpoint
from places import KINDS, ON_EVERY_RANK
from runs import MODES, End, Moment, run

ROOT = Path(__file__).parent.parent.parent
EPOCHS = 4
ARGUMENTS = ("--epochs", str(EPOCHS), "--sparsity", "0.9", "--device", "cpu", "--batch-size", "512")
TIMES = {"images_per_second", "wall_seconds", "date", "commit"}  # someone may commit while this runs
KILLED_AGAIN = 0.3
"""How likely a resumed run is killed again."""
DISK_BYTES = 8 << 20
NEWEST, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
FILES = {
    "the newest checkpoint": (NEWEST,),
    "the one before it": (PREVIOUS,),
    "both checkpoints": (NEWEST, PREVIOUS),
    "metrics": ("metrics.jsonl",),
    "settings": ("settings.json",),
    "record": ("record.json",),
}
FULL = {
    "in the settings": "begin",
    "in the metrics": "half a line",
    "in the checkpoint": "checkpoint",
    "in the model": "after checkpoint.pt",
}
SHORT = {"alone": "one process", "ddp": "DDP", "fsdp": "FSDP2"}
BEGIN, END = "<!-- faults: made by tests/faults/harness.py -->\n", "<!-- end of faults -->\n"


@dataclass
class Fault:
    """A fault in a run, and its outcome.

    Attributes:
        name: to repeat it by; a run that is killed again, "kill-7, again", is part of the first one.
        group: "killed", "damaged" or "full".
        kind: what tables call it.
        mode: one of `runs.MODES`.
        moment: when or what exactly.
        steps_lost: optimizer steps that had to be made again.
        outcome: "identical" to an unbroken run, or "refused" with an error that names the file.
    """

    name: str
    group: str
    kind: str
    mode: str
    moment: str = ""
    steps_lost: int = 0
    outcome: str = ""


class FaultError(AssertionError):
    """Something was lost, or an end was not as it should be."""


@dataclass(frozen=True)
class Unbroken:
    """A run that nothing happened to.

    Args:
        folder: of the run.
        counts: how often each rank came to each place.
        seconds: that it took.
        steps_per_epoch: optimizer steps.
    """

    folder: Path
    counts: list[dict[str, int]]
    seconds: float
    steps_per_epoch: int


class Harness:
    """Does faults, one after the other.

    Args:
        folder: where the runs go.
        seed: that all moments are drawn with.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.unbroken: dict[str, Unbroken] = {}

    def chance(self, name: str) -> random.Random:
        return random.Random(f"{self.seed} {name}")

    def train(self, mode: str, out: Path, moment: Moment | None = None, resume: bool = True) -> End:
        arguments = (*ARGUMENTS, "--out", str(out), *(["--resume"] if resume else []))
        return run(mode, arguments, self.folder / "notes", moment)

    def reference(self, mode: str) -> Unbroken:
        """Make an unbroken run of this mode, once."""
        if mode not in self.unbroken:
            out, start = self.folder / f"unbroken-{mode}" / "run", time.monotonic()
            end = self.train(mode, out, resume=False)
            if end.code != 0:
                raise FaultError(f"an unbroken run, {mode}, ended with {end.code}:\n{end.text}")
            steps = metrics(out, "epoch")[0]["step"]
            self.unbroken[mode] = Unbroken(out, end.counts, time.monotonic() - start, steps)
        return self.unbroken[mode]

    @contextmanager
    def run_folder(self, disk: bool = False) -> Iterator[Path]:
        """Give the folder of a run that is not there yet; on a small disk of its own if one can be had."""
        parent = self.folder / "broken"
        parent.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(parent)]
        mounted = disk and os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
        try:
            yield parent / "run"
        finally:
            if mounted:
                subprocess.run(["umount", str(parent)], check=True)
            shutil.rmtree(parent)

    def do(self, fault: Fault) -> list[Fault]:
        """Do it; return it and what else happened to the same run.

        Raises:
            FaultError: it did harm.
        """
        what = {"killed": self._kill, "damaged": self._damage, "full": self._full}[fault.group]
        return what(fault, self.chance(fault.name))

    # Kills

    def _kill(self, fault: Fault, chance: random.Random) -> list[Fault]:
        faults = [fault]
        with self.run_folder() as out:
            while not self._struck(fault, out, chance):  # the timer may come too late
                shutil.rmtree(out)
            end, finished = None, False
            while not finished and chance.random() < KILLED_AGAIN:
                again = replace(fault, name=f"{fault.name}, again", kind=chance.choice(list(KINDS)))
                finished = not self._struck(again, out, chance)
                faults += [] if finished else [again]
            end = self.train(fault.mode, out)
            self._check_end(fault, out, end)
        for each in faults:
            each.outcome = fault.outcome
        return faults

    def _struck(self, fault: Fault, out: Path, chance: random.Random) -> bool:
        """Run until a moment of the fault's kind; return whether it came before the end, and count what is lost."""
        unbroken = self.reference(fault.mode)
        moment = self._moment(fault.kind, unbroken, chance)
        fault.moment = str(moment)
        before = steps_saved(out, unbroken)
        end = self.train(fault.mode, out, moment)
        fault.steps_lost = before + end.steps - steps_saved(out, unbroken)
        if not end.struck and end.code != 0:
            raise FaultError(f"ended with {end.code} by itself:\n{end.text}")
        return end.struck

    def _moment(self, kind: str, unbroken: Unbroken, chance: random.Random) -> Moment:
        ranks = len(unbroken.counts)
        place = chance.choice(KINDS[kind])
        rank = chance.randrange(ranks) if place in ON_EVERY_RANK else 0
        action = chance.choice(("kill", "kill all")) if ranks > 1 else "kill"
        if place == "timer":
            return Moment(place, chance.uniform(0, unbroken.seconds), rank, action)
        return Moment(place, chance.randint(1, unbroken.counts[rank][place]), rank, action)

    # Damage

    def _damage(self, fault: Fault, chance: random.Random) -> list[Fault]:
        what, _, how = fault.kind.partition(": ")
        names = FILES[what]
        with self.run_folder() as out:
            if what == "record":
                shutil.copytree(self.reference(fault.mode).folder, out)
            else:
                shutil.copytree(self._half_done(fault.mode), out)
            saved = steps_saved(out, self.reference(fault.mode))
            for name in names:
                DAMAGES[how](out / name, chance)
            damaged = {name: read(out / name) for name in names}
            noticed = must_be_noticed(out, what, how)
            fault.moment = ", ".join(f"{name} {how}" for name in names)
            end = self.train(fault.mode, out)
            if (out / "trapped").exists():
                raise FaultError("a trap ran")
            if what == "both checkpoints" and how != "deleted":
                self._check_refused(fault, out, end, names)
                if damaged != {name: read(out / name) for name in names}:
                    raise FaultError("a refused file was changed")
                return [fault]
            fault.steps_lost = end.steps - (EPOCHS * self.reference(fault.mode).steps_per_epoch - saved)
            if noticed and not any(str(out / name) in said for name in names for said in told(end)):
                raise FaultError(f"nothing was said of {names}:\n{end.text}")
            self._check_end(fault, out, end)
        return [fault]

    def _half_done(self, mode: str) -> Path:
        """A run that was killed in its last but one epoch, made once."""
        out = self.folder / f"half-done-{mode}" / "run"
        if not out.exists():
            end = self.train(mode, out, Moment("line", EPOCHS - 1), resume=False)
            if not end.struck:
                raise FaultError(f"was not killed:\n{end.text}")
        return out

    # A full disk

    def _full(self, fault: Fault, chance: random.Random) -> list[Fault]:
        unbroken = self.reference(fault.mode)
        place = FULL[fault.kind]
        # Its last occurrence is the one before the model is written.
        nth = EPOCHS if place == "after checkpoint.pt" else chance.randint(1, unbroken.counts[0][place])
        with self.run_folder(disk=True) as out:
            small = os.path.ismount(out.parent)
            if not small and place in ("begin", "half a line"):
                return []  # a limit on the length of files does not stop short ones
            moment = Moment(place, nth, action="full")
            fault.moment = f"{moment}, {'a small disk' if small else 'a limit on the length of files'}"
            end = self.train(fault.mode, out, moment)
            if not end.struck:
                raise FaultError(f"the disk was not filled:\n{end.text}")
            self._check_refused(fault, out, end, ("",))
            (out.parent / "balloon").unlink(missing_ok=True)
            fault.steps_lost = end.steps - steps_saved(out, unbroken)
            self._check_end(fault, out, self.train(fault.mode, out))
        return [fault]

    # Ends

    def _check_end(self, fault: Fault, out: Path, end: End) -> None:
        unbroken = self.reference(fault.mode).folder
        if end.code != 0:
            raise FaultError(f"ended with {end.code}:\n{end.text}")
        for what, own, expected in (
            ("weights", read(out / "model.safetensors"), read(unbroken / "model.safetensors")),
            ("metrics", metrics(out), metrics(unbroken)),
            ("record", record(out), record(unbroken)),
        ):
            if own != expected:
                raise FaultError(f"{what} are not those of an unbroken run")
        left = {file.name for file in out.iterdir()}
        if left != {file.name for file in unbroken.iterdir()}:
            raise FaultError(f"other files are left: {sorted(left)}")
        fault.outcome = "identical"

    def _check_refused(self, fault: Fault, out: Path, end: End, names: Sequence[str]) -> None:
        said = [line for line in told(end) if all(str(out / name) in line for name in names)]
        if end.code in (0, -9) or len(said) != 1:
            raise FaultError(f"ended with {end.code} and no line that names {names}:\n{end.text}")
        if fault.mode == "alone" and (end.code != 2 or "Traceback" in end.text):
            raise FaultError(f"ended with {end.code} and more than a line:\n{end.text}")
        fault.outcome = "refused"


# Run folders


def told(end: End) -> list[str]:
    """What a run said that is no progress."""
    return [line for line in end.text.splitlines() if line.startswith("fggp: ")]


def read(file: Path) -> bytes | None:
    return file.read_bytes() if file.exists() else None


def metrics(folder: Path, kind: str | None = None) -> list[Any]:
    lines = [without_times(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if kind in (None, line["kind"])]


def record(folder: Path) -> Any:
    return without_times(json.loads((folder / "record.json").read_text()))


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return value


def must_be_noticed(folder: Path, what: str, how: str) -> bool:
    """Whether damage that was done is any to what is gone on from."""
    if what == "the one before it":  # which is not looked at as long as the newest is good
        return False
    if what == "metrics":  # those after the checkpoint are dropped
        kept = checkpoint.read(folder / NEWEST).metrics.encode()
        return not (read(folder / "metrics.jsonl") or b"").startswith(kept)
    return (what, how) != ("record", "deleted")  # it is as if the run had not got that far


def steps_saved(folder: Path, unbroken: Unbroken) -> int:
    """Optimizer steps that the newest good checkpoint holds."""
    for name in (NEWEST, PREVIOUS):
        with suppress(FileNotFoundError, UsageError):
            return int(checkpoint.read(folder / name).state["epochs"]) * unbroken.steps_per_epoch
    return 0


# Campaigns


def kills(count: int) -> list[Fault]:
    """All kinds in turn, and half of them to a process alone."""
    modes, kinds = ("alone", "ddp", "alone", "fsdp"), list(KINDS)
    return [
        Fault(f"kill-{n}", "killed", kinds[n // len(modes) % len(kinds)], modes[n % len(modes)]) for n in range(count)
    ]


def damages() -> list[Fault]:
    """Every damage to every file of a run alone; some to what ranks read together."""
    alone = [f"{what}: {how}" for what in FILES for how in DAMAGES if makes_sense(what, how)]
    ranks = ["the newest checkpoint: cut", "the newest checkpoint: a bit flipped", "both checkpoints: a bit flipped"]
    faults = [("alone", kind) for kind in alone] + [(mode, kind) for mode in ("ddp", "fsdp") for kind in ranks]
    return [Fault(f"damage-{n}", "damaged", kind, mode) for n, (mode, kind) in enumerate(faults)]


def makes_sense(what: str, how: str) -> bool:
    # A flipped bit may leave a record that can be read; what no copy is kept of cannot be told from it.
    return how != "a bit flipped" if what == "record" else how != "a trap" or "checkpoint" in what


def full() -> list[Fault]:
    faults = [(mode, kind) for mode in MODES for kind in FULL]
    return [Fault(f"full-{n}", "full", kind, mode) for n, (mode, kind) in enumerate(faults)]


def campaign(
    faults: Sequence[Fault], folder: Path, seed: int, done: Callable[[list[Fault]], None]
) -> tuple[list[Fault], list[str]]:
    """Do all of them.

    Returns:
        What happened, which may be more; and what went wrong, a text for each, which says how to repeat it.
    """
    harness = Harness(folder, seed)
    happened: list[Fault] = []
    wrong: list[str] = []
    for fault in faults:
        try:
            own = harness.do(fault)
        except AssertionError as error:
            fault.outcome = "LOST"
            own = [fault]
            again = f"python tests/faults/harness.py --seed {seed} --only {fault.name}"
            wrong.append(f"{fault.name}, {fault.mode}, {fault.kind} ({fault.moment}): {error}\n{again}\n")
        happened += own
        done(own)
    return happened, wrong


# Tables


def table(faults: Sequence[Fault]) -> str:
    """What happened, how often, what came of it, what was lost, as markdown."""
    lines = ["| | fault | " + " | ".join(SHORT.values()) + " | as an unbroken run | refused | steps made again |"]
    lines.append("|---|---|" + "---|" * (len(SHORT) + 3))
    rows = dict.fromkeys((fault.group, row_of(fault)) for fault in faults)
    for group, kind in rows:
        own = [fault for fault in faults if (fault.group, row_of(fault)) == (group, kind)]
        count = Counter(fault.mode for fault in own)
        outcomes = Counter(fault.outcome for fault in own)
        lost = [fault.steps_lost for fault in own if fault.outcome == "identical"]
        again = f"{statistics.median(lost):g}, at most {max(lost)}" if lost else "–"
        cells = [group, kind, *(str(count[mode] or "–") for mode in SHORT)]
        cells += [f"{outcomes['identical']} of {len(own)}", str(outcomes["refused"] or "–"), again]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def row_of(fault: Fault) -> str:
    """Damages of a file share a row."""
    return fault.kind.partition(": ")[0]


def origin(about: dict[str, Any]) -> str:
    """Where the figures are from."""
    return (
        f"`make faults`, which runs `fggp train {' '.join(ARGUMENTS)}`, as two ranks for DDP and FSDP2; "
        f"seed {about['seed']}, one thread a process, {about['device']}, torch {about['torch']}, "
        f"{about['date'].partition('T')[0]}.\n"
    )


def note(page: Path, text: str) -> None:
    """Put a text between the page's marks."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}{text}{END}{after}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="how many runs are killed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these faults, such as kill-17")
    parser.add_argument("--page", type=Path, help="Markdown page that gets the table")
    parser.add_argument("--records", type=Path, help="file that gets a line for each fault")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    faults = [*kills(settings.kills), *damages(), *full()]
    if settings.only:
        faults = [fault for fault in faults if fault.name in settings.only]
    about = {
        "seed": settings.seed,
        "device": device_name(torch.device("cpu")),
        "torch": torch.__version__,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    # No thread of its own that refreshes the bar: a process that forks should have none.
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with tempfile.TemporaryDirectory() as folder, Progress(*columns, auto_refresh=False) as progress:
        task = progress.add_task("faults", total=len(faults))

        def done(own: list[Fault]) -> None:
            what = "; ".join(f"{SHORT[fault.mode]}, {fault.kind}: {fault.outcome}" for fault in own[:1])
            progress.update(task, advance=1, description=what, refresh=True)

        happened, wrong = campaign(faults, Path(folder), settings.seed, done)
    for text in wrong:
        print(text, file=sys.stderr)
    print(table(happened))
    if settings.records:
        settings.records.parent.mkdir(parents=True, exist_ok=True)
        settings.records.write_text("".join(json.dumps({**asdict(fault), **about}) + "\n" for fault in happened))
    if settings.page:
        note(settings.page, f"\n{table(happened)}\n{origin(about)}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
