"""The Pruner with every optimizer of PyTorch, third parties' optimizers, parameter groups and GradScaler."""

import io

import pytest
import torch
from torch import nn

import fggp
import helpers
import reference
from fggp import TopK
from fggp.scores import Score
from optimizer_states import numbers_of, package

SGD, Adam, AdamW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW

OPTIMIZERS = {
    "sgd": (SGD, {"lr": 0.1}),
    "sgd-momentum": (SGD, {"lr": 0.1, "momentum": 0.9}),
    "sgd-nesterov-decay": (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}),
    "sgd-maximize": (SGD, {"lr": 0.01, "momentum": 0.5, "maximize": True}),
    "sgd-foreach": (SGD, {"lr": 0.1, "momentum": 0.9, "foreach": True}),
    "sgd-fused": (SGD, {"lr": 0.1, "momentum": 0.9, "fused": True}),
    "adam": (Adam, {"lr": 0.01}),
    "adam-single": (Adam, {"lr": 0.01, "foreach": False}),
    "adam-foreach": (Adam, {"lr": 0.01, "foreach": True}),
    "adam-fused": (Adam, {"lr": 0.01, "fused": True}),
    "adam-tensor-lr": (Adam, {"lr": torch.tensor(0.01)}),
    "adamw-amsgrad": (AdamW, {"lr": 0.01, "amsgrad": True}),
    "adamw-amsgrad-fused": (AdamW, {"lr": 0.01, "amsgrad": True, "fused": True}),
    "adamax": (torch.optim.Adamax, {}),
    "nadam": (torch.optim.NAdam, {}),
    "radam": (torch.optim.RAdam, {}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 1e-3, "momentum": 0.9, "centered": True}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.05, "initial_accumulator_value": 0.1}),
    "adagrad-fused": (torch.optim.Adagrad, {"lr": 0.05, "fused": True}),
    "adadelta": (torch.optim.Adadelta, {}),
    "asgd": (torch.optim.ASGD, {"lr": 0.05}),
    "rprop": (torch.optim.Rprop, {"lr": 1e-3}),
    "adafactor": (torch.optim.Adafactor, {"lr": 0.02}),
}


def making(kind, options):
    return lambda model: kind(model.parameters(), **options)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_run_is_that_of_pruning_by_hand(name):
    kind, options = OPTIMIZERS[name]
    helpers.run_beside_the_reference(helpers.convnet, making(kind, options), 8)


@pytest.mark.parametrize("name", ["sgd-nesterov-decay", "adam", "adam-foreach", "adamw-amsgrad"])
def test_the_run_is_that_of_pruning_by_hand_in_half_precision(name):
    kind, options = OPTIMIZERS[name]
    helpers.run_beside_the_reference(lambda: helpers.convnet(dtype=torch.bfloat16), making(kind, options), 8)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_which_mixes_whole_matrices():
    def make(model):
        return torch.optim.Muon([p for p in model.parameters() if p.ndim == 2], lr=0.02)

    helpers.run_beside_the_reference(helpers.mlp, make, 8)


class Shampoo(torch.optim.Optimizer):
    """A minimal Shampoo: preconditioners of other shapes, and a step that mixes rows and columns."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                g = p.grad.flatten(1) if p.ndim > 1 else p.grad[:, None]
                state = self.state[p]
                if not state:
                    state["left"], state["right"] = torch.eye(g.shape[0]), torch.eye(g.shape[1])
                    state["history"] = torch.zeros_like(p)
                state["left"] += g @ g.T
                state["right"] += g.T @ g
                step = torch.linalg.solve(state["left"], g) @ torch.linalg.inv(state["right"])
                state["history"].mul_(0.9).add_(step.view_as(p))
                p.add_(state["history"], alpha=-group["lr"])
        return loss


def test_shampoo_whose_square_state_may_have_the_weights_shape():
    helpers.run_beside_the_reference(helpers.convnet, lambda m: Shampoo(m.parameters()), 8)


def test_several_parameter_groups_in_any_order():
    def make(model):
        decay = [p for p in model.parameters() if p.ndim > 1]
        rest = [p for p in model.parameters() if p.ndim <= 1]
        return AdamW(
            [
                {"params": rest, "weight_decay": 0.0},
                {"params": decay[::-1], "weight_decay": 0.1, "lr": 0.02},
            ],
            lr=0.01,
        )

    helpers.run_beside_the_reference(helpers.convnet, make, 8)


def test_a_group_added_later_does_not_matter():
    model = helpers.mlp()
    optimizer = SGD(model[:2].parameters(), lr=0.1, momentum=0.9)
    optimizer.add_param_group({"params": model[2].parameters()})
    pruner = helpers.make_pruner(model, optimizer)
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})
    helpers.train(model, optimizer, 7)
    assert pruner.sparsity == 0.8
    helpers.assert_exactly_zero(pruner, optimizer)


def test_only_state_of_the_weights_shape_is_zeroed():
    """Adam's step counter and integer state keep their values."""
    model = helpers.mlp()
    optimizer = Adam(model.parameters())
    helpers.make_pruner(model, optimizer)
    helpers.train(model, optimizer, 1)
    counter = torch.arange(60).view(10, 6)
    optimizer.state[model[0].weight]["counter"] = counter.clone()
    helpers.train(model, optimizer, 6)
    assert torch.equal(optimizer.state[model[0].weight]["counter"], counter)
    assert all(s["step"] == 7 for s in optimizer.state.values())


def test_state_that_is_no_tensor_is_left_alone():
    model = helpers.mlp()
    optimizer = helpers.sgd(model)
    helpers.make_pruner(model, optimizer)
    optimizer.state[model[0].weight]["name"] = "first"
    helpers.train(model, optimizer, 3)
    assert optimizer.state[model[0].weight]["name"] == "first"


def test_an_optimizer_for_the_prunable_weights_alone():
    model = helpers.convnet()
    optimizer = SGD(helpers.prunable(model), lr=0.1)
    pruner = helpers.make_pruner(model, optimizer)
    helpers.train(model, optimizer, 7)
    assert pruner.sparsity == 1 - 87 / 436


@pytest.mark.parametrize("kind", [SGD, torch.optim.SparseAdam])
def test_embeddings_with_sparse_gradients(kind):
    torch.manual_seed(0)
    table = nn.Embedding(12, 5, sparse=True)
    optimizer = kind(table.parameters(), lr=0.1)
    pruner = fggp.Pruner(table, optimizer, 0.5, begin=0, end=2, every=1, include=nn.Embedding)
    for _ in range(3):
        optimizer.zero_grad()
        table(torch.tensor([1, 1, 4, 7])).square().sum().backward()
        optimizer.step()
        helpers.assert_exactly_zero(pruner, optimizer)
    assert pruner.sparsity == 0.5
    assert pruner.masks["weight"][[1, 4, 7]].float().mean() > 0.5  # rows that were looked up have gradients


# Third parties


PYTORCH_OPTIMIZER = """
A2Grad ADOPT APOLLO ASGD AccSGD AdEMAMix AdaBelief AdaBound AdaDelta AdaFactor AdaGC AdaHessian AdaMax AdaMod AdaNorm
AdaPNM AdaShift AdaSmooth AdaTAM Adai Adalite Adam AdamC AdamG AdamP AdamS AdamW AdamWSN Adan AggMo Aida AliG Alice
Amos Ano ApolloDQN AvaGrad BCOS CAME Conda DAdaptAdaGrad DAdaptAdam DAdaptAdan DAdaptLion DAdaptSGD DASH DiffGrad
DualAdam EXAdam EmoFact EmoLynx EmoNavi FAdam FOCUS FTRL FlashAdamW Fira Fromage GaLore Grams Gravity GrokFastAdamW Kate
Kron LARS LaProp Lamb Lion LoRARite MADGRAD MARS MSVAG Magma NAdam Nero NovoGrad PAdam PID PNM Prodigy QHAdam QHM RACS
RAdam RMSprop ROSE Ranger SCION SCIONLight SGD SGDP SGDSaI SGDW SM3 SOAP SPAM SPlus SRMM SWATS SaRA ScalableShampoo
ScheduleFreeAdamW ScheduleFreeRAdam ScheduleFreeSGD Shampoo SignSGD SimplifiedAdEMAMix SophiaH StableAdamW StableSPAM
TAM Tiger VSGD Yogi
""".split()  # noqa: SIM905 (as a list it would take 110 lines)
"""Those that are made from parameters alone. Others wrap an optimizer, or need the model or matrices alone."""

DRAWING = ["AdaHessian", "Kron", "Magma", "SophiaH"]
"""Those that draw random numbers, so that a resumed run is another one."""

MATRICES = ["AdaGO", "AdaMuon", "Muon", "NorMuon", "SpectralSphere"]
"""Those for matrices, as the biases need another optimizer."""

SCHEDULEFREE = ["AdamWScheduleFree", "RAdamScheduleFree", "SGDScheduleFree"]


def wide(seed=0):
    """An MLP with weights of 4608 elements: smaller state is not quantised."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 768), nn.Tanh(), nn.Linear(768, 6))


def take_step(model, optimizer, t):
    """A training step in the way that the optimizer needs."""
    kind = type(optimizer).__name__
    optimizer.zero_grad()
    loss = helpers.loss_of(model, t)
    loss.backward(create_graph=kind in ("AdaHessian", "SophiaH"))  # they take second derivatives
    optimizer.step(lambda: float(loss)) if kind == "AliG" else optimizer.step()
    optimizer.zero_grad()  # with second derivatives, gradients and graph would keep each other


def assert_all_zero(pruner, optimizer, allowed=()):
    """Pruned weights are +0, and all numbers that the optimizer has for them are zero, but for those at some keys."""
    for weight, mask in zip(helpers.pruned_parameters(pruner).values(), pruner.masks.values(), strict=True):
        assert not helpers.bits(weight)[~mask.contiguous()].any()
        for path, numbers in numbers_of(optimizer.state.get(weight) or {}, weight.shape).items():
            assert path[0] in allowed or not numbers[..., ~mask].any(), path
    assert pruner.sparsity == 1 - sum(int(m.sum()) for m in pruner.masks.values()) / pruner._masks.total


def train_and_resume(make_model, make_optimizer, draws=False, allowed=()):
    """Zeros are exact after every step, and in a run that is resumed from state dicts; it has the bits of the first."""

    def start(seed):
        model = make_model(seed)
        optimizer = make_optimizer(model)
        if hasattr(optimizer, "train"):
            optimizer.train()
        return model, optimizer, helpers.make_pruner(model, optimizer, every=1, end=5)

    model, optimizer, pruner = start(0)
    for t in range(1, 4):
        take_step(model, optimizer, t)
        assert_all_zero(pruner, optimizer, allowed)
    assert 0 < pruner.sparsity < 0.8
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), pruner.state_dict()], file)
    file.seek(0)
    saved = torch.load(file, weights_only=False)  # third parties save objects of their own
    other, other_optimizer, other_pruner = start(1)
    for each, state in zip((other, other_optimizer, other_pruner), saved, strict=True):
        each.load_state_dict(state)
    assert_all_zero(other_pruner, other_optimizer, allowed)
    for t in range(4, 7):
        take_step(model, optimizer, t)
        take_step(other, other_optimizer, t)
        assert_all_zero(pruner, optimizer, allowed)
        assert_all_zero(other_pruner, other_optimizer, allowed)
    assert pruner.sparsity == other_pruner.sparsity
    assert pruner.sparsity == pytest.approx(0.8, abs=1e-3)
    assert draws or helpers.identical(dict(pruner.masks), dict(other_pruner.masks))
    assert draws or helpers.identical(list(model.parameters()), list(other.parameters()))
    if hasattr(optimizer, "eval"):
        optimizer.eval()  # schedule-free: swaps in the averaged weights
        assert_all_zero(pruner, optimizer, allowed)
    return optimizer


@pytest.mark.filterwarnings("default")  # third parties may warn
@pytest.mark.parametrize("kind", PYTORCH_OPTIMIZER)
def test_pytorch_optimizer(kind):
    make = getattr(package("pytorch_optimizer"), kind)
    train_and_resume(helpers.mlp, lambda m: make(m.parameters(), lr=1e-3), draws=kind in DRAWING)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", MATRICES)
def test_pytorch_optimizer_for_matrices(kind):
    make = getattr(package("pytorch_optimizer"), kind)

    def of_matrices(model):
        matrices = [p for p in model.parameters() if p.ndim == 2]
        return make(matrices if kind == "SpectralSphere" else [{"params": matrices, "use_muon": True}], lr=1e-3)

    train_and_resume(helpers.mlp, of_matrices)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", SCHEDULEFREE)
def test_schedulefree(kind):
    make = getattr(package("schedulefree"), kind)
    optimizer = train_and_resume(helpers.mlp, lambda m: make(m.parameters(), lr=0.01))
    assert not any(group["train_mode"] for group in optimizer.param_groups)  # so the averages were looked at


@pytest.fixture
def eager():
    """Torchao compiles its step; the compiler is not what is tested."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


@pytest.mark.usefixtures("eager")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["AdamW8bit", "AdamW4bit", "AdamWFp8"])
def test_torchao(kind):
    make = getattr(package("torchao.optim"), kind)
    allowed = ["exp_avg_sq"] if kind == "AdamW4bit" else []  # in 4 bits it has no zero
    optimizer = train_and_resume(wide, lambda m: make(m.parameters(), lr=0.01), allowed=allowed)
    assert any(type(each).__name__.startswith("OptimState") for s in optimizer.state.values() for each in s.values())


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["AdamW8bit", "AdEMAMix8bit", "Lion8bit", "PagedAdamW8bit", "AdamW"])
def test_bitsandbytes(kind):
    make = getattr(package("bitsandbytes").optim, kind)
    optimizer = train_and_resume(wide, lambda m: make(m.parameters(), lr=0.01))
    assert any(s["state1"].dtype == torch.uint8 for s in optimizer.state.values()) == kind.endswith("8bit")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["AdamWScheduleFree", "Lion", "AdaBelief", "Shampoo"])
def test_the_run_with_third_parties_is_that_of_pruning_by_hand(kind):
    make = getattr(package("schedulefree" if kind == "AdamWScheduleFree" else "pytorch_optimizer"), kind)

    def started(model):
        optimizer = make(model.parameters(), lr=0.01 if kind == "AdamWScheduleFree" else 1e-3)
        if hasattr(optimizer, "train"):
            optimizer.train()
        return optimizer

    helpers.run_beside_the_reference(helpers.mlp, started, 8)


def test_state_that_cannot_be_zeroed_is_refused_when_it_is_first_seen():
    class Quantised(torch.optim.SGD):
        """Keeps a history in a format of its own."""

        def step(self, closure=None):
            loss = super().step(closure)
            for group in self.param_groups:
                for p in group["params"]:
                    self.state[p]["history"] = torch.ones(p.shape, dtype=torch.int8)
            return loss

    model = helpers.mlp()
    optimizer = Quantised(model.parameters(), lr=0.1)
    helpers.make_pruner(model, optimizer, init_sparsity=0.5)
    helpers.backward(model, optimizer, 1)
    with pytest.raises(TypeError, match=r"optimizer=Quantised keeps its state 'history' .* as Tensor of torch\.int8"):
        optimizer.step()
    assert optimizer.state[model[0].weight]["history"].all()
    with helpers.untouched(model, optimizer), pytest.raises(TypeError, match="optimizer=Quantised keeps its state"):
        helpers.make_pruner(model, optimizer)


def test_a_wrapper_that_is_no_initialised_optimizer_is_refused():
    class Wrapper(torch.optim.Optimizer):
        """Like the wrapper of Accelerate."""

        def __init__(self, optimizer):
            self.optimizer = optimizer

        @property
        def param_groups(self):
            return self.optimizer.param_groups

        def step(self, closure=None):
            self.optimizer.step(closure)

    model = helpers.mlp()
    optimizer = helpers.sgd(model)
    with helpers.untouched(model, optimizer), pytest.raises(TypeError, match="optimizer=Wrapper has no step hooks"):
        helpers.make_pruner(model, Wrapper(optimizer))
    with pytest.raises(TypeError, match=r"optimizer=<generator .* must be a torch.optim.Optimizer"):
        helpers.make_pruner(model, model.parameters())


# torch.amp.GradScaler


def scaled_training(model, optimizer, scaler, steps, infinite=(), unscale=False):
    """An AMP loop with an inf in the gradients of some iterations; yields after each iteration."""
    for t in range(1, steps + 1):
        optimizer.zero_grad()
        scaler.scale(helpers.loss_of(model, t)).backward()
        if t in infinite:
            next(p for p in model.parameters() if p.grad is not None).grad.view(-1)[0] = float("inf")
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        yield t


SCALED = ["sgd-momentum", "sgd-fused", "adam", "adam-foreach", "adam-fused", "adamw-amsgrad-fused", "adagrad-fused"]


@pytest.mark.parametrize("unscale", [False, True], ids=["", "unscale_"])
@pytest.mark.parametrize("name", SCALED)
def test_a_skipped_step_is_no_step_and_the_run_is_that_without_scaling(name, unscale):
    kind, options = OPTIMIZERS[name]
    (model, optimizer), (other, other_optimizer) = helpers.twin(helpers.mlp, making(kind, options))
    pruner = helpers.make_pruner(model, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    by_hand = reference.PrunedTraining(helpers.prunable(other), other_optimizer, 0.8, 0, 6, 2)
    infinite = (2, 3, 5, 9)  # the updates at step 2 and at the end of the schedule meet an inf
    for t in scaled_training(model, optimizer, scaler, 12, infinite, unscale):
        if t not in infinite:
            helpers.backward(other, other_optimizer, t)
            by_hand.before_step()
            other_optimizer.step()
            by_hand.after_step()
        assert (pruner.step, pruner.last_update) == (by_hand.t, max(by_hand.updates, default=0))
        assert helpers.identical(list(pruner.masks.values()), by_hand.masks)
        assert helpers.identical(model.state_dict(), other.state_dict())
        helpers.assert_exactly_zero(pruner, optimizer)
    assert by_hand.updates == [2, 4, 6]


mixed = Score("mixed", lambda block: block.weight.abs() + 10 * block.grad.abs(), needs_gradient=True)


class Mixed(fggp.Method):
    """Ranks by a sum of |θ| and |g|, which is wrong unless the gradient is unscaled."""

    name = "mixed"

    def chain(self, now):
        return [TopK(mixed, now.excess)]


@pytest.mark.parametrize("name", ["sgd-momentum", "sgd-fused", "adam-fused"])
def test_gradients_are_ranked_unscaled(name):
    kind, options = OPTIMIZERS[name]
    (model, optimizer), (other, other_optimizer) = helpers.twin(helpers.mlp, making(kind, options))
    pruner = helpers.make_pruner(model, optimizer, method=Mixed())
    plain = helpers.make_pruner(other, other_optimizer, method=Mixed())
    for t in scaled_training(model, optimizer, torch.amp.GradScaler("cpu", init_scale=2.0**12), 7):
        helpers.train(other, other_optimizer, range(t, t + 1))
        assert helpers.identical(dict(pruner.masks), dict(plain.masks))
    assert pruner.sparsity == 0.8


def test_autocast_with_a_scaler():
    model = helpers.convnet()
    optimizer = Adam(model.parameters(), lr=0.01, fused=True)
    pruner = helpers.make_pruner(model, optimizer)
    scaler = torch.amp.GradScaler("cpu")
    for t in range(1, 8):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = helpers.loss_of(model, t)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        helpers.assert_exactly_zero(pruner, optimizer)
    assert pruner.sparsity == 1 - 87 / 436


def test_a_disabled_scaler():
    model = helpers.mlp()
    optimizer = helpers.sgd(model)
    pruner = helpers.make_pruner(model, optimizer)
    list(scaled_training(model, optimizer, torch.amp.GradScaler("cpu", enabled=False), 7))
    assert (pruner.step, pruner.sparsity) == (7, 0.8)
