"""Ordinary text, to see what activations are like when nobody is running an experiment."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from helpers.models import require
from helpers.output import files
from helpers.tasks.pairs import Tokenizes, encode

FOLDER = files.ROOT / "data" / "text"


def texts() -> list[str]:
    """Names of the texts that come with the project: a reference work and a novel."""
    return sorted(path.stem for path in FOLDER.glob("*.txt"))


def paragraphs(name: str) -> list[str]:
    """The paragraphs of one text.

    Raises:
        ValueError: There is no text of this name.
    """
    if name not in texts():
        raise ValueError(f"no text {name!r}: choose from {texts()}")
    return (FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines()


def passages(
    model: Tokenizes,
    n: int,
    *,
    length: int = 64,
    names: str | Sequence[str] | None = None,
    seed: int = 0,
) -> Int[Tensor, "n length"]:
    """Passages of running text, an equal number from each text, as tokens of equal length.

    Each begins as a prompt does: with BOS if the model's tokenizer puts one. The rest are `length`
    (less the BOS) consecutive tokens of the text; passages do not overlap.

    Args:
        model: The model, or only its tokenizer.
        n: How many passages.
        length: Tokens of each.
        names: Which text, or texts; all of them by default.
        seed: Which passages, and their order.

    Raises:
        ValueError: No text or an unknown one, `length` too short for one token of text, or more
            passages than the texts hold.
    """
    names = texts() if names is None else [names] if isinstance(names, str) else list(names)
    if not names:
        raise ValueError(f"no texts: choose from {texts()}")
    for name, number in (("n", n), ("length", length)):
        require.whole(name, number)
    generator = torch.Generator().manual_seed(seed)
    start = _bos(model)
    if length <= len(start):
        raise ValueError(f"a passage of {length} tokens has no room for text")
    width, chosen = length - len(start), []
    for place, name in enumerate(names):
        wanted = len(range(place, n, len(names)))
        tokens = encode(model, "\n".join(paragraphs(name)))[len(start) :]
        pieces = tokens[: len(tokens) // width * width].reshape(-1, width)
        if not 1 <= n or wanted > len(pieces):
            raise ValueError(
                f"{name} gives 1 to {len(pieces)} passages of {length} tokens, not {wanted}"
            )
        order = torch.randperm(len(pieces), generator=generator)[:wanted]
        chosen.append(pieces[order])
    mixed = torch.cat(chosen)[torch.randperm(n, generator=generator)]
    return torch.cat([start.expand(n, -1), mixed], dim=1)


def _bos(model: Tokenizes) -> Int[Tensor, "k"]:
    """What the tokenizer puts before every text: one token, or none."""
    with_text, other = encode(model, "A"), encode(model, "B")
    if len(with_text) == len(other):
        shared = (with_text == other).long().cumprod(0).bool()
        return with_text[shared]
    return with_text[:0]
