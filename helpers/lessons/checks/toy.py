"""Checks of lesson 01: the toy network."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from helpers.lessons.checks import compare
from helpers.lessons.checks.compare import NUMBERS, Draw, exercise, passed, require


def check_patch_direction(patch_direction: Callable, *, seed: int = 0) -> None:
    """Exercise 1 of lesson 01: `(base [pairs d], source [pairs d], direction [d]) -> [pairs d]`."""
    draw = Draw(seed)
    pairs, d, longer = draw.size(5), draw.size(4), draw.number(3.0, 2.0, 5.0)
    base, source = draw.normal(2, pairs, d)
    for length in (1.0, longer):
        v = draw.normal(d)
        v = length * v / v.norm()
        u, sensed = v / v.norm(), (source - base) @ v
        change = torch.outer(sensed, u) / length
        long, once = (base + torch.outer(sensed, x) for x in (v, u))
        added = base + torch.outer(source @ u, u)
        mistakes = {
            f"the direction may have any length: divide by |v|² (here |v| = {longer:.3g})": long,
            "you divided by |v| once; it takes |v|² (one for reading, one for writing)": once,
            "you added the source's component without taking the base's away": added,
            "base and source are swapped": source - change,
            "you return only the change: add it to the base": change,
            "that is the whole source, not its component along v": source,
        }
        found = compare.call("patch_direction", patch_direction, base, source, v)
        compare.name_mistake(found, base + change, mistakes, f"direction of length {length:.3g}")
    passed(
        f"patch_direction: right for directions of length 1 and {longer:.3g}, inputs untouched",
        patch_direction,
    )


@exercise("right at {} angles")
def check_predicted_output(draw: Draw) -> tuple:
    """Exercise 2 of lesson 01: angle in radians `[n]` -> output of the patched network `[n]`."""
    a = torch.linspace(0, draw.number(math.pi / 2, 1.8, 3.0), draw.size(7))
    sine, cosine = torch.sin(2 * a), torch.cos(2 * a)
    mistakes = {
        "you forgot the output of the base before the patch, 1": 4 * sine,
        "unit 2 counts twice: its weight is 2": 1 + 2 * sine,
        "the patch senses only 4 cos a, not 4": 1 + 8 * a.sin(),
        "the angle is in radians already": 1 + 4 * torch.sin(2 * a.deg2rad()),
        "you have the cosine where the sine belongs: at 45° the effect is largest": 1 + 4 * cosine,
    }
    return (a,), 1 + 4 * sine, mistakes, NUMBERS[len(a)]


@exercise("the parts add up, one parallel to w_out and one invisible to it")
def check_split(draw: Draw) -> tuple:
    """Exercise 3 of lesson 01: `(direction [d], w_out [d]) -> (row [d], null [d])`."""
    direction, w = draw.normal(2, draw.size(5))
    row = (direction @ w) * w / (w @ w)
    mistakes = {
        "w_out may have any length: divide by |w_out|²": (direction @ w) * w,
        "divide by |w_out|², not by |w_out|": (direction @ w) * w / w.norm(),
    }
    return (direction, w), (row, direction - row), mistakes


def check_my_illusion(direction: Tensor, *, seed: int = 0) -> None:
    """Exercise 4 of lesson 01: a unit vector `[3]` for the network with output `4 h2 + h3`.

    The answer is one vector for one network, with nothing to vary: `seed` changes nothing.
    """
    direction = torch.as_tensor(direction, dtype=torch.float32)
    require(direction.shape == (3,), f"give three numbers, got shape {tuple(direction.shape)}")
    require(abs(direction[2]) < 1e-6, "unit 3 is the mediator: use units 1 and 2 only")
    require(abs(direction.norm() - 1) < 1e-3, f"length {direction.norm():.3f}: scale it to 1")
    output = 1 + 16 * direction[0] * direction[1]
    hint = " (45° overshoots here: unit 2 has weight 4)" if output > 8.9 else ""
    require(abs(output - 5) < 1e-2, f"the patched output is {output:.2f}, not 5{hint}")
    passed("my_illusion: base 1 gives the output 5 of the source, and the mediator never moved")
