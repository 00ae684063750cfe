import itertools
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from fggp import native
from fggp.lab.base.errors import UsageError
from fggp.lab.bench import bench as bench_module
from fggp.lab.bench import engines as engines_module
from fggp.lab.bench.bench import bench
from fggp.lab.bench.engines import ON_REQUEST, Engine, Job, choose, engines, measure
from fggp.lab.bench.networks import magnitude_pruned, refilled
from fggp.lab.bench.settings import BenchSettings
from fggp.lab.bench.tables import show
from fggp.lab.export.trained import weights
from fggp.lab.training.models import create
from fggp.lab.training.settings import TrainSettings
from fggp.lab.training.train import train

WORKER = """
import json, sys
import numpy as np
model, inputs, output, threads = sys.argv[1:]
assert open(model).read() == "a network" and threads == "1"
with np.load(inputs) as arrays:
    np.save(output, 2 * arrays["x"])
print("a banner", flush=True)
print(json.dumps({"version": "7", "load_seconds": 0.5, "base_bytes": None, "note": "hm"}), flush=True)
for turn, line in enumerate(sys.stdin):
    if turn == int(FAILS):
        sys.exit("it broke")
    print(json.dumps({"seconds": float(line) + SECONDS[turn], "runs": 3, "peak_bytes": 5}), flush=True)
"""

ZEROS = """
import json, sys
import numpy as np
model, inputs, output, threads = sys.argv[1:]
with np.load(inputs) as arrays:
    np.save(output, np.zeros((len(arrays["images"]), 10), np.float32))
print(json.dumps({"version": "7", "load_seconds": 0.5, "base_bytes": 1, "note": ""}), flush=True)
for line in sys.stdin:
    print(json.dumps({"seconds": 0.1, "runs": 1, "peak_bytes": 2}), flush=True)
"""


@pytest.fixture(autouse=True)
def short_turns(monkeypatch):
    monkeypatch.setattr(bench_module, "TURN_SECONDS", 0.001)


@pytest.fixture
def zeros(monkeypatch):
    """In PyTorch's place an engine that returns zeros: importing PyTorch is what takes the time."""
    known = {"pytorch": Engine("pytorch", "PyTorch", "torch", (sys.executable, "-c", ZEROS))}
    monkeypatch.setattr(engines_module, "engines", lambda: known)
    return known


def job(folder, fails=99, worker=WORKER, seconds=range(99)):
    """A job of an engine that doubles its input, ends in turn ``fails``, and takes so much longer than it shall."""
    file = folder / f"worker{len(list(folder.iterdir()))}.py"
    file.write_text(worker.replace("FAILS", str(fails)).replace("SECONDS", str(list(seconds))))
    (folder / "model").write_text("a network")
    np.savez(folder / "inputs.npz", x=np.arange(3, dtype=np.float32))
    engine = Engine("double", "Double", "onnx", (sys.executable, str(file)))
    return Job(engine, folder / "model", folder / "inputs.npz")


def test_the_protocol_is_all_that_an_engine_needs(tmp_path):
    turns = []
    fine, broken, dead = job(tmp_path), job(tmp_path, fails=1), job(tmp_path, fails=-1, worker="import nothing_at_all")
    results = measure([fine, broken, dead], 1, 3, 0.25, lambda doing, job: turns.append(doing))
    assert turns == ["loading"] * 3 + ["timing"] * 6 + ["timing again"] * 12
    assert results[0].seconds == [0.25, 1.25, 2.25]
    assert (results[0].median, results[0].quartiles, results[0].runs) == (1.25, (0.75, 1.75), 27)
    assert (results[0].version, results[0].note, results[0].peak_bytes) == ("7", "hm", 5)
    assert np.array_equal(results[0].output, [0, 2, 4])
    assert [result.error for result in results[:2]] == ["", "it broke"]
    assert "nothing_at_all" in results[2].error
    assert results[2].seconds == []


def test_disturbed_rounds_are_repeated(tmp_path):
    first = job(tmp_path, seconds=[0, 2, 0.1, 0.2, 0, 0, 0, 0, 0])
    second = job(tmp_path, seconds=[0, 0, 0.2, 3, 0.3, 9, 9, 9, 9])
    dead = job(tmp_path, fails=1)
    one, other, failed = measure([first, second, dead], 1, 3, 1)
    assert (one.seconds, other.seconds) == ([1, 1.1, 1], [1, 1.2, 1.3])  # rounds 0, 2 and 4 of nine
    assert (one.left_out, other.left_out, failed.left_out) == (6, 6, 0)
    second = job(tmp_path, seconds=[0, 0, 0.2, 3, 0.2, 9, 9, 9, 9])
    one, other = measure([first, second], 1, 3, 1)
    assert (one.seconds, one.left_out, one.runs) == ([1, 1.1, 1], 2, 15)  # the fifth round is the third calm one


def test_a_network_by_name(tmp_path, capsys):
    names = [name for name, engine in engines().items() if not engine.missing and name not in ON_REQUEST]
    settings = BenchSettings("digits-cnn", sparsity=(0.9,), batch=(5,), threads=1, rounds=2, out=tmp_path)
    record = bench(settings, Console(width=120))
    assert [json.loads(line) for line in (tmp_path / "bench.ndjson").read_text().splitlines()] == [record]
    assert (tmp_path / "digits-cnn.png").stat().st_size > 10_000
    assert (record["threads"], record["image"], record["rounds"]) == (1, [1, 8, 8], 2)
    assert {"versions", "commit", "device", "date", "precision"} <= record.keys()
    dense, sparse = record["variants"]
    assert (dense["name"], dense["sparsity"], sparse["name"]) == ("dense", 0, "90 % sparse")
    assert sparse["sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert sparse["bytes"]["small_bf16"] < sparse["bytes"]["small"] < dense["bytes"]["small"]
    measured = record["measured"]
    assert [(line["batch"], line["engine"], line["variant"]) for line in measured] == [
        (5, name, variant) for name in names for variant in ("dense", "90 % sparse")
    ]
    for line in measured:
        assert len(line["ms"]) == 2
        assert line["runs"] >= 2
        assert line["difference"] < 1e-4
        assert line["quartiles_ms"][0] <= line["median_ms"] <= line["quartiles_ms"][1]
        if Path("/proc/self/status").exists():
            assert 0 < line["base_bytes"] <= line["peak_bytes"]
    output = capsys.readouterr().out
    for shown in ("batch 5: ms a run", "PyTorch", "90 % sparse", "peak memory", "digits-cnn.png", "bench.ndjson"):
        assert shown in output


@pytest.mark.parametrize("blocks", [1, 3, 4])
def test_the_smallest_blocks_are_pruned(blocks):
    """The channels do not divide by all of them."""
    torch.manual_seed(0)
    model = nn.Conv2d(8, 5, 3)
    pruned = magnitude_pruned(model, 0.6, blocks).weight
    sums = {}
    for key in itertools.product(range(5), range(0, 8, blocks), range(3), range(3)):
        out, first, row, column = key
        place = out, slice(first, first + blocks), row, column
        sums[key] = (float(model.weight[place].detach().abs().sum()), pruned[place])
    order = sorted(sums, key=lambda key: sums[key][0])
    gone = round(0.6 * len(order))
    assert all((sums[key][1] == 0).all() and not sums[key][1].signbit().any() for key in order[:gone])
    assert all((sums[key][1] != 0).all() for key in order[gone:])


def test_a_run_beside_itself_without_zeros(tmp_path, console, zeros):
    run = tmp_path / "run"
    train(TrainSettings(epochs=1, sparsity=0.9, device="cpu", precision="fp32", out=run), console)
    settings = BenchSettings(str(run), batch=(1, 3), threads=1, rounds=1, engines=("pytorch",), out=tmp_path / "bench")
    record = bench(settings, console)
    assert record["title"] == "FGGP, digits-cnn on digits"
    dense, sparse = record["variants"]
    assert (dense["weights_left"], sparse["name"]) == (dense["weights"], "90 % sparse")
    assert sparse["weights_left"] == pytest.approx(0.1 * sparse["weights"], abs=1)
    assert "onnx" not in sparse["bytes"]
    assert [line["batch"] for line in record["measured"]] == [1, 1, 3, 3]
    assert (tmp_path / "bench" / "run.png").exists()
    with pytest.raises(UsageError, match="must be left out for a run"):
        bench(BenchSettings(str(run), sparsity=(0.5,)), console)
    with pytest.raises(UsageError, match="blocks is 4; it must be left out for a run"):
        bench(BenchSettings(str(run), blocks=4), console)


def test_an_engine_that_fails_is_reported_and_the_others_go_on(tmp_path, zeros, capsys):
    zeros["fails"] = Engine("fails", "Fails", "torch", (sys.executable, "-c", "raise SystemExit('no such thing')"))
    settings = BenchSettings("digits-cnn", sparsity=(0.9,), batch=(1,), threads=1, rounds=1, out=tmp_path)
    record = bench(settings, Console(width=120))
    errors = [line.get("error") for line in record["measured"]]
    assert errors == [None, None, "no such thing", "no such thing"]
    assert "Fails, dense, batch 1 failed: no such thing" in capsys.readouterr().out


def test_without_onnx_the_others_go_on(tmp_path, monkeypatch, zeros, capsys):
    def refuse(*args):
        raise UsageError("cannot be ONNX")

    zeros["onnxruntime"] = Engine("onnxruntime", "ONNX Runtime", "onnx", ())
    monkeypatch.setattr(bench_module, "write_onnx", refuse)
    options = {"sparsity": (0.9,), "batch": (1, 1), "threads": 1, "rounds": 1, "out": tmp_path}
    record = bench(BenchSettings("digits-cnn", **options), Console(width=120))
    assert [line["engine"] for line in record["measured"]] == ["pytorch"] * 2
    assert "without ONNX Runtime: cannot be ONNX" in capsys.readouterr().out
    with pytest.raises(UsageError, match="cannot be ONNX"):
        bench(BenchSettings("digits-cnn", engines=("onnxruntime",), **options), Console(quiet=True))


def test_a_wrong_output_is_reported(tmp_path, zeros, capsys):
    settings = BenchSettings(
        "digits-cnn", sparsity=(0.9,), batch=(1,), threads=1, rounds=1, engines=("pytorch",), out=tmp_path
    )
    bench(settings, Console(width=120))
    assert "is off by 1.0e+00" in capsys.readouterr().out


def test_fggp_runtime(tmp_path, monkeypatch):
    """As it is installed: the package of this repository, with a library that this processor runs."""
    source = Path(__file__).parents[3] / "runtime" / "src" / "fggp_runtime"
    shutil.copytree(source, tmp_path / "fggp_runtime", ignore=shutil.ignore_patterns("libfggp.*"))
    shutil.copy(native.load()._name, tmp_path / "fggp_runtime" / "libfggp.so")
    told = tmp_path / "fggp_runtime-7.dist-info" / "METADATA"
    told.parent.mkdir()
    told.write_text("Metadata-Version: 2.1\nName: fggp-runtime\nVersion: 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    options = {"sparsity": (0.9,), "batch": (2,), "threads": 1, "rounds": 1, "out": tmp_path}
    record = bench(BenchSettings("digits-cnn", engines=("fggp-runtime",), **options), Console(quiet=True))
    assert [(line["engine"], line["version"]) for line in record["measured"]] == [("fggp-runtime", "7")] * 2
    assert max(line["difference"] for line in record["measured"]) < 1e-5
    dense, sparse = (variant["bytes"] for variant in record["variants"])
    assert sparse["network"] < dense["network"] / 5


def test_without_a_network_file_the_others_go_on(tmp_path, monkeypatch, zeros, capsys):
    def refuse(*args):
        raise UsageError("no network file holds it")

    zeros["fggp-runtime"] = Engine("fggp-runtime", "fggp-runtime", "network", ())
    monkeypatch.setattr(bench_module, "described", refuse)
    settings = BenchSettings("digits-cnn", sparsity=(0.9,), batch=(1,), threads=1, rounds=1, out=tmp_path)
    settings = replace(settings, engines=("pytorch", "fggp-runtime"))
    record = bench(settings, Console(width=120))
    assert [line["engine"] for line in record["measured"]] == ["pytorch"] * 2
    assert "without fggp-runtime: no network file holds it" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["openvino", "openvino-int8"])
def test_openvino(tmp_path, name):
    if engines()[name].missing:
        pytest.skip(engines()[name].missing)
    options = {"sparsity": (0.9,), "batch": (2,), "threads": 1, "rounds": 1, "engines": (name,), "out": tmp_path}
    dense, sparse = bench(BenchSettings("digits-cnn", **options), Console(quiet=True))["measured"]
    for line in (dense, sparse):
        assert (line["engine"], line["label"]) == (name, "OpenVINO int8" if name == "openvino-int8" else "OpenVINO")
        assert ("NNCF" in line["version"]) == (name == "openvino-int8")
        # Eight bits for a number make an error of some 1 %, and no other way of running a network does.
        assert (1e-3 < line["difference"] < 0.2) == (name == "openvino-int8")


def test_int8_is_measured_on_request_only(monkeypatch):
    monkeypatch.setattr(engines_module.importlib.util, "find_spec", lambda name: True)
    assert {engine.name for engine in choose(None)}.isdisjoint(ON_REQUEST)
    assert [e.name for e in choose(("openvino-int8",))] == ["openvino-int8"]
    monkeypatch.setattr(engines_module.importlib.util, "find_spec", lambda name: None if "fggp" in name else True)
    assert "pip install ./runtime" in engines()["fggp-runtime"].missing
    monkeypatch.setattr(engines_module.importlib.util, "find_spec", lambda name: None if name == "nncf" else True)
    assert engines()["openvino-int8"].missing == "nncf not installed: pip install nncf"
    with pytest.raises(UsageError, match="'openvino-int8', which cannot be used: nncf not installed"):
        choose(("openvino-int8",))


def test_int8_is_not_called_wrong(capsys):
    line = {"batch": 1, "variant": "dense", "ms": [1.0], "median_ms": 1.0, "quartiles_ms": [1, 1], "note": ""}
    measured = [
        {**line, "engine": "pytorch", "label": "PyTorch", "difference": 0.0},
        {**line, "engine": "openvino-int8", "label": "OpenVINO int8", "difference": 0.02},
    ]
    sizes = {"name": "dense", "weights_left": 1, "bytes": {"dense": 1, "small": 1, "small_bf16": 1}}
    record = {"title": "a", "image": [1], "threads": 1, "device": "d", "rounds": 1, "variants": [sizes]}
    show({**record, "measured": measured}, Console(width=120))
    output = capsys.readouterr().out
    assert "OpenVINO int8, dense, batch 1 is off by 2.0e-02 of PyTorch's output, by design" in output
    assert "outputs in float32 differ from PyTorch's by at most 0e+00" in output


def test_engines_that_are_not_there(monkeypatch, console):
    def missing():
        raise native.KernelsMissingError("no kernels here")

    monkeypatch.setattr(native, "load", missing)
    monkeypatch.setattr(engines_module.importlib.util, "find_spec", lambda name: None if name == "openvino" else True)
    assert "openvino not installed: pip install openvino" in engines()["openvino"].missing
    chosen = [engine.name for engine in choose(None)]
    assert chosen == ["pytorch", "onnxruntime"]
    with pytest.raises(UsageError, match="no kernels here"):
        choose(("pytorch", "fggp"))
    with pytest.raises(UsageError, match="engines is 'tvm'; it must be of pytorch, "):
        choose(("tvm",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": (0.5, 1.0)}, "sparsity is 1.0; it must be in"),
        ({"batch": (0,)}, "batch is"),
        ({"threads": 0}, "threads is 0"),
        ({"rounds": 0}, "rounds is 0"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UsageError, match=message):
        BenchSettings("vgg19", **options)


def test_wrong_sources(tmp_path, console):
    with pytest.raises(UsageError, match=r"which is no folder; as the name of a network: .*close matches: resnet20"):
        bench(BenchSettings("resnet-20", engines=("pytorch",)), console)
    with pytest.raises(UsageError, match="holds no run"):
        bench(BenchSettings(str(tmp_path), engines=("pytorch",)), console)
    with pytest.raises(UsageError, match="cannot take images of 1×1×1, choose another --image-size"):
        bench(BenchSettings("digits-cnn", sparsity=(0.5,), image_size=(1,), engines=("pytorch",)), console)


def test_magnitude_pruning_is_uniform_and_exact():
    torch.manual_seed(0)
    model = create("digits-cnn", 10, 1)
    pruned = magnitude_pruned(model, 0.9)
    for before, after in zip(weights(model), weights(pruned), strict=True):
        kept = after != 0
        assert int(kept.sum()) == before.numel() - round(0.9 * before.numel())
        assert torch.equal(after[kept], before[kept])
        assert before[~kept].abs().max() <= before[kept].abs().min()


def test_refilled_keeps_what_was_there():
    torch.manual_seed(0)
    pruned = magnitude_pruned(create("digits-cnn", 10, 1), 0.9)
    for before, after in zip(weights(pruned), weights(refilled(pruned)), strict=True):
        assert after.count_nonzero() == after.numel()
        assert torch.equal(after[before != 0], before[before != 0])
