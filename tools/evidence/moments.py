"""Take the second moments of the layers that lesson 07 edits from all our text, and ship them.

    python -m tools.evidence.moments

Writes `data/moments/<model>.safetensors` (seven megabytes; a few minutes). The passages that the
lesson keeps to test with are left out.
"""

import json
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from helpers.editing.moments import (
    PARTS,
    SecondMoment,
    in_double,
    parameter_norms,
    second_moment,
    shipped_file,
)
from helpers.models import Model, load_model
from helpers.output import files
from helpers.tasks import passages

PASSAGES, OF_THE_LESSON, HELD_OUT = 900, 80, 16  # of 64 tokens; the last of the lesson's are unseen


def layers_to_edit(n_layers: int) -> list[int]:
    """Six or seven layers from layer 2 on, without the last, as in lesson 07."""
    return list(range(2, n_layers - 1, max(1, n_layers // 6)))


def training_passages(model: Model):
    """All passages but those that the lesson tests with, `[passages, 64]`."""
    unseen = passages(model, OF_THE_LESSON)[-HELD_OUT:]
    every = passages(model, PASSAGES)
    return every[~(every[:, None] == unseen).all(-1).any(-1)]


def packed(moment: SecondMoment) -> tuple[Tensor, Tensor, Tensor]:
    """The Cholesky factor below its diagonal as int8, row by row; its rows' scales; its diagonal.

    A RuntimeError if the second moment is not positive definite.
    """
    factor = torch.linalg.cholesky(in_double(moment))
    scale = factor.tril(-1).abs().amax(1) / 127
    below = (factor / scale.clamp(min=1e-30)[:, None]).round()
    row, column = torch.tril_indices(*factor.shape, offset=-1)
    return below[row, column].to(torch.int8), scale.float(), factor.diagonal().float()


def save(path: Path, moments: dict[int, SecondMoment], model: Model, about: dict) -> None:
    """Write the file that `shipped_second_moments` reads."""
    parts = {"norms": parameter_norms(model)}
    for layer, moment in moments.items():
        parts |= {f"{layer}.{n}": x for n, x in zip(PARTS, packed(moment), strict=True)}
    about = {"about": json.dumps(about | {"layers": list(moments)})}
    files.write(path, safetensors.torch.save(parts, metadata=about))


def main() -> None:
    model = load_model()
    tokens, layers = training_passages(model), layers_to_edit(model.cfg.n_layers)
    moments = second_moment(model, layers, tokens)
    path = shipped_file()
    save(path, moments, model, {"tokens": tokens[:, 1:].numel()})
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB from {tokens[:, 1:].numel()} tokens")


if __name__ == "__main__":
    main()
