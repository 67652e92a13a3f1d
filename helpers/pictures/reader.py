"""Who reads what was painted: a small network in the place of a text recogniser.

load_reader().read(pictures).words         ["CAT", ...]
agreement(seen, signs)                     share of the letters, colour, thing that are as there
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn

from helpers.pictures.drawing import (
    ALPHABET,
    COLORS,
    HEIGHT,
    LETTERS,
    THINGS,
    WIDTH,
    Pictures,
    Sign,
)
from helpers.pictures.painter import PAINTERS


class Seen(NamedTuple):
    """What stands in pictures: letters by place, colour, thing, as numbers."""

    letters: Int[Tensor, "pictures letters"]
    color: Int[Tensor, "pictures"]
    thing: Int[Tensor, "pictures"]

    @property
    def words(self) -> list[str]:
        """The words that were read."""
        return ["".join(ALPHABET[n] for n in row) for row in self.letters.tolist()]


class Reader(nn.Module):
    """Two convolutions, then one layer for all answers."""

    SIZES = (*[len(ALPHABET)] * LETTERS, len(COLORS), len(THINGS))

    def __init__(self) -> None:
        super().__init__()
        pixels = 24 * (HEIGHT // 4) * (WIDTH // 4)
        self.net = nn.Sequential(
            nn.Conv2d(3, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(pixels, 128), nn.ReLU(), nn.Linear(128, sum(self.SIZES)),
        )  # fmt: skip

    def forward(self, pictures: Pictures) -> tuple[Float[Tensor, "pictures choices"], ...]:
        """Logits of each letter's place, of the colours, of the things."""
        return self.net(pictures).split(self.SIZES, 1)

    @torch.no_grad()
    def read(self, pictures: Pictures) -> Seen:
        """The likeliest answer to each."""
        *letters, color, thing = (logits.argmax(1) for logits in self(pictures))
        return Seen(torch.stack(letters, 1), color, thing)


@functools.cache
def load_reader() -> Reader:
    """The reader that we trained (`python -m tools.pictures`), frozen."""
    reader = Reader()
    weights = load_file(PAINTERS / "reader.safetensors")
    reader.load_state_dict({key: value.float() for key, value in weights.items()})
    return reader.eval().requires_grad_(False)


def truth(signs: Sequence[Sign]) -> Seen:
    """What a faultless reader would see."""
    letters = [[ALPHABET.index(letter) for letter in sign.word] for sign in signs]
    color = [list(COLORS).index(sign.color) for sign in signs]
    thing = [THINGS.index(sign.thing) for sign in signs]
    return Seen(*map(torch.tensor, (letters, color, thing)))


def agreement(seen: Seen, signs: Sequence[Sign]) -> dict[str, Float[Tensor, "pictures"]]:
    """By picture, the share of what was read that is as in the signs: letters, colour, thing."""
    right = truth(signs)
    return {
        "letters": (seen.letters == right.letters).float().mean(1),
        "color": (seen.color == right.color).float(),
        "thing": (seen.thing == right.thing).float(),
    }
