"""What is left of a pruned weight, in the order in which the kernels go through it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fggp.ship.graph.operations import Conv2d, Linear, Pair
from fggp.ship.runtime.layout import Layout


@dataclass(frozen=True)
class SparseWeight:
    """The non-zero weights of a convolution, or of a linear layer, which is one of a single position.

    Args:
        values: the weights, float32.
        output: the output channel of each, ascending.
        input: its input channel.
        row: its row in the kernel.
        column: its column in the kernel.
        shape: output channels, input channels, rows and columns of the kernel.
        bias: [output channels].
    """

    values: Tensor
    output: Tensor
    input: Tensor
    row: Tensor
    column: Tensor
    shape: tuple[int, int, int, int]
    bias: Tensor

    @classmethod
    def of(cls, op: Conv2d | Linear) -> "SparseWeight":
        """Take the weights that are left."""
        weight = op.weight if op.weight.dim() == 4 else op.weight[:, :, None, None]
        groups = op.groups if isinstance(op, Conv2d) else 1
        outputs, inputs, rows, columns = weight.shape
        bias = op.bias if op.bias is not None else weight.new_zeros(outputs)
        flat = weight.contiguous().view(-1)
        at = flat.nonzero().squeeze(1)
        column, position = at % columns, at // columns
        row, position = position % rows, position // rows
        output = position // inputs
        # Grouped: an output channel sees its own group's inputs only, which to a sparse weight is just fewer weights.
        channel = position % inputs + output // (outputs // groups) * inputs
        shape = (outputs, inputs * groups, rows, columns)
        return cls(flat[at], output, channel, row, column, shape, bias.contiguous())

    def unfolded(self) -> "SparseWeight":
        """The same weights for an input with a channel for each input channel and kernel position."""
        outputs, inputs, rows, columns = self.shape
        channel = (self.input * rows + self.row) * columns + self.column
        zeros = torch.zeros_like(self.row)
        shape = (outputs, inputs * rows * columns, 1, 1)
        return SparseWeight(self.values, self.output, channel, zeros, zeros, shape, self.bias)

    def entries(self, layout: Layout, padding: Pair, dilation: Pair, chunk: int) -> tuple[Tensor, Tensor]:
        """The weights as `fggp_conv` wants them.

        Args:
            layout: of the input.
            padding: rows and columns of zeros around it.
            dilation: rows and columns from one position of the kernel to the next.
            chunk: input channels that are gone through together.

        Returns:
            int32 [weights, 2], each an offset in bytes and a weight's bits; int32 [chunks · output channels + 1], where
            each chunk's output channel begins.
        """
        assert not layout.far
        outputs, inputs, *_ = self.shape
        pixel = self.input * layout.plane
        pixel += (self.row * dilation[0] - padding[0]) * layout.row + self.column * dilation[1] - padding[1]
        chunks = -(-inputs // chunk)
        part = self.input // chunk * outputs + self.output
        starts = torch.zeros(chunks * outputs + 1, dtype=torch.int32)
        starts[1:] = torch.bincount(part, minlength=chunks * outputs).cumsum(0)
        offset = (pixel * (layout.lanes * 4)).to(torch.int32)
        entries = torch.stack((offset, self.values.view(torch.int32)), 1)
        if chunks > 1:
            entries = entries[torch.sort(part, stable=True).indices]
        return entries.contiguous(), starts
