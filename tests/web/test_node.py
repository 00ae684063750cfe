"""web/fggp.js and web/fggp.wasm in Node, beside PyTorch."""

import gzip
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

import fggp
from fggp.lab.bench.networks import magnitude_pruned, with_random_norms
from fggp.lab.training.models import create
from fggp.ship.network.describe import describe_model
from fggp.ship.network.write import write

WEB = Path(__file__).parents[2] / "web"

needs_node = pytest.mark.skipif(not shutil.which("node"), reason="needs Node")

PRELUDE = f"""
import {{ readFileSync }} from "node:fs";
import * as fggp from {json.dumps((WEB / "fggp.js").as_uri())};
const floats = (file) => new Float32Array(new Uint8Array(readFileSync(file)).buffer);
const message = async (action) => {{
    try {{ await action(); return "no error"; }} catch (error) {{ return `${{error.name}}: ${{error.message}}`; }}
}};
const show = (value) => console.log(JSON.stringify(value));
"""


def node(folder, script):
    """Run a script in a folder and return what it shows."""
    (folder / "script.mjs").write_text(PRELUDE + script)
    done = subprocess.run(["node", "script.mjs"], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def write_model(file, model, x, metadata=None):
    description = describe_model(model.eval(), (x,), {})
    write(file, description.network, description.tensors, metadata or {})


def assert_close(numbers, expected):
    expected = expected.double()
    off = torch.tensor(numbers, dtype=torch.float64).reshape(expected.shape) - expected
    assert float(off.norm() / expected.norm()) < 1e-5


@needs_node
@pytest.mark.parametrize("sparsity", [0.0, 0.95])
@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2"])
def test_networks_give_the_outputs_of_pytorch_for_any_batch(tmp_path, name, sparsity):
    torch.manual_seed(0)
    model = magnitude_pruned(with_random_norms(create(name, 10)).eval(), sparsity)
    write_model(tmp_path / "net.fggp", model, torch.randn(2, 3, 32, 32))
    batches = [torch.randn(n, 3, 32, 32) for n in (1, 5)]
    for x in batches:
        (tmp_path / f"{len(x)}.bin").write_bytes(x.numpy().tobytes())
    shown = node(
        tmp_path,
        """
        const net = await fggp.load("net.fggp");
        show([1, 5].map((n) => net.run(new fggp.Tensor(floats(`${n}.bin`), [n, 3, 32, 32]))).map(
            ({ data, shape }) => ({ data: [...data], shape })));
        """,
    )
    for x, y in zip(batches, shown, strict=True):
        with torch.no_grad():
            expected = model(x)
        assert y["shape"] == list(expected.shape)
        assert_close(y["data"], expected)


@needs_node
def test_an_int8_network_gives_the_same_bits_as_on_this_processor(tmp_path):
    torch.manual_seed(0)
    model = magnitude_pruned(with_random_norms(create("resnet20", 10)).eval(), 0.9)
    x = torch.randn(3, 3, 32, 32)
    fast = fggp.compile(fggp.quantize(model, [torch.randn(8, 3, 32, 32)]), x)
    fast.save(tmp_path / "net.fggp")
    (tmp_path / "x.bin").write_bytes(x.numpy().tobytes())
    script = """
        const net = await fggp.load("net.fggp");
        show([...net.run(new fggp.Tensor(floats("x.bin"), [3, 3, 32, 32])).data]);
        """
    assert node(tmp_path, script) == fast(x).flatten().tolist()


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.linear = nn.Linear(6, 4)

    def forward(self, ids, mask, scale):
        y = self.linear(self.embedding(ids)) * scale
        return {"masked": torch.where(mask, y.sum(-1), 0.0), "best": y.argmax(-1)}


@needs_node
def test_several_inputs_and_outputs_of_all_types_by_name(tmp_path):
    torch.manual_seed(0)
    model = Several().eval()
    ids, mask, scale = torch.tensor([[1, 10, 3]]), torch.tensor([[True, False, True]]), torch.rand(1, 3, 1)
    description = describe_model(model, (ids, mask, scale), {})
    write(tmp_path / "net.fggp", description.network, description.tensors, {"author": "an “A” <b>"})
    shown = node(
        tmp_path,
        f"""
        const net = await fggp.load(readFileSync("net.fggp"));
        const y = net.run({{
            ids: new fggp.Tensor([1, 10, 3], [1, 3]),
            mask: new fggp.Tensor([true, false, true], [1, 3]),
            scale: new fggp.Tensor({scale.flatten().tolist()}, [1, 3, 1]),
        }});
        show({{
            inputs: net.inputs, outputs: net.outputs, metadata: net.metadata,
            shapes: net.outputs.map((o) => y[o].shape),
            kinds: net.outputs.map((o) => y[o].data.constructor.name),
            values: net.outputs.map((o) => [...y[o].data].map(Number)),
        }});
        """,
    )
    expected = model(ids, mask, scale)
    assert [(each["name"], each["type"]) for each in shown["inputs"]] == [
        ("ids", "I64"),
        ("mask", "BOOL"),
        ("scale", "F32"),
    ]
    assert shown["metadata"] == {"author": "an “A” <b>"}
    assert shown["kinds"] == ["Float32Array", "BigInt64Array"]
    assert shown["shapes"] == [[1, 3], [1, 3]]
    assert_close(shown["values"][0], expected["masked"].detach())
    assert shown["values"][1] == expected["best"].flatten().tolist()


@needs_node
def test_mistakes_are_errors_with_the_librarys_message_and_leave_the_network_usable(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    write_model(tmp_path / "net.fggp", model, torch.randn(2, 4))
    damaged = bytearray((tmp_path / "net.fggp").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "damaged.fggp").write_bytes(damaged)
    shown = node(
        tmp_path,
        """
        const net = await fggp.load("net.fggp");
        const errors = {
            damaged: await message(() => fggp.load("damaged.fggp")),
            empty: await message(() => fggp.load(new Uint8Array(0))),
            length: await message(() => net.run(new Float32Array(6))),
            shape: await message(() => net.run(new fggp.Tensor(new Float32Array(6), [2, 3]))),
            tensor: await message(() => new fggp.Tensor(new Float32Array(6), [4])),
            name: await message(() => net.run({ y: new Float32Array(4) })),
            missing: await message(() => net.run({})),
            type: await message(() => net.run(new BigInt64Array(4))),
            kind: await message(() => net.run("x")),
        };
        const y = [...net.run([1, 2, 3, 4]).data];
        const { steps } = net.profile([1, 2, 3, 4]);
        net.free();
        errors.freed = await message(() => net.run(new Float32Array(4)));
        show({ errors, y, steps });
        """,
    )
    assert_close(shown["y"], model(torch.tensor([[1.0, 2.0, 3.0, 4.0]])).detach())
    assert shown["steps"]
    for case, words in {
        "damaged": "checksum is wrong",
        "empty": "0 bytes",
        "length": "[N, 4], which 6 numbers do not fill",
        "shape": "[2, 3]",
        "tensor": "shape [4] has 4 numbers; 6 were given",
        "name": 'no input "y"',
        "missing": '"input" is missing',
        "type": "must be a Float32Array or numbers",
        "kind": "must be an array",
        "freed": "was freed",
    }.items():
        assert shown["errors"][case].startswith("FggpError: "), case
        assert words in shown["errors"][case], (case, shown["errors"][case])


@needs_node
def test_a_network_can_be_built_of_a_description(tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    description = describe_model(model, (torch.randn(2, 4),), {})
    tensors = {
        name: {"data": tensor.flatten().tolist(), "shape": list(tensor.shape)}
        for name, tensor in description.tensors.items()
    }
    network = {"version": 1, **description.network}
    shown = node(
        tmp_path,
        f"""
        const tensors = Object.fromEntries(Object.entries({json.dumps(tensors)}).map(
            ([name, {{ data, shape }}]) => [name, new fggp.Tensor(Float32Array.from(data), shape)]));
        const net = await fggp.build({json.dumps(network)}, tensors);
        show({{ y: [...net.run([1, 2, 3, 4]).data], error: await message(() => fggp.build({{ version: 1 }}, {{}})) }});
        """,
    )
    assert_close(shown["y"], model(torch.tensor([[1.0, 2.0, 3.0, 4.0]])).detach())
    assert shown["error"].startswith("FggpError: ")


def test_the_package_has_fggps_version_and_a_small_module():
    assert json.loads((WEB / "package.json").read_text())["version"] == fggp.__version__
    assert len(gzip.compress((WEB / "fggp.wasm").read_bytes())) <= 400_000
