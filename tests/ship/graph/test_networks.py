"""Whole networks, real and random ones: captured and simplified, they compute the same at any batch size."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captured import assert_faithful, count_operations, images
from fggp.ship.graph.capture import capture
from fggp.ship.graph.operations import Conv2d, Linear
from fggp.ship.graph.simplify import simplify
from models import IMAGE_MODELS, nets, randomised


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_networks_for_images_compute_the_same_at_any_batch_size(name):
    make, side, channels = IMAGE_MODELS[name]
    model = randomised(make())
    graph = assert_faithful(
        model, images(2, channels, side), images(1, channels, side, 1), images(3, channels, side, 2)
    )
    assert graph.batch is None
    assert graph.inputs[0].shape == (2, channels, side, side)
    assert not any("norm" in kind and kind != "aten.layer_norm.default" for kind in count_operations(graph))
    assert not any("dropout" in kind or kind.endswith("_.default") for kind in count_operations(graph))


@pytest.mark.parametrize("name", ["lab resnet20", "vit", "mobilenet_v3_small"])
def test_an_example_of_one_image_serves_all_batch_sizes(name):
    make, side, channels = IMAGE_MODELS[name]
    model = randomised(make())
    graph = assert_faithful(model, images(1, channels, side), images(4, channels, side, 1))
    assert graph.batch is None
    for value in (*graph.inputs, *(op.output for op in graph.ops)):
        assert not value.batched or value.shape[0] == 1


def test_bert_takes_keywords_in_any_order_and_returns_its_own_structure():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=100
    )
    torch.manual_seed(0)
    model = randomised(transformers.BertModel(config))

    def example(size):
        generator = torch.Generator().manual_seed(size)
        mask = (torch.arange(8) < torch.randint(1, 9, (size, 1), generator=generator)).long()
        return {"attention_mask": mask, "input_ids": torch.randint(100, (size, 8), generator=generator)}

    graph = assert_faithful(model, example(2), example(1), dict(reversed(example(3).items())))
    assert graph.keywords == ("attention_mask", "input_ids")
    linear = [op for op in graph.ops if isinstance(op, Linear)]
    assert len(linear) == 13
    assert sum(op.residual is not None for op in linear) == 4


@pytest.mark.parametrize(("name", "convolutions", "residuals"), [("resnet18", 20, 8), ("resnet50", 53, 16)])
def test_resnets_are_convolutions_and_nothing_between(name, convolutions, residuals):
    make, side, _ = IMAGE_MODELS[name]
    graph = simplify(capture(make(), (images(2, 3, side),), {}))
    rest = {"MaxPool2d": 1, "AdaptiveAvgPool2d": 1, "Flatten": 1, "Linear": 1}
    assert count_operations(graph) == {"Conv2d": convolutions, **rest}
    conv = [op for op in graph.ops if isinstance(op, Conv2d)]
    assert sum(op.residual is not None for op in conv) == residuals
    # The last 1×1 of a shortcut is added to what was computed before it, and has the ReLU.
    assert sum(op.activation is None for op in conv) == 4 - (name == "resnet18")
    assert all(op.output.batched and op.output.sizes[1:] == op.output.shape[1:] for op in conv)


@settings(max_examples=settings.default.max_examples // 4)
@given(nets(), st.integers(1, 3))
def test_random_networks_compute_the_same(model, size):
    assert_faithful(model, images(size, 4, 6), images(3 - size // 2, 4, 6, 1))


@settings(max_examples=settings.default.max_examples // 4)
@given(nets(["relu_", "add_", "part_", "dropout", "conv", "bn", "add"]))
def test_writing_in_place_is_seen_wherever_it_should_be(model):
    assert_faithful(model, images(2, 4, 6), images(3, 4, 6, 1))
