"""State dicts on the disk, in the forms in which training scripts leave them."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from fggp.lab.base.errors import UsageError

AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
"""Keys of weights that were averaged over training, which generalise better than the last ones."""
KEYS = (*AVERAGED, "state_dict", "model_state_dict", "model")
"""Keys under which training scripts keep a state dict, those that are preferred first."""
PREFIXES = ("module.", "_orig_mod.", "model.")
"""What wrappers add to the names: DataParallel, torch.compile, Lightning."""
COUNTERS = ("n_averaged",)
"""Entries of wrappers that are no tensors of the network."""


@dataclass(frozen=True)
class Found:
    """A state dict that was found in a file.

    Attributes:
        state: with the network's own names.
        remark: which of several state dicts it is, for the user; mostly empty.
    """

    state: dict[str, Tensor]
    remark: str = ""


def is_small_file(file: Path) -> bool:
    """Whether `fggp.save` wrote the file, so that only `fggp.load` reads it."""
    return file.suffix == ".safetensors" and "fggp" in metadata(file)


def metadata(file: Path) -> dict[str, str]:
    """Return the texts that a safetensors file carries.

    Raises:
        UsageError: it is no such file.
    """
    try:
        with safetensors.safe_open(file, "pt") as opened:
            return dict(opened.metadata() or {})
    except (safetensors.SafetensorError, OSError) as error:
        raise _unreadable(file, error) from error


def read_state_dict(file: Path) -> Found:
    """Read a state dict of torch.save or safetensors, without running code that is in the file.

    Raises:
        UsageError: there is none in it.
    """
    try:
        if file.suffix == ".safetensors":
            return Found(_own_names(safetensors.torch.load_file(file)))
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise _unreadable(file, error) from error
    remark = ""
    if isinstance(content, Mapping):
        key = next((key for key in KEYS if _holds_tensors(content.get(key))), None)
        if key is not None:
            content = content[key]
            remark = f", its averaged weights ({key!r})" if key in AVERAGED else ""
        tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
        if tensors:
            return Found(_own_names(tensors), remark)
    raise UsageError(f"{file} holds a {type(content).__name__} without tensors; it must hold a state dict")


def _holds_tensors(value: object) -> bool:
    """Whether it is a state dict, and not, say, the settings of averaging."""
    return isinstance(value, Mapping) and any(isinstance(entry, Tensor) for entry in value.values())


def _unreadable(file: Path, error: Exception) -> UsageError:
    # torch's messages continue with how to run the file's code; the first sentence is the reason.
    reason = str(error).partition("\n")[0].partition(". ")[0]
    return UsageError(f"{file} cannot be read as a state dict: {reason}")


def _own_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict without what wrappers add."""
    state = {name: tensor for name, tensor in state.items() if name not in COUNTERS}
    for prefix in PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            return _own_names({name.removeprefix(prefix): tensor for name, tensor in state.items()})
    return state


def refuse_other_network(name: str, model: nn.Module, state: Mapping[str, Tensor], source: object) -> None:
    """Compare the names and shapes of a state dict with those of a network.

    Args:
        name: of the network.
        model: the network.
        state: the state dict.
        source: names it in the message.

    Raises:
        UsageError: they differ.
    """
    own = model.state_dict()
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    reshaped = [key for key in own if key in state and state[key].shape != own[key].shape]
    for wrong, problem in ((missing, "it lacks"), (unexpected, "that has no"), (reshaped, "of another shape is")):
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            shapes = f", {[*state[wrong[0]].shape]} for {[*own[wrong[0]].shape]}" if wrong is reshaped else ""
            raise UsageError(f"{source} is not of model {name!r}: {problem} {wrong[0]!r}{more}{shapes}")
