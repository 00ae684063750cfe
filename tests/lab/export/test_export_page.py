import base64
import gzip
import json
import re

import pytest
import torch

from fggp.lab.base.errors import UsageError
from fggp.lab.bench.networks import magnitude_pruned
from fggp.lab.export import page
from fggp.lab.export.export import export, write_page
from fggp.lab.export.settings import ExportSettings
from fggp.lab.export.trained import Network
from fggp.lab.training.models import create

IMAGE = {"shape": [1, 8, 8], "mean": [73.0], "std": [90.0], "classes": [*"012345678", "</script><b>"]}


def network(image=IMAGE):
    torch.manual_seed(0)
    model = magnitude_pruned(create("digits-cnn", 10, 1), 0.95).eval()
    return Network(model, "digits-cnn", "FGGP, <digits> & co", 1, (8, 8), image)


def test_the_page_holds_everything_and_escapes_names(tmp_path, console):
    write_page(network(), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text("utf-8")
    assert not re.search(r"""(src|href)="(?!data:)[^"]""", text)
    assert "<title>FGGP, &lt;digits&gt; &amp; co</title>" in text
    packed = re.search('id="network">([^<]*)<', text)
    content = gzip.decompress(base64.b64decode(packed[1]))
    assert b"classes" in content
    about = json.loads(re.search('id="about">([^<]*)<', text)[1])
    assert about["bytes"] == len(content) < about["denseBytes"] / 10
    assert about["weightsLeft"] == sum(int(w.count_nonzero()) for w in _weights(network().model))
    assert gzip.decompress(base64.b64decode(re.search('id="wasm">([^<]*)<', text)[1]))[:4] == b"\0asm"
    assert text.count("</script>") == 4


def _weights(model):
    return [module.weight for module in model.modules() if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear))]


def test_without_a_description_of_its_images_a_network_has_no_page(tmp_path, console):
    torch.save(network().model.state_dict(), tmp_path / "net.pt")
    with pytest.raises(UsageError, match="a page needs a run of fggp train"):
        export(ExportSettings(tmp_path / "net.pt", model="digits-cnn", image_size=(8,), page=True), console)


def test_a_missing_module_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(page.native, "package_folders", lambda: [str(tmp_path)])
    monkeypatch.setattr(page, "__file__", str(tmp_path / "a/b/c/d/page.py"))
    with pytest.raises(UsageError, match=r"web/fggp.wasm.*`make web`"):
        write_page(network(), tmp_path / "page.html")


@pytest.mark.parametrize(
    ("options", "files"),
    [
        ({"page": True}, {"page": "net.html"}),
        ({"page": True, "format": ("small",)}, {"small": "net.small.safetensors", "page": "net.html"}),
        ({"out": "x.html"}, {"page": "x.html"}),
        ({"out": "x.html", "page": True}, {"page": "x.html"}),
    ],
)
def test_how_a_page_is_asked_for(tmp_path, options, files):
    options = dict(options)
    if "out" in options:
        options["out"] = tmp_path / options["out"]
    settings = ExportSettings(tmp_path / "net.pt", **options)
    assert settings.files() == {kind: tmp_path / name for kind, name in files.items()}
