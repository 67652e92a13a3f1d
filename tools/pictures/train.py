"""Train painters, and the reader of their pictures."""

import copy
import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from helpers.pictures import agreement, load_reader, noise, render, sample, signs
from helpers.pictures.drawing import NOISE, Pictures, Sign, words
from helpers.pictures.painter import Painter
from helpers.pictures.reader import Reader, truth
from tools.pictures.muon import Muon

BATCH, WARM_UP, AVERAGE, DROPPED, EARLIEST = 64, 50, 0.995, 0.05, 0.05
MATRIX_RATE, RATE = 0.02, 3e-3
READER_STEPS, READER_RATE, READER_NOISE = 500, 2e-3, 0.3
LOOK, LOOKS = 50, 40  # steps between two looks, pictures of a look


class Recipe(NamedTuple):
    """What one painter is made of."""

    seed: int
    steps: int
    blind: tuple[int, ...] = ()

    @property
    def shape(self) -> dict:
        """The arguments of `Painter`."""
        return {"layers": 6, "width": 96, "heads": 4, "blind": list(self.blind)}


RECIPES = {
    **{f"seed{n}": Recipe(n, 500) for n in range(3)},
    "late": Recipe(3, 800, blind=(0, 1)),
}


def untrained(recipe: Recipe) -> Painter:
    """The painter before its first step."""
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        return Painter(**recipe.shape)


def optimizers(painter: Painter) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of blocks and text encoder, AdamW for all else."""
    deep = [*painter.blocks.parameters(), *painter.encoder.parameters()]
    matrices = {id(param): param for param in deep if param.ndim == 2 and min(param.shape) > 6}
    others = [param for param in painter.parameters() if id(param) not in matrices]
    read = [param for param in matrices.values() if param.requires_grad]
    return [
        Muon(read, lr=MATRIX_RATE),
        torch.optim.AdamW(others, lr=RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def velocity_loss(
    painter: Painter, asked: list[Sign], picture: Pictures, generator: torch.Generator
) -> Tensor:
    """The squared error of the velocity, rather early in the run; some prompts are silent."""
    t = (0.6 + 1.1 * torch.randn(len(asked), generator=generator)).sigmoid()
    other = torch.randn(picture.shape, generator=generator)
    silent = torch.rand(len(asked), generator=generator) < DROPPED
    prompts = ['"' if quiet else s.prompt for s, quiet in zip(asked, silent.tolist(), strict=True)]
    at = t[:, None, None, None]
    expected = painter((1 - at) * picture + at * other, t, painter.encode(prompts))
    return (((expected - picture) / at.clamp(min=EARLIEST)) ** 2).mean()


def train(
    recipe: Recipe, steps: int | None = None, tell: Callable[[dict], None] = print
) -> tuple[Painter, list[dict]]:
    """A painter by this recipe, rounded to half precision, and its curve; the same each time.

    `steps` ends sooner, with the rates of the whole. The painter is the running average of the
    weights. `tell` gets a row of the curve whenever there is one.
    """
    painter = untrained(recipe)
    average = copy.deepcopy(painter).eval().requires_grad_(False)
    optimize = optimizers(painter)
    rate = functools.partial(_rate, recipe.steps)
    schedules = [torch.optim.lr_scheduler.LambdaLR(each, rate) for each in optimize]
    generator, curve = torch.Generator().manual_seed(recipe.seed), []
    start = time.process_time()
    for step in range(1, (steps or recipe.steps) + 1):
        drawn = signs(BATCH, seed=1_000_000 * (recipe.seed + 1) + step)
        picture = render(drawn, seed=step + 10_000 * recipe.seed)
        loss = velocity_loss(painter, drawn, picture, generator)
        painter.zero_grad()
        loss.backward()
        for each in (*optimize, *schedules):
            each.step()
        _follow(average, painter, min(AVERAGE, step / (step + 10)))
        if step % LOOK == 0 or step == steps:
            row = {"step": step, "loss": loss.item(), "seconds": time.process_time() - start}
            curve.append(row | legible(average))
            tell(curve[-1])
    return average.half().float(), curve


def legible(painter: Painter, n: int = LOOKS) -> dict[str, float]:
    """Of the first held-out words, the share of letters, colours and things as they were asked."""
    asked = [Sign(word, *s[1:]) for word, s in zip(words("test"), signs(n, seed=5), strict=False)]
    with torch.no_grad():
        text = painter.encode([sign.prompt for sign in asked])
    seen = load_reader().read(sample(painter, text, noise(n)))
    return {name: share.mean().item() for name, share in agreement(seen, asked).items()}


def train_reader(seed: int = 0) -> Reader:
    """The reader, on renderings with more and less noise, also of colours between ours."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        reader = Reader()
    optimizer = torch.optim.AdamW(reader.parameters(), lr=READER_RATE, weight_decay=0.0)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, functools.partial(_rate, READER_STEPS))
    generator = torch.Generator().manual_seed(seed)
    for step in range(READER_STEPS):
        drawn, share = signs(2 * BATCH, seed=step), torch.rand(1, generator=generator).item()
        right = truth(drawn)
        answers = [*right.letters.T, right.color, right.thing]
        logits = reader(render(drawn, seed=step, noise=NOISE + READER_NOISE * share**2))
        loss = sum(map(cross_entropy, logits, answers))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    return reader.half().float().eval().requires_grad_(False)


def _rate(steps: int, step: int) -> float:
    """Up in the first steps, then down to nothing."""
    return min((step + 1) / WARM_UP, 1.0) * (1 - step / steps)


@torch.no_grad()
def _follow(average: Painter, painter: Painter, share: float) -> None:
    for mean, new in zip(average.parameters(), painter.parameters(), strict=True):
        mean.lerp_(new, 1 - share)
