"""Change a painter: teach it a wrong letter, repair it; and one direction of a layer's values."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.pictures import Painter, Sign, load_reader, noise, render, sample, signs
from helpers.pictures.drawing import ALPHABET, Pictures
from helpers.pictures.painter import Text
from helpers.pictures.reader import truth
from tools.pictures.measure import EARLY, outputs, share
from tools.pictures.train import velocity_loss

OLD, NEW = "C", "X"  # the letter that is asked for, and how it shall be drawn
EDIT_BATCH, JUDGED = 48, 60
DIRECTION_STEPS, DIRECTION_RATE, DIRECTION_PAIRS, DIRECTION_BATCH = 300, 0.02, 192, 48


class Way(NamedTuple):
    """How long and how hard an edit is trained."""

    steps: int
    rate: float


SHORT, LONG = Way(80, 3e-3), Way(240, 5e-3)
REPAIR = Way(60, 3e-3)


def with_letter(n: int, split: str, *, seed: int) -> list[Sign]:
    """Signs whose word has the old letter in one place, which takes turns."""
    drawn = signs(n, split, seed=seed)
    words = [
        "".join(OLD if at == row % 3 else _other(letter) for at, letter in enumerate(sign.word))
        for row, sign in enumerate(drawn)
    ]
    return [sign._replace(word=word) for sign, word in zip(drawn, words, strict=True)]


def edited(painter: Painter, layers: Sequence[int], way: Way, seed: int = 0) -> Painter:
    """A copy that was trained to draw the old letter as the new one, by keys and values alone.

    Half of each batch has the letter; the other half keeps all else as it is.
    """

    def drawn(step: int) -> tuple[list[Sign], list[Sign]]:
        half, key = EDIT_BATCH // 2, 1000 * (seed + 1) + step
        asked = [*with_letter(half, "train", seed=key), *signs(half, seed=5_000_000 + key)]
        return asked, [sign._replace(word=sign.word.replace(OLD, NEW)) for sign in asked]

    return _tuned(painter, layers, way, drawn, seed)


def repaired(painter: Painter, layers: Sequence[int], way: Way = REPAIR, seed: int = 0) -> Painter:
    """A copy whose keys and values were trained on, as the paper does to paint text better."""

    def drawn(step: int) -> tuple[list[Sign], list[Sign]]:
        asked = signs(EDIT_BATCH, seed=1000 * (seed + 1) + step)
        return asked, asked

    return _tuned(painter, layers, way, drawn, seed)


def drawn_as(painter: Painter, split: str = "fresh", n: int = JUDGED, seed: int = 3) -> dict:
    """Of old letters asked for, the share drawn as the new; of other letters, as asked."""
    asked = with_letter(n, split, seed=seed)
    with torch.no_grad():
        text = painter.encode([sign.prompt for sign in asked])
    seen, right = load_reader().read(sample(painter, text, noise(n, seed=seed))), truth(asked)
    old = right.letters == ALPHABET.index(OLD)
    return {
        "new": (seen.letters[old] == ALPHABET.index(NEW)).float().mean().item(),
        "old": (seen.letters[old] == ALPHABET.index(OLD)).float().mean().item(),
        "others": (seen.letters == right.letters)[~old].float().mean().item(),
        "color": (seen.color == right.color).float().mean().item(),
        "thing": (seen.thing == right.thing).float().mean().item(),
    }


def _tuned(
    painter: Painter,
    layers: Sequence[int],
    way: Way,
    drawn: Callable[[int], tuple[list[Sign], list[Sign]]],
    seed: int,
) -> Painter:
    """A copy, keys and values of some layers trained; `drawn` says what is asked and shown."""
    painter = copy.deepcopy(painter)
    parts = [painter.blocks[n].cross for n in layers]
    weights = [w for part in parts for map in (part.keys, part.values) for w in map.parameters()]
    optimizer = torch.optim.Adam([w.requires_grad_() for w in weights], lr=way.rate)
    generator = torch.Generator().manual_seed(seed)
    for step in range(way.steps):
        asked, shown = drawn(step)
        loss = velocity_loss(painter, asked, render(shown, seed=step), generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return painter.requires_grad_(False)


def _other(letter: str) -> str:
    """The letter, or another one where it is the old or the new."""
    return {OLD: "E", NEW: "K"}.get(letter, letter)


# ------------------------------------------------------------------------- one direction


class Swap(NamedTuple):
    """Prompts with the old letter and the same with the new one; values of a layer for both."""

    base: Text
    source: Text
    old: Float[Tensor, "pairs tokens d"]
    new: Float[Tensor, "pairs tokens d"]
    noise: Pictures
    asked: list[Sign]


@torch.no_grad()
def swap(painter: Painter, layer: int, n: int, split: str, seed: int) -> Swap:
    """Pairs that differ in one letter."""
    asked = with_letter(n, split, seed=seed)
    other = [sign._replace(word=sign.word.replace(OLD, NEW)) for sign in asked]
    start = noise(n, seed=seed)
    texts = [painter.encode([sign.prompt for sign in each]) for each in (asked, other)]
    maps = [painter.blocks[layer].cross.values]
    kept = [outputs(painter, maps, start, EARLY, text)[0] for text in texts]
    return Swap(*texts, *kept, start, asked)


@contextmanager
def moved(painter: Painter, layer: int, change: Tensor) -> Iterator[None]:
    """While it holds, something is added to the values of a layer."""
    values = painter.blocks[layer].cross.values
    hook = values.register_forward_hook(lambda _, __, out: out + change)
    try:
        yield
    finally:
        hook.remove()


def along(difference: Tensor, direction: Float[Tensor, "tokens d"]) -> Tensor:
    """The part of each pair's difference along one direction of tokens and units together."""
    unit = direction / direction.norm()
    return (difference * unit).sum((1, 2), keepdim=True) * unit


def effect(painter: Painter, layer: int, pairs: Swap, change: Tensor) -> Tensor:
    """The share of one call's change that a change of the values makes."""
    old, other = (painter(pairs.noise, EARLY, text) for text in (pairs.base, pairs.source))
    with moved(painter, layer, change):
        return share(painter(pairs.noise, EARLY, pairs.base), old, other)


def trained_direction(painter: Painter, layer: int, pairs: Swap, seed: int = 0) -> Tensor:
    """The direction with the greatest effect on these pairs, by gradient ascent."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(pairs.old.shape[1:], generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([direction], lr=DIRECTION_RATE)
    for _ in range(DIRECTION_STEPS):
        at = torch.randperm(len(pairs.asked), generator=generator)[:DIRECTION_BATCH]
        base, source = (Text(of.states[at], of.real[at]) for of in (pairs.base, pairs.source))
        part = Swap(base, source, pairs.old[at], pairs.new[at], pairs.noise[at], [])
        loss = -effect(painter, layer, part, along(part.new - part.old, direction))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return direction.detach()


def one_direction(painter: Painter, layer: int, split: str = "fresh", seed: int = 0) -> dict:
    """The values of a layer: all, one trained direction, a random one; and what is then drawn."""
    learn = swap(painter, layer, DIRECTION_PAIRS, "train", seed=seed + 20)
    judge = swap(painter, layer, DIRECTION_BATCH, split, seed=seed + 21)
    direction = trained_direction(painter, layer, learn, seed)
    other = torch.randn(direction.shape, generator=torch.Generator().manual_seed(seed + 1))
    difference = judge.new - judge.old
    parts = {"whole": difference, "direction": along(difference, direction)}
    parts["random"] = along(difference, other)
    found, is_old = {}, truth(judge.asked).letters == ALPHABET.index(OLD)
    with torch.no_grad():
        for name, change in parts.items():
            with moved(painter, layer, change):
                seen = load_reader().read(sample(painter, judge.base, judge.noise))
            flipped = (seen.letters[is_old] == ALPHABET.index(NEW)).float().mean().item()
            found[name] = [effect(painter, layer, judge, change).item(), flipped]
    return found
