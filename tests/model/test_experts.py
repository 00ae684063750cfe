"""Weights that stack experts' matrices are pruned by default; other parameters of three dimensions are not."""

import pytest
import torch
from torch import nn

import fggp
import helpers
from fggp.model.coverage import coverage
from fggp.model.find import find_prunable
from fggp.model.kinds import Kind, known_parameters

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 60,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {
    "mixtral": ({"num_local_experts": 4}, ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]),
    "qwen3_moe": (
        {"num_experts": 4, "moe_intermediate_size": 8},
        ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    ),
    "gpt_oss": ({"num_local_experts": 4}, ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]),
    "llama4_text": ({"num_local_experts": 4}, ["feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"]),
    "granitemoe": (
        {"num_local_experts": 4},
        ["block_sparse_moe.experts.gate_up_proj", "block_sparse_moe.experts.down_proj"],
    ),
    "jetmoe": (
        {"num_local_experts": 4, "kv_channels": 8},
        [
            "mlp.input_linear.weight",
            "mlp.output_linear.weight",
            "self_attention.experts.input_linear.weight",
            "self_attention.experts.output_linear.weight",
        ],
    ),
}


@pytest.mark.parametrize("kind", EXPERTS)
def test_fused_experts_of_transformers(kind):
    transformers = pytest.importorskip("transformers", minversion="5")
    options, expected = EXPERTS[kind]
    config = transformers.AutoConfig.for_model(kind, **{**SIZES, **options})
    model = transformers.AutoModelForCausalLM.from_config(config)
    weights = find_prunable(model)
    stacked = [w for w in weights if w.matrices > 1]
    assert [w.name for w in stacked] == [f"model.layers.0.{name}" for name in expected]
    assert all(w.matrices == 4 == w.parameter.shape[0] for w in stacked)
    assert coverage(model, weights).share > 0.75
    # Attention's projections are beside them; routers that are no linear layers, norms and embeddings are not.
    linear = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    tied = {"lm_head.weight"} if model.lm_head.weight is model.get_input_embeddings().weight else set()
    assert {w.name for w in weights if w.matrices == 1} == linear - tied


def test_experts_in_two_dimensions():
    """DBRX stacks its experts' matrices along rows."""
    transformers = pytest.importorskip("transformers", minversion="5")
    dbrx = pytest.importorskip("transformers.models.dbrx.modeling_dbrx")
    config = transformers.DbrxConfig().ffn_config
    config.hidden_size, config.ffn_hidden_size, config.moe_num_experts, config.moe_top_k = 8, 6, 4, 2
    experts = dbrx.DbrxExperts(config)
    weights = find_prunable(experts)
    assert [(w.name, w.matrices) for w in weights] == [("mlp.w1", 4), ("mlp.v1", 4), ("mlp.w2", 4)]


OTHERS = {
    "vit": {"hidden_size": 8, "image_size": 16, "patch_size": 8},
    "dinov2": {"hidden_size": 8, "image_size": 16, "patch_size": 8},
    "hiera": {"embed_dim": 8, "depths": [1, 1, 1, 1]},
    "mamba": {"hidden_size": 8, "vocab_size": 10},
    "convbert": {"hidden_size": 8, "embedding_size": 8, "num_groups": 2, "vocab_size": 10},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_position_embeddings_and_tokens_of_transformers_are_left_alone(kind):
    transformers = pytest.importorskip("transformers", minversion="5")
    options = {"num_attention_heads": 2, "intermediate_size": 8, **OTHERS[kind]}
    if kind != "hiera":
        options["num_hidden_layers"] = 1
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, **options))
    # What a module of the library holds itself, instead of in a layer of PyTorch's.
    own = [m for m in model.modules() if not type(m).__module__.startswith("torch.")]
    held = {id(p) for m in own for p in m._parameters.values() if p is not None}
    assert held
    weights = find_prunable(model)
    assert weights
    assert not held & {id(w.parameter) for w in weights}
    assert all(w.matrices == 1 for w in weights)


class Holder(nn.Module):
    def __init__(self, shape, attribute="w1", **attributes):
        super().__init__()
        self.register_parameter(attribute, nn.Parameter(torch.ones(shape)))
        for name, value in attributes.items():
            setattr(self, name, value)


class GroupedExperts(Holder):
    """As torchtune and torchtitan call it."""


class MoELayer(Holder):
    pass


def matrices_of(holder, name="layer"):
    model = nn.ModuleDict({name: holder, "fc": nn.Linear(2, 2)})
    found = [w.matrices for w in find_prunable(model) if w.name != "fc.weight"]
    return found[0] if found else 0


@pytest.mark.parametrize(
    ("holder", "name", "expected"),
    [
        (GroupedExperts((4, 3, 2)), "layer", 4),
        (GroupedExperts((1, 3, 2)), "layer", 1),
        (MoELayer((4, 3, 2)), "layer", 4),
        (MoELayer((1, 3, 2)), "layer", 0),
        (Holder((4, 3, 2)), "experts", 4),
        (Holder((4, 3, 2), "expert_weight"), "layer", 4),
        (Holder((4, 3, 2), num_experts=4), "layer", 4),
        (Holder((4, 3, 2), n_experts=3), "layer", 0),
        (Holder((4, 3, 2), use_experts=True), "layer", 0),
        (Holder((4, 3, 2)), "layer", 0),
        (Holder((4, 3, 2), num_heads=4), "attention", 0),
        (GroupedExperts((4, 3)), "layer", 0),
        (GroupedExperts((12, 2), num_experts=4), "layer", 4),
        (GroupedExperts((4, 2), num_experts=4), "layer", 0),
        (GroupedExperts((10, 2), num_experts=4), "layer", 0),
        (GroupedExperts((4, 3, 1)), "layer", 0),
        (GroupedExperts((4, 1, 3)), "layer", 0),
        (GroupedExperts((4, 3, 2, 2)), "layer", 0),
        (GroupedExperts((4, 3, 2), "bias"), "layer", 0),
        (GroupedExperts((4, 3, 2), "w1_scale"), "layer", 0),
        (MoELayer((4, 3, 2), "pos_embed"), "layer", 0),
        (MoELayer((4, 3, 2), "query_tokens"), "layer", 0),
    ],
    ids=lambda x: f"{type(x).__name__}-{'-'.join(dict(x.named_parameters()))}" if isinstance(x, nn.Module) else str(x),
)
def test_the_rule(holder, name, expected):
    assert matrices_of(holder, name) == expected


def test_convolutions_are_one_matrix_even_among_experts():
    model = nn.ModuleDict({"experts": nn.ModuleList([nn.Conv1d(4, 4, 3), nn.Linear(3, 3)])})
    assert [w.matrices for w in find_prunable(model)] == [1, 1]


def test_a_subclass_that_fully_shard_makes_is_what_its_class_is():
    sharded = type("FSDPSomething", (GroupedExperts,), {})
    assert matrices_of(sharded((4, 3, 2))) == 4


def test_experts_that_are_tied_or_frozen():
    first, second, third = GroupedExperts((4, 3, 2)), GroupedExperts((4, 3, 2)), GroupedExperts((4, 3, 2))
    second.w1 = first.w1
    third.w1.requires_grad_(False)
    model = nn.ModuleList([first, second, third])
    assert [(w.name, w.matrices) for w in find_prunable(model)] == [("0.w1", 4)]
    assert [k.kind for k in known_parameters(model)] == [Kind.DEFAULT, Kind.FROZEN]


def test_a_mixture_of_experts_trains_pruned(tmp_path):
    """The recipe of the public reports: "90 %" was 90 % of the router and of attention."""
    transformers = pytest.importorskip("transformers", minversion="5")
    torch.manual_seed(0)

    def make():
        config = transformers.AutoConfig.for_model("mixtral", **SIZES, num_local_experts=4)
        return transformers.AutoModelForCausalLM.from_config(config)

    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    pruner = fggp.Pruner(model, optimizer, 0.9, begin=0, end=4, every=1, floor=0.02)
    for _ in range(5):
        tokens = torch.randint(3, 60, (4, 8))
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        helpers.assert_exactly_zero(pruner, optimizer)
    experts = [model.model.layers[0].mlp.experts.gate_up_proj, model.model.layers[0].mlp.experts.down_proj]
    assert all(0.7 < (p == 0).float().mean() < 1 for p in experts)
    zeros = sum(int((p == 0).sum()) for p in model.parameters())
    assert zeros / sum(p.numel() for p in model.parameters()) > 0.78
    fggp.save(model, tmp_path / "small.safetensors")
    other = make()
    fggp.load(tmp_path / "small.safetensors", other)
    assert helpers.identical(dict(other.state_dict()), dict(model.state_dict()))
