"""The tables that `fggp bench` prints of a record."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from fggp.lab.base import Json
from fggp.lab.bench.engines import INEXACT

# More than another order of additions makes, less than any mistake would.
TOLERANCE = 1e-3


def show(record: Json, console: Console) -> None:
    """Print the sizes, times and memory of a record, and what went wrong."""

    def tell(text: str, style: str = "") -> None:
        console.print(text, style=style, highlight=False, soft_wrap=True)

    image = "×".join(map(str, record["image"]))
    threads = "1 thread" if record["threads"] == 1 else f"{record['threads']} threads"
    tell(f"[bold]{record['title']}[/], images {image}, {threads}, {record['device']}")
    console.print(_sizes_table(record), highlight=False)
    for batch in dict.fromkeys(line["batch"] for line in record["measured"]):
        lines = [line for line in record["measured"] if line["batch"] == batch]
        console.print(_speed_table(f"batch {batch}: ms a run, × PyTorch dense", lines), highlight=False)
    console.print(_memory_table(record["measured"]), highlight=False)
    for line in record["measured"]:
        where = f"{line['label']}, {line['variant']}, batch {line['batch']}"
        if "error" in line:
            tell(f"{where} failed: {line['error']}", "red")
        elif line["engine"] in INEXACT:
            tell(f"{where} is off by {line['difference']:.1e} of PyTorch's output, by design", "dim")
        elif not line["difference"] <= TOLERANCE:
            tell(f"{where} is off by {line['difference']:.1e} of PyTorch's output", "red")
        elif line["note"]:
            tell(f"{where}: {line['note']}")
    exact = [line for line in record["measured"] if "difference" in line and line["engine"] not in INEXACT]
    worst = max((line["difference"] for line in exact), default=0.0)
    spread = f"± is half the range of the middle half of {record['rounds']} turns"
    tell(f"{spread}; outputs in float32 differ from PyTorch's by at most {worst:.0e}", "dim")


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table("", *columns, title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _sizes_table(record: Json) -> Table:
    variants = record["variants"]
    table = _table("files, MB, × smaller than dense", [variant["name"] for variant in variants])
    table.add_row("non-zero weights", *(f"{variant['weights_left']:,}" for variant in variants))
    names = {
        "dense": "dense",
        "onnx": "ONNX",
        "network": "network file",
        "small": "small, fp32",
        "small_bf16": "small, bf16",
    }
    for kind, name in names.items():
        if kind in variants[0]["bytes"]:
            sizes = [(variant["bytes"][kind], variant["bytes"]["dense"]) for variant in variants]
            table.add_row(name, *(f"{_digits(size / 1e6)}  {dense / size:5.1f}×" for size, dense in sizes))
    return table


def _speed_table(title: str, lines: Sequence[Json]) -> Table:
    table = _table(title, list(dict.fromkeys(line["variant"] for line in lines)))
    base = next((line["median_ms"] for line in lines if line["engine"] == "pytorch" and "median_ms" in line), None)
    for label in dict.fromkeys(line["label"] for line in lines):
        table.add_row(label, *(_time(line, base) for line in lines if line["label"] == label))
    return table


def _time(line: Json, base: float | None) -> str:
    if "median_ms" not in line:
        return "failed"
    ms = line["median_ms"]
    low, high = line["quartiles_ms"]
    factor = "" if base is None else f" {base / ms:5.1f}×"
    return f"{_digits(ms)} ± {_digits((high - low) / 2, ms)}{factor}"


def _digits(x: float, size: float | None = None) -> str:
    """Write a number with the decimals that give ``size``, or else the number itself, three digits."""
    size = x if size is None else size
    return f"{x:.{0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3}f}"


def _memory_table(measured: Sequence[Json]) -> Table:
    """Show the first variant and the last: the memory of the others is between theirs."""
    variants = list(dict.fromkeys(line["variant"] for line in measured))
    ends = list(dict.fromkeys([*variants[:1], *variants[-1:]]))
    columns = [(batch, variant) for batch in dict.fromkeys(line["batch"] for line in measured) for variant in ends]
    title = "peak memory, MB (+ over libraries)"
    table = _table(title, [f"batch {batch},\n{variant}" for batch, variant in columns])
    for label in dict.fromkeys(line["label"] for line in measured):
        lines = {(line["batch"], line["variant"]): line for line in measured if line["label"] == label}
        table.add_row(label, *(_memory(lines[column]) for column in columns))
    return table


def _memory(line: Json) -> str:
    peak, base = line.get("peak_bytes"), line.get("base_bytes")
    return "–" if peak is None or base is None else f"{peak / 1e6:,.0f} {f'+{(peak - base) / 1e6:,.0f}':>5}"
