import pytest
from PIL import Image

from fggp.lab.training.pictures import draw_run


def epochs(count: int) -> list[dict]:
    return [
        {
            "kind": "epoch",
            "epoch": number,
            "step": 100 * number,
            "train_loss": 1 / number,
            "train_accuracy": 50.0,
            "val_accuracy": None,
            "test_accuracy": 40.0,
            "sparsity": 0.9,
            "target": 0.9,
        }
        for number in range(1, count + 1)
    ]


def updates(layers: int, count: int) -> list[dict]:
    return [
        {
            "kind": "update",
            "step": 10 * number,
            "sparsity": 0.9,
            "target": 0.9,
            "densities": {f"blocks.{layer}.conv.weight": 0.5**layer * (layer != 3) for layer in range(layers)},
        }
        for number in range(1, count + 1)
    ]


@pytest.mark.parametrize(("layers", "count"), [(1, 1), (4, 31), (54, 3)])
def test_pictures_of_runs_of_any_size(tmp_path, layers, count):
    files = draw_run(tmp_path, "a run", epochs(count), updates(layers, count), init_sparsity=0.5)
    assert [file.name for file in files] == ["accuracy.png", "sparsity.png", "density.png"]
    for file in files:
        with Image.open(file) as image:
            image.load()
            assert min(image.size) > 200


def test_a_dense_run_has_no_sparsity_to_show(tmp_path):
    assert [file.name for file in draw_run(tmp_path, "a run", epochs(3), [], 0.0)] == ["accuracy.png"]
