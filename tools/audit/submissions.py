"""Submissions to the causal-variable track of the Mechanistic Interpretability Benchmark.

A folder `TASK_MODEL_VARIABLE` with three files for each unit, which is a place in the model:
`UNIT_featurizer`, `UNIT_inverse_featurizer` (what `torch.save` writes of `model_info` and
`state_dict`) and `UNIT_indices` (JSON: the features that are exchanged, or null for all). UNIT is
`ResidualStream(Layer-5,Token-last_token)` or `AttentionHead(Layer-9,Head-6,Token-last_token)`. A
subspace featurizer is a matrix R `[d, features]`: features `x R`, back by `f R'` plus the rest, so
that its interchange is that of a subspace, which is what we audit.
"""

import json
import re
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.audit import Subspace
from helpers.patching import Site
from tools.audit.vectors import DirectionFileError

SUBSPACE, IDENTITY = "SubspaceFeaturizerModule", "IdentityFeaturizerModule"
LARGEST_CHANGE = 1e-3  # of an activation when nothing is exchanged, as a share of its length
FORMS = "ResidualStream(Layer-5,Token-NAME) or AttentionHead(Layer-9,Head-6,Token-NAME)"
UNIT = r"(ResidualStream|AttentionHead)\(Layer.(\d+)(?:,Head.(\d+))?(?:,(block_\w+))?,Token.(.+)\)"


class Unit(NamedTuple):
    """One place of a submission, with the subspace that is exchanged there."""

    name: str
    site: Site
    token: str  # what the submission calls the token
    subspace: Subspace
    changes: float  # the identity control: the largest change of an activation, over its length


def read_submission(folder: str | Path, *, block_output: bool = False) -> list[Unit]:
    """The units of a submission, in the order of their names.

    A unit of the residual stream is the input of its block unless its name says `block_output`, or
    `block_output` does. Raises DirectionFileError: no such folder or units, a damaged file, a
    featurizer that comes with code of its own, one that exchanges the whole activation, or one that
    fails the identity control: what it makes of an activation, put back together unchanged, is
    another activation.
    """
    folder = Path(folder)
    ends = "_featurizer"
    names = sorted(
        path.name.removesuffix(ends)
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.name.endswith(ends) and not path.name.endswith(f"_inverse{ends}")
    )
    if not names:
        raise DirectionFileError(f"{folder} holds no unit of a submission: files UNIT_featurizer, "
                                 "UNIT_inverse_featurizer and UNIT_indices")  # fmt: skip
    return [_unit(folder, name, block_output) for name in names]


def _unit(folder: Path, name: str, block_output: bool) -> Unit:
    match = re.fullmatch(UNIT, name)
    if not match:
        raise DirectionFileError(f"{folder / name} must be called {FORMS}, with _featurizer behind")
    kind, layer, head, component, token = match.groups()
    ends = ("_featurizer", "_inverse_featurizer")
    there, back = (_matrix(folder / f"{name}{end}") for end in ends)
    if there.shape != back.shape:
        shapes = f"{tuple(there.shape)} and {tuple(back.shape)}"
        raise DirectionFileError(f"{folder / name}: featurizer and inverse have shapes {shapes}")
    changes = identity_control(there, back)
    if changes > LARGEST_CHANGE:
        raise DirectionFileError(
            f"{folder / name} fails the identity control: with nothing exchanged an activation "
            f"changes by up to {changes:.1%} of its length, so that effects are not the exchange's"
        )
    basis = _exchanged(folder / name, there)
    if kind == "AttentionHead":
        site = Site(int(layer), "head_output", head=int(head))
    else:
        out = block_output or component == "block_output"
        site = Site(int(layer), "resid_post" if out else "resid_pre")
    return Unit(name, site, token, Subspace(basis), changes)


def identity_control(
    there: Float[Tensor, "d features"], back: Float[Tensor, "d features"]
) -> float:
    """The largest change that `x R1 R2' + (x - x R1 R1')` makes, over the length of x."""
    return torch.linalg.matrix_norm(there @ (back - there).T, ord=2).item()


def _matrix(path: Path) -> Float[Tensor, "d features"]:
    """The matrix of a featurizer: of the identity, the unit matrix."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        info = content["model_info"]
        kind = info["featurizer_class"].replace("Inverse", "")
        if kind == IDENTITY:
            return torch.eye(info["n_features"])
        if kind != SUBSPACE:
            reason = f"is a {info['featurizer_class']}, which comes with code that we do not run"
            raise DirectionFileError(f"{path} {reason}: only subspaces and the identity are known")
        matrix = info["additional_config"]["rotation_matrix"].detach().float()
    except DirectionFileError:
        raise
    except OSError as error:
        raise DirectionFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # damaged files raise whatever their parser stumbles over
        raise DirectionFileError(f"{path} is damaged, or no featurizer of the benchmark") from error
    if matrix.ndim != 2 or not torch.isfinite(matrix).all():
        raise DirectionFileError(f"{path} holds no matrix of finite numbers [d, features]")
    return matrix


def _exchanged(path: Path, matrix: Tensor) -> Float[Tensor, "d k"]:
    """The columns that are exchanged, which must be orthonormal."""
    try:
        indices = json.loads(path.with_name(f"{path.name}_indices").read_text(encoding="utf-8"))
    except FileNotFoundError:
        indices = None
    except (OSError, ValueError) as error:
        raise DirectionFileError(f"{path}_indices is not a list of numbers, or null") from error
    if indices is not None:
        whole = isinstance(indices, list) and all(type(index) is int for index in indices)
        if not whole or not all(0 <= index < matrix.shape[1] for index in indices):
            raise DirectionFileError(f"{path}_indices must name some of {matrix.shape[1]} features")
        matrix = matrix[:, indices]
    d, k = matrix.shape
    if k in (0, d):
        what = "the whole activation" if k else "nothing"
        raise DirectionFileError(f"{path} exchanges {what}: there is no subspace to judge")
    if (matrix.T @ matrix - torch.eye(k)).abs().max() > LARGEST_CHANGE:
        raise DirectionFileError(f"{path}: the columns of its matrix are not orthonormal, so that "
                                 "its interchange is not that of a subspace")  # fmt: skip
    return matrix
