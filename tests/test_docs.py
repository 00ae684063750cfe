"""The code blocks in README.md and docs/ run as they stand."""

import copy
import re
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import fggp
import helpers

ROOT = Path(__file__).parent.parent


def blocks_of(page):
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)


BLOCKS = [
    pytest.param(block, id=f"{page}-{number}")
    for page in ("README.md", *(f"docs/{n}.md" for n in ("from-trained-weights", "methods", "own-loop", "pruner")))
    for number, block in enumerate(blocks_of(page))
    if not block.startswith(" ")  # a method of a class that an earlier block shows
]


def test_there_are_blocks():
    assert len(BLOCKS) >= 2


@pytest.mark.parametrize("block", BLOCKS)
def test_code_blocks_run(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the blocks write files
    model = helpers.mlp()
    optimizer = helpers.sgd(model)
    loader = [(torch.randn(4, 6), torch.randint(3, (4,))) for _ in range(3)]
    names = {"model": model, "optimizer": optimizer, "loader": loader, "loss_fn": nn.functional.cross_entropy}
    names["averaged"] = copy.deepcopy(model)
    torch.save(model.state_dict(), "trained.pt")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(fggp.(save|compile): )?pruning got to step|nothing was pruned")  # 3 steps
        if "Pruner(" not in block:  # it goes on with the pruner of an earlier block
            names["pruner"] = helpers.make_pruner(model, optimizer)
        exec(block, names)
    assert isinstance(names["pruner"], fggp.Pruner)


def test_the_first_page_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    blocks = blocks_of("docs/start.md")
    assert len(blocks) == 3
    names = {}
    for block in blocks:
        exec(block, names)
    assert names["pruner"].finished
    assert names["pruner"].check() == []
    assert {path.name for path in tmp_path.iterdir()} == {"small.safetensors", "net.fggp"}
    assert float(re.search(r"tensor\(([01]\.\d*)\)", capsys.readouterr().out)[1]) > 0.9
