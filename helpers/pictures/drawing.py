"""Painted words whose style says nothing about their text, and the prompts that ask for them.

    Sign("CAT", "red", "wall").prompt    'a red wall that says "CAT"'
    render(signs, seed=0)                pictures [signs, 3, 16, 44], from -1 (dark) to 1 (light)

Three capitals, one of five colours, one of three things: each is drawn without the others. A tenth
of all words, and forty real ones, are never shown in training.
"""

import functools
import itertools
import re
import string
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from helpers.models import require

HEIGHT, WIDTH, LETTERS = 16, 44, 3
CELL, MARGIN, SHIFTS = 12, 4, (-1, 0, 1)  # pixels: a letter's place, where the first starts
SCALE, POINTS = 4, 12  # letters are drawn so much larger and then averaged; their size
INK = 0.96  # lightness of the letters
SPREAD, NOISE = 0.04, 0.02  # of the colours from picture to picture; of each pixel

COLORS = {
    "red": (0.80, 0.10, 0.13), "blue": (0.13, 0.22, 0.75), "green": (0.12, 0.50, 0.18),
    "purple": (0.55, 0.16, 0.62), "grey": (0.42, 0.42, 0.40),
}  # fmt: skip
THINGS = ("sign", "wall", "card")  # a frame, bricks, a shade from top to bottom
WORDINGS = (
    'a {color} {thing} that says "{word}"',
    'the word "{word}" on a {color} {thing}',
    'text "{word}" on a {color} {thing}',
)
ALPHABET = string.ascii_uppercase
SPECIAL = ("<pad>", "<begin>", "<end>")
VOCABULARY = (*SPECIAL, '"', *"a that says the word on text".split(), *COLORS, *THINGS, *ALPHABET)
IDS = {word: n for n, word in enumerate(VOCABULARY)}
MOST_TOKENS = 13
REAL = (
    "ART BAG BED BOX BUS CAR CAT COW CUP DAY DOG EAR EGG EYE FAN FOX GYM HAT ICE INK JAM KEY LEG "
    "MAP NET OWL PEN PIG QUO RUG SKY SUN TAX TOY URN VAN WAX YES ZIP ZOO"
).split()

Split = Literal["train", "test", "fresh"]
Pictures = Float[Tensor, "pictures 3 height width"]


class Sign(NamedTuple):
    """What a picture shows: a word in capitals, a colour, a thing; which wording asks for it."""

    word: str
    color: str
    thing: str
    wording: int = 0

    @property
    def prompt(self) -> str:
        """The sentence that asks for it."""
        return WORDINGS[self.wording].format(word=self.word, color=self.color, thing=self.thing)


class Tokens(NamedTuple):
    """Prompts as numbers, and which of them are words: shorter prompts are filled up behind."""

    ids: Int[Tensor, "prompts tokens"]
    real: Bool[Tensor, "prompts tokens"]


@functools.cache
def words(split: Split) -> tuple[str, ...]:
    """The words of three letters that training draws from, or those it never sees, in two halves.

    Raises ValueError: another split.
    """
    every = ["".join(letters) for letters in itertools.product(ALPHABET, repeat=LETTERS)]
    others = [word for word in every if word not in REAL]
    mixed = np.random.default_rng(0).permutation(others).tolist()
    held = len(every) // 20  # of each half
    parts = {"test": REAL + mixed[:held], "fresh": mixed[held : 2 * held]}
    parts["train"] = mixed[2 * held :]
    if split not in parts:
        raise ValueError(f"no split {split!r}: choose from {list(parts)}")
    return tuple(parts[split])


def signs(n: int, split: Split = "train", *, seed: int = 0) -> list[Sign]:
    """So many signs: words of a split, colours, things and wordings, each drawn for itself.

    Raises ValueError: fewer than one, another split, a negative seed.
    """
    rng = np.random.default_rng(require.whole("seed", seed, least=0))
    parts = (words(split), tuple(COLORS), THINGS, range(len(WORDINGS)))
    drawn = (rng.integers(len(part), size=require.whole("n", n, least=1)) for part in parts)
    rows = zip(*drawn, strict=True)
    return [Sign(*(part[at] for part, at in zip(parts, row, strict=True))) for row in rows]


def pairs(n: int, split: Split = "test", *, seed: int = 0) -> tuple[list[Sign], list[Sign]]:
    """Bases and sources that share nothing: other letters in all three places, colour and thing.

    Wordings are drawn for both, so that prompts differ in length, too. Errors are those of
    `signs`.
    """
    base, source, at = signs(n, split, seed=seed), [], 0
    pool = signs(60 * n, split, seed=seed + 7919)
    for sign in base:
        while _shared(sign, pool[at % len(pool)]):
            at += 1
        source.append(pool[at % len(pool)])
        at += 1
    return base, source


def tokenize(prompts: Sequence[str]) -> Tokens:
    """Sentences in the painter's few words, with a letter per token between quotes.

    Raises ValueError: no prompt, an unknown word or letter (with all that are known), a prompt
    that is too long.
    """
    if isinstance(prompts, str) or not prompts:
        raise ValueError("prompts must be a list of one or more sentences")
    rows = [_ids(prompt) for prompt in prompts]
    ids = torch.zeros(len(rows), MOST_TOKENS, dtype=torch.long)
    for row, into in zip(rows, ids, strict=True):
        into[: len(row)] = torch.tensor(row)
    return Tokens(ids, ids != IDS["<pad>"])


def render(signs: Sequence[Sign], *, seed: int = 0, noise: float = NOISE) -> Pictures:
    """Pictures of the signs, from -1 to 1; the seed draws shifts, spread of the colours, noise.

    Raises ValueError: a word of other than three capitals, an unknown colour or thing.
    """
    for sign in signs:
        _known(sign)
    generator = torch.Generator().manual_seed(require.whole("seed", seed, least=0))
    colors = torch.tensor([COLORS[sign.color] for sign in signs])
    colors = colors + SPREAD * torch.randn(colors.shape, generator=generator)
    surface = torch.stack([_surfaces()[THINGS.index(sign.thing)] for sign in signs])
    frame = _surfaces()[-1] * torch.tensor([sign.thing == "sign" for sign in signs])[:, None, None]
    shifts = torch.randint(len(SHIFTS), (len(signs),), generator=generator)
    letters = torch.tensor([[ALPHABET.index(c) for c in sign.word] for sign in signs])
    ink = torch.maximum(_glyphs()[shifts[:, None], letters, torch.arange(LETTERS)].amax(1), frame)
    picture = colors[:, :, None, None] * surface[:, None]
    picture = picture * (1 - ink[:, None]) + INK * ink[:, None]
    picture = picture + noise * torch.randn(picture.shape, generator=generator)
    return 2 * picture.clamp(0, 1) - 1


def strip(pictures: Pictures) -> Float[np.ndarray, "height width 3"]:
    """Pictures side by side, from 0 to 1, as matplotlib's `imshow` takes them."""
    gap = torch.ones(3, pictures.shape[2], 2)
    parts = [part for one in pictures for part in (gap, one.detach().clamp(-1, 1))][1:]
    return ((torch.cat(parts, 2) + 1) / 2).permute(1, 2, 0).numpy()


def _shared(one: Sign, other: Sign) -> bool:
    same = any(a == b for a, b in zip(one.word, other.word, strict=True))
    return same or one.color == other.color or one.thing == other.thing


def _ids(prompt: str) -> list[int]:
    pieces = re.findall(r'[a-z]+|[A-Z]|"|\S', prompt)
    unknown = [piece for piece in pieces if piece not in IDS]
    if unknown:
        known = " ".join(word for word in VOCABULARY[len(SPECIAL) :] if word not in ALPHABET)
        raise ValueError(f"the painter does not know {unknown}: it knows {known} and capitals A-Z")
    if not 0 < len(pieces) <= MOST_TOKENS - 2:
        raise ValueError(f"a prompt has 1 to {MOST_TOKENS - 2} words and letters, not {prompt!r}")
    return [IDS[piece] for piece in ("<begin>", *pieces, "<end>")]


def _known(sign: Sign) -> None:
    if len(sign.word) != LETTERS or not set(sign.word) <= set(ALPHABET):
        raise ValueError(f"a word has {LETTERS} capitals from A to Z, not {sign.word!r}")
    if sign.color not in COLORS or sign.thing not in THINGS:
        raise ValueError(
            f"no {sign.color!r} {sign.thing!r}: colours are {list(COLORS)}, things {list(THINGS)}"
        )


@functools.cache
def _glyphs() -> Float[Tensor, "shifts letters slots height width"]:
    """How much ink each letter leaves, 0 to 1, in each of its places."""
    path = font_manager.findfont(font_manager.FontProperties(family="DejaVu Sans", weight="bold"))
    font = ImageFont.truetype(path, POINTS * SCALE)
    ink = torch.zeros(len(SHIFTS), len(ALPHABET), LETTERS, HEIGHT, WIDTH)
    for (i, shift), (j, letter), slot in itertools.product(
        enumerate(SHIFTS), enumerate(ALPHABET), range(LETTERS)
    ):
        image = Image.new("L", (WIDTH * SCALE, HEIGHT * SCALE))
        middle = MARGIN + CELL * slot + CELL / 2 + shift
        place = (SCALE * middle, SCALE * HEIGHT / 2 + 0.36 * POINTS * SCALE)
        ImageDraw.Draw(image).text(place, letter, fill=255, font=font, anchor="ms")
        fine = torch.tensor(np.asarray(image), dtype=torch.float32) / 255
        ink[i, j, slot] = fine.reshape(HEIGHT, SCALE, WIDTH, SCALE).mean((1, 3))
    return ink


@functools.cache
def _surfaces() -> Float[Tensor, "things_and_frame height width"]:
    """How light each thing is, place by place, and where a sign's frame is."""
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    frame = ((y == 0) | (y == HEIGHT - 1) | (x == 0) | (x == WIDTH - 1)).float()
    mortar = (y % 4 == 3) | ((x + 4 * (y // 4 % 2)) % 8 == 0)
    wall = torch.where(mortar, 0.45, 1.0)
    card = 1.3 - 0.7 * y / (HEIGHT - 1)
    return torch.stack([torch.ones(HEIGHT, WIDTH), wall, card, 0.9 * frame])
