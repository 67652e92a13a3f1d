"""Ordinary text, when nobody runs an experiment: `tokens = passages(model, 60, length=64)`."""

import torch
from jaxtyping import Int
from torch import Tensor

from helpers.models import require
from helpers.output import files
from helpers.tasks.tokens import Tokenizes, encode

FOLDER = files.ROOT / "data" / "text"  # a reference work and a novel


def passages(
    model: Tokenizes, n: int, *, length: int = 64, seed: int = 0
) -> Int[Tensor, "n length"]:
    """Passages of running text, equally many from each of our texts, as tokens of equal length.

    Each begins as a prompt does: with BOS if the model's tokenizer puts one. The rest are
    consecutive tokens of the text; passages do not overlap. The seed chooses them and their order.
    Raises ValueError: `length` is too short for a token of text, or the texts hold fewer passages.
    """
    require.whole("n", n)
    require.whole("length", length)
    generator = torch.Generator().manual_seed(seed)
    one, other = encode(model, "A"), encode(model, "B")  # both with BOS in front, or none
    start = one[:0] if len(one) != len(other) else one[(one == other).long().cumprod(0).bool()]
    if length <= len(start):
        raise ValueError(f"a passage of {length} tokens has no room for text")
    width, chosen, paths = length - len(start), [], sorted(FOLDER.glob("*.txt"))
    for place, path in enumerate(paths):
        wanted = len(range(place, n, len(paths)))
        paragraphs = path.read_text(encoding="utf-8").splitlines()
        tokens = encode(model, "\n".join(paragraphs))[len(start) :]
        pieces = tokens[: len(tokens) // width * width].reshape(-1, width)
        if not 1 <= n or wanted > len(pieces):
            found = f"{len(pieces)} passages of {length} tokens"
            raise ValueError(f"{path.stem} gives 1 to {found}, not {wanted}")
        chosen.append(pieces[torch.randperm(len(pieces), generator=generator)[:wanted]])
    mixed = torch.cat(chosen)[torch.randperm(n, generator=generator)]
    return torch.cat([start.expand(n, -1), mixed], dim=1)
