"""One mask update of 1 M to 1 G weights: time, memory and exactness of fggp and of common alternatives.

    python benchmarks/scale.py                    measures what today's records lack, then shows all
    python benchmarks/scale.py --show             shows the last records: tables, docs/images/scale.png

The contenders of `update.py` prune a network of 16 square linear layers, with random weights and gradients, from dense
to 20 %. M and G are 2^20 and 2^30. Every measurement is a process of its own with two limits. A contender that meets a
limit is not measured at larger sizes.

The memory limit is RLIMIT_DATA. It counts the memory that the process allocates, so the first allocation above the
limit fails, at the same place in every run. RLIMIT_AS would count the libraries' address space too. A watchdog on the
resident size would see too late that the machine is full. The time limit is an alarm that ends the process if one
update takes longer.

A small network first loads everything that is loaded at first use. Extra memory is the growth of the process's peak
resident size during an update, including the masks that it returns. As a share, it is relative to weights, gradients
and one-byte masks. Times are medians of three more updates, each of a new network. If the first update takes more than
ten seconds, its time counts and no more are made.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from torch import Tensor, nn

from common import RESULTS, ROOT, Json, append, conditions, read, watched
from fggp.lab.report.style import BACKGROUND, FAINT, REPORT_STYLE
from fggp.lab.training.pictures import COLOURS
from fggp.schedule import active_count
from update import CONTENDERS, SPARSITY, prunable

RECORDS = RESULTS / "scale.ndjson"
PICTURE = ROOT / "docs" / "images" / "scale.png"
LAYERS = 16
MEGA = 1 << 20
SIZES = (1, 4, 16, 64, 256, 1024)
"""Millions of weights."""
TIMED_UPDATES = 3
"""Updates to time, after a first one whose memory is measured."""
BRIEF_SECONDS = 10
"""After an update that takes longer, no more are made."""
SORT_MAX_WEIGHTS = 16 * MEGA
"""Up to this many weights, masks are compared with those of a sort."""
MAX_BYTES_PER_WEIGHT = 64
"""An upper bound on any contender's memory for a weight and its gradient."""
LABEL_POINTS = 11
"""Distance between two names in the picture."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SERIES = [(c, d) for c in CONTENDERS for d in DTYPES if d == "fp32" or c.startswith("fggp")]
SHORT_NAMES = {
    "fggp: FGGP": "fggp, FGGP",
    "fggp: GMP": "fggp, GMP",
    "concatenate + sorted topk": "sorted topk",
    "torch.nn.utils.prune.global_unstructured": "global_unstructured",
    "concatenate + torch.kthvalue": "torch.kthvalue",
    "concatenate + np.partition": "np.partition",
}


# One measurement, in a process of its own


def network(weights: int, dtype: torch.dtype, seed: int) -> nn.Module:
    """Square linear layers with normal weights and gradients: hardly any two are equal, except by bf16's rounding."""
    side = round((weights / LAYERS) ** 0.5)

    def layer(seed: int) -> nn.Linear:
        generator = torch.Generator().manual_seed(seed)
        linear = nn.utils.skip_init(nn.Linear, side, side, bias=False, dtype=dtype)
        linear.weight.detach().normal_(std=0.02, generator=generator)
        linear.weight.grad = torch.empty_like(linear.weight).normal_(std=1e-3, generator=generator)
        return linear

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # drawing numbers takes longest
        return nn.Sequential(*pool.map(layer, range(seed * LAYERS, (seed + 1) * LAYERS)))


def measure(contender: str, dtype: str, weights: int, patience: float) -> Json:
    """Measure updates that no limit stops: seconds, extra bytes, and how many weights too many are kept."""
    make = CONTENDERS[contender]
    make(network(MEGA, DTYPES[dtype], seed=0))()
    seconds: list[float] = []
    extra: list[int] = []
    surplus: list[int] = []
    while len(seconds) <= TIMED_UPDATES and max(seconds, default=0) <= BRIEF_SECONDS:
        number = len(seconds)
        gc.collect()  # hooks make reference cycles, which keep the last network
        model = network(weights, DTYPES[dtype], seed=number)
        before = [w.detach().clone() for w in prunable(model)] if weights <= SORT_MAX_WEIGHTS and number == 0 else []
        update = make(model)
        signal.setitimer(signal.ITIMER_REAL, patience)  # without a handler the signal ends the process
        masks, took, growth = watched(update, trim=number == 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        seconds.append(took)
        extra.append(growth)
        surplus.append(sum(int(m.count_nonzero()) for m in masks) - active_count(SPARSITY, weights))
        if contender.startswith("fggp"):
            check(contender, model, masks, before, surplus[-1])
        del model, before, update, masks
    return {"seconds": seconds[1:] or seconds, "extra_bytes": extra[0], "kept_too_many": surplus}


def check(contender: str, model: nn.Module, masks: Sequence[Tensor], before: Sequence[Tensor], surplus: int) -> None:
    """Check that the right number of weights is pruned, and that pruned weights are zero.

    Given the weights before the update, check also that the pruned ones are those that a sort finds, and that the
    kept ones are unchanged.

    Raises:
        AssertionError: a check fails.
    """
    assert surplus == 0, f"{contender} kept {surplus} weights too many"
    for w, m in zip(prunable(model), masks, strict=True):
        assert not w[~m].any(), f"{contender} left pruned weights that are not zero"
    if before:
        same = (torch.equal(w, b * m) for w, b, m in zip(prunable(model), before, masks, strict=True))
        assert all(same), f"{contender} changed weights that it kept"
        theta = np.concatenate([w.float().abs().numpy().ravel() for w in before])
        grad = np.concatenate([w.grad.float().abs().numpy().ravel() for w in prunable(model) if w.grad is not None])
        kept = np.concatenate([m.numpy().ravel() for m in masks])
        assert (kept == by_sorting(contender, theta, grad)).all(), f"{contender} pruned others than a sort does"


def by_sorting(contender: str, theta: np.ndarray, grad: np.ndarray) -> np.ndarray:
    """The mask of a dense network after the update, computed by sorting |θ| and |g|; of ties the first is pruned."""
    going = len(theta) - active_count(SPARSITY, len(theta))
    candidates = np.arange(len(theta))
    if contender == "fggp: FGGP":
        candidates = np.sort(np.lexsort((theta, grad))[: len(theta) // 2])
    kept = np.ones(len(theta), dtype=bool)
    kept[candidates[np.argsort(theta[candidates], kind="stable")[:going]]] = False
    return kept


def work(options: argparse.Namespace) -> None:
    """Make one measurement under the limits and print it as JSON."""
    limit = round(options.memory * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    contender, dtype, weights = options.measure
    try:
        print(json.dumps(measure(contender, dtype, int(weights), options.patience)))
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "allocate memory" not in str(error):
            raise
        print(json.dumps({"stopped": "memory"}))


# All measurements, one after the other


def run(options: argparse.Namespace) -> None:
    """Make all measurements asked for that are not recorded yet."""
    here = {**conditions(), "memory_gib": options.memory, "patience_seconds": options.patience}
    wanted = [(c, d, size * MEGA) for size in options.sizes for c, d in SERIES if options.only in c]
    done = {} if options.again else {key_of(r): r for r in read(RECORDS) if is_from(r, here)}
    stops = {key[:2]: key[2] for key, record in done.items() if "stopped" in record}
    for number, (contender, dtype, weights) in enumerate(wanted, 1):
        key = (contender, dtype, weights)
        start = f"{number:2}/{len(wanted)}  {contender:42}{dtype:6}{size_of(weights):>6}  "
        if key in done:
            print(f"{start}{outcome(done[key])} (recorded before)", flush=True)
        elif weights > stops.get(key[:2], weights):
            print(f"{start}left out: stopped at {size_of(stops[key[:2]])}", flush=True)
        else:
            print(start, end="", flush=True)
            record = {"benchmark": "scale", "contender": contender, "dtype": dtype, "weights": weights, **here}
            record.update(measured_apart(key, options))
            append(record, RECORDS)
            stops |= {key[:2]: weights} if "stopped" in record else {}
            print(outcome(record), flush=True)


def measured_apart(key: tuple[str, str, int], options: argparse.Namespace) -> Json:
    """Make one measurement in a process of its own."""
    require_free(min(options.memory, 1 + key[2] * MAX_BYTES_PER_WEIGHT / 2**30))
    limits = ["--memory", str(options.memory), "--patience", str(options.patience)]
    call = [sys.executable, __file__, *limits, "--measure", *map(str, key)]
    done = subprocess.run(call, capture_output=True, text=True)
    if done.returncode == -signal.SIGALRM:
        return {"stopped": "patience"}
    if "std::bad_alloc" in done.stderr:  # thrown in a thread of OpenMP, from which no exception reaches Python
        return {"stopped": "memory"}
    if done.returncode:
        raise SystemExit(f"the measurement ended with {done.returncode}\n{done.stderr}")
    result: Json = json.loads(done.stdout)
    return result


def require_free(gib: float) -> None:
    """Refuse a measurement that needs more memory than is free: the kernel might end any process then."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 2**20
    if free < gib:
        raise SystemExit(f"{gib:.1f} GiB are needed and {free:.1f} are free: free some, or lower --memory")


def key_of(record: Json) -> tuple[str, str, int]:
    return record["contender"], record["dtype"], record["weights"]


def is_from(record: Json, here: Json) -> bool:
    """Whether a record is of today, this machine, and, if a limit stopped it, these limits."""
    limits = ("memory_gib", "patience_seconds") if "stopped" in record else ()
    return all(record[name] == here[name] for name in ("device", "threads", "date", *limits))


# Results


def last_records() -> dict[tuple[str, str, int], Json]:
    """The last record of every measurement, of those with the same device and threads as the last one."""
    records = read(RECORDS)
    if not records:
        raise SystemExit(f"{RECORDS} has no records yet: measure first, without --show")
    same = [r for r in records if all(r[name] == records[-1][name] for name in ("device", "threads"))]
    return {key_of(record): record for record in same}


def size_of(weights: int) -> str:
    return f"{weights // (MEGA * 1024)} G" if weights >= MEGA * 1024 else f"{weights // MEGA} M"


def time_of(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def share(record: Json) -> float:
    """Extra memory as a share of weights, gradients and masks."""
    return record["extra_bytes"] / record["weights"] / (2 * DTYPES[record["dtype"]].itemsize + 1)


def outcome(record: Json) -> str:
    if "stopped" in record:
        return f"stopped: {record['stopped']}"
    text = f"{time_of(statistics.median(record['seconds'])):>9}{share(record):8.1%} extra memory"
    kept = record["kept_too_many"]
    return text + (f", not exact: {' '.join(f'{n:+,}' for n in kept)} weights" if any(kept) else "")


def tables(records: dict[tuple[str, str, int], Json]) -> Iterator[str]:
    """Markdown tables by size: times, extra memory, and the largest error in the number of kept weights."""
    sizes = sorted({weights for _, _, weights in records})
    present = [series for series in SERIES if any(key[:2] == series for key in records)]

    def worst(record: Json) -> str:
        return f"{max(record['kept_too_many'], key=abs):+,}".replace("-", "−").replace("+0", "exact")

    columns = {
        "one update": lambda record: time_of(statistics.median(record["seconds"])),
        "extra memory": lambda record: f"{share(record):.0%}",
        "kept too many": worst,
    }
    for title, cell in columns.items():
        yield f"| {title} | | {' | '.join(map(size_of, sizes))} |"
        yield f"|{'---|' * (len(sizes) + 2)}"
        for contender, dtype in present:
            own = [records.get((contender, dtype, weights)) for weights in sizes]
            texts = ["–" if r is None else f"*{r['stopped']}*" if "stopped" in r else cell(r) for r in own]
            yield f"| {contender} | {dtype} | {' | '.join(texts)} |"
        yield ""


def draw(records: dict[tuple[str, str, int], Json]) -> Path:
    contenders = list(CONTENDERS)
    latest = next(reversed(records.values()))
    with matplotlib.rc_context(REPORT_STYLE):
        figure = Figure(figsize=(9.6, 4.6), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.1)
        FigureCanvasAgg(figure)
        time, memory = figure.subplots(1, 2, width_ratios=(1.75, 1))
        ends: list[tuple[float, float, str, str]] = []
        for contender, dtype in SERIES:
            own = [r for r in records.values() if (r["contender"], r["dtype"]) == (contender, dtype)]
            own = sorted(own, key=lambda r: r["weights"])
            finished = [r for r in own if "stopped" not in r]
            if not finished:
                continue
            colour = COLOURS[contenders.index(contender)]
            look = {
                "color": colour,
                "marker": "o",
                "markersize": 4,
                "linestyle": "-" if dtype == "fp32" else (0, (3, 1.5)),
            }
            look |= {} if dtype == "fp32" else {"markerfacecolor": BACKGROUND}
            sizes = [r["weights"] for r in finished]
            medians = [statistics.median(r["seconds"]) for r in finished]
            time.plot(sizes, medians, **look)
            memory.plot(sizes, [100 * share(r) for r in finished], **look)
            name = SHORT_NAMES[contender] + (f", {dtype}" if contender.startswith("fggp") else "")
            end = sizes[-1], medians[-1]
            if len(own) > len(finished):
                stop = own[len(finished)]
                end = (
                    stop["weights"],
                    medians[-1] * stop["weights"] / sizes[-1],
                )  # extrapolated
                time.plot((sizes[-1], end[0]), (medians[-1], end[1]), ":", color=colour, linewidth=1)
                time.plot(*end, "X", color=colour, markersize=6, markeredgewidth=0, zorder=3)
                name += f" ({'out of ' * (stop['stopped'] == 'memory')}{stop['stopped']})"
            ends.append((*end, name, colour))
        memory.axhline(25, color=FAINT, linewidth=1, linestyle="--", zorder=1)
        time.set(title="one update", ylabel="time")
        memory.set(title="extra memory", ylabel="of weights + gradients + masks")
        shown = sorted({r["weights"] for r in records.values()})
        for axes in (time, memory):
            axes.set(xscale="log", yscale="log", xlabel="weights")
            axes.xaxis.set_major_locator(FixedLocator(shown if axes is time else shown[::2]))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: size_of(round(n))))
            axes.yaxis.set_minor_formatter(NullFormatter())
        time.yaxis.set_major_formatter(FuncFormatter(lambda s, _: time_of(s)))
        memory.yaxis.set_major_locator(LogLocator(subs=(1, 2.5, 5)))
        memory.yaxis.set_major_formatter("{x:g} %")
        threads = f"{latest['threads']} thread{'s' * (latest['threads'] != 1)}"
        heading = f"One mask update by number of weights; {latest['device']}, {threads}, {latest['date']}"
        figure.suptitle(heading, x=0.01, ha="left", fontsize=10, fontweight="bold")
        if ends:
            label(figure, time, ends)
        figure.savefig(PICTURE, metadata={"Software": None})
    return PICTURE


def label(figure: Figure, axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write the names of the lines in a column to their right, as near to the heights of their ends as space allows.

    Args:
        figure: the figure, its layout final except for the column's width.
        axes: logarithmic in both directions.
        ends: x, y, name and colour of each line.
    """
    figure.draw_without_rendering()
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())  # fixed, whatever is drawn beside the axes
    low, high = np.log(axes.get_ylim())
    gap = LABEL_POINTS * figure.dpi / 72 / axes.get_window_extent().height * (high - low)
    ends = sorted(ends, key=lambda end: end[1])
    column = max(end[0] for end in ends) * 2
    for (x, y, name, colour), height in zip(ends, spread([np.log(y) for _, y, *_ in ends], gap), strict=True):
        at = column, np.exp(height)
        axes.plot((x * 1.15, column * 0.9), (y, at[1]), color=colour, linewidth=0.6, alpha=0.7, clip_on=False)
        axes.annotate(name, at, va="center", color=colour, fontsize=8, annotation_clip=False)


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move rising heights by the least sum of squares so that they are at least a gap apart."""
    # Heights minus i gaps must not fall. The least squares replace each falling run of them by its mean.
    level: list[tuple[float, int]] = []
    for i, height in enumerate(heights):
        mean, count = height - i * gap, 1
        while level and level[-1][0] > mean:
            before, more = level.pop()
            mean, count = (mean * count + before * more) / (count + more), count + more
        level.append((mean, count))
    return [mean + i * gap for i, mean in enumerate(mean for mean, count in level for _ in range(count))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", choices=SIZES, default=SIZES, help="millions of weights")
    parser.add_argument("--only", default="", metavar="NAME", help="only contenders whose name contains NAME")
    parser.add_argument("--memory", type=float, default=17, help="limit of a process, in GiB (default 17)")
    parser.add_argument("--patience", type=float, default=120, help="limit of an update, in seconds (default 120)")
    parser.add_argument("--again", action="store_true", help="repeat measurements that were made today")
    parser.add_argument("--show", action="store_true", help="measure nothing; show the last records")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        work(options)
        return
    if not options.show:
        run(options)
    records = last_records()
    print("\n" + "\n".join(tables(records)))
    print(draw(records))


if __name__ == "__main__":
    main()
