"""Checks of lesson 16: half a dose, what an answer costs, and how much of a change is answered."""

import torch

from helpers.lessons.checks.compare import Draw, exercise


@exercise("what lies along the directions shrinks, the rest stays")
def check_removed(draw: Draw) -> tuple:
    """Exercise 1 of lesson 16: `(h, ways, dose)`, `[n d]`, `[k d]` orthonormal, one number."""
    ways = torch.linalg.qr(draw.normal(draw.size(6), draw.size(2))).Q.T
    h = draw.normal(draw.size(3), ways.shape[1])
    dose, part = torch.tensor(draw.number(0.25, 0.1, 0.4)), h @ ways.T @ ways
    mistakes = {
        "that removes all of it: multiply by the dose": h - part,
        "that keeps only the part that should shrink": (1 - dose) * part,
        "the dose is what is removed, not what is left": h - (1 - dose) * part,
    }
    return (h, ways, dose), h - dose * part, mistakes


@exercise("values times norms, per input")
def check_penalty(draw: Draw) -> tuple:
    """Exercise 2 of lesson 16: `(values, writes)`, `[n features]` and `[features d]`."""
    writes = draw.normal(draw.size(3), draw.size(2))
    values = draw.normal(draw.size(4), len(writes)).abs()
    right = (values @ writes.norm(dim=1)).mean()
    mistakes = {
        "the mean over inputs, not the sum": right * len(values),
        "each feature pays by itself: no norm of their sum": (values @ writes).norm(dim=1).mean(),
        "the norm, not its square": (values @ writes.square().sum(1)).mean(),
    }
    return (values, writes), right, mistakes


@exercise("least squares through zero, for each seed")
def check_answered(draw: Draw) -> tuple:
    """Exercise 3 of lesson 16: `(found, true)`, `[seeds n]` and `[n]`."""
    true = draw.normal(draw.size(5)) + 2
    found = draw.normal(draw.size(2), len(true))
    product = (found * true).sum(1)
    mistakes = {
        "divide by what the network does, not by what the coder does": product / (found**2).sum(1),
        "weigh inputs by the true change: no mean of ratios": (found / true).mean(1),
        "that is a cosine: it forgets the size": product / found.norm(dim=1) / true.norm(),
    }
    return (found, true), product / true.square().sum(), mistakes
