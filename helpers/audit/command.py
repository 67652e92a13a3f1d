"""Judge a direction from files.

    python -m helpers.audit --site mlp_hidden.21 --direction v.npy --pairs ioi [--out FOLDER]

Writes audit.json, audit.md, audit.html and audit.png. Exit status: 0 if the audit was done, 1 if
the model cannot be loaded, 2 for bad options or files, 130 after an interrupt.
"""

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor

from helpers.audit.measure import audit
from helpers.audit.report import save
from helpers.models import Model, ModelError, load_model, model_slug
from helpers.output.files import check_writable
from helpers.patching import Site
from helpers.patching.sites import HOOKS, OF_ONE_HEAD
from helpers.tasks import Pairs, agreement, facts, ioi, read_pairs
from helpers.tasks.pair_files import read_table

TASKS = ("ioi", "number", "gender", "facts")  # pairs that need no file
SHOW_SAVING = "save one vector with numpy.save, torch.save or safetensors.torch.save_file"


class DirectionFileError(ValueError):
    """A file holds no usable direction; the message says why and what to do."""


def parse_site(text: str) -> Site:
    """The site that `str(site)` writes as `text`, such as `mlp_hidden.21` or `head_output.23.1`."""
    kind, *numbers = text.strip().split(".")
    if kind not in HOOKS:
        raise ValueError(f"unknown kind of site {kind!r} in {text!r}: choose one of {list(HOOKS)}")
    of_head = kind in OF_ONE_HEAD
    wanted = f"{kind}.LAYER.HEAD" if of_head else f"{kind}.LAYER"
    whole = all(re.fullmatch("[0-9]{1,9}", number) for number in numbers)
    if not whole or len(numbers) != 1 + of_head:
        raise ValueError(f"{text!r:.80} must have the form {wanted}, with numbers from 0")
    layer, head = (*map(int, numbers), None)[:2]
    return Site(layer, kind, head=head)


def read_direction(path: str | Path) -> Float[Tensor, "d"]:
    """The vector in a file, `[d]`, `[d, 1]` or `[1, d]`, as float32.

    The file is `.npy`, `.pt` (read without running code that may be in it) or `.safetensors`; where
    it holds several tensors, the one called `direction` is meant. A DirectionFileError says why
    there is no such vector in it.
    """
    path = Path(path)
    if not path.is_file():
        reason = "is a folder" if path.is_dir() else "does not exist"
        raise DirectionFileError(f"{path} {reason}: {SHOW_SAVING}")
    if path.suffix.lower() not in READERS:
        raise DirectionFileError(f"{path} must end in {', '.join(READERS)}: {SHOW_SAVING}")
    try:
        content = READERS[path.suffix.lower()](path)
    except OSError as error:
        raise DirectionFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # damaged files raise whatever their parser stumbles over
        reason = f"{path} is damaged, or holds more than numbers: {SHOW_SAVING}"
        raise DirectionFileError(reason) from error
    if isinstance(content, Mapping):
        name = next(iter(content)) if len(content) == 1 else "direction"
        if name not in content:
            raise DirectionFileError(f"{path} holds {list(content)}: call the tensor 'direction'")
        content = content[name]
    return _vector(path, content)


def load_pairs(model: Model, options: argparse.Namespace) -> Pairs:
    """The pairs that the options ask for; a ValueError if they cannot be had for this model."""
    task, n, seed = options.pairs, options.n, options.seed
    if task == "ioi":
        return ioi.make_pairs(model, n, split=options.split, seed=seed)
    if task in ("number", "gender"):
        return agreement.make_pairs(model, task, n, split=options.split, seed=seed)
    if task == "facts":
        known = facts.known_facts(model, batch_size=options.batch_size)
        return facts.make_pairs(model, known, n, seed=seed)
    return read_pairs(model, task)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; bad usage ends the program with exit status 2."""
    parser = argparse.ArgumentParser("python -m helpers.audit", description="Judge a direction.")
    add = parser.add_argument
    add("--model", help="name, hub id or folder (default: the packaged model)")
    add("--site", required=True, help="such as mlp_hidden.21, "
        "resid_post.21 or head_output.23.1")  # fmt: skip
    add("--direction", required=True, metavar="FILE", help=", ".join(READERS))
    add("--pairs", required=True, metavar="|".join((*TASKS, "FILE.csv")),
        help="a file has the columns base, source, answer, counterfactual")  # fmt: skip
    add("--n", type=_at_least(1), default=200, help="pairs, without a file (default: 200)")
    add("--split", choices=("train", "test"), default="test", help="without a file (default: test)")
    add("--out", type=Path, default=Path("audit"), metavar="FOLDER", help="(default: audit)")
    add("--seed", type=_at_least(0), default=0, help="(default: 0)")
    add("--device", help="cpu, cuda, cuda:1, mps (default: CUDA if there is one)")
    add("--batch-size", type=_at_least(1), default=64, help="less needs less memory (default: 64)")
    options = parser.parse_args(arguments)
    try:
        options.site = parse_site(options.site)
    except ValueError as error:
        parser.error(f"argument --site: {error}")
    return options


def run(options: argparse.Namespace) -> None:
    """Read, load, measure and save; the files are checked before the model is loaded."""
    direction = read_direction(options.direction)
    if options.pairs not in TASKS:
        read_table(options.pairs)
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"{options.out} is not a folder: choose another one for --out")
    check_writable(options.out)
    name = model_slug(options.model)
    print(f"loading {name}", flush=True)
    model = load_model(options.model, options.device)
    print("preparing the pairs", flush=True)
    pairs = load_pairs(model, options)
    print(f"measuring {options.site} on {len(pairs)} pairs", flush=True)
    sizes = {"seed": options.seed, "batch_size": options.batch_size}
    result = audit(model, options.site, direction, pairs, name=name, **sizes)
    saved = save(result, options.out)
    print(f"\n{result.summary}\n\nResults are in {options.out}")
    print(f"  {', '.join(path.name for path in saved)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m helpers.audit`; returns its exit status."""
    options = parse(arguments)
    matplotlib.use("agg")  # the figure goes into a file: no window is needed
    try:
        run(options)
    except (ModelError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, ModelError) else 2
    except OSError as error:
        where = "make room there, or choose another folder with --out"
        print(f"error: {options.out} cannot be written: {error}: {where}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted; nothing was written.", file=sys.stderr)
        return 130
    return 0


READERS: Mapping[str, Callable[[Path], Any]] = {
    ".npy": lambda path: np.load(path, allow_pickle=False),
    ".pt": lambda path: torch.load(path, map_location="cpu", weights_only=True),
    ".safetensors": safetensors.torch.load_file,
}


def _vector(path: Path, content: Any) -> Float[Tensor, "d"]:
    """The content of a file as a vector, if it is one."""
    if isinstance(content, np.ndarray) and content.dtype.kind == "f":
        content = torch.from_numpy(content.astype(np.float64))
    if not isinstance(content, Tensor) or not content.is_floating_point():
        kind = getattr(content, "dtype", type(content).__name__)
        raise DirectionFileError(f"{path} holds {kind}, not floating-point numbers: {SHOW_SAVING}")
    shape = tuple(content.shape)
    if len(shape) not in (1, 2) or content.numel() != max(shape) or not content.numel():
        wanted = "a direction has the shape [d], [d, 1] or [1, d]"
        raise DirectionFileError(f"{path} has the shape {shape}: {wanted}")
    if content.layout != torch.strided or content.is_meta:
        raise DirectionFileError(f"{path} holds no plain tensor: save v.to_dense() on the CPU")
    vector = content.detach().reshape(-1).float()
    if not torch.isfinite(vector).all():
        raise DirectionFileError(f"{path} holds NaN or infinity: check what produced it")
    return vector


def _at_least(least: int) -> Callable[[str], int]:
    """Reads a whole number from `least` on."""

    def read(text: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", text) or int(text) < least:
            wanted = f"whole number from {least} to {10**9 - 1}"
            raise argparse.ArgumentTypeError(f"{text!r} is no {wanted}")
        return int(text)

    return read
