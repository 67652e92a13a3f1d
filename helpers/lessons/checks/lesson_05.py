"""Checks of lesson 05: facts."""

from collections.abc import Callable

import torch
from torch import Tensor

from helpers.lessons.checks.compare import NUMBERS, Draw, call, name_mistake, passed, require


def check_last_subject_token(
    last_subject_token: Callable[[list[tuple[int, int]], int, int], int],
    *,
    seed: int = 0,
) -> None:
    """Exercise 1 of lesson 05: `(offsets, subject_stop, n_before) -> position`.

    Any `seed` but 0 draws another text with longer subjects, for hidden tests.
    """
    draw = Draw(seed)
    # Seed 0: "Mount", " Fu", "ji", "san", " is", " high". Two tokens follow the subject.
    widths = torch.tensor([5, 3, 2, 3, 3, 5]) if draw.visible else draw.integers(1, 7, draw.size(6))
    stops = widths.cumsum(0).tolist()
    offsets = list(zip([0, *stops], stops, strict=False))
    after = 2 if draw.visible else int(draw.integers(1, 3))
    n_subject, n_bos = len(offsets) - after, draw.size(2)
    long, short = stops[n_subject - 1], stops[0]
    for stop, n_before in [(long, 0), (long, n_bos), (short, n_bos)]:
        right = next(t for t, (a, b) in enumerate(offsets) if a < stop <= b) + n_before
        found = last_subject_token(offsets, stop, n_before)
        require(found is not None, "your function returns nothing: does any token match?")
        # Where two positions agree the last one is named, a forgotten BOS: the first round has none
        # and has caught the others.
        mistakes = {
            n_before: "that is the subject's first token: take the last",
            right + 1: "that is the token after the subject: `subject_stop` is not part of it",
            right - 1: "that is one token too early: the subject's last token, not an earlier one",
            right - n_before: "count the tokens that stand before the text, too (BOS)",
        }
        require(
            found == right, f"{mistakes.get(found, f'expected {right}')} (stop {stop}, got {found})"
        )
    passed(
        "last_subject_token: right with and without BOS, for subjects of one and "
        f"{NUMBERS[n_subject]} tokens"
    )


def check_start(start: Callable[[Tensor, Tensor, Tensor], Tensor], *, seed: int = 0) -> None:
    """Exercise 2 of lesson 05: `(base, source, gradient [pairs d]) -> unit vectors [pairs d]`.

    Any `seed` but 0 draws other data of other sizes, for hidden tests.
    """
    draw = Draw(seed)
    base, source, gradient = draw.normal(3, draw.size(4), draw.size(5))
    change = 2 * (source - base)
    source = base + change

    def unit(x: Tensor) -> Tensor:
        return x / x.norm(dim=-1, keepdim=True)

    right = unit(unit(change) - unit(gradient))
    mistakes = {
        "that makes the logit difference rise: against the gradient": unit(
            unit(change) + unit(gradient)
        ),
        "the sensor points the wrong way: source minus base": unit(unit(-change) - unit(gradient)),
        "scale both parts to length 1 before you mix them": unit(change - gradient),
        "the sum is not of length 1: scale it again": unit(change) - unit(gradient),
        "each pair has its own length: norm(dim=-1, keepdim=True)": (
            change / change.norm() - gradient / gradient.norm()
        )
        / (change / change.norm() - gradient / gradient.norm()).norm(),
    }
    name_mistake(call("start", start, base, source, gradient), right, mistakes, "start")
    passed("start: half sensor, half actuator, for every pair")


def check_patch_each(
    patch_each: Callable[[Tensor, Tensor, Tensor], Tensor], *, seed: int = 0
) -> None:
    """Exercise 3 of lesson 05: `(base, source, directions [pairs d]) -> [pairs d]`.

    Any `seed` but 0 draws other data of other sizes, for hidden tests.
    """
    draw = Draw(seed)
    n = draw.size(4)
    base, source, directions = draw.normal(3, n, n)  # square on purpose
    found = call("patch_each", patch_each, base, source, directions)
    change = source - base
    sensed = (change * directions).sum(-1, keepdim=True)
    length = directions.norm(dim=-1, keepdim=True)
    right = base + sensed / length**2 * directions
    mistakes = {
        "the directions may have any length: divide by |v|², row by row": base
        + sensed * directions,
        "divide by |v|², not by |v|": base + sensed / length * directions,
        "that patches every pair along all directions: multiply row by row": base
        + change @ directions.T @ directions,
        "one length for all pairs: the sum of squares needs dim=-1": base
        + sensed / directions.norm() ** 2 * directions,
        "you added the source's component without taking the base's away": base
        + (source * directions).sum(-1, keepdim=True) / length**2 * directions,
        "you return only the change: add it to the base": sensed / length**2 * directions,
        "base and source are swapped": base - sensed / length**2 * directions,
    }
    name_mistake(found, right, mistakes, "patch_each")
    passed("patch_each: every pair along its own direction")
