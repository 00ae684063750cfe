"""The tables of sizes, times and memory in README.md and docs/, computed from the benchmarks' records in results/."""

from collections.abc import Callable

from measured import costs, files, inference, networks, training
from measured.records import or_missing

TABLES: dict[str, Callable[[], str]] = {
    "runtime in short": or_missing("python benchmarks/runtime.py", inference.runtime_in_short),
    "runtime": or_missing("python benchmarks/runtime.py", inference.runtime),
    "runtime, memory": or_missing("python benchmarks/runtime.py", inference.runtime_memory),
    "runtime, more": or_missing("python benchmarks/runtime.py --more --skip torch.compile", inference.runtime_more),
    "break-even": or_missing("fggp bench resnet50 --sparsity 0.5 0.7 0.8 --threads 2", inference.break_even),
    "int8": or_missing(
        "fggp bench NETWORK --blocks 4 --sparsity 0.9 0.95 0.98 --batch 1 32 --threads 2 --out results/bench-int8 "
        "--engines onnxruntime openvino openvino-int8 fggp fggp-int8",
        inference.dense_int8,
    ),
    "start": or_missing("python benchmarks/start.py --runtime PYTHON", inference.start),
    "networks": or_missing("python benchmarks/networks.py", networks.networks),
    "file sizes": or_missing("python benchmarks/file.py` and `--runs FOLDER ...", files.file_sizes),
    "web": or_missing("python benchmarks/web.py", inference.web),
    "crepe": or_missing("python benchmarks/crepe_speed.py FOLDER", inference.crepe),
    "text": or_missing("python benchmarks/text.py FOLDER", files.text),
    "layer costs": or_missing("python experiments/per_nanosecond/costs.py", costs.layers),
    "per nanosecond": or_missing(
        "fggp grid experiments/per-nanosecond.toml --jobs 2` and `python experiments/per_nanosecond/milliseconds.py",
        costs.costs,
    ),
    "per nanosecond, ResNet-20": or_missing("fggp grid experiments/per-nanosecond-resnet20.toml", costs.first_runs),
    "update": or_missing("python benchmarks/update.py --model resnet50` and `--model vgg19", training.update),
    "steps": or_missing("python benchmarks/update.py", training.steps),
    "training": or_missing("python benchmarks/training.py", training.training),
    "whole runs": or_missing("fggp train --accelerate", training.whole_runs),
    "loop": or_missing("python benchmarks/loop.py", training.loop),
    "scale": or_missing("python benchmarks/scale.py", training.scale),
}
