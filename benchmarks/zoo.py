"""Networks of timm and Transformers that people run on CPUs, with random weights: nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

TIMM = (
    *("mobilenetv3_large_100", "mobilenetv4_conv_small", "mobilenetv4_conv_medium", "efficientnet_b0"),
    *("efficientnet_lite0", "tf_efficientnetv2_b0", "ghostnet_100", "lcnet_100", "fbnetc_100", "hardcorenas_a"),
    *("mixnet_s", "rexnet_100", "regnety_008", "resnet18", "resnet26d", "resnet50", "resnext50_32x4d"),
    *("ecaresnet50t", "dla34", "convnext_nano", "convnextv2_nano", "edgenext_small", "mobilevit_s", "mobileone_s1"),
    *("repvgg_a2", "fastvit_t8", "vit_small_patch16_224", "swin_tiny_patch4_window7_224", "levit_128s"),
    "efficientformer_l1",
)
TRANSFORMERS = (
    *("bert", "distilbert", "roberta", "albert", "electra", "mobilebert", "deberta-v2", "minilm", "gpt2", "qwen2"),
    *("t5-encoder", "whisper-encoder", "clip-vision"),
)
LAYERS = 4
"""Of each of Transformers' networks. Their widths are those of the published sizes."""
TOKENS = 128
VOCABULARY = 1000


class FirstOutput(nn.Module):
    """One of Transformers' networks, as a function of one tensor that returns one tensor."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """The last hidden states."""
        return self.network(x, return_dict=False)[0]


def create(name: str) -> tuple[nn.Module, Tensor]:
    """Return a dense network in evaluation mode and an input for it, a batch of one.

    Args:
        name: one of `TRANSFORMERS`, or any of timm's.
    """
    torch.manual_seed(0)
    model, x = _transformers(name) if name in TRANSFORMERS else _timm(name)
    return model.eval(), x


def _timm(name: str) -> tuple[nn.Module, Tensor]:
    import timm
    from timm.utils import reparameterize_model

    model = as_if_trained(timm.create_model(name, pretrained=False)).eval()
    # Networks that are trained with parallel branches are run without them.
    return reparameterize_model(model), torch.randn(1, *model.default_cfg["input_size"])


def _transformers(name: str) -> tuple[nn.Module, Tensor]:
    kind, settings = _settings(name)
    import transformers

    of_kind = getattr(transformers, kind)
    config = of_kind.config_class(**settings)
    network = as_if_trained(of_kind(config))
    if name == "clip-vision":
        x = torch.randn(1, 3, 224, 224)
    elif name == "whisper-encoder":
        network, x = network.encoder, torch.randn(1, 80, 3000)
    else:
        x = torch.randint(2, VOCABULARY, (1, TOKENS))
    return FirstOutput(network), x


def _settings(name: str) -> tuple[str, dict[str, Any]]:
    """The class of one of Transformers' networks, and its configuration: what differs from the published one's."""
    text = {"vocab_size": VOCABULARY, "num_hidden_layers": LAYERS}
    found: dict[str, tuple[str, dict[str, Any]]] = {
        "bert": ("BertModel", text),
        "distilbert": ("DistilBertModel", {"vocab_size": VOCABULARY, "n_layers": LAYERS}),
        "roberta": ("RobertaModel", {**text, "max_position_embeddings": 514, "pad_token_id": 1}),
        "albert": ("AlbertModel", {**text, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}),
        "electra": ("ElectraModel", text),
        "mobilebert": ("MobileBertModel", text),
        "deberta-v2": (
            "DebertaV2Model",
            {
                **text,
                "hidden_size": 768,
                "num_attention_heads": 12,
                "intermediate_size": 3072,
                "relative_attention": True,
                "pos_att_type": ["p2c", "c2p"],
                "position_buckets": 256,
                "share_att_key": True,
                "norm_rel_ebd": "layer_norm",
                "position_biased_input": False,
            },
        ),
        "minilm": ("BertModel", {**text, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}),
        "gpt2": ("GPT2Model", {"vocab_size": VOCABULARY, "n_layer": LAYERS, "use_cache": False}),
        "qwen2": (
            "Qwen2Model",
            {
                **text,
                "hidden_size": 896,
                "intermediate_size": 4864,
                "num_attention_heads": 14,
                "num_key_value_heads": 2,
                "use_cache": False,
            },
        ),
        "t5-encoder": ("T5EncoderModel", {"vocab_size": VOCABULARY, "num_layers": LAYERS}),
        "whisper-encoder": (
            "WhisperModel",
            {
                "vocab_size": VOCABULARY,
                "encoder_layers": LAYERS,
                "decoder_layers": 1,
                "d_model": 384,
                "encoder_attention_heads": 6,
                "encoder_ffn_dim": 1536,
                "pad_token_id": 0,
                "bos_token_id": 0,
                "eos_token_id": 0,
                "decoder_start_token_id": 0,
            },
        ),
        "clip-vision": ("CLIPVisionModel", {"num_hidden_layers": LAYERS}),
    }
    return found[name]


@torch.no_grad()
def as_if_trained(model: nn.Module) -> nn.Module:
    """Replace what training changes and new networks have as constants: norms, layer scales, biases, zero heads."""
    generator = torch.Generator().manual_seed(0)
    for name, x in (*model.named_parameters(), *model.named_buffers()):
        if not x.is_floating_point() or x.numel() < 2 or x.min() != x.max():
            continue
        if name.endswith("running_var"):
            x.uniform_(0.5, 2, generator=generator)
        elif isinstance(x, nn.Parameter) or name.endswith("running_mean"):
            if x.dim() > 1 and x.count_nonzero() == 0:
                x.normal_(0, 0.02, generator=generator)
            elif name.endswith(("bias", "running_mean", "beta")):
                x.normal_(0, 0.1, generator=generator)
            else:
                x.uniform_(0.5, 1.5, generator=generator)
    return model
