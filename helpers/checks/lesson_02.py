"""Checks of lesson 02: IOI."""

from collections.abc import Callable

import torch
from torch import Tensor

from helpers.checks.compare import name_mistake, passed, require


def check_make_pair(make_pair: Callable[[str, str], tuple[str, str, str, str]]) -> None:
    """Exercise 1 of lesson 02: `(io, subject) -> (base, source, answer, counterfactual)`."""
    template = "Then, {} and {} went home. {} thanked"
    for io, subject in [("Anna", "Paul"), ("Tom", "Kate")]:
        found = make_pair(io, subject)
        require(isinstance(found, tuple) and len(found) == 4, "return four things, as a tuple")
        base, source, answer, counterfactual = found
        right_base = template.format(io, subject, subject)
        require(base == right_base, f"the ABB base is {right_base!r}, not {base!r}")
        mistakes = {
            template.format(io, subject, io): "you changed who comes again, so the answer changes "
            "with the position: swap the first two names instead",
            template.format(subject, io, io): "you swapped the roles too: the subject stays the "
            "name that comes again",
            right_base: "the source equals the base",
        }
        require(source not in mistakes, f"source: {mistakes.get(source)}")
        right_source = template.format(subject, io, subject)
        require(source == right_source, f"the source is {right_source!r}, not {source!r}")
        require(answer == io, f"answer: the model should say {io} on both prompts")
        require(
            counterfactual == subject,
            "counterfactual: the label is the base's: with the source's position the model takes "
            f"the name at the other place, {subject}",
        )
    passed("make_pair: one change, and both answers labelled by the base")


def check_fldd(fldd: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Exercise 2 of lesson 02: `(clean [pairs], patched [pairs]) -> fraction`."""
    clean, patched = torch.tensor([4.0, 2.0, 0.01]), torch.tensor([1.0, -2.0, 0.5])
    ratio = patched.mean() / clean.mean()
    mistakes = {
        "a mean of ratios: average over pairs first, divide then": (1 - patched / clean).mean(),
        "one value per pair: average over pairs first": 1 - patched / clean,
        "that is the share that is left: subtract it from 1": ratio,
        "clean and patched are swapped in the ratio": 1 - 1 / ratio,
        "that is in percent: return a fraction": 100 * (1 - ratio),
        "the sign is turned round: a decrease is positive": ratio - 1,
        "that is in nats: divide by the clean mean": clean.mean() - patched.mean(),
    }
    name_mistake(fldd(clean, patched), 1 - ratio, mistakes, "fldd")
    passed("fldd: a ratio of means")


def check_name_preference(name_preference: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Exercise 3 of lesson 02: `(pattern [pairs heads keys], io, subject [pairs]) -> [heads]`."""
    pattern = torch.rand(4, 3, 7, generator=torch.Generator().manual_seed(0)).softmax(-1)
    io, subject = torch.tensor([2, 4, 1, 2]), torch.tensor([4, 2, 3, 5])
    rows = torch.arange(4)
    to_io, to_subject = pattern[rows, :, io], pattern[rows, :, subject]
    right = (to_io - to_subject).mean(0)
    mistakes = {
        "IO and subject are swapped": -right,
        "average over pairs: the result has one number per head": to_io - to_subject,
        "you averaged over heads: keep them, average over pairs": (to_io - to_subject).mean(1),
        "you read every pair at the positions of the first one": (
            pattern[:, :, io[0]] - pattern[:, :, subject[0]]
        ).mean(0),
        "that is only the attention to the IO: subtract that to the subject": to_io.mean(0),
        "you used every pair's positions for every pair: select one row per pair": (
            pattern[:, :, io] - pattern[:, :, subject]
        ).mean((0, 2)),
    }
    name_mistake(name_preference(pattern, io, subject), right, mistakes, "name_preference")
    passed("name_preference: each pair read at its own positions")
