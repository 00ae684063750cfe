"""The examples with text, on a few docstrings: what they write is as sparse as asked, and answers as PyTorch does."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fggp
from networks import closing, load

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
from transformers import TrainingArguments

from transformers_runs import Examples, bert

FOLDER = Path(__file__).parent.parent / "examples" / "text"
PAGE = FOLDER.parent.parent / "docs" / "text.md"
LENGTH = 16


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run an example as a program; return its module and its record."""

    def run(name: str, *options: str):
        monkeypatch.syspath_prepend(FOLDER)
        module = importlib.import_module(name)
        given = ["--epochs", "1", "--length", str(LENGTH), "--out", str(tmp_path), *options]
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *given])
        module.main()
        return module, json.loads((tmp_path / "record.json").read_text())

    yield run
    for name in ("prune_classifier", "prune_language_model", "docstrings"):
        sys.modules.pop(name, None)


def zeros(modules) -> tuple[int, int]:
    """The number of zeros in the modules' weights, and of all."""
    weights = [module.weight for module in modules]
    return sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)


def of_type(model, kind):
    return [module for module in model.modules() if isinstance(module, kind)]


@pytest.mark.filterwarnings("ignore:.*pin_memory.*")
def test_the_classifier(run, tmp_path, capsys):
    module, record = run("prune_classifier", "--texts", "40", "--sparsity", "0.8")
    vocabulary = torch.load(tmp_path / "dense.pt", weights_only=True)["bert.embeddings.word_embeddings.weight"].shape[0]
    model = module.small_bert(vocabulary, LENGTH)
    fggp.load(tmp_path / "small.safetensors", model)
    model = module.Logits(model).eval()
    zero, total = zeros(of_type(model, nn.Linear))
    assert zero == total - round(0.2 * total)
    # Only the row of the padding is zero in embeddings, from the start.
    assert zeros(of_type(model, nn.Embedding))[0] <= 128
    assert "80.00%" in capsys.readouterr().out

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (3, LENGTH), generator=generator)
    mask = (torch.arange(LENGTH) < torch.tensor([[LENGTH], [5], [1]])).long()
    with torch.no_grad(), closing(load(tmp_path / "net.fggp")) as network:
        (found,) = network.run({"input_ids": ids, "attention_mask": mask}).values()
        assert torch.allclose(found, model(ids, mask), rtol=1e-4, atol=1e-5)
    accuracy = record["accuracy"]
    assert accuracy["pruned, net.fggp"] == pytest.approx(accuracy["pruned"], abs=1e-3)
    assert all(0 <= value <= 100 for value in accuracy.values())


@pytest.mark.filterwarnings("ignore:.*pin_memory.*")
def test_the_language_model(run, tmp_path):
    module, record = run("prune_language_model", "--texts", "8", "--sparsity", "0.6")
    state = torch.load(tmp_path / "dense.pt", weights_only=True)
    vocabulary = state["model.embed_tokens.weight"].shape[0]
    model = module.small_llama(vocabulary, LENGTH)
    fggp.load(tmp_path / "small.safetensors", model)
    model = module.Logits(model).eval()
    zero, total = zeros(layer for layer in of_type(model, nn.Linear) if layer.weight.shape[0] != vocabulary)
    assert zero == total - round(0.4 * total)
    assert zeros(of_type(model, nn.Embedding))[0] <= 128

    ids = torch.randint(vocabulary, (3, LENGTH), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), closing(load(tmp_path / "net.fggp")) as network:
        (found,) = network.run({"input_ids": ids}).values()
        assert torch.allclose(found, model(ids), rtol=1e-4, atol=1e-5)
    perplexity = record["perplexity"]
    assert perplexity["pruned, net.fggp"] == pytest.approx(perplexity["pruned"], rel=1e-5)
    assert 1 < perplexity["dense"] < 2 * vocabulary


@pytest.mark.filterwarnings("ignore:.*pin_memory.*")
def test_the_code_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model, data = bert(), Examples()
    arguments = TrainingArguments("trainer", max_steps=10, save_strategy="no", report_to="none", disable_tqdm=True)
    ids = torch.randint(40, (2, 8))
    names = {
        "model": model,
        "arguments": arguments,
        "data": data,
        "input_ids": ids,
        "attention_mask": ids.new_ones(2, 8),
    }
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S):
        exec(block, names)
    assert names["pruning"].pruner.sparsity == pytest.approx(0.9, abs=1e-3)
    assert names["logits"].shape[0] == 2
    assert (tmp_path / "net.fggp").exists()


def test_perplexity_is_the_number_of_tokens_to_guess_among(run, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    module = importlib.import_module("prune_language_model")
    blocks = [torch.randint(7, (5,)) for _ in range(20)]
    assert module.perplexity(lambda ids: torch.zeros(*ids.shape, 7), blocks) == pytest.approx(7)


def test_docstrings_keep_files_together_and_have_no_names(monkeypatch, run):
    monkeypatch.syspath_prepend(FOLDER)
    module = importlib.import_module("docstrings")
    found = module.docstrings(30)
    assert found == module.docstrings(30)
    assert {each.package for each in found} == {0, 1, 2, 3}
    assert len({(each.package, each.text) for each in found}) == len(found) == 120
    assert any(each.held_out for each in found)
    assert module.without_names("import torch, NumPy as np; PyTorch, torchvision") == (
        "import package, package as package; package, torchvision"
    )
