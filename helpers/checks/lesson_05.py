"""Checks of lesson 05: facts."""

from collections.abc import Callable

import torch
from torch import Tensor

from helpers.checks.compare import name_mistake, passed, require


def check_last_subject_token(
    last_subject_token: Callable[[list[tuple[int, int]], int, int], int],
) -> None:
    """Exercise 1 of lesson 05: `(offsets, subject_stop, n_before) -> position`."""
    # "Mount Fujisan is high" in six tokens: "Mount", " Fu", "ji", "san", " is", " high"
    offsets = [(0, 5), (5, 8), (8, 10), (10, 13), (13, 16), (16, 21)]
    for stop, n_before in [(13, 0), (13, 2), (5, 2)]:
        right = next(t for t, (a, b) in enumerate(offsets) if a < stop <= b) + n_before
        found = last_subject_token(offsets, stop, n_before)
        require(found is not None, "your function returns nothing: does any token match?")
        mistakes = {
            right + 1: "that is the token after the subject: `subject_stop` is not part of it",
            right - n_before: "count the tokens that stand before the text, too (BOS)",
            right - 1: "that is one token too early: the subject's last token, not an earlier one",
            n_before: "that is the subject's first token: take the last",
        }
        require(
            found == right, f"{mistakes.get(found, f'expected {right}')} (stop {stop}, got {found})"
        )
    passed("last_subject_token: right with and without BOS, for subjects of one and four tokens")


def check_start(start: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Exercise 2 of lesson 05: `(base, source, gradient [pairs d]) -> unit vectors [pairs d]`."""
    generator = torch.Generator().manual_seed(9)
    base, source, gradient = torch.randn(3, 4, 5, generator=generator)
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
    name_mistake(start(base, source, gradient), right, mistakes, "start")
    passed("start: half sensor, half actuator, for every pair")


def check_patch_each(patch_each: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Exercise 3 of lesson 05: `(base, source, directions [pairs d]) -> [pairs d]`."""
    generator = torch.Generator().manual_seed(10)
    base, source, directions = torch.randn(3, 4, 4, generator=generator)  # square on purpose
    before = [x.clone() for x in (base, source, directions)]
    found = patch_each(base, source, directions)
    unchanged = all(map(torch.equal, (base, source, directions), before))
    require(unchanged, "patch_each changes one of its inputs in place: make a new tensor")
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
