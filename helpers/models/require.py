"""Checks of arguments: an error that names the argument, before a library stumbles over it."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor


def whole(name: str, value: Any, least: int | None = None) -> int:
    """The value, if it is a whole number (of Python or NumPy), and not below `least`.

    Raises:
        ValueError: It is another number, a truth value or no number at all.
    """
    is_whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_whole or (least is not None and value < least):
        bound = "" if least is None else f" from {least} on"
        raise ValueError(f"{name} must be a whole number{bound}, not {value!r}")
    return int(value)


def positive(name: str, value: Any, *, zero: bool = False) -> None:
    """Pass finite numbers above zero; also zero itself, if that is allowed.

    Raises:
        ValueError: It is another number, or none.
    """
    is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    is_number = is_number and math.isfinite(value)
    if not is_number or value < 0 or (value == 0 and not zero):
        allowed = "zero or a positive" if zero else "a positive"
        raise ValueError(f"{name} must be {allowed} finite number, not {value!r}")


def floats(name: str, value: Any, ndim: int | None = None) -> None:
    """Pass tensors of floating-point numbers, with `ndim` dimensions if that is given.

    Raises:
        ValueError: It is a list, an array, a tensor of whole numbers, or of another shape.
    """
    is_tensor = isinstance(value, Tensor) and value.is_floating_point() and value.ndim
    if not is_tensor or ndim not in (None, value.ndim):
        of = "" if ndim is None else f" of {ndim} dimension{'s'[: ndim != 1]}"
        raise ValueError(
            f"{name} must be a floating-point tensor{of}, not {_shown(value)}: "
            "torch.as_tensor(x).float() makes one"
        )


def ids(name: str, value: Any) -> None:
    """Pass tensors `[n]` of whole numbers: tokens, positions, rows.

    Raises:
        ValueError: It is anything else, for example a list or a mask.
    """
    kinds = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    if not isinstance(value, Tensor) or value.ndim != 1 or value.dtype not in kinds:
        raise ValueError(
            f"{name} must be a tensor [n] of whole numbers, not {_shown(value)} "
            "(of a mask take mask.nonzero()[:, 0])"
        )


def _shown(value: Any) -> str:
    """What an argument is, in a few words."""
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return f"{type(value).__name__}"
