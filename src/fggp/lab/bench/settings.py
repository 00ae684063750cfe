"""The options of `fggp bench`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fggp.lab.base.options import default_shown_as, require


@dataclass(frozen=True)
class BenchSettings:
    """Measure a pruned network beside the dense one: its files, its speed and its memory, on every engine there is.

    $ fggp bench fggp-runs/RUN                              a finished run of fggp train
    $ fggp bench vgg19 --sparsity 0.9 0.98                  a network by name: random weights, pruned by magnitude
    $ fggp bench resnet50 --batch 1 --threads 1

    Engines are PyTorch, ONNX Runtime and OpenVINO where they are installed, fggp.compile, and on request torch.compile,
    fggp in int8 (fggp.quantize) and OpenVINO in int8 (quantised by NNCF: what one would try instead of pruning). Each
    runs in a process of its own, all but the last two in float32, in turns; the result is the median of the turns. A
    run's dense network is the run's own with random values in place of its zeros. Writes a picture, and a line with all
    figures to bench.ndjson.
    """

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN_FOLDER|NAME")]
    """The folder of a finished run of fggp train, or the name of a network as fggp train takes it."""
    sparsity: Annotated[tuple[float, ...] | None, default_shown_as("0.9 0.95 0.98", "SHARE …")] = None
    """For a network by name: shares of each layer's weights that are pruned."""
    blocks: int = 1
    """For a network by name: how many consecutive input channels are pruned together. Four suit int8."""
    batch: Annotated[tuple[int, ...], tyro.conf.arg(metavar="INT …")] = (1, 32)
    """Images at once."""
    image_size: Annotated[tuple[int, ...] | None, default_shown_as("what the network is for", "PIXELS")] = None
    """Height and width of the images, one number for both."""
    threads: Annotated[int | None, default_shown_as("PyTorch's number of threads", "INT")] = None
    """Threads of each engine."""
    engines: Annotated[tuple[str, ...] | None, default_shown_as("pytorch onnxruntime openvino fggp", "NAME …")] = None
    """Which to measure: pytorch, torch.compile, onnxruntime, openvino, openvino-int8, fggp, fggp-runtime, fggp-int8."""
    rounds: int = 9
    """Turns of each engine, of a third of a second."""
    out: Path = Path("fggp-bench")
    """Where the picture and the record are written."""

    def __post_init__(self) -> None:
        for sparsity in self.sparsity or ():
            require("sparsity", sparsity, 0 < sparsity < 1, "in (0, 1)")
        require("sparsity", self.sparsity, self.sparsity != (), "at least one share")
        require("batch", self.batch, len(self.batch) > 0 and min(self.batch) >= 1, "at least 1")
        require("threads", self.threads, self.threads is None or self.threads >= 1, "at least 1")
        require("blocks", self.blocks, self.blocks >= 1, "at least 1")
        require("rounds", self.rounds, self.rounds >= 1, "at least 1")
