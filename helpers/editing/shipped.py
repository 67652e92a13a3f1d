"""Second moments that come with the project: from so much text that a lesson could not wait.

The file holds, for each layer, the Cholesky factor `L` of `C = L L^T` below its diagonal in 8 bits,
with one scale per row, and the diagonal in 32. Whatever the rounding does, `L L^T` is symmetric and
positive definite, as `C` must be: rounding `C` itself would not keep that. Readers from it have a
cosine above .999 with those from the exact `C`, which takes seven times the space.
`python -m tools.evidence.moments` makes it.
"""

import json
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from helpers.editing.moments import SecondMoment, in_double
from helpers.models import Model, model_slug
from helpers.output import files

FOLDER = files.ROOT / "data" / "moments"
PARTS = ("below", "scale", "diagonal")  # of a factor


def shipped_file() -> Path:
    """Where the second moments of the lessons' model are, if there are any."""
    return FOLDER / f"{model_slug()}.safetensors"


def shipped_second_moments(model: Model) -> tuple[dict[int, SecondMoment], int]:
    """`C` by layer and from how many tokens; nothing and 0 if none were made with these weights.

    A weight that differs in its norm, of an edited model or another one of this name, means that.
    """
    path = shipped_file()
    if not path.is_file():
        return {}, 0
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["about"])
        norms = file.get_tensor("norms")
        ours = parameter_norms(model)
        if norms.shape != ours.shape or not torch.allclose(norms, ours, rtol=1e-4):
            return {}, 0
        parts = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    moments = {}
    for layer in about["layers"]:
        below, scale, diagonal = (parts[f"{layer}.{part}"] for part in PARTS)
        moments[layer] = unpacked(below, scale, diagonal)
    return moments, about["tokens"]


def unpacked(
    below: Tensor, scale: Float[Tensor, "d"], diagonal: Float[Tensor, "d"]
) -> SecondMoment:
    """The second moment whose Cholesky factor this is, up to the rounding."""
    row, column = torch.tril_indices(len(diagonal), len(diagonal), offset=-1)
    factor = torch.diag(diagonal.double())
    factor[row, column] = below.double() * scale.double()[row]
    return (factor @ factor.T).float()


def parameter_norms(model: Model) -> Float[Tensor, "parameters"]:
    """The norm of every parameter: which weights these are, whatever the machine rounds."""
    return torch.stack([in_double(p).norm() for _, p in sorted(model.named_parameters())])
