"""The page of `fggp export --page` in a browser, used as a person would: opened as a file, without a network."""

import base64
import gzip
import re
import shutil

import pytest
import torch
from PIL import Image
from rich.console import Console

from fggp.lab.bench.networks import magnitude_pruned, with_random_norms
from fggp.lab.export.export import write_page
from fggp.lab.export.trained import Network, load_network
from fggp.lab.training.models import create
from fggp.lab.training.settings import TrainSettings
from fggp.lab.training.train import train

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")

# Strokes of a pen, in a box of 100 × 140.
DIGITS = {
    "0": [[(50, 5), (20, 20), (8, 70), (20, 120), (50, 135), (80, 120), (92, 70), (80, 20), (50, 5)]],
    "2": [[(12, 35), (25, 12), (50, 5), (78, 15), (85, 40), (70, 70), (10, 133), (92, 133)]],
    "3": [[(15, 15), (50, 5), (82, 20), (80, 50), (45, 66), (82, 82), (88, 110), (55, 135), (12, 122)]],
    "4": [[(60, 5), (10, 90), (95, 90)], [(68, 50), (68, 135)]],
    "5": [[(85, 8), (25, 8), (20, 60), (55, 52), (85, 75), (85, 110), (55, 135), (12, 122)]],
}


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def tab(browser):
    context = browser.new_context(offline=True)
    tab = context.new_page()
    tab.errors = []
    tab.on("pageerror", lambda error: tab.errors.append(str(error)))
    yield tab
    context.close()


def open_page(tab, file):
    tab.goto(file.as_uri())
    tab.wait_for_selector("html[data-ready]", timeout=120_000)


def draw(tab, digit, left, top, size):
    box = tab.locator("#pad").bounding_box()
    for stroke in DIGITS[digit]:
        points = [(box["x"] + left + size * x / 140, box["y"] + top + size * y / 140) for x, y in stroke]
        tab.mouse.move(*points[0])
        tab.mouse.down()
        for point in points[1:]:
            tab.mouse.move(*point, steps=4)
        tab.mouse.up()


@pytest.fixture(scope="module")
def digits_page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    settings = TrainSettings(epochs=20, sparsity=0.95, device="cpu", precision="fp32", out=folder / "run")
    train(settings, Console(quiet=True))
    write_page(load_network(folder / "run"), folder / "page.html")
    return folder / "page.html"


@pytest.mark.parametrize(("left", "top", "size"), [(100, 60, 220), (200, 20, 120)])
def test_a_digit_that_is_drawn_is_recognised_wherever_and_however_large(tab, digits_page, left, top, size):
    open_page(tab, digits_page)
    for digit in DIGITS:
        draw(tab, digit, left, top, size)
        sync_api.expect(tab.locator("#answer")).to_have_text(digit)
        sync_api.expect(tab.locator("li.best span").first).to_have_text(digit)
        tab.get_by_role("button", name="Clear").click()
        sync_api.expect(tab.locator("#answer")).not_to_have_text(digit)
    assert tab.errors == []


def test_it_shows_what_the_network_and_a_dense_one_take(tab, digits_page):
    open_page(tab, digits_page)
    for place in ("#size", "#size-dense"):
        assert re.search(r"[\d.]+ kB", tab.locator(place).inner_text())
    for place in ("#time", "#time-dense"):
        assert re.search(r"[\d.]+ ms", tab.locator(place).inner_text())
    assert "95 % are zero" in tab.locator("#weights-dense").inner_text()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A page for pictures, the network, and a picture that needs no scaling."""
    folder = tmp_path_factory.mktemp("pictures")
    torch.manual_seed(0)
    model = magnitude_pruned(with_random_norms(create("resnet20", 3)).eval(), 0.9)
    image = {
        "shape": [3, 32, 32],
        "mean": [120.0, 110.0, 100.0],
        "std": [60.0] * 3,
        "classes": ["cat", "dog", "<i>été"],
    }
    network = Network(model, "resnet20", "FGGP, resnet20 on pets", 3, (32, 32), image)
    write_page(network, folder / "page.html")
    pixels = torch.randint(256, (32, 32, 3), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(folder / "picture.png")
    x = (pixels.permute(2, 0, 1)[None] - torch.tensor(image["mean"]).view(-1, 1, 1)) / 60
    with torch.no_grad():
        shares = model(x).softmax(1)[0]
    return folder, {name: float(share) for name, share in zip(image["classes"], shares, strict=True)}


def test_a_picture_gets_the_networks_answer(tab, pictures):
    folder, expected = pictures
    open_page(tab, folder / "page.html")
    tab.set_input_files("#file", folder / "picture.png")
    sync_api.expect(tab.locator("#answer")).to_have_text(max(expected, key=expected.get))
    shown = dict(row.inner_text().split("\n") for row in tab.locator("#classes li").all())
    assert shown.keys() == expected.keys()
    for name, share in expected.items():
        assert float(shown[name].removesuffix(" %")) == pytest.approx(100 * share, abs=0.6)
    assert tab.errors == []


def test_what_is_no_picture_is_named(tab, pictures):
    folder, _ = pictures
    (folder / "notes.txt").write_text("no picture")
    open_page(tab, folder / "page.html")
    tab.set_input_files("#file", folder / "notes.txt")
    sync_api.expect(tab.locator("#answer")).to_have_text("notes.txt is not a picture that the browser can read")


def test_a_damaged_page_says_so(tab, digits_page, tmp_path):
    text = digits_page.read_text("utf-8")
    packed = re.search('id="network">([^<]*)<', text)[1]
    network = bytearray(gzip.decompress(base64.b64decode(packed)))
    network[len(network) // 2] ^= 1
    damaged = base64.b64encode(gzip.compress(bytes(network))).decode()
    (tmp_path / "damaged.html").write_text(text.replace(packed, damaged), "utf-8")
    tab.goto((tmp_path / "damaged.html").as_uri())
    sync_api.expect(tab.locator("#answer")).to_contain_text("damaged", timeout=60_000)
