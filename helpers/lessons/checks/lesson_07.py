"""Checks of lesson 07: how common the illusion is."""

from collections.abc import Callable

import torch
from torch import Tensor

from helpers.lessons.checks.compare import Draw, call, exercise, name_mistake, passed, require
from helpers.patching.metrics import Estimate


@exercise("of differences, one number per foursome")
def check_inner_products(draw: Draw) -> tuple:
    """Exercise 1 of lesson 07: `(x [tokens d], four [n 4]) -> [n]`."""
    tokens, n = draw.size(9), draw.size(2)
    x = draw.normal(tokens, draw.size(5))
    four = torch.stack([draw.order(tokens)[:4] for _ in range(n)])
    a, b, c, e = x[four].unbind(1)
    right = ((a - b) * (c - e)).sum(-1)
    cosine = torch.cosine_similarity(a - b, c - e)
    mistakes = {
        "sum over the last dimension: an inner product is one number": (a - b) * (c - e),
        "an inner product is a sum, not a mean": ((a - b) * (c - e)).mean(-1),
        "you multiplied the activations: take the differences first": (a * c).sum(-1),
        "the pairs are (a, b) and (c, e), not (a, c) and (b, e)": ((a - c) * (b - e)).sum(-1),
        "one of the differences has the wrong sign": -right,
        "that is one product over all foursomes: keep one per row": right.sum(),
        "that is a cosine: lengths belong to an inner product": cosine,
    }
    return (x, four), right, mistakes


def check_smallest_hidden(smallest_hidden: Callable, *, seed: int = 0) -> None:
    """Exercise 2 of lesson 07: `(d [d_model], W_out [d_mlp d_model]) -> [d_mlp]`."""
    draw = Draw(seed)
    d_model = draw.size(3)
    d, W_out = draw.normal(d_model), draw.normal(2 * d_model + 1, d_model)
    right, other = d @ torch.linalg.pinv(W_out), W_out @ d
    mistakes = {
        "W_out @ d pushes in a good direction, but does not write d: use the pseudo-inverse": other,
        "keep the length of d in it: it belongs to what shall be written": right / d.norm(),
        "do not normalise: the length is the answer": right / right.norm(),
    }
    found = call("smallest_hidden", smallest_hidden, d, W_out)
    if isinstance(found, Tensor) and found.shape == right.shape:
        writes = torch.allclose(found @ W_out, d, atol=1e-4)
        longer = writes and found.norm() > right.norm() + 1e-4
        require(not longer, "smallest_hidden: it writes d, but a shorter one does, too")
    name_mistake(found, right, mistakes, "smallest_hidden")
    passed("smallest_hidden: the shortest vector that writes d")


def check_is_illusion(is_illusion: Callable[..., bool], *, seed: int = 0) -> None:
    """Exercise 3 of lesson 07: `(one, whole, random, row, null_share) -> bool`."""
    draw = Draw(seed)
    good = _an_illusion(draw)
    like = "MLP 21 of lesson 03" if draw.visible else "an MLP like MLP 21 of lesson 03"
    breaches = _breaches(draw, good)
    questions = [(good,), *((good | change,) for change in breaches.values())]
    first, *others = draw.answers(lambda given: is_illusion(**given), questions)
    require(bool(first), f"is_illusion: {like} passes all four tests")
    for message, found in zip(breaches, others, strict=True):
        require(not found, f"is_illusion: {message}")
    passed("is_illusion: inert as a whole, strong in one direction, read by the null part")


def _around(value: float, half: float) -> Estimate:
    return Estimate(value, value - half, value + half)


def _an_illusion(draw: Draw) -> dict[str, Estimate]:
    """Five estimates that pass all four tests; for seed 0 near those of MLP 21 in lesson 03."""
    one = draw.number(0.36, 0.21, 0.6)
    return {
        "one": Estimate(one, one - 0.03, one + 0.02),
        "whole": _around(draw.number(-0.03, -0.09, 0.04), 0.01),
        "random": _around(draw.number(0.0, -0.02, 0.02), 0.01),
        "row": _around(draw.number(0.47, 0.3, 0.49) * one, 0.01),
        "null_share": _around(draw.number(0.55, 0.52, 0.8), 0.01),
    }


def _breaches(draw: Draw, good: dict[str, Estimate]) -> dict[str, dict[str, Estimate]]:
    """What to change so that exactly one condition fails, by the message that names it."""
    one = good["one"]
    whole, inverse = draw.number(0.12, 0.11, 0.15), draw.number(-0.4, -0.5, -0.15)
    weak, wide = draw.number(0.15, 0.12, 0.19), draw.number(0.25, 0.21, 0.3)
    half = _around(0.4 * wide, 0.05)
    low = draw.number(0.45, 0.4, 0.49)
    return {
        "the whole MLP has an effect of its own here": {"whole": _around(whole, 0.02)},
        "an effect of the whole MLP may be negative as well: take abs()": {
            "whole": _around(inverse, 0.1)
        },
        f"{100 * weak:.0f} % is less than the 20 % asked for": {
            "one": _around(weak, 0.01),
            "row": _around(weak / 3, 0.01),
        },
        "the interval must lie above that of the random direction": {
            "random": Estimate(one.low - 0.03, one.low - 0.13, one.low + 0.01)
        },
        "the interval must lie above that of the whole MLP": {
            "one": _around(wide, wide - 0.05),
            "whole": _around(draw.number(0.08, 0.06, 0.09), 0.04),
            "row": half,
        },
        "the interval must lie above 0": {
            "one": _around(wide, wide + draw.number(0.01, 0.005, 0.02)),
            "whole": _around(-0.05, 0.02),
            "random": _around(-0.1, 0.02),
            "row": half,
        },
        "the row part keeps more than half": {
            "row": _around(draw.number(0.56, 0.52, 0.7) * one.value, 0.02)
        },
        "the low end of the null part's share must lie above one half": {
            "null_share": Estimate(0.55, low, 0.65)
        },
    }
