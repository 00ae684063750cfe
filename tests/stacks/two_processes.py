"""One of two processes that train together through gloo: `python two_processes.py RANK FOLDER`, with RANK 0 and 1.

Each asserts what must hold, and compares itself with the other.
"""

import copy
import os
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

import helpers
import test_accelerate as plain
import transformers_runs as trainers
from fggp.transformers import Pruning

RANK, FOLDER = int(sys.argv[1]), Path(sys.argv[2])
# Read by Accelerate and Transformers. No port is opened, because the process group exists before.
PROCESSES = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "unused", "MASTER_PORT": "0"}


def same_on_both(value):
    """Whether both processes have this value, to the bit."""
    values = [None, None]
    dist.all_gather_object(values, value)
    return helpers.identical(values[0], values[1])


def accelerate_trains():
    """Made before and after ``prepare``; the masks of DistributedDataParallel, and a state saved and loaded."""
    for before in (True, False):
        accelerator = plain.Accelerator(cpu=True, gradient_accumulation_steps=2)
        assert accelerator.num_processes == 2
        model = helpers.mlp()
        optimizer = plain.adam(model)
        made = plain.pruner_for(model, optimizer, end=2) if before else None
        wrapped, prepared, loader = accelerator.prepare(model, optimizer, plain.batches(16))
        assert isinstance(wrapped, torch.nn.parallel.DistributedDataParallel)
        pruner = made or plain.pruner_for(wrapped, prepared, end=2)
        accelerator.register_for_checkpointing(pruner)
        batches = list(loader)
        assert len(batches) == 8
        plain.train(accelerator, wrapped, prepared, batches[:2])
        accelerator.save_state(FOLDER / f"saved-{before}")
        plain.train(accelerator, wrapped, prepared, batches[2:])
        assert (pruner.step, pruner.finished) == (4, True)  # half the batches are this process's, two make a step
        helpers.assert_exactly_zero(pruner, optimizer)
        end = copy.deepcopy([model.state_dict(), dict(pruner.masks), pruner.state_dict()])
        assert same_on_both(end)
        accelerator.load_state(FOLDER / f"saved-{before}")
        assert pruner.step == 1
        plain.train(accelerator, wrapped, prepared, batches[2:])
        assert helpers.identical(end, [model.state_dict(), dict(pruner.masks), pruner.state_dict()])


def the_trainer_trains():
    """Two processes halve the steps, and the schedule with them; a run that is resumed has the same bits."""

    def trainer_with(pruning):
        saving = {"save_strategy": "steps", "save_steps": 3}
        return trainers.trainer_for(trainers.bert(), FOLDER / "trainer", [pruning], ddp_backend="gloo", **saving)

    unbroken = Pruning(trainers.TARGET)
    trainer = trainer_with(unbroken)
    trainer.train()
    assert (trainer.state.global_step, unbroken.pruner.step, unbroken.pruner.schedule.end) == (10, 10, 5)
    trainers.assert_pruned(unbroken.pruner)
    end = trainers.everything(trainer, unbroken.pruner)
    assert same_on_both(end)
    resumed = Pruning(trainers.TARGET)
    trainer = trainer_with(resumed)
    trainer.train(resume_from_checkpoint=str(FOLDER / "trainer" / "checkpoint-3"))
    assert helpers.identical(end, trainers.everything(trainer, resumed.pruner))


def main():
    warnings.filterwarnings("error")
    warnings.filterwarnings("ignore", module=r"(torch|accelerate)\.")
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(RANK), "LOCAL_RANK": str(RANK), **PROCESSES}
    store = FOLDER / "store"
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=RANK, world_size=2, timeout=timedelta(seconds=60)
    )
    accelerate_trains()
    for state in (plain.AcceleratorState, plain.GradientState, plain.PartialState):
        state._reset_state()
    the_trainer_trains()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
