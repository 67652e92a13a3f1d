"""Checks of arguments: a ValueError that names the argument, before a library stumbles over it."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor


def whole(name: str, value: Any, least: int | None = None) -> int:
    """The value, if it is a whole number (of Python or NumPy) and not below `least`."""
    is_whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_whole or (least is not None and value < least):
        bound = "" if least is None else f" from {least} on"
        raise ValueError(f"{name} must be a whole number{bound}, not {value!r}")
    return int(value)


def positive(name: str, value: Any, *, zero: bool = False) -> None:
    """Pass finite numbers above zero; also zero itself, if that is allowed."""
    is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not (is_number and 0 <= value < math.inf and (value or zero)):
        allowed = "zero or a positive" if zero else "a positive"
        raise ValueError(f"{name} must be {allowed} finite number, not {value!r}")


def floats(name: str, value: Any, ndim: int | None = None) -> None:
    """Pass tensors of floating-point numbers, with `ndim` dimensions (one or more by default)."""
    is_tensor = isinstance(value, Tensor) and value.is_floating_point() and value.ndim
    if not is_tensor or ndim not in (None, value.ndim):
        of = "" if ndim is None else f" of {ndim} dimension{'s'[: ndim != 1]}"
        found = f"not {_shown(value)}: torch.as_tensor(x).float() makes one"
        raise ValueError(f"{name} must be a floating-point tensor{of}, {found}")


def finite(name: str, *values: Any) -> None:
    """Pass floating-point tensors without NaN and infinity."""
    for value in values:
        floats(name, value)
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} holds NaN or infinity: check the model or training behind it")


def ids(name: str, value: Any) -> None:
    """Pass tensors `[n]` of whole numbers: tokens, positions, rows; no masks."""
    kinds = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    if not isinstance(value, Tensor) or value.ndim != 1 or value.dtype not in kinds:
        found = f"not {_shown(value)} (of a mask take mask.nonzero()[:, 0])"
        raise ValueError(f"{name} must be a tensor [n] of whole numbers, {found}")


def _shown(value: Any) -> str:
    """What an argument is, in a few words."""
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return type(value).__name__
