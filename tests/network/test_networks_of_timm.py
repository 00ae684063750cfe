"""Networks of timm and Transformers, as small as they come: the library runs all of each, and as PyTorch does."""

import pytest
import torch

from exported import assert_same
from models import randomised

TOLERANCE = 2e-6
SMALL = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def images(count, side):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(side))


def tokens(count, length):
    return torch.randint(2, 60, (count, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("name", ["mobilevit_xxs", "convnextv2_atto"])
def test_of_images(name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = randomised(timm.create_model(name, pretrained=False, num_classes=10))
    assert_same(model, images(2, 64), images(1, 64), tolerance=TOLERANCE)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("Qwen2Model", {"num_key_value_heads": 1, "use_cache": False}),
        ("DebertaV2Model", {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}),
    ],
)
def test_of_texts(kind, more):
    transformers = pytest.importorskip("transformers", minversion="5")
    torch.manual_seed(0)
    model = getattr(transformers, kind)
    model = randomised(model(model.config_class(**SMALL, **more)))
    assert_same(
        model,
        {"input_ids": tokens(2, 9), "attention_mask": torch.ones(2, 9, dtype=torch.int64)},
        {"input_ids": tokens(1, 5), "attention_mask": torch.ones(1, 5, dtype=torch.int64)},
        tolerance=TOLERANCE,
    )
