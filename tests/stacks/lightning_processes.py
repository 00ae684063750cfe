"""Two processes: `python lightning_processes.py ddp|fsdp2 FOLDER`; Lightning starts the second."""

import os
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.fsdp import fully_shard

from fggp.lightning import Pruning
from lightning_runs import SaveAt, assert_settled, loader, make_module, make_trainer, plain_weights


def configure_model(self):
    """Shard the weights, as Lightning's ModelParallelStrategy wants it."""
    mesh = self.device_mesh["data_parallel"]
    fully_shard(self.net[0], mesh=mesh)
    fully_shard(self.net, mesh=mesh)


def run(kind, *callbacks, ckpt_path=None, **arguments):
    """Train four epochs in two processes: four steps each, of two times four rows."""
    fsdp = {"configure_model": configure_model} if kind == "fsdp2" else {}
    module = make_module(pl, validation_step=pl.LightningModule.validation_step, **fsdp)
    if kind == "fsdp2":
        strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo")
    else:
        strategy = DDPStrategy(process_group_backend="gloo")
    pruning = Pruning(sparsity=0.9, **arguments)
    trainer = make_trainer(pl, pruning, *callbacks, strategy=strategy, devices=2)
    trainer.fit(module, loader(), ckpt_path=ckpt_path)
    assert trainer.world_size == 2
    assert pruning.pruner.step == 16
    assert pruning.pruner.schedule.end == 8
    assert_settled(pruning, module)
    return plain_weights(module)


def main(kind, folder):
    torch.set_num_threads(1)
    warnings.filterwarnings("error", module=r"fggp\.")
    for i, arguments in enumerate([{}, {"method": "granet", "init_sparsity": 0.5, "floor": 2}]):
        path = Path(folder) / f"{i}.ckpt"
        whole = run(kind, SaveAt(pl, 6, path), **arguments)
        resumed = run(kind, ckpt_path=path, **arguments)
        assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
    # PyTorch 2.15 sometimes aborts a process that has had a process group while the interpreter shuts down.
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
