"""The process of one engine with one network, timed on request; `fggp.lab.bench.engines` starts it.

It runs as a file, so that the process of an engine without PyTorch does not import PyTorch:

    python worker.py ENGINE MODEL INPUTS.npz OUTPUT.npy THREADS

MODEL is an ONNX file, a network file, or a module written by torch.save for PyTorch's engines. INPUTS.npz has the
arguments of the network in order, under their names in the ONNX file. The worker loads the network, runs it once, and
writes its first output to OUTPUT.npy. Then it prints that it is ready, and one answer to each line on its standard
input, both as a line of JSON. Lines that do not begin with { are ignored.

    ready:   {"version": "1.2", "load_seconds": 0.8, "base_bytes": 90000000, "note": ""}
    asked:   0.3                    seconds to run, at least once
    answer:  {"seconds": 0.0012, "runs": 250, "peak_bytes": 120000000}

`version` is the engine's. `load_seconds` is the time from opening the file to the first output. `base_bytes` is the
resident memory before that, after all imports; `peak_bytes` is its maximum so far; both are null where the system does
not tell. `note` is a remark on how the network runs. `seconds` is the median of the `runs`. An engine that cannot run
the network ends the process with an exit code other than 0, and its last line on standard error says why.

Any program with this protocol can be an engine, in any version of Python.
"""

import json
import logging
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import IO, Any

Json = dict[str, Any]
Run = Callable[..., Any]
Load = Callable[[Mapping[str, Any]], Run]
"""Opens the network for inputs by name, and returns a function that runs it."""


def pytorch(file: str, threads: int) -> tuple[str, Load]:
    """PyTorch, eager."""
    import torch

    return torch.__version__, _torch_load(file, threads, lambda model, _: torch.inference_mode()(model))


def torch_compile(file: str, threads: int) -> tuple[str, Load]:
    """PyTorch's compiler with its default options."""
    import torch

    return torch.__version__, _torch_load(file, threads, lambda model, _: torch.no_grad()(torch.compile(model)))


def fggp_compile(file: str, threads: int) -> tuple[str, Load]:
    """The sparse kernels of this package."""
    import fggp

    return fggp.__version__, _capturing_load(file, threads, fggp.compile)


def fggp_int8(file: str, threads: int) -> tuple[str, Load]:
    """The sparse kernels of this package in int8. It is calibrated on the inputs that are timed, as OpenVINO is."""
    import fggp

    def prepare(model: Any, tensors: Any) -> Run:
        compiled: Run = fggp.compile(fggp.quantize(model, [tensors], calibration="minmax"), tensors)
        return compiled

    return fggp.__version__, _capturing_load(file, threads, prepare)


def fggp_runtime(file: str, threads: int) -> tuple[str, Load]:
    """The sparse kernels of this package, without PyTorch."""
    import fggp_runtime

    def load(inputs: Mapping[str, Any]) -> Run:
        network = fggp_runtime.load(file, threads=threads)
        given = tuple(inputs.values())
        return lambda: network(*given)

    return metadata.version("fggp-runtime"), load


def _capturing_load(file: str, threads: int, prepare: Callable[[Any, Any], Run]) -> Load:
    """As `_torch_load`, once all is imported with which PyTorch captures networks: it counts as library."""
    import torch

    import fggp

    fggp.compile(torch.nn.Identity(), torch.zeros(1))
    return _torch_load(file, threads, prepare)


def _torch_load(file: str, threads: int, prepare: Callable[[Any, Any], Run]) -> Load:
    """Return the `Load` of a PyTorch engine; ``prepare`` makes a function from the module and its inputs."""
    import torch

    def read() -> Any:
        # The parent process wrote this file, so its pickle is safe to load.
        return torch.load(file, weights_only=False).eval()

    def load(inputs: Mapping[str, Any]) -> Run:
        tensors = tuple(torch.from_numpy(x) for x in inputs.values())
        run = prepare(read(), tensors)
        return lambda: run(*tensors)

    torch.set_num_threads(threads)
    read()  # imports the code of the layers
    return load


def onnxruntime(file: str, threads: int) -> tuple[str, Load]:
    """ONNX Runtime on the CPU, with all its optimisations, for this batch size only."""
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
    """OpenVINO on the CPU, for this batch size only, in float32 as the others: its default is bfloat16."""
    import openvino

    return _openvino_version(), _openvino_load(file, threads, openvino.Core(), lambda model, _: model)


def openvino_int8(file: str, threads: int) -> tuple[str, Load]:
    """OpenVINO on the CPU in int8, quantised after training by NNCF.

    It is calibrated on the inputs that are timed. They are random, so only the speed tells something, not the outputs.
    """
    os.environ["NNCF_CI"] = "1"  # it would report its use to its makers
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)

    def quantised(model: Any, inputs: Mapping[str, Any]) -> Any:
        return nncf.quantize(model, nncf.Dataset([dict(inputs)]), subset_size=1)

    version = f"{_openvino_version()}, NNCF {nncf.__version__}"
    return version, _openvino_load(file, threads, openvino.Core(), quantised)


def _openvino_version() -> str:
    import openvino

    return str(openvino.__version__).partition("-")[0]


def _openvino_load(file: str, threads: int, core: Any, prepare: Callable[[Any, Mapping[str, Any]], Any]) -> Load:
    """Return the `Load` of an OpenVINO engine; ``prepare`` changes the model before it is compiled."""

    def load(inputs: Mapping[str, Any]) -> Run:
        model = core.read_model(file)
        model.reshape({name: list(x.shape) for name, x in inputs.items()})
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        request = core.compile_model(prepare(model, inputs), "CPU", settings).create_infer_request()
        given = dict(inputs)
        return lambda: list(request.infer(given).values())

    return load


ENGINES: dict[str, Callable[[str, int], tuple[str, Load]]] = {
    "pytorch": pytorch,
    "torch.compile": torch_compile,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "openvino-int8": openvino_int8,
    "fggp": fggp_compile,
    "fggp-runtime": fggp_runtime,
    "fggp-int8": fggp_int8,
}
"""By name, the function that imports an engine for a file and a number of threads, and returns version and `Load`."""


def main(arguments: list[str]) -> None:
    """Follow the module's protocol."""
    engine, model, inputs_file, output_file, threads = arguments
    # Text that an engine prints must not mix with the answers.
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
    """Run for some seconds, at least once, after one untimed run: other processes have replaced the caches."""
    run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return {"seconds": statistics.median(times), "runs": len(times)}


def _first(output: Any) -> Any:
    """The first array or tensor of an output."""
    while not hasattr(output, "shape"):
        output = next(iter(output.values() if isinstance(output, Mapping) else output))
    return output


def _memory(field: str) -> int | None:
    """Return resident bytes: VmRSS is the current value, VmHWM the maximum. (getrusage's includes the parent's.)"""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith(field + ":"):
                return 1024 * int(line.split()[1])
    return None


def _say(answers: IO[str], line: Json) -> None:
    print(json.dumps(line), file=answers, flush=True)


if __name__ == "__main__":
    # A file's folder is first on the path, where this package's modules would hide others of the same name.
    del sys.path[0]
    main(sys.argv[1:])
