"""Checks of lesson 13: few directions, what is left above a floor, variance by groups."""

import torch

from helpers.lessons.checks.compare import Draw, exercise


@exercise("the first directions are kept, and the rest is the mean")
def check_compress(draw: Draw) -> tuple:
    """Exercise 1 of lesson 13: `(x, mean, basis, rank)`: `[prompts d]`, `[d]`, `[d d]`, number."""
    prompts, d = draw.size(3), draw.size(5)
    x, mean = draw.normal(prompts, d) + 1, 2 * draw.normal(d)
    basis = torch.linalg.qr(draw.normal(d, d)).Q
    rank = torch.tensor(d - 3)
    kept, dropped = basis[:, :rank], basis[:, rank:]
    mistakes = {
        "the others have the mean, not zero: project x - mean, and add the mean": x @ kept @ kept.T,
        "the mean is missing: add it again": (x - mean) @ kept @ kept.T,
        "subtract the mean before you project": mean + x @ kept @ kept.T,
        "those are the last directions: keep the first": mean + (x - mean) @ dropped @ dropped.T,
        "directions are columns, not rows": mean + (x - mean) @ basis[:rank].T @ basis[:rank],
        "everything is kept: use only the first columns": x,
    }
    return (x, mean, basis, rank), mean + (x - mean) @ kept @ kept.T, mistakes


@exercise("a ratio of means, above the floor")
def check_share_kept(draw: Draw) -> tuple:
    """Exercise 2 of lesson 13: `(kept, none, full) -> number`, each `[prompts]`."""
    prompts = draw.size(6)
    none = draw.uniform(0.5, 1.5, prompts)
    full = none + draw.uniform(0.5, 3.0, prompts)
    kept = none + draw.uniform(0.2, 1.5, prompts)
    right = (kept.mean() - none.mean()) / (full.mean() - none.mean())
    mistakes = {
        "subtract the floor: what is left without any variation is no merit of the directions": (
            kept.mean() / full.mean()
        ),
        "subtract the floor below, too": (kept.mean() - none.mean()) / full.mean(),
        "a ratio of means, not the mean of ratios: some prompts bring nearly nothing": (
            (kept - none) / (full - none)
        ).mean(),
        "that is the share that is lost": 1 - right,
        "upside down: kept over full": 1 / right,
        "one number for all prompts": (kept - none) / (full - none),
    }
    return (kept, none, full), right, mistakes


@exercise("the part of the variance that lies between the groups")
def check_explained(draw: Draw) -> tuple:
    """Exercise 3 of lesson 13: `(x, groups) -> number`, both `[n]`."""
    n = draw.size(9)
    groups = draw.shuffled(torch.arange(n) % 3)
    groups = torch.where(groups == 2, torch.tensor(7), groups)  # numbers are names, not places
    x = draw.normal(n) + 2.0 * (groups == 1) + 5.0
    means = torch.stack([x[groups == group].mean() for group in groups])
    inside, total = ((x - means) ** 2).sum(), ((x - x.mean()) ** 2).sum()
    line = torch.corrcoef(torch.stack([x, groups.float()]))[0, 1] ** 2
    mistakes = {
        "that is the part that is not explained: one minus it": inside / total,
        "take the variance around the mean of x, not around zero": 1 - inside / (x**2).sum(),
        "groups are names, not numbers on a line: no correlation": line,
        "that is a correlation, not a share of variance": (1 - inside / total).sqrt(),
        "one number, not one for each entry": 1 - (x - means) ** 2 / total,
    }
    return (x, groups), 1 - inside / total, mistakes
