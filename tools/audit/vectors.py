"""Vectors from the files that people have, read without running code that may be in them.

read_directions("v.npy")                                 # [d], or [d, k]: a subspace
read_directions("sae.safetensors", key="W_dec", row="3:9")  # rows of a matrix, each a direction
read_directions("refusal.pt", layer=14, pos=-1)          # [pos, layer, d] or {layer: [d]}
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor

SHOW_SAVING = "save one vector with numpy.save, torch.save or safetensors.torch.save_file"


class DirectionFileError(ValueError):
    """A file holds no usable direction; the message says why and what to do."""


def _torch(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


READERS: Mapping[str, Callable[[Path], Any]] = {
    ".npy": lambda path: np.load(path, allow_pickle=False),
    ".npz": lambda path: dict(np.load(path, allow_pickle=False)),
    ".pt": _torch,
    ".pth": _torch,
    ".bin": _torch,
    ".safetensors": safetensors.torch.load_file,
}


def read_file(path: str | Path) -> Any:
    """What a file holds: a tensor, or a mapping of them. A DirectionFileError says why nothing."""
    path = Path(path)
    if not path.is_file():
        reason = "is a folder" if path.is_dir() else "does not exist"
        raise DirectionFileError(f"{path} {reason}: {SHOW_SAVING}")
    if path.suffix.lower() not in READERS:
        raise DirectionFileError(f"{path} must end in {', '.join(READERS)}: {SHOW_SAVING}")
    try:
        return READERS[path.suffix.lower()](path)
    except OSError as error:
        raise DirectionFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # damaged files raise whatever their parser stumbles over
        reason = f"{path} is damaged, or holds more than numbers: {SHOW_SAVING}"
        raise DirectionFileError(reason) from error


def files_in(paths: list[str]) -> list[Path]:
    """The files, and of folders all that can be read, in order; a DirectionFileError if none."""
    found = []
    for path in map(Path, paths):
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in READERS)
        if not inside:
            raise DirectionFileError(f"{path} holds no file that ends in {', '.join(READERS)}")
        found += inside
    return found


def read_directions(
    path: str | Path,
    *,
    key: str | None = None,
    row: str | None = None,
    column: str | None = None,
    layer: int | None = None,
    pos: int | None = None,
) -> dict[str, Float[Tensor, "d *k"]]:
    """The directions `[d]`, or the basis of a subspace `[d, k]`, in a file, as float32, by name.

    Where the file holds several tensors, `key` says which; without it the one called `direction` is
    meant, or that of the `layer`. Of a matrix `row` or `column` takes some ("5", "3:9", "1,4",
    "all"), of `[layer, d]` `layer` one, of `[pos, layer, d]` `layer` and `pos`. A
    DirectionFileError says why there is no such vector in it.
    """
    path = Path(path)
    name, content = _chosen(path, read_file(path), key, layer)
    tensor = as_tensor(path, content)
    if tensor.ndim == 3:
        if layer is None or pos is None:
            raise _shaped(path, tensor, "of [pos, layer, d] choose one with --pos and --layer")
        tensor = _one(path, _one(path, tensor, pos, "--pos"), layer, "--layer")
        return {f"{name}[{pos}, {layer}]": tensor}
    if tensor.ndim == 2 and layer is not None and row is None and column is None:
        return {f"{name}[{layer}]": _one(path, tensor, layer, "--layer")}
    if row is not None or column is not None:
        matrix = _matrix(path, tensor).T if column is not None else _matrix(path, tensor)
        option = "--row" if column is None else "--column"
        chosen = numbers(row if column is None else column, len(matrix), option)
        return {f"{name}[{number}]": matrix[number] for number in chosen}
    return {name: _whole(path, tensor)}


def numbers(text: str, size: int, option: str) -> list[int]:
    """The numbers that "5", "3:9", "1,4" or "all" mean, of `size`; a ValueError if none."""
    found: list[int] = []
    for part in text.split(","):
        if part.strip() == "all":
            found += range(size)
        elif match := re.fullmatch(r"\s*([0-9]{0,9}):([0-9]{0,9})\s*", part):
            found += range(int(match[1] or 0), int(match[2] or size))
        elif re.fullmatch(r"\s*-?[0-9]{1,9}\s*", part):
            found.append(int(part) + size * (int(part) < 0))
        else:
            raise ValueError(f"{option} {text!r} must be like 5, 3:9, 1,4 or all")
    if wrong := [number for number in found if not 0 <= number < size]:
        raise ValueError(f"{option} {wrong[0]} is out of range: there are {size}")
    if not found:
        raise ValueError(f"{option} {text!r} chooses none of {size}")
    return list(dict.fromkeys(found))


def _chosen(path: Path, content: Any, key: str | None, layer: int | None) -> tuple[str, Any]:
    """The tensor that is meant, and what to call it."""
    if not isinstance(content, Mapping):
        if key is not None:
            raise DirectionFileError(f"{path} holds one tensor: leave out --key {key}")
        return path.stem, content
    named = {str(name): value for name, value in content.items()}
    wanted = key if key is not None else "direction"
    if key is None and layer is not None:
        of_layer = [n for n in named if re.fullmatch(rf"(?:.*\D)?0*{layer}(?:\D.*)?", n)]
        wanted = of_layer[0] if len(of_layer) == 1 else wanted
    if key is None and len(named) == 1:
        wanted = next(iter(named))
    if wanted not in named:
        names = f"{list(named)[:20]}{' and more' if len(named) > 20 else ''}"
        raise DirectionFileError(
            f"{path} holds {names}: call the tensor 'direction', or name one with --key"
        )
    name = path.stem if key is None else f"{path.stem}:{key}"
    return name, named[wanted]


def as_tensor(path: Path, content: Any) -> Float[Tensor, "..."]:
    """The content of a file as finite float32 numbers, or a DirectionFileError."""
    if isinstance(content, np.ndarray) and content.dtype.kind == "f":
        content = torch.from_numpy(content.astype(np.float64))
    if not isinstance(content, Tensor) or not content.is_floating_point():
        kind = getattr(content, "dtype", type(content).__name__)
        raise DirectionFileError(f"{path} holds {kind}, not floating-point numbers: {SHOW_SAVING}")
    if content.ndim not in (1, 2, 3) or not content.numel():
        raise _shaped(path, content, "a direction has the shape [d], a subspace [d, k]")
    if content.layout != torch.strided or content.is_meta:
        raise DirectionFileError(f"{path} holds no plain tensor: save v.to_dense() on the CPU")
    tensor = content.detach().float()
    if not torch.isfinite(tensor).all():
        raise DirectionFileError(f"{path} holds NaN or infinity: check what produced it")
    return tensor


def _whole(path: Path, tensor: Tensor) -> Float[Tensor, "d *k"]:
    """A vector, or a matrix that can only be the basis of a subspace."""
    if tensor.ndim == 1 or tensor.numel() == max(tensor.shape):
        return tensor.reshape(-1)
    if tensor.shape[0] <= tensor.shape[1]:
        advice = (
            "--row all takes each row as a direction; a subspace has the shape [d, k], so save "
        )
        raise _shaped(path, tensor, f"{advice}the transpose if the rows span one")
    return tensor


def _matrix(path: Path, tensor: Tensor) -> Float[Tensor, "rows d"]:
    if tensor.ndim != 2:
        raise _shaped(path, tensor, "--row and --column take part of a matrix")
    return tensor


def _one(path: Path, tensor: Tensor, number: int, option: str) -> Tensor:
    if not -len(tensor) <= number < len(tensor):
        raise _shaped(path, tensor, f"{option} {number} is out of range")
    return tensor[number]


def _shaped(path: Path, tensor: Tensor, advice: str) -> DirectionFileError:
    return DirectionFileError(f"{path} has the shape {tuple(tensor.shape)}: {advice}")
