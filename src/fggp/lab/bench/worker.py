"""One engine with one network in a process of its own, timed on request: what `fggp.lab.bench.engines` starts.

Run as a file, so that an engine that does without PyTorch gets a process without it:

    python worker.py ENGINE MODEL INPUTS.npz OUTPUT.npy THREADS

MODEL is an ONNX file, or for engines of PyTorch a module written by torch.save. INPUTS.npz has its arguments in their
order, under the names that the ONNX file has for them. The worker loads the network, runs it once, and writes its first
output to OUTPUT.npy. Then it says that it is ready, and answers every line on its standard input, until there are no
more; both in JSON, a line each, on its standard output. Lines that do not begin with { are nobody's.

    ready:   {"version": "1.2", "load_seconds": 0.8, "base_bytes": 90000000, "note": ""}
    asked:   0.3                    run for so many seconds, at least once
    answer:  {"seconds": 0.0012, "runs": 250, "peak_bytes": 120000000}

`version` is the engine's. `load_seconds` is from opening the file to the first output. `base_bytes` is the resident
memory before that, with all imported, `peak_bytes` the most so far; null where the system does not tell. `note` is what
there is to say of how the network runs. `seconds` is the median of the `runs`. An engine that cannot run the
network ends the process with an exit code other than 0; the last line on standard error says why.

Any program that does the same can be an engine, in whatever version of Python.
"""

import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

Json = dict[str, Any]
Run = Callable[..., Any]
Load = Callable[[Mapping[str, Any]], Run]
"""Opens the network for inputs, by name, and returns what runs it."""


def pytorch(file: str, threads: int) -> tuple[str, Load]:
    """PyTorch, as the network is."""
    import torch

    torch.set_num_threads(threads)
    _module(file)  # imports what it is made of

    def load(inputs: Mapping[str, Any]) -> Run:
        model, tensors = _module(file), _tensors(inputs)

        @torch.inference_mode()
        def run() -> Any:
            return model(*tensors)

        return run

    return torch.__version__, load


def torch_compile(file: str, threads: int) -> tuple[str, Load]:
    """PyTorch's own compiler, as it is by default."""
    import torch

    torch.set_num_threads(threads)
    _module(file)  # imports what it is made of

    def load(inputs: Mapping[str, Any]) -> Run:
        model, tensors = _module(file), _tensors(inputs)
        compiled: Run = torch.compile(model)

        @torch.no_grad()
        def run() -> Any:
            return compiled(*tensors)

        return run

    return torch.__version__, load


def fggp_compile(file: str, threads: int) -> tuple[str, Load]:
    """The sparse kernels of this package."""
    import torch

    import fggp

    torch.set_num_threads(threads)
    _module(file)

    def load(inputs: Mapping[str, Any]) -> Run:
        tensors = _tensors(inputs)
        compiled = fggp.compile(_module(file), tensors)
        return lambda: compiled(*tensors)

    return fggp.__version__, load


def onnxruntime(file: str, threads: int) -> tuple[str, Load]:
    """ONNX Runtime on the CPU, with all its optimisations, for this very batch size."""
    import onnxruntime

    def load(inputs: Mapping[str, Any]) -> Run:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors
        options.add_free_dimension_override_by_name("batch", len(next(iter(inputs.values()))))
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, inputs)

    return onnxruntime.__version__, load


def openvino(file: str, threads: int) -> tuple[str, Load]:
    """OpenVINO on the CPU, for this very batch size, in float32 as the others: left alone it takes bfloat16."""
    import openvino

    def load(inputs: Mapping[str, Any]) -> Run:
        core = openvino.Core()
        model = core.read_model(file)
        model.reshape({name: list(x.shape) for name, x in inputs.items()})
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        given = dict(inputs)
        return lambda: list(request.infer(given).values())

    return openvino.__version__.partition("-")[0], load


ENGINES: dict[str, Callable[[str, int], tuple[str, Load]]] = {
    "pytorch": pytorch,
    "torch.compile": torch_compile,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "fggp": fggp_compile,
}
"""By name: what imports an engine, for a network's file and a number of threads; returns its version and the rest."""


def main(arguments: list[str]) -> None:
    """Be a worker, as the module says."""
    engine, model, inputs_file, output_file, threads = arguments
    # What an engine prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import numpy as np

    with np.load(inputs_file) as arrays:
        inputs = dict(arrays)
    version, load = ENGINES[engine](model, int(threads))
    base = _memory("VmRSS")
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = load(inputs)
        output = _first(run())
    seconds = time.perf_counter() - start
    np.save(output_file, np.asarray(output))
    note = "; ".join(str(each.message) for each in caught if issubclass(each.category, UserWarning))
    _say(answers, {"version": version, "load_seconds": seconds, "base_bytes": base, "note": note})
    for line in sys.stdin:
        _say(answers, {**time_runs(run, float(line)), "peak_bytes": _memory("VmHWM")})


def time_runs(run: Run, seconds: float) -> Json:
    """Run for so many seconds, at least once after one that is not counted: the caches are someone else's."""
    run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return {"seconds": statistics.median(times), "runs": len(times)}


def _module(file: str) -> Any:
    import torch

    # The file is of the process that started this one, written a moment ago.
    return torch.load(file, weights_only=False).eval()


def _tensors(inputs: Mapping[str, Any]) -> tuple[Any, ...]:
    import torch

    return tuple(torch.from_numpy(x) for x in inputs.values())


def _first(output: Any) -> Any:
    """The first array or tensor of an output."""
    while not hasattr(output, "shape"):
        output = next(iter(output.values() if isinstance(output, Mapping) else output))
    return output


def _memory(field: str) -> int | None:
    """Bytes: VmRSS is what is resident, VmHWM the most that was. (getrusage's figure counts the parent's in.)"""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith(field + ":"):
                return 1024 * int(line.split()[1])
    return None


def _say(answers: IO[str], line: Json) -> None:
    print(json.dumps(line), file=answers, flush=True)


if __name__ == "__main__":
    # Run as a file, its folder comes first on the path, and modules of the lab would hide others of the same name.
    del sys.path[0]
    main(sys.argv[1:])
