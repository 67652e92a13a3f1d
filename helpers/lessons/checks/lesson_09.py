"""Checks of lesson 09: the report."""

from collections.abc import Callable

from helpers.lessons.checks.compare import Draw, passed, require


def check_verdict(verdict: Callable[[float, float, float, float], str], *, seed: int = 0) -> None:
    """Exercise 1 of lesson 09: `(value, low, whole_high, random_high)`, percent -> verdict."""
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
        require(found is not None, "your function returns nothing: end it with `return`")
        shown = ", ".join(f"{number:g}" for number in numbers)
        require(found == right, f"({shown}) is {right!r}, not {found!r}: {why}")
    passed("verdict: the rule to the letter, also at its edges")


def check_largest_share(largest_share: Callable[[int], float], *, seed: int = 0) -> None:
    """Exercise 2 of lesson 09: `n` facts of which none flips -> the largest believable share."""
    draw = Draw(seed)
    for n in (round(draw.number(40, 50, 90)), round(draw.number(12, 5, 30))):
        right, found = 1 - 0.025 ** (1 / n), largest_share(n)
        require(found is not None, "your function returns nothing: end it with `return`")
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
    passed("largest_share: what none of n leaves open")


def check_is_fragile(is_fragile: Callable[..., bool], *, seed: int = 0) -> None:
    """Exercise 3 of lesson 09: `(value, low, high, threshold)`; rule: value >= threshold."""
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
        require(found is not None, "your function returns nothing: end it with `return`")
        require(bool(found) == right, f"{numbers} is {right}: {why}")
    passed("is_fragile: the verdict at both ends of the interval")
