"""Checks of lesson 14: noise of the states' lengths, kinds of readings, claims told apart."""

import torch

from helpers.lessons.checks.compare import Draw, exercise


@exercise("every vector has the length of the state in its place")
def check_same_norm(draw: Draw) -> tuple:
    """Exercise 1 of lesson 14: `(noise, states)`, both `[layers subjects d]`."""
    shape = draw.size(2), draw.size(3), draw.size(5)
    noise, states = draw.normal(*shape), draw.uniform(1, 9, *shape[:2], 1) * draw.normal(*shape)
    norms, drawn = (x.norm(dim=-1, keepdim=True) for x in (states, noise))
    unit = noise / drawn
    mistakes = {
        "divide by the noise's own length, too": noise * norms,
        "length one: multiply by the length of the state": unit,
        "each state has its own length, not the mean of all": unit * norms.mean(),
        "that is the length of everything together: take it along d": (
            noise * states.norm() / noise.norm()
        ),
        "that is the state, resized: resize the noise": states / norms * drawn,
    }
    return (noise, states), unit * norms, mistakes


@exercise("right first, then leaked, then wrong")
def check_kinds(draw: Draw) -> tuple:
    """Exercise 2 of lesson 14: `(top, right, objects)`: `[layers n]`, `[n]`, `[k]`, places."""
    n = draw.size(6)
    right, objects = torch.arange(n) % 4, torch.tensor([3, 5, 6])  # 3 is right, and an example's
    top = torch.stack([right, torch.full((n,), 5), torch.full((n,), 6), 7 - right, 0 * right + 3])
    leaked, correct = torch.isin(top, objects), top == right
    found = torch.where(leaked, 1, 2)
    last = torch.where(top == objects[-1], 1, 2)
    mistakes = {
        "an example's object that is right is right": torch.where(leaked, 1, 2 * ~correct),
        "all examples can leak, not only the last": torch.where(correct, 0, last),
        "nothing is right: compare with right, too": found,
        "1 is leaked, 2 is wrong": torch.where(correct, 0, 3 - found),
        "leaked is a kind of its own": torch.where(correct, 0, 2),
    }
    return (top, right, objects), torch.where(correct, 0, found), mistakes


@exercise("over all pairs of a true and a false claim")
def check_auc(draw: Draw) -> tuple:
    """Exercise 3 of lesson 14: `(true, false) -> number`, `[n]` and `[m]`."""
    n = draw.size(5)
    true, false = (draw.integers(-9, 3, n) / 2 for _ in range(2))
    false[0], true[1] = true[0], false[1] + 1
    above, tie = ((f(true[:, None], false)).float().mean() for f in (torch.gt, torch.eq))
    mistakes = {
        "a tie counts half, not nothing": above,
        "a tie counts half, not in full": above + tie,
        "that is how often the false claim is above": 1 - above - tie / 2,
        "every true claim against every false one, not the i-th against the i-th": (
            (true > false).float().mean() + (true == false).float().mean() / 2
        ),
        "no threshold: compare claims with one another": (true > 0).float().mean(),
        "a share of pairs, not a difference of means": true.mean() - false.mean(),
    }
    return (true, false), above + tie / 2, mistakes
