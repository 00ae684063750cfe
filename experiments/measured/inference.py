"""Compiled networks beside other engines."""

from collections.abc import Mapping, Sequence

from measured.records import (
    LAB_NETWORKS,
    Json,
    by_network,
    engine_cells,
    made_by,
    markdown,
    megabytes,
    milliseconds,
    percent,
    records_of,
    times_faster,
)

NETWORKS = {"vgg19 (CIFAR form)": "VGG-19", "resnet50 (CIFAR form)": "ResNet-50"}
DEVICE_NETWORKS = {"mobilenet_v2": "MobileNetV2", "efficientnet_b0": "EfficientNet-B0", "resnet50": "ResNet-50"}
WEB_NETWORKS = {"resnet20": "ResNet-20", "mobilenet_v2": "MobileNetV2", "resnet50": "ResNet-50"}
ENGINES = {
    "pytorch": "PyTorch",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "openvino-int8": "OpenVINO int8",
    "deepsparse": "DeepSparse 1.8",
    "fggp": "fggp",
}
MEMORY_ENGINES = {**ENGINES, "fggp": "fggp.compile", "fggp-runtime": "fggp-runtime"}
DENSE_ENGINES = ("pytorch", "onnxruntime", "openvino")
"""Engines that gain nothing from zeros, in float32."""


def _dense(own: Mapping[str, Json]) -> list[str]:
    return [name for name in DENSE_ENGINES if name in own]


def runtime_in_short() -> str | None:
    """Networks for devices, one image at a time, for the README."""
    found = records_of("benchmarks/runtime.ndjson", benchmark="runtime, more")
    if not found:
        return None
    names = [name for name in ENGINES if any(m["engine"] == name for m in found[-1]["measured"])]
    rows = [
        [
            DEVICE_NETWORKS[model],
            percent(sparsity),
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
            percent(sparsity),
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
    """Peak memory of each engine beyond its libraries; the last record."""
    found = records_of("benchmarks/runtime.ndjson", benchmark="runtime, cells")
    return _memory_table(found[-1]) if found else None


def _memory_table(record: Json) -> str:
    names = [name for name in MEMORY_ENGINES if any(m["engine"] == name for m in record["measured"])]
    ours = "fggp-runtime" if "fggp-runtime" in names else "fggp"
    rows = [
        [
            NETWORKS[model],
            percent(sparsity),
            str(batch),
            *(f"{extra_memory(own[name]):.0f}" for name in names),
            f"{extra_memory(own[ours]) / extra_memory(own['onnxruntime']):.2f}",
        ]
        for (model, sparsity, batch), own in by_network(record)
    ]
    head = [
        *("", "sparsity", "batch"),
        *(f"{MEMORY_ENGINES[name]}, MB" for name in names),
        f"{MEMORY_ENGINES[ours]}'s × ONNX Runtime's",
    ]
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
                *(milliseconds(times["fggp", batch, name]) for name in sparse),
                milliseconds(times["pytorch", batch, "dense"]),
                *(f"{milliseconds(min(own))} to {milliseconds(max(own))}" for own in others),
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
                cells = [milliseconds(ms) for ms in (*theirs, *ours)]
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
        rows.append([WEB_NETWORKS[model], "ONNX Runtime Web", "dense", milliseconds(theirs["ms"]), "", size])
        for ours in (m for m in own if m["engine"] == "fggp"):
            pairs = {"fggp": ours, "onnxruntime-web": theirs}
            sparsity = f"{percent(ours['sparsity'])} sparse" if ours["sparsity"] else "dense"
            factor = f"{times_faster(pairs, 'onnxruntime-web')}×"
            rows.append(["", "fggp", sparsity, milliseconds(ours["ms"]), factor, f"{ours['bytes'] / 1e6:.3g} MB"])
    ours, theirs = record["gzipped_bytes"]["fggp"], record["gzipped_bytes"]["onnxruntime-web"]
    sizes = f"What a page loads, gzipped: fggp {ours / 1e3:.0f} kB, ONNX Runtime Web {theirs / 1e6:.1f} MB."
    made = (
        f"*{record['device']}, one thread, Node {record['node'].removeprefix('v')}, ONNX Runtime Web "
        f"{record['onnxruntime-web']}, commit {record['commit'][:7]}, {record['date']}.*"
    )
    head = ["network", "engine", "weights", "ms", "faster", "file"]
    return f"{markdown(head, rows)}\n\n{sizes}\n\n{made}"


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
                percent(run["sparsity"]),
                *(f"{heard[name]:.1f} %" for name in ("dense", "pruned")),
                *(megabytes(sizes[name]) for name in ("dense", "pruned")),
                *(milliseconds(own[name]["ms"]) for name in ("pytorch", "torch.compile", "onnxruntime", "fggp")),
                *(times_faster(own, name) for name in ("pytorch", "onnxruntime")),
            ]
        )
    head = ["network", "sparsity", "heard, dense", "heard, pruned", "dense file", "small file"]
    head += ["PyTorch, ms", "torch.compile", "ONNX Runtime", "fggp", "× PyTorch", "× ONNX Runtime"]
    return f"{markdown(head, rows)}\n\n{made_by(found[-1])}"


def start() -> str | None:
    """Programs that load a network and run it once: how long they take, and their memory."""
    found = records_of("benchmarks/start.ndjson", benchmark="start")
    if not found:
        return None
    programs = dict.fromkeys(m["program"] for m in found[-1]["measured"])
    rows = []
    for model in dict.fromkeys(m["model"] for m in found[-1]["measured"]):
        own = {m["program"]: m for m in found[-1]["measured"] if m["model"] == model}
        for what, cell in {
            "start to answer, ms": lambda m: milliseconds(m["median_ms"]),
            "resident, MB": lambda m: f"{m['resident_bytes'] / 1e6:.0f}",
            "file": lambda m: megabytes(m["file_bytes"]) if m["file_bytes"] else "",
        }.items():
            rows.append([model, what, *(cell(own[program]) for program in programs)])
            model = ""
    return f"{markdown(['', '', *programs], rows)}\n\n{made_by(found[-1])}"
