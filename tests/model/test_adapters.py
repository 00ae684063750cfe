"""Adapters are left alone by default: peft's, others' of the same shapes, hand-written ones."""

import re

import pytest
import torch
from torch import nn

import fggp
import helpers
from fggp.model.adapters import pairs_beside_a_frozen_matrix
from fggp.model.coverage import coverage
from fggp.model.find import find_prunable
from fggp.model.kinds import Kind, known_parameters
from fggp.registry import complaints

VIRTUAL = {"num_virtual_tokens": 2}
# Every kind of adapter in peft 0.21, with what a tiny model needs. X-LoRA is a mixture of saved LoRAs.
PEFT = {
    "LORA": {"r": 4},
    "ADALORA": {"init_r": 4, "target_r": 2, "total_step": 10},
    "ADAMSS": {"r": 4},
    "ADAPTION_PROMPT": {"adapter_len": 2, "adapter_layers": 1, "target_modules": None},
    "BEFT": {},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 4},
    "CARTRIDGE": VIRTUAL,
    "CPT": {},
    "DEFT": {},
    "DELORA": {"r": 4},
    "FOURIERFT": {"n_frequency": 10},
    "GLORA": {"r": 4},
    "GRALORA": {"r": 4},
    "HIRA": {"r": 4},
    "HRA": {"r": 4},
    "IA3": {"feedforward_modules": []},
    "LILY": {"r": 4},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "LOHA": {"r": 4},
    "LOKR": {"r": 4},
    "MISS": {"r": 4},
    "MULTITASK_PROMPT_TUNING": {**VIRTUAL, "num_tasks": 2},
    "OFT": {"oft_block_size": 4},
    "OSF": {},
    "PEANUT": {"r": 4},
    "POLY": {"r": 4},
    "PREFIX_TUNING": {**VIRTUAL, "prefix_projection": True, "encoder_hidden_size": 16},
    "PROMPT_TUNING": VIRTUAL,
    "PSOFT": {"r": 4},
    "PVERA": {"r": 4},
    "P_TUNING": {**VIRTUAL, "encoder_hidden_size": 16},
    "RANDLORA": {"r": 4},
    "ROAD": {"group_size": 4},
    "SHADOW": {},
    "SHIRA": {"r": 4},
    "SUPERTUNING": {},
    "TINYLORA": {"r": 2},
    "TRAINABLE_TOKENS": {"target_modules": ["embed_tokens"], "token_indices": [1]},
    "UNILORA": {"r": 4},
    "VBLORA": {"r": 4, "vector_length": 4, "num_vectors": 8},
    "VERA": {"r": 4},
    "WAVEFT": {"n_frequency": 10},
}


def llama():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=60,
        pad_token_id=0,
    )
    return transformers.LlamaForCausalLM(config)


def adapted(kind, **options):
    peft = pytest.importorskip("peft")
    mapping = pytest.importorskip("peft.mapping").PEFT_TYPE_TO_CONFIG_MAPPING
    make = mapping[peft.PeftType[kind]]
    if "target_modules" in make.__dataclass_fields__:
        options = {"target_modules": ["q_proj", "v_proj"], **options}
    return peft.get_peft_model(llama(), make(task_type="CAUSAL_LM", **options))


@pytest.mark.filterwarnings("ignore")  # peft warns of odd settings
@pytest.mark.parametrize("kind", PEFT)
def test_adapters_of_peft(kind):
    torch.manual_seed(0)
    model = adapted(kind, **PEFT[kind])
    trainable = [k for k in known_parameters(model) if k.weight.parameter.requires_grad]
    assert trainable
    assert {k.weight.name: k.kind for k in trainable} == {k.weight.name: Kind.ADAPTER for k in trainable}
    # The base is pruned as ever where it is trained beside the adapters.
    before = [w.name for w in find_prunable(llama())]
    for p in model.parameters():
        p.requires_grad_(p.is_floating_point())
    if kind not in ("OSF", "SHADOW"):  # these change the base itself, or add a second one
        assert [plain(name) for name in names(model)] == [plain(name) for name in before]


def plain(name):
    """A weight's name without what wrappers put before and into it."""
    return re.sub(r"^.*?(?=layers\.|lm_head)|base_layer\.|(?<=self_attn\.)model\.", "", name)


def names(model, **filters):
    return [w.name for w in find_prunable(model, **filters)]


@pytest.fixture
def lora():
    return adapted("LORA", r=4, modules_to_save=["lm_head"])


@pytest.mark.filterwarnings("ignore::FutureWarning:peft", "ignore::FutureWarning:transformers")
class TestLora:
    def test_a_layer_that_is_trained_in_full_beside_the_adapters_is_pruned(self, lora):
        assert names(lora) == ["base_model.model.lm_head.modules_to_save.default.weight"]

    def test_include_still_selects_adapters(self, lora):
        found = names(lora, include="*lora_B*")
        assert len(found) == 4
        assert all(name.endswith("lora_B.default.weight") for name in found)

    def test_coverage_says_so(self, lora):
        found = {group.reason: group for group in coverage(lora, find_prunable(lora)).left_out}
        assert found["adapters"].count == 4 * 2 * 4 * 16
        assert len(found["adapters"].names) == 8
        assert found["frozen"].count > 4000

    def test_a_model_of_which_only_adapters_are_trained_is_refused(self):
        told = (
            r"model=PeftModelForCausalLM has nothing to prune: its only trainable matrices are adapters, .*lora_A.* "
            r"and 4 more\. Merge them and train the weights that they adapt .*, or prune .* themselves with include="
        )
        with pytest.raises(ValueError, match=told):
            find_prunable(adapted("LORA", r=4))

    def test_experts(self):
        """peft adapts fused experts, which are parameters of a module, by wrapping the module."""
        peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
        config = transformers.MixtralConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            vocab_size=60,
            num_local_experts=4,
        )
        targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
        settings = peft.LoraConfig(r=4, target_modules=[], target_parameters=targets, task_type="CAUSAL_LM")
        model = peft.get_peft_model(transformers.MixtralForCausalLM(config), settings)
        trainable = [k for k in known_parameters(model) if k.weight.parameter.requires_grad]
        assert trainable
        assert {k.kind for k in trainable} == {Kind.ADAPTER}


# Shapes


class Torchtune(nn.Module):
    """As torchtune's LoRALinear: a frozen weight of its own, and two linear layers."""

    def __init__(self, out=8, into=6, rank=2):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, into), requires_grad=False)
        self.lora_a, self.lora_b = nn.Linear(into, rank, bias=False), nn.Linear(rank, out, bias=False)


class LoraLib(nn.Linear):
    """As loralib's Linear, whose merged layers have pairs of other shapes."""

    def __init__(self):
        super().__init__(6, 12)
        self.weight.requires_grad_(False)
        self.lora_A, self.lora_B = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(8, 2))


class ByHand(nn.Module):
    """Two low-rank matrices without a telling name beside a layer."""

    def __init__(self, base=None, down=(2, 6), up=(8, 2), frozen=True):
        super().__init__()
        self.base = base or nn.Linear(6, 8)
        self.base.requires_grad_(not frozen)
        self.down, self.up = nn.Parameter(torch.randn(down)), nn.Parameter(torch.randn(up))
        self.scale = nn.Parameter(torch.ones(8))


class Several(nn.Module):
    """Two adapters of different rank in dicts."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(6, 8).requires_grad_(False)
        self.a = nn.ParameterDict({"x": torch.randn(2, 6), "y": torch.randn(3, 6)})
        self.b = nn.ModuleDict({"x": nn.Linear(2, 8), "y": nn.Linear(3, 8)})


class Quantised(nn.Module):
    """A layer whose weight is packed into bytes."""

    in_features, out_features = 6, 8

    def __init__(self):
        super().__init__()
        self.register_buffer("packed", torch.zeros(24, 1, dtype=torch.uint8))


CONV = {"base": nn.Conv2d(6, 8, 3), "down": (2, 6, 3, 3), "up": (8, 2, 1, 1)}


@pytest.mark.parametrize(
    ("layer", "kept"),
    [
        (Torchtune(), ["lora_a.weight", "lora_b.weight"]),
        (LoraLib(), ["lora_A", "lora_B"]),
        (ByHand(), ["down", "up"]),
        (ByHand(down=(6, 2), up=(2, 8)), ["down", "up"]),
        (ByHand(nn.Linear(6, 6), (2, 6), (6, 2)), ["down", "up"]),
        (ByHand(**CONV), ["down", "up"]),
        (ByHand(nn.Embedding(8, 6)), ["down", "up"]),
        (ByHand(Quantised()), ["down", "up"]),
        (Several(), ["a.x", "a.y", "b.x.weight", "b.y.weight"]),
    ],
)
def test_adapters_of_others(layer, kept):
    model = nn.ModuleDict({"layer": layer, "fc": nn.Linear(8, 8)})
    assert names(model) == ["fc.weight"]
    assert sorted(names(model, include=[f"layer.{name}" for name in kept])) == sorted(f"layer.{n}" for n in kept)
    layer_alone = [k.weight.name for k in known_parameters(layer) if k.kind is Kind.ADAPTER]
    assert set(kept) <= set(layer_alone)


class Bottleneck(nn.Module):
    """A trainable layer in two factors, which knows its features as a layer does."""

    def __init__(self):
        super().__init__()
        self.in_features, self.out_features = 6, 8
        self.down, self.up = nn.Linear(6, 2), nn.Linear(2, 8)


@pytest.mark.parametrize(
    "layer",
    [
        ByHand(frozen=False),
        ByHand(down=(2, 6), up=(8, 3)),
        ByHand(down=(6, 6), up=(8, 6)),
        ByHand(down=(7, 6), up=(8, 7)),
        ByHand(down=(2, 5)),
        Bottleneck(),
        # A small network behind two frozen layers
        nn.Sequential(*(nn.Linear(6, 8).requires_grad_(False) for _ in range(2)), nn.Linear(6, 2), nn.Linear(2, 8)),
        nn.Sequential(nn.Linear(6, 8).requires_grad_(False), nn.Linear(8, 8).requires_grad_(False), nn.Linear(8, 2)),
        nn.Sequential(nn.Linear(6, 8).requires_grad_(False), nn.Linear(8, 2)),
        nn.Sequential(nn.Linear(6, 8).requires_grad_(False)),
    ],
)
def test_what_is_not_shaped_so_is_no_adapter(layer):
    assert not pairs_beside_a_frozen_matrix(layer)
    assert Kind.ADAPTER not in {k.kind for k in known_parameters(layer)}


def test_a_name_that_contains_lora_is_not_enough():
    model = nn.ModuleDict({"explorative": nn.Linear(3, 2), "flora": nn.Linear(3, 2)})
    assert names(model) == ["explorative.weight", "flora.weight"]


def test_adapters_train_dense_beside_pruned_weights():
    """The recipe of the public reports: adapters were pruned to 0.4 %."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), ByHandLayer(nn.Linear(8, 3)))
    optimizer = helpers.sgd(model)
    pruner = fggp.Pruner(model, optimizer, 0.9, begin=0, end=4, every=1)
    helpers.train(model, optimizer, 5)
    assert list(pruner.masks) == ["0.weight", "2.weight"]
    helpers.assert_exactly_zero(pruner, optimizer)
    assert (model[4].down != 0).all()
    assert (model[4].up != 0).all()


class ByHandLayer(ByHand):
    def __init__(self, base):
        super().__init__(base, (2, 8), (3, 2))
        self.scale = None

    def forward(self, x):
        return self.base(x) + x @ self.down.t() @ self.up.t()


@pytest.mark.filterwarnings("ignore::FutureWarning:peft", "ignore::FutureWarning:transformers")
def test_merging_an_adapter_into_a_pruned_base_fills_its_zeros_and_is_noticed():
    peft = pytest.importorskip("peft")
    model = helpers.mlp()
    optimizer = helpers.sgd(model)
    pruner = fggp.Pruner(model, optimizer, 0.8, begin=0, end=2, every=1, method="gmp", floor=1)
    helpers.train(model, optimizer, 3)
    pruner.remove()
    kept = {name: int(mask.sum()) for name, mask in pruner.masks.items()}
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["0"], r=2, init_lora_weights=False))
    assert list(complaints(adapted)) == []  # the base's own zeros are as they were
    merged = adapted.merge_and_unload()
    filled = int((merged[0].weight != 0).sum()) - kept["0.weight"]
    assert filled == 60 - kept["0.weight"]
    [told] = complaints(merged)
    assert told.startswith(f"{filled} pruned weights are not zero any more, in '0.weight': ")
    assert "merged with an adapter" in told
    pruner.zero()
    assert int((merged[0].weight != 0).sum()) == kept["0.weight"]
    assert list(complaints(merged)) == []
