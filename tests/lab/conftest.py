from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

SIZES = {"train": 10, "test": 4}


@pytest.fixture
def console() -> Console:
    return Console(quiet=True)


@pytest.fixture
def pictures() -> None:
    """For tests that look at the pictures of runs."""


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No run draws its pictures, unless the test asks for them: they take longer than an epoch."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr("fggp.lab.training.pictures.draw_run", lambda *arguments: [])


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Two classes of 8×6 colour images, 10 each to train on and 4 to test on; brightness tells them apart."""
    root = tmp_path / "pets"
    pixels = np.random.default_rng(0)
    for part, count in SIZES.items():
        for label, name in enumerate(("cat", "dog")):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                image = pixels.integers(100 * label, 100 * label + 100, (6, 8, 3), np.uint8)
                Image.fromarray(image).save(root / part / name / f"{number}.png")
    return root
