"""Checks of lesson 08: which test of a subspace can be trusted."""

import torch

from helpers.lessons.checks.compare import Draw, exercise


@exercise("the share of the effect that is gone, a ratio of means")
def check_opened(draw: Draw) -> tuple:
    """Exercise 1 of lesson 08: `(fall [pairs], fall_shut [pairs]) -> []`."""
    pairs = draw.size(4)
    # One small fall, which grows when the pathway is shut: it would rule a mean of ratios. In these
    # ranges no two of the results below come close.
    fall = torch.cat([torch.tensor([0.01]), draw.uniform(2, 4, pairs - 1)])
    left = torch.cat([torch.tensor([3.0 * pairs]), draw.uniform(0.1, 0.2, pairs - 1)])
    shut = fall * left
    gone, ratios = (fall - shut).mean(), 1 - shut / fall
    mean_ratio = ratios.mean()
    mistakes = {
        "that is the share that is left: 1 minus it": shut.mean() / fall.mean(),
        "a mean of ratios: pairs with a small fall would rule. Take the ratio of means": mean_ratio,
        "that is a difference in nats: divide by the full fall": gone,
        "divide by the full fall, not by the one with the pathway shut": gone / shut.mean(),
        "one number for all pairs, please": ratios,
    }
    return (fall, shut), 1 - shut.mean() / fall.mean(), mistakes


@exercise("zero inside, in widths of the range outside")
def check_beyond(draw: Draw) -> tuple:
    """Exercise 2 of lesson 08: `(value [pairs], natural [n]) -> [pairs]`."""
    natural = draw.uniform(-3, 5, draw.size(4))
    low, high = natural.min(), natural.max()
    width = high - low
    # In widths of the range: one value below it, one inside, one at its end, the others above.
    places = (draw.uniform(-2, -0.5, 1), draw.uniform(0.1, 0.9, 1), torch.ones(1))
    value = low + width * draw.shuffled(*places, draw.uniform(1.2, 3, draw.size(5) - 3))
    above, below = (value - high).clamp(min=0), (low - value).clamp(min=0)
    unclamped = torch.maximum(value - high, low - value)
    from_mean = (value - natural.mean()).abs()
    mistakes = {
        "divide by the width of the natural range": above + below,
        "values below the range are beyond it, too": above / width,
        "values above the range are beyond it, too": below / width,
        "inside the range the answer is 0, not negative: clamp": unclamped / width,
        "distance from the mean? Only what lies outside the range counts": from_mean / width,
        "the width is the range, not the standard deviation": (above + below) / natural.std(),
    }
    return (value, natural), (above + below) / width, mistakes


@exercise("how often an opened pathway scores higher")
def check_auroc(draw: Draw) -> tuple:
    """Exercise 3 of lesson 08: `(opened [k], natural [m]) -> []`."""
    n_opened, n_natural = draw.size(4), draw.size(3)
    low = draw.uniform(0.0, 0.4, n_natural - 1)
    # One natural score beats all others, and one opened score ties with a low natural one.
    natural = draw.shuffled(low, torch.tensor([0.95]))
    opened = draw.shuffled(low[:1], draw.uniform(0.5, 0.9, n_opened - 1))
    higher = (opened[:, None] > natural).float()
    ties = (opened[:, None] == natural).float()
    right, by_means = (higher + ties / 2).mean(), (opened.mean() > natural.mean()).float()
    mistakes = {
        "ties count one half, not nothing": higher.mean(),
        "ties count one half, not one": (higher + ties).mean(),
        "the wrong way round: an opened pathway should score higher": 1 - right,
        "a share of all comparisons, not their number": (higher + ties / 2).sum(),
        "the two means are compared: compare every score with every other": by_means,
    }
    return (opened, natural), right, mistakes
