"""A file is the same for the bare model and for the model in any wrapper."""

import pytest
import torch
from torch import nn

import fggp
from small_files import Holder, mlp, pruned, states_equal
from version2_files import entry_of, taken_apart


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda m: nn.DataParallel(torch.compile(m))])
def test_files_of_wrapped_and_bare_models_are_the_same(tmp_path, wrap):
    model = pruned(mlp(), 0.9)
    fggp.save(model, tmp_path / "bare")
    fggp.save(wrap(model), tmp_path / "wrapped")
    assert (tmp_path / "bare").read_bytes() == (tmp_path / "wrapped").read_bytes()
    loaded = mlp(1)
    fggp.load(tmp_path / "bare", wrap(loaded))
    assert states_equal(loaded, model)


@pytest.mark.parametrize("part", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_names_have_no_part_from_any_wrapper(tmp_path, part):
    model = mlp()
    fggp.save(model, tmp_path / "bare")
    fggp.save(nn.ModuleDict({part: model}), tmp_path / "wrapped")
    assert (tmp_path / "bare").read_bytes() == (tmp_path / "wrapped").read_bytes()


def test_a_compiled_part_and_a_module_that_is_called_module(tmp_path):
    model = nn.ModuleDict({"module": mlp(), "part": mlp(1)})
    fggp.save(model, tmp_path / "bare")
    assert entry_of(taken_apart((tmp_path / "bare").read_bytes()).index, "module.0.bias")
    partly = nn.ModuleDict({"module": mlp(2), "part": torch.compile(mlp(3))})
    fggp.load(tmp_path / "bare", partly)
    fggp.save(partly, tmp_path / "partly")
    assert (tmp_path / "bare").read_bytes() == (tmp_path / "partly").read_bytes()
    for wrapped in (nn.DataParallel(model), nn.ModuleDict({**model, "module": nn.DataParallel(model["module"])})):
        fggp.save(wrapped, tmp_path / "wrapped")
        assert (tmp_path / "bare").read_bytes() == (tmp_path / "wrapped").read_bytes()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without distributed")
def test_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model, loaded = mlp(), mlp(1)
        fggp.save(nn.parallel.DistributedDataParallel(model), tmp_path / "f")
        fggp.load(tmp_path / "f", loaded)
        assert states_equal(loaded, model)
        sharded = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        holder = Holder(torch.distributed.tensor.distribute_tensor(torch.ones(3), sharded))
        with pytest.raises(NotImplementedError, match="'t0' is a DTensor"):
            fggp.save(holder, tmp_path / "f")
    finally:
        torch.distributed.destroy_process_group()
