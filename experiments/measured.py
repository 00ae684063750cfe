"""The tables of sizes, times and memory in README.md and docs/, computed from the benchmarks' records in results/.

Only records of a commit count: those without one, or of files that differed from it ("-dirty"), cannot be repeated.
Where there is none, the table's place says which command makes it.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

Json = dict[str, Any]

RESULTS = Path(__file__).resolve().parent.parent / "results"
NETWORKS = {"vgg19 (CIFAR form)": "VGG-19", "resnet50 (CIFAR form)": "ResNet-50"}
DEVICE_NETWORKS = {"mobilenet_v2": "MobileNetV2", "efficientnet_b0": "EfficientNet-B0", "resnet50": "ResNet-50"}
LAB_NETWORKS = {"resnet50": "ResNet-50", "vgg19": "VGG-19"}
TRAINING_NETWORKS = {"vgg19": "VGG-19, 128", "resnet50": "ResNet-50, 64", "mlp-4096": "MLP of 4096, 256"}
WEB_NETWORKS = {"resnet20": "ResNet-20", "mobilenet_v2": "MobileNetV2", "resnet50": "ResNet-50"}
TRAINED_NETWORKS = {"resnet20": "ResNet-20, trained", "digits-cnn": "small CNN, trained"}
FILES = {
    "fp32": "**fggp**",
    "bound": "bound",
    "gzip -9": "gzip -9",
    "zstd -19": "zstd -19",
    "xz -6": "xz -6",
    "bf16": "fggp, bf16 values",
}
"""Columns of the table of file sizes: how many times smaller each is than the dense file."""
ENGINES = {
    "pytorch": "PyTorch",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "openvino-int8": "OpenVINO int8",
    "deepsparse": "DeepSparse 1.8",
    "fggp": "fggp",
}
DENSE_ENGINES = ("pytorch", "onnxruntime", "openvino")
"""Engines that gain nothing from zeros, in float32."""
UPDATES = {
    "fggp: FGGP": "**fggp, FGGP** (two Top-K steps)",
    "fggp: GMP": "fggp, GMP (one Top-K step)",
    "concatenate + sorted topk": "concatenate and sorted `topk`, as research code does",
    "torch.nn.utils.prune.global_unstructured": "`torch.nn.utils.prune.global_unstructured`",
    "concatenate + torch.kthvalue": "concatenate and `torch.kthvalue`",
    "concatenate + np.partition": "concatenate and NumPy's `partition`",
}
MEGA = 2**20


def of_a_commit(record: Json) -> bool:
    """Return whether a record names the commit of the code that made it, and no file differed from that."""
    commit = record.get("commit")
    return isinstance(commit, str) and not commit.endswith("-dirty")


def records_of(name: str, **wanted: object) -> list[Json]:
    """Return a file's records of a commit, the oldest first, that have the wanted values; none if there is no file."""
    path = RESULTS / name
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines]
    return [r for r in records if of_a_commit(r) and all(r.get(key) == value for key, value in wanted.items())]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("|".join(["", *(f" {cell} " if cell else " " for cell in line), ""]) for line in lines)


def or_missing(command: str, make: Callable[[], str | None]) -> Callable[[], str]:
    """Return a table's maker that names the command where there is no record."""

    def made() -> str:
        return make() or f"*There is no record of this at a commit yet. `{command}` makes one.*"

    return made


def made_by(record: Json) -> str:
    """Return a record's conditions in words, with the commit of the code that was measured."""
    versions = record.get("versions", record)
    date = str(record["date"])[:10]
    torch = versions["torch"].partition("+")[0]
    threads = "one thread" if record["threads"] == 1 else f"{record['threads']} threads"
    return f"*{record['device']}, {threads}, torch {torch}, commit {record['commit'][:7]}, {date}.*"


# Compiled networks


def by_network(record: Json) -> Iterator[tuple[tuple[str, float, int], dict[str, Json]]]:
    """Give the measurements by engine of each network, sparsity and batch size."""
    for key in dict.fromkeys((m["model"], m["sparsity"], m["batch"]) for m in record["measured"]):
        yield key, {m["engine"]: m for m in record["measured"] if (m["model"], m["sparsity"], m["batch"]) == key}


def _milliseconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def times_faster(own: Mapping[str, Json], *others: str) -> str:
    """The median of the rounds' ratios to the round's fastest of the others: a shared machine's speed changes."""
    fastest = map(min, zip(*(own[name]["turns_ms"] for name in others), strict=True))
    return f"{median(theirs / ours for ours, theirs in zip(own['fggp']['turns_ms'], fastest, strict=True)):.1f}"


def _dense(own: Mapping[str, Json]) -> list[str]:
    return [name for name in DENSE_ENGINES if name in own]


def engine_cells(own: Mapping[str, Json], names: Sequence[str]) -> list[str]:
    """Milliseconds; the fewest are bold."""
    least = min(float(own[name]["ms"]) for name in names)
    return [
        f"**{_milliseconds(ms)}**" if ms == least else _milliseconds(ms) for ms in (own[name]["ms"] for name in names)
    ]


def runtime_in_short() -> str | None:
    """Networks for devices, one image at a time, for the README."""
    found = records_of("benchmarks/runtime.ndjson", benchmark="runtime, more")
    if not found:
        return None
    names = [name for name in ENGINES if any(m["engine"] == name for m in found[-1]["measured"])]
    rows = [
        [
            DEVICE_NETWORKS[model],
            _percent(sparsity),
            *engine_cells(own, names),
            times_faster(own, *_dense(own)),
        ]
        for (model, sparsity, batch), own in by_network(found[-1])
        if model in DEVICE_NETWORKS and batch == 1
    ]
    head = ["network", "sparsity", *(ENGINES[name] for name in names), "× the fastest dense"]
    return f"{markdown(head, rows)}\n\n{made_by(found[-1])}"


def _runtime(benchmark: str) -> str | None:
    """A table for each processor, of its last record; the newest first."""
    found = records_of("benchmarks/runtime.ndjson", benchmark=benchmark)
    return "\n\n".join(map(_runtime_table, _last_of_each_device(found))) or None


def _last_of_each_device(found: Sequence[Json]) -> list[Json]:
    """The newest first."""
    last = {record["device"]: record for record in found}
    return sorted(last.values(), key=lambda record: str(record["date"]), reverse=True)


def _runtime_table(record: Json) -> str:
    names = [name for name in ENGINES if any(m["engine"] == name for m in record["measured"])]
    skipping = ["deepsparse"] if "deepsparse" in names else []
    rows = [
        [
            NETWORKS.get(model, model),
            _percent(sparsity),
            str(batch),
            *engine_cells(own, names),
            times_faster(own, "pytorch"),
            times_faster(own, *_dense(own)),
            *(times_faster(own, name) for name in skipping),
        ]
        for (model, sparsity, batch), own in by_network(record)
    ]
    head = [
        *("", "sparsity", "batch"),
        *(f"{ENGINES[name]}, ms" for name in names),
        *("× PyTorch", "× the fastest dense"),
        *(f"× {ENGINES[name]}" for name in skipping),
    ]
    return f"{markdown(head, rows)}\n\n{made_by(record)}"


def runtime() -> str | None:
    """The CIFAR networks at every sparsity."""
    return _runtime("runtime, cells")


def runtime_more() -> str | None:
    """Larger networks and transformers."""
    return _runtime("runtime, more")


def extra_memory(m: Json) -> float:
    """An engine's peak memory beyond its libraries, in MB."""
    return (float(m["peak_bytes"]) - float(m["base_bytes"])) / 1e6


def runtime_memory() -> str | None:
    """Peak memory of each engine beyond its libraries, and how many times PyTorch's fggp's is."""
    found = records_of("benchmarks/runtime.ndjson", benchmark="runtime, cells")
    return "\n\n".join(map(_memory_table, _last_of_each_device(found))) or None


def _memory_table(record: Json) -> str:
    names = [name for name in ENGINES if any(m["engine"] == name for m in record["measured"])]
    rows = [
        [
            NETWORKS[model],
            _percent(sparsity),
            str(batch),
            *(f"{extra_memory(own[name]):.0f}" for name in names),
            f"{extra_memory(own['fggp']) / extra_memory(own['pytorch']):.1f}",
        ]
        for (model, sparsity, batch), own in by_network(record)
    ]
    head = ["", "sparsity", "batch", *(f"{ENGINES[name]}, MB" for name in names), "fggp's × PyTorch's"]
    return f"{markdown(head, rows)}\n\n{made_by(record)}"


def _bench_times(record: Json) -> dict[tuple[str, int, str], float]:
    """Milliseconds by engine, batch and variant of a record of `fggp bench`."""
    lines = record["measured"]
    return {(m["engine"], m["batch"], m["variant"]): float(m["median_ms"]) for m in lines if "median_ms" in m}


def break_even() -> str | None:
    """ResNet-50 at low sparsities, beside the dense engines of the other record on the same processor."""
    found = records_of("bench-break-even/bench.ndjson", model="resnet50")
    if not found:
        return None
    same = {key: found[-1][key] for key in ("device", "threads")}
    dense = records_of("benchmarks/runtime.ndjson", benchmark="runtime, cells", **same)
    if not dense:
        return None
    times = _bench_times(found[-1])
    sparse = [v["name"] for v in found[-1]["variants"] if v["name"] != "dense"]
    rows = []
    for batch in (1, 32):
        others = [
            [
                own[name]["ms"]
                for (model, _, b), own in by_network(dense[-1])
                if model.startswith("resnet50") and b == batch
            ]
            for name in ("onnxruntime", "openvino")
        ]
        rows.append(
            [
                f"{batch} image{'s' * (batch > 1)}",
                *(_milliseconds(times["fggp", batch, name]) for name in sparse),
                _milliseconds(times["pytorch", batch, "dense"]),
                *(f"{_milliseconds(min(own))} to {_milliseconds(max(own))}" for own in others),
            ]
        )
    head = ["ms", *(f"fggp, {name.removesuffix(' sparse')}" for name in sparse)]
    head += ["PyTorch", "ONNX Runtime", "OpenVINO"]
    return f"{markdown(head, rows)}\n\n{made_by(found[-1])} *ONNX Runtime and OpenVINO:* {made_by(dense[-1])}"


def dense_int8() -> str | None:
    """Dense networks, in int8 too, beside fggp in float32 and int8 at several sparsities, each network in one run."""
    found = [own[-1] for name in LAB_NETWORKS if (own := records_of("bench-int8/bench.ndjson", model=name))]
    if not found:
        return None
    dense = ("onnxruntime", "openvino", "openvino-int8")
    rows = []
    for record in found:
        times, names = _bench_times(record), [v["name"] for v in record["variants"]]
        for batch in (1, 32):
            title = f"{LAB_NETWORKS[record['model']]}, {batch}"
            # They gain nothing from zeros: so the calmest of their turns with any of the networks count.
            theirs = [min(times[engine, batch, name] for name in names) for engine in dense]
            for name in names[1:]:
                ours = [times[engine, batch, name] for engine in ("fggp", "fggp-int8")]
                cells = [_milliseconds(ms) for ms in (*theirs, *ours)]
                rows.append([title, name.partition(" sparse")[0], *cells, f"{theirs[-1] / ours[-1]:.1f}×"])
                title = ""
    head = [
        "network, batch",
        "sparsity",
        "ONNX Runtime",
        "OpenVINO",
        "OpenVINO int8",
        "fggp",
        "fggp int8",
        "int8: faster",
    ]
    return f"{markdown(head, rows)}\n\n{made_by(found[-1])}"


# Files


def file_rows() -> list[tuple[float, dict[str, int]]]:
    """Bytes of VGG-19's files by sparsity, pruned by magnitude."""
    found = records_of("benchmarks/file.ndjson", model="vgg19")
    return [
        (m["sparsity"], m["bytes"]) for m in (found[-1]["measured"] if found else ()) if m["pruned_by"] == "magnitude"
    ]


def file_sizes() -> str | None:
    """The files of VGG-19 and of small trained networks at three sparsities, beside general compressors."""
    trained = records_of("benchmarks/file.ndjson", model="trained")
    rows = [("VGG-19", sparsity, sizes) for sparsity, sizes in file_rows()]
    for m in trained[-1]["measured"] if trained else ():
        rows.append((TRAINED_NETWORKS[m["model"]], m["sparsity"], m["bytes"]))
    cells = [
        [
            network,
            _percent(sparsity),
            _bytes(sizes["dense"]),
            _bytes(sizes["fp32"]),
            *(f"{sizes['dense'] / sizes[name]:.1f}×" for name in FILES),
        ]
        for network, sparsity, sizes in rows
    ]
    head = ["network", "sparsity", "dense file", "small file", *FILES.values()]
    return markdown(head, cells) if rows and trained else None


def _bytes(count: int) -> str:
    """A size of four digits or fewer."""
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


# Mask updates and training


def _update_records() -> list[Json]:
    """The last record of each network; both or none."""
    found = [records_of("benchmarks/update.ndjson", model=name)[-1:] for name in LAB_NETWORKS]
    return [record for own in found for record in own] if all(found) else []


def update() -> str | None:
    """One mask update beside other tools."""
    records = _update_records()
    if not records:
        return None
    head = ["one update"]
    for record in records:
        name = LAB_NETWORKS[record["model"]]
        head += [f"{name}, {record['weights'] / 1e6:.1f} M weights", "× FGGP's time", "extra memory"]
    rows = []
    for contender, title in UPDATES.items():
        row = [title]
        for record in records:
            own, ours = (median(record["update_seconds"][name]) for name in (contender, "fggp: FGGP"))
            factor = "" if contender == "fggp: FGGP" else f"{own / ours:.2g}×"
            row += [
                f"{1e3 * own:,.0f} ms",
                factor,
                f"{record['extra_bytes'][contender] / record['weights']:.1f} B/weight",
            ]
        rows.append(row)
    return f"{markdown(head, rows)}\n\n{made_by(records[-1])}"


def steps() -> str | None:
    """An SGD step between updates, with and without a pruner."""
    rows = [
        [
            LAB_NETWORKS[record["model"]],
            *(f"{1e3 * median(record['step_seconds'][name]):.1f} ms" for name in ("bare step", "step with pruner")),
        ]
        for record in _update_records()
    ]
    return markdown(["", "without pruner", "with pruner"], rows) if rows else None


def loop() -> str | None:
    """The training loop beside a bare one."""
    found = records_of("benchmarks/loop.ndjson")
    if not found:
        return None
    speeds = {name: median(turns) for name, turns in found[-1]["images_per_second"].items()}
    names = {"bare": "bare", "lab, dense": "`fggp train`", "lab, FGGP to 95 %": "`fggp train`, FGGP pruning to 95 %"}
    rows = [
        [title, f"{speeds[name]:,.0f}", "" if name == "bare" else f"{100 * speeds[name] / speeds['bare']:.1f} %"]
        for name, title in names.items()
    ]
    return f"{markdown(['loop', 'images per second', 'share of the bare loop'], rows)}\n\n{made_by(found[-1])}"


def training() -> str | None:
    """Training steps that skip pruned weights beside dense ones."""
    found = {record["network"]: record for record in records_of("benchmarks/training.ndjson", scope="layer")}
    if not found:
        return None
    kinds = [f"{how} {kind}" for how in ("dense", "accelerated") for kind in ("bf16", "fp32")]
    rows = []
    for network, title in TRAINING_NETWORKS.items():
        if network not in found:
            continue
        cases = {each["case"]: each for each in found[network]["measured"]}
        for sparsity in ("90%", "95%", "98%"):
            own = [cases[kind if kind in cases else f"{kind}, {sparsity}"] for kind in kinds]
            fastest = max(own[2:], key=lambda case: case["times_faster"])
            texts = [f"**{c['median_ms']:,.0f}**" if c is fastest else f"{c['median_ms']:,.0f}" for c in own]
            rows.append([title, sparsity.replace("%", " %"), *texts, f"{fastest['times_faster']:.1f}×"])
            title = ""
    head = ["network, batch", "sparsity", "dense bf16", "dense fp32", "accelerated bf16", "accelerated fp32", "faster"]
    return f"{markdown(head, rows)}\n\n{made_by(next(reversed(found.values())))}"


def whole_runs() -> str | None:
    """Whole runs of `fggp train`, with and without --accelerate: the last record of each."""
    found = {(r["model"], r["execution"]): r for r in records_of("training-speed/records.jsonl")}
    rows = []
    for model in dict.fromkeys(model for model, _ in found):
        if not {(model, "eager"), (model, "accelerated")} <= found.keys():
            continue
        both = dense, fast = found[model, "eager"], found[model, "accelerated"]
        done = int(dense["settings"]["prune_end"])  # epochs
        late = [median(record["curve"]["images_per_second"][done:]) for record in both]
        rows.append(
            [
                f"{LAB_NETWORKS.get(model, model)}, {dense['steps']:,} steps of {dense['settings']['batch_size']}",
                _percent(dense["settings"]["sparsity"]),
                *(f"{record['wall_seconds']:,.0f} s" for record in both),
                f"{dense['wall_seconds'] / fast['wall_seconds']:.2g}×",
                f"{late[1] / late[0]:.2g}×",
                " / ".join(f"{record['test_accuracy']:.1f}" for record in both),
            ]
        )
    if not rows:
        return None
    head = ["run", "to", "plain", "`--accelerate`", "faster", "once pruned", "test accuracy, %"]
    return f"{markdown(head, rows)}\n\n{made_by(fast)}"


def web() -> str | None:
    """Milliseconds and bytes of the WebAssembly module beside ONNX Runtime Web."""
    found = records_of("web/web.ndjson", benchmark="web")
    if not found:
        return None
    record = found[-1]
    rows = []
    for model in dict.fromkeys(m["model"] for m in record["measured"]):
        own = [m for m in record["measured"] if m["model"] == model]
        theirs = next(m for m in own if m["engine"] == "onnxruntime-web")
        size = f"{theirs['bytes'] / 1e6:.3g} MB"
        rows.append([WEB_NETWORKS[model], "ONNX Runtime Web", "dense", _milliseconds(theirs["ms"]), "", size])
        for ours in (m for m in own if m["engine"] == "fggp"):
            pairs = {"fggp": ours, "onnxruntime-web": theirs}
            sparsity = f"{_percent(ours['sparsity'])} sparse" if ours["sparsity"] else "dense"
            factor = f"{times_faster(pairs, 'onnxruntime-web')}×"
            rows.append(["", "fggp", sparsity, _milliseconds(ours["ms"]), factor, f"{ours['bytes'] / 1e6:.3g} MB"])
    ours, theirs = record["gzipped_bytes"]["fggp"], record["gzipped_bytes"]["onnxruntime-web"]
    sizes = f"What a page loads, gzipped: fggp {ours / 1e3:.0f} kB, ONNX Runtime Web {theirs / 1e6:.1f} MB."
    made = (
        f"*{record['device']}, one thread, Node {record['node'].removeprefix('v')}, ONNX Runtime Web "
        f"{record['onnxruntime-web']}, commit {record['commit'][:7]}, {record['date']}.*"
    )
    head = ["network", "engine", "weights", "ms", "faster", "file"]
    return f"{markdown(head, rows)}\n\n{sizes}\n\n{made}"


def scale() -> str | None:
    """Time, memory and exactness of an update by the number of weights, under the picture that `scale.py` draws."""
    records = {(r["contender"], r["dtype"], r["weights"]): r for r in records_of("benchmarks/scale.ndjson")}
    if not records:
        return None
    sizes = sorted({weights for _, _, weights in records})
    series = list(dict.fromkeys(key[:2] for key in records))

    def seconds(record: Json) -> str:
        value = median(record["seconds"])
        return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"

    def share(record: Json) -> str:
        per_weight = {"fp32": 9, "bf16": 5}[record["dtype"]]  # weight, gradient and a mask of one byte
        return f"{100 * record['extra_bytes'] / record['weights'] / per_weight:.0f} %"

    def surplus(record: Json) -> str:
        worst = max(record["kept_too_many"], key=abs)
        return "exact" if worst == 0 else f"{worst:+,}".replace("-", "−")

    parts = ["![Time and extra memory of one mask update by the number of weights](images/scale.png)"]
    for title, cell in {"one update": seconds, "extra memory": share, "kept too many": surplus}.items():
        rows = []
        for contender, dtype in series:
            own = [records.get((contender, dtype, weights)) for weights in sizes]
            texts = ["–" if r is None else f"*{r['stopped']}*" if "stopped" in r else cell(r) for r in own]
            rows.append([contender, dtype, *texts])
        names = [f"{w // (1024 * MEGA)} G" if w >= 1024 * MEGA else f"{w // MEGA} M" for w in sizes]
        parts.append(markdown([title, "weights", *names], rows))
    return "\n\n".join([*parts, made_by(next(reversed(records.values())))])


def crepe() -> str | None:
    """Accuracy, sizes and milliseconds of CREPE, dense and pruned: the last record of each run."""
    found = records_of("crepe/crepe.ndjson")
    if not found:
        return None
    last = {(record["run"]["model"], record["run"]["sparsity"]): record for record in found}
    rows = []
    for record in last.values():
        run, own = record["run"], {m["engine"]: m for m in record["measured"]}
        heard, sizes = run["within_50_cents"], run["bytes"]
        rows.append(
            [
                f"{run['model']}, {run['steps']:,} steps",
                _percent(run["sparsity"]),
                *(f"{heard[name]:.1f} %" for name in ("dense", "pruned")),
                *(_bytes(sizes[name]) for name in ("dense", "pruned")),
                *(_milliseconds(own[name]["ms"]) for name in ("pytorch", "torch.compile", "onnxruntime", "fggp")),
                *(times_faster(own, name) for name in ("pytorch", "onnxruntime")),
            ]
        )
    head = ["network", "sparsity", "heard, dense", "heard, pruned", "dense file", "small file"]
    head += ["PyTorch, ms", "torch.compile", "ONNX Runtime", "fggp", "× PyTorch", "× ONNX Runtime"]
    return f"{markdown(head, rows)}\n\n{made_by(found[-1])}"


def text() -> str | None:
    """Accuracy and perplexity of the examples with text, dense and pruned: the last record of each model."""
    found = {record["run"]["model"]: record for record in records_of("text/text.ndjson")}
    if not found:
        return None
    rows = []
    for model, record in found.items():
        run = record["run"]
        (measure,) = {"accuracy", "perplexity"} & {*run}
        rows.append(
            [
                f"{model}, {measure}",
                _percent(run["sparsity"]),
                *(f"{run[measure][name]:.1f}" for name in ("dense", "pruned", "pruned, net.fggp")),
                *(_bytes(run["bytes"][name]) for name in ("dense.pt", "small.safetensors", "net.fggp")),
            ]
        )
    head = ["", "sparsity", "dense", "pruned", "net.fggp", "dense file", "small file", "net.fggp's size"]
    return f"{markdown(head, rows)}\n\n{made_by(record)}"


TABLES: dict[str, Callable[[], str]] = {
    "runtime in short": or_missing("python benchmarks/runtime.py", runtime_in_short),
    "runtime": or_missing("python benchmarks/runtime.py", runtime),
    "runtime, memory": or_missing("python benchmarks/runtime.py", runtime_memory),
    "runtime, more": or_missing("python benchmarks/runtime.py --more --skip torch.compile", runtime_more),
    "break-even": or_missing("fggp bench resnet50 --sparsity 0.5 0.7 0.8 --threads 2", break_even),
    "int8": or_missing(
        "fggp bench NETWORK --blocks 4 --sparsity 0.9 0.95 0.98 --batch 1 32 --threads 2 --out results/bench-int8 "
        "--engines onnxruntime openvino openvino-int8 fggp fggp-int8",
        dense_int8,
    ),
    "file sizes": or_missing("python benchmarks/file.py` and `--runs FOLDER ...", file_sizes),
    "web": or_missing("python benchmarks/web.py", web),
    "crepe": or_missing("python benchmarks/crepe_speed.py FOLDER", crepe),
    "text": or_missing("python benchmarks/text.py FOLDER", text),
    "update": or_missing("python benchmarks/update.py --model resnet50` and `--model vgg19", update),
    "steps": or_missing("python benchmarks/update.py", steps),
    "training": or_missing("python benchmarks/training.py", training),
    "whole runs": or_missing("fggp train --accelerate", whole_runs),
    "loop": or_missing("python benchmarks/loop.py", loop),
    "scale": or_missing("python benchmarks/scale.py", scale),
}
