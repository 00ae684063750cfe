"""The non-zero weights of a product, in the order in which the kernels read them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fggp.ship.graph.operations import Conv2d, Linear, Pair
from fggp.ship.runtime.layout import ActivationLayout


@dataclass(frozen=True)
class SparseWeight:
    """The non-zero weights of a convolution, or of a linear layer, which is a convolution of one pixel.

    Args:
        values: the weights, float32 [n].
        output: the output channel of each weight, ascending, [n].
        input: its input channel, [n].
        row: its row in the kernel, [n].
        column: its column in the kernel, [n].
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
        """Collect the non-zero weights of an operation."""
        weight = op.weight if op.weight.dim() == 4 else op.weight[:, :, None, None]
        groups = op.groups if isinstance(op, Conv2d) else 1
        outputs, inputs, rows, columns = weight.shape
        bias = op.bias if op.bias is not None else weight.new_zeros(outputs)
        flat = weight.contiguous().view(-1)
        indices = flat.nonzero().squeeze(1)
        column, index = indices % columns, indices // columns
        row, index = index % rows, index // rows
        output = index // inputs
        # An output channel of a grouped convolution reads only the inputs of its group; its other weights are zero.
        channel = index % inputs + output // (outputs // groups) * inputs
        shape = (outputs, inputs * groups, rows, columns)
        return cls(flat[indices], output, channel, row, column, shape, bias.contiguous())

    def unfolded(self) -> "SparseWeight":
        """The same weights for an unfolded input, which has a channel for each input channel and kernel position."""
        outputs, inputs, rows, columns = self.shape
        channel = (self.input * rows + self.row) * columns + self.column
        zeros = torch.zeros_like(self.row)
        shape = (outputs, inputs * rows * columns, 1, 1)
        return SparseWeight(self.values, self.output, channel, zeros, zeros, shape, self.bias)

    def entries(self, layout: ActivationLayout, padding: Pair, dilation: Pair, chunk: int) -> tuple[Tensor, Tensor]:
        """The weights in the format of `fggp_conv`.

        Args:
            layout: the layout of the input.
            padding: rows and columns of zeros around the input.
            dilation: the distance between kernel positions, in rows and columns.
            chunk: the number of input channels in a chunk; all weights of a chunk come before those of the next.

        Returns:
            int32 [weights, 2], for each weight the offset of its input in bytes, and its bits; int32
            [chunks · output channels + 1], the index of the first weight of each chunk and output channel.
        """
        assert not layout.exceeds_offsets
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
