"""Checks of lessons 08 to 10: how common the illusion is, what shows it, the report."""

from collections.abc import Callable

import torch
from torch import Tensor

from helpers.lessons.checks.compare import NOTHING, Draw, exercise, passed, require
from helpers.patching import Estimate


@exercise("of differences, one number per foursome")
def check_inner_products(draw: Draw) -> tuple:
    """Exercise 1 of lesson 08: `(x [tokens d], four [n 4]) -> [n]`."""
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
        "that is every row with every other: keep those of a row with itself": (a - b) @ (c - e).T,
    }
    return (x, four), right, mistakes


@exercise("the shortest vector that writes d")
def check_smallest_hidden(draw: Draw) -> tuple:
    """Exercise 2 of lesson 08: `(d [d_model], W_out [d_mlp d_model]) -> [d_mlp]`."""
    d_model = draw.size(3)
    d, W_out = draw.normal(d_model), draw.normal(2 * d_model + 1, d_model)
    right, other = d @ torch.linalg.pinv(W_out), W_out @ d

    def writes(found: object) -> bool | None:  # None: of another shape
        fits = isinstance(found, Tensor) and found.shape == right.shape
        return torch.allclose(found @ W_out, d, atol=1e-4) if fits else None

    mistakes = {
        "it writes d, but a shorter one does, too": writes,
        "W_out @ d pushes in a good direction, but does not write d: use the pseudo-inverse": other,
        "keep the length of d in it: it belongs to what shall be written": right / d.norm(),
        "do not normalise: the length is the answer": right / right.norm(),
        "h @ W_out is not d: it does not write d": lambda found: writes(found) is False,
    }
    return (d, W_out), right, mistakes


def check_is_illusion(is_illusion: Callable[..., bool], *, seed: int = 0) -> None:
    """Exercise 3 of lesson 08: `(one, whole, random, row, null_share) -> bool`."""
    draw = Draw(seed)
    one = _around(draw.number(0.36, 0.26, 0.6), 0.02)
    good = {  # passes all four tests, whichever ends are compared; see MLP 21 of lesson 03
        "one": one,
        "whole": _around(draw.number(-0.03, -0.08, 0.04), 0.01),
        "random": _around(draw.number(0.0, -0.02, 0.02), 0.01),
        "row": _around(draw.number(0.43, 0.3, 0.42) * one.value, 0.01),
        "null_share": _around(draw.number(0.55, 0.52, 0.8), 0.01),
    }
    like = "MLP 21 of lesson 03" if draw.visible else "an MLP like MLP 21 of lesson 03"
    holds, fails = {f"{like} passes all four tests": {}} | _limits(draw, one), _breaches(draw, one)
    questions = [(good | change,) for change in (holds | fails).values()]
    answers = draw.answers(lambda given: is_illusion(**given), questions)
    for message, found in zip((*holds, *fails), answers, strict=True):
        require(bool(found) == (message in holds), f"is_illusion: {message}")
    said = "inert as a whole, strong in one direction, read by the null part"
    passed(f"is_illusion: {said}", is_illusion)


def _around(value: float, half: float) -> Estimate:
    return Estimate(value, value - half, value + half)


def _limits(draw: Draw, one: Estimate) -> dict[str, dict[str, Estimate]]:
    """What to change so that a limit is met exactly, or an end of an interval lies beyond it."""
    near, wide = _around(draw.number(0.07, 0.06, 0.09), 0.05), draw.number(0.4, 0.3, 0.6)
    low, row = _around(draw.number(0.24, 0.21, 0.25), 0.06), _around(0.06, 0.01)
    half = one.value / 2
    of_wide = {"one": _around(wide, 0.1), "row": _around(0.45 * wide, 0.005)}
    return {
        "+0.10 for the whole MLP is within the limit": {"whole": Estimate(0.1, 0.09, 0.1)},
        "-0.10 for the whole MLP is within the limit": {"whole": Estimate(-0.1, -0.1, -0.09)},
        "the whole MLP's value counts, not its interval": {"whole": near},
        "exactly 0.20 is 'at least' 0.20": {"one": Estimate(0.2, 0.2, 0.22), "row": row},
        "the value is at least 0.20, the low end need not be": {"one": low, "row": row},
        "half of the direction's value, not of its low end": of_wide,
        "the row part's value counts, not its high end": {"row": _around(0.9 * half, 0.2 * half)},
        "exactly half is 'at most half'": {"row": Estimate(half, half - 0.01, half)},
    }


def _breaches(draw: Draw, one: Estimate) -> dict[str, dict[str, Estimate]]:
    """What to change so that exactly one condition fails, by the message that names it."""
    whole, inverse = draw.number(0.12, 0.11, 0.15), draw.number(-0.4, -0.5, -0.15)
    weak, wide = draw.number(0.15, 0.12, 0.19), draw.number(0.25, 0.21, 0.3)
    half, share = _around(0.4 * wide, 0.05), Estimate(0.55, draw.number(0.45, 0.4, 0.49), 0.65)
    near, below = draw.number(0.08, 0.06, 0.09), draw.number(0.01, 0.005, 0.02)
    most, row = draw.number(0.56, 0.52, 0.7) * one.value, _around(0.02, 0.01)
    inverse, above = _around(inverse, 0.1), Estimate(one.low - 0.03, one.low - 0.13, one.low + 0.01)
    high, near = Estimate(0.0, -one.low, one.low), _around(near, 0.04)
    over = {"one": _around(wide, wide - near.value - 0.02), "whole": near, "row": half}
    over_0 = {"whole": _around(-0.05, 0.02), "random": _around(-0.1, 0.02), "row": half}
    less = f"{100 * weak:.0f} % is less than the 20 % asked for"
    return {
        "the whole MLP has an effect of its own here": {"whole": _around(whole, 0.02)},
        "an effect of the whole MLP may be negative as well: take abs()": {"whole": inverse},
        less: {"one": _around(weak, 0.01), "row": row},
        f"{less}, whatever its high end": {"one": Estimate(weak, weak, weak + 0.09), "row": row},
        "the interval must lie above that of the random direction": {"random": above},
        "the interval must lie above that of the whole MLP": over,
        "the interval must lie above 0": over_0 | {"one": _around(wide, wide + below)},
        "as high as the whole MLP's high end is not 'above'": {"whole": high},
        "as high as the random direction's high end is not 'above'": {"random": high},
        "a low end of 0 is not 'above 0'": over_0 | {"one": Estimate(wide, 0.0, 2 * wide)},
        "the row part keeps more than half": {"row": _around(most, 0.004)},
        "the row part keeps more than half: its low end does not count": {
            "row": _around(most, 0.3)
        },
        "the low end of the null part's share must lie above one half": {"null_share": share},
        "a share of one half is not 'above one half'": {"null_share": Estimate(0.6, 0.5, 0.7)},
    }


@exercise("the share of the effect that is gone, a ratio of means")
def check_opened(draw: Draw) -> tuple:
    """Exercise 1 of lesson 09: `(fall [pairs], fall_shut [pairs]) -> []`."""
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
    """Exercise 2 of lesson 09: `(value [pairs], natural [n]) -> [pairs]`."""
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
    """Exercise 3 of lesson 09: `(opened [k], natural [m]) -> []`."""
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


def check_verdict(verdict: Callable[[float, float, float, float], str], *, seed: int = 0) -> None:
    """Exercise 1 of lesson 10: `(value, low, whole_high, random_high)`, percent -> verdict."""
    draw = Draw(seed)
    strong, near = draw.number(36.0, 25, 60), draw.number(1.0, 0.1, 2)
    low, whole, random = strong - 2, draw.number(-2.0, -9, -1), draw.number(0.5, 0.1, 3)
    cases = [
        ((strong, low, whole, random), "replicated", "a strong effect, above both controls"),
        ((20, 20 - near, whole, random), "replicated", "20 % is enough: 'at least'"),
        ((20 - near, 15, whole, random), "partly", "only the 20 % is missed"),
        ((strong, low, low + near, random), "not", "the whole MLP may do as much"),
        ((strong, low, whole, low + near), "not", "a random direction may do as much"),
        ((strong, low, low, random), "not", "'above' is more than 'as high as'"),
        ((5, -near, -20, -10), "not", "the interval holds 0, so there may be no effect"),
        ((15, 12, 12 + near, random), "not", "it is not only the 20 % that is missed"),
    ]
    answers = draw.answers(verdict, [numbers for numbers, _, _ in cases])
    for (numbers, right, why), found in zip(cases, answers, strict=True):
        shown = ", ".join(f"{number:g}" for number in numbers)
        require(found == right, f"({shown}) is {right!r}, not {found!r}: {why}")
    passed("verdict: the rule to the letter, also at its edges", verdict)


def check_largest_share(largest_share: Callable[[int], float], *, seed: int = 0) -> None:
    """Exercise 2 of lesson 10: `n` facts of which none flips -> the largest believable share."""
    draw = Draw(seed)
    for n in (round(draw.number(40, 50, 90)), round(draw.number(12, 5, 30))):
        right, found = 1 - 0.025 ** (1 / n), largest_share(n)
        require(found is not None, NOTHING)
        mistakes = {
            "that is the share that does not flip: subtract it from 1": 1 - right,
            "that is in percent: return a fraction": 100 * right,
            "start from 2.5 %, one side of a 95 % interval, not from 5 %": 1 - 0.05 ** (1 / n),
            "97.5 % is the chance that some flip: start from 2.5 %": 1 - 0.975 ** (1 / n),
            "chances multiply, they do not add: take a root": 0.025 / n,
            "none of n is 0, but 0 is not the largest share that fits": 0.0,
        }
        for message, wrong in mistakes.items():
            require(abs(found - wrong) > 1e-6, f"largest_share({n}): {message}")
        close = abs(found - right) <= 1e-4
        require(close, f"largest_share({n}): expected {right:.4f}, got {found}")
    passed("largest_share: what none of n leaves open", largest_share)


def check_is_fragile(is_fragile: Callable[..., bool], *, seed: int = 0) -> None:
    """Exercise 3 of lesson 10: `(value, low, high, threshold)`; rule: value >= threshold."""
    draw = Draw(seed)
    cases = [
        ((50, 40, 60, 20), False, "both ends pass, as the value does"),
        ((50, 40, 60, 80), False, "both ends fail, as the value does"),
        ((97, 93, 102, 100), True, "the value fails and the upper end passes"),
        ((25, 18, 33, 20), True, "the value passes and the lower end fails"),
        ((25, 20, 33, 20), False, "'at least': the lower end still passes"),
        ((25, 18, 30, 30), True, "'at least': the upper end passes, the value does not"),
    ]
    moved = []
    for numbers, _, _ in cases:  # to another place and size, every case for itself
        shift, scale = round(draw.number(0, 1, 30)), round(draw.number(1, 2, 9))
        moved.append(tuple(scale * number + shift for number in numbers))
    answers = draw.answers(is_fragile, moved)
    for numbers, (_, right, why), found in zip(moved, cases, answers, strict=True):
        require(bool(found) == right, f"{numbers} is {right}: {why}")
    passed("is_fragile: the verdict at both ends of the interval", is_fragile)
