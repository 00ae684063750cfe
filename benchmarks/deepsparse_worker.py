"""DeepSparse as an engine of `fggp.lab.bench.engines`, in a virtual environment with Python ≤ 3.11 and an old NumPy.

    python3.11 -m venv deepsparse-venv
    deepsparse-venv/bin/pip install "numpy<2" "pydantic>=2" "protobuf<4" onnx==1.14.1 requests tqdm pyyaml click \
        py-machineid geocoder
    deepsparse-venv/bin/pip install --no-deps deepsparse==1.8.0 sparsezoo==1.8.1

The protocol is that of `fggp.lab.bench.worker`.
"""

import json
import os
import statistics
import sys
import time

os.environ["NM_DISABLE_ANALYTICS"] = "True"


def main() -> None:
    model, inputs_file, output_file, threads = sys.argv[1:]
    # The engine prints to stdout, so answers use a copy of it and stdout itself becomes stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import deepsparse
    import numpy as np

    with np.load(inputs_file) as arrays:
        inputs = [np.ascontiguousarray(x) for x in arrays.values()]
    base = memory("VmRSS")
    start = time.perf_counter()
    engine = deepsparse.compile_model(model, batch_size=len(inputs[0]), num_cores=int(threads))
    output = engine.run(inputs)[0]
    seconds = time.perf_counter() - start
    np.save(output_file, output)

    def say(line: dict) -> None:
        print(json.dumps(line), file=answers, flush=True)

    say({"version": deepsparse.__version__, "load_seconds": seconds, "base_bytes": base, "note": ""})
    for line in sys.stdin:
        engine.run(inputs)  # warm up: other engines filled the caches
        times = []
        end = time.perf_counter() + float(line)
        while not times or time.perf_counter() < end:
            start = time.perf_counter()
            engine.run(inputs)
            times.append(time.perf_counter() - start)
        say({"seconds": statistics.median(times), "runs": len(times), "peak_bytes": memory("VmHWM")})


def memory(field: str) -> int:
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith(field + ":"))


if __name__ == "__main__":
    main()
