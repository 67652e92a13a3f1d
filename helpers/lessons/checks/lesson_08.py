"""Checks of lesson 08: which test of a subspace can be trusted."""

from collections.abc import Callable

import torch
from torch import Tensor

from helpers.lessons.checks.compare import Draw, call, name_mistake, passed


def check_opened(opened: Callable[[Tensor, Tensor], Tensor], *, seed: int = 0) -> None:
    """Exercise 1 of lesson 08: `(fall [pairs], fall_shut [pairs]) -> []`.

    Any `seed` but 0 draws other data of other sizes, for hidden tests.
    """
    draw = Draw(seed)
    pairs = draw.size(4)
    # One small fall, which grows when the pathway is shut: it would rule a mean of ratios. In these
    # ranges no two of the results below come close.
    fall = torch.cat([torch.tensor([0.01]), draw.uniform(2, 4, pairs - 1)])
    left = torch.cat([torch.tensor([3.0 * pairs]), draw.uniform(0.1, 0.2, pairs - 1)])
    shut = fall * left
    right = 1 - shut.mean() / fall.mean()
    mistakes = {
        "that is the share that is left: 1 minus it": shut.mean() / fall.mean(),
        "a mean of ratios: pairs with a small fall would rule. Take the ratio of means": (
            1 - (shut / fall).mean()
        ),
        "that is a difference in nats: divide by the full fall": (fall - shut).mean(),
        "divide by the full fall, not by the one with the pathway shut": (
            (fall - shut).mean() / shut.mean()
        ),
        "one number for all pairs, please": 1 - shut / fall,
    }
    name_mistake(call("opened", opened, fall, shut), right, mistakes, "opened")
    passed("opened: the share of the effect that is gone, a ratio of means")


def check_beyond(beyond: Callable[[Tensor, Tensor], Tensor], *, seed: int = 0) -> None:
    """Exercise 2 of lesson 08: `(value [pairs], natural [n]) -> [pairs]`.

    Any `seed` but 0 draws other data of other sizes, for hidden tests.
    """
    draw = Draw(seed)
    natural = draw.uniform(-3, 5, draw.size(4))
    low, high = natural.min(), natural.max()
    # In widths of the range: one value below it, one inside, one at its end, the others above.
    places = (draw.uniform(-2, -0.5, 1), draw.uniform(0.1, 0.9, 1), torch.ones(1))
    above = draw.uniform(1.2, 3, draw.size(5) - 3)
    value = low + (high - low) * draw.shuffled(*places, above)
    above, below = (value - high).clamp(min=0), (low - value).clamp(min=0)
    right = (above + below) / (high - low)
    mistakes = {
        "divide by the width of the natural range": above + below,
        "values below the range are beyond it, too": above / (high - low),
        "values above the range are beyond it, too": below / (high - low),
        "inside the range the answer is 0, not negative: clamp": torch.maximum(
            value - high, low - value
        )
        / (high - low),
        "distance from the mean? Only what lies outside the range counts": (
            (value - natural.mean()).abs() / (high - low)
        ),
        "the width is the range, not the standard deviation": (above + below) / natural.std(),
    }
    name_mistake(call("beyond", beyond, value, natural), right, mistakes, "beyond")
    passed("beyond: zero inside, in widths of the range outside")


def check_auroc(auroc: Callable[[Tensor, Tensor], Tensor], *, seed: int = 0) -> None:
    """Exercise 3 of lesson 08: `(opened [k], natural [m]) -> []`.

    Any `seed` but 0 draws other data of other sizes, for hidden tests.
    """
    draw = Draw(seed)
    n_opened, n_natural = draw.size(4), draw.size(3)
    low = draw.uniform(0.0, 0.4, n_natural - 1)
    # One natural score beats all others, and one opened score ties with a low natural one.
    natural = draw.shuffled(low, torch.tensor([0.95]))
    opened = draw.shuffled(low[:1], draw.uniform(0.5, 0.9, n_opened - 1))
    higher = (opened[:, None] > natural).float()
    ties = (opened[:, None] == natural).float()
    right = (higher + ties / 2).mean()
    mistakes = {
        "ties count one half, not nothing": higher.mean(),
        "ties count one half, not one": (higher + ties).mean(),
        "the wrong way round: an opened pathway should score higher": 1 - right,
        "a share of all comparisons, not their number": (higher + ties / 2).sum(),
        "the two means are compared: compare every score with every other": (
            opened.mean() > natural.mean()
        ).float(),
    }
    name_mistake(call("auroc", auroc, opened, natural), right, mistakes, "auroc")
    passed("auroc: how often an opened pathway scores higher")
