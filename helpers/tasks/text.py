"""Ordinary text, to see what activations are like when nobody is running an experiment.

tokens = passages(model, 60, length=64)
"""

import torch
from jaxtyping import Int
from torch import Tensor

from helpers.models import require
from helpers.output import files
from helpers.tasks.pairs import Tokenizes, encode

FOLDER = files.ROOT / "data" / "text"  # a reference work and a novel


def passages(
    model: Tokenizes, n: int, *, length: int = 64, seed: int = 0
) -> Int[Tensor, "n length"]:
    """Passages of running text, equally many from each of our texts, as tokens of equal length.

    Each begins as a prompt does: with BOS if the model's tokenizer puts one. The rest are `length`
    (less the BOS) consecutive tokens of the text; passages do not overlap.

    Args:
        model: The model, or only its tokenizer.
        n: How many passages.
        length: Tokens of each.
        seed: Which passages, and their order.

    Raises ValueError: `length` is too short for one token of text, or the texts hold fewer
    passages.
    """
    require.whole("n", n)
    require.whole("length", length)
    generator = torch.Generator().manual_seed(seed)
    start = _bos(model)
    if length <= len(start):
        raise ValueError(f"a passage of {length} tokens has no room for text")
    width, chosen, paths = length - len(start), [], sorted(FOLDER.glob("*.txt"))
    for place, path in enumerate(paths):
        wanted = len(range(place, n, len(paths)))
        paragraphs = path.read_text(encoding="utf-8").splitlines()
        tokens = encode(model, "\n".join(paragraphs))[len(start) :]
        pieces = tokens[: len(tokens) // width * width].reshape(-1, width)
        if not 1 <= n or wanted > len(pieces):
            raise ValueError(
                f"{path.stem} gives 1 to {len(pieces)} passages of {length} tokens, not {wanted}"
            )
        chosen.append(pieces[torch.randperm(len(pieces), generator=generator)[:wanted]])
    mixed = torch.cat(chosen)[torch.randperm(n, generator=generator)]
    return torch.cat([start.expand(n, -1), mixed], dim=1)


def _bos(model: Tokenizes) -> Int[Tensor, "k"]:
    """What the tokenizer puts before every text: one token, or none."""
    with_text, other = encode(model, "A"), encode(model, "B")
    if len(with_text) == len(other):
        shared = (with_text == other).long().cumprod(0).bool()
        return with_text[shared]
    return with_text[:0]
