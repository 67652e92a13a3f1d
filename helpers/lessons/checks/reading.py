"""Checks of lesson 14: noise of the states' lengths, kinds of readings, claims told apart."""

import torch

from helpers.lessons.checks.compare import Draw, exercise, unit


@exercise("every vector has the length of the state in its place")
def check_same_norm(draw: Draw) -> tuple:
    """Exercise 1 of lesson 14: `(noise, states)`, both `[layers subjects d]`."""
    shape = draw.size(2), draw.size(3), draw.size(5)
    noise, states = draw.normal(*shape), draw.uniform(1, 9, *shape[:2], 1) * draw.normal(*shape)
    norms = states.norm(dim=-1, keepdim=True)
    mistakes = {
        "divide by the noise's own length, too": noise * norms,
        "length one: multiply by the length of the state": unit(noise),
        "the length is taken of everything together": noise * states.norm() / noise.norm(),
    }
    return (noise, states), unit(noise) * norms, mistakes


@exercise("right first, then leaked, then wrong")
def check_kinds(draw: Draw) -> tuple:
    """Exercise 2 of lesson 14: `(top, right, objects)`: `[layers n]`, `[n]`, `[k]`, places."""
    right, objects = torch.arange(draw.size(6)) % 4, torch.arange(3, 3 + draw.size(3))
    named = torch.tensor([3, 4, objects[-1], *range(20, 20 + draw.size(1))])  # 3 is right for some
    top = torch.cat([right[None], named[:, None].expand(-1, len(right))])
    leaked, correct = torch.isin(top, objects), top == right
    mistakes = {
        "an example's object that is right is right": torch.where(leaked, 1, 2 * ~correct),
        "all can leak, not only the last": torch.where(correct, 0, 2 - (top == objects[-1]).int()),
        "nothing is right: compare with right, too": torch.where(leaked, 1, 2),
    }
    return (top, right, objects), torch.where(correct, 0, torch.where(leaked, 1, 2)), mistakes


@exercise("over all pairs of a true and a false claim")
def check_auc(draw: Draw) -> tuple:
    """Exercise 3 of lesson 14: `(true, false) -> number`, `[n]` and `[m]`."""
    true, false = (draw.integers(low, low + 9, draw.size(5)) / 2 for low in (-4, -10))
    false[0] = true[1]  # a tie
    above, tie = (found(true[:, None], false).float().mean() for found in (torch.gt, torch.eq))
    mistakes = {
        "a tie counts half, not nothing": above,
        "a tie counts half, not in full": above + tie,
        "that is how often the false claim is above": 1 - above - tie / 2,
        "no threshold: compare claims with one another": (true > 0).float().mean(),
    }
    return (true, false), above + tie / 2, mistakes
