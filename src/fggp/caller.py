"""Warnings that point at the user's line, not at one inside this library or PyTorch."""

from __future__ import annotations

import os
import sys
import warnings

import torch

_INSIDE = tuple(os.path.dirname(os.path.abspath(file)) + os.sep for file in (__file__, torch.__file__))


def warn_caller(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, at the nearest line on the stack that is neither in fggp nor in torch.

    Args:
        message: the warning's text.
        category: its class.
    """
    level, frame = 1, sys._getframe(0)
    while frame is not None and os.path.abspath(frame.f_code.co_filename).startswith(_INSIDE):
        if frame.f_back is None:
            break
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
