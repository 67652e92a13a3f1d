"""Checks of lesson 11: a Taylor term, the half rule, a correlation without its top cell."""

import torch
from torch import Tensor

from helpers.lessons.checks.compare import Draw, exercise


@exercise("the gradient times the change, one number per pair")
def check_taylor_term(draw: Draw) -> tuple:
    """Exercise 1 of lesson 11: `(gradient, base, source) -> [pairs]`, all `[pairs d]`."""
    pairs, d = draw.size(4), draw.size(3)
    gradient, base, source = (draw.normal(pairs, d) for _ in range(3))
    change = source - base
    turn = 1 - 2.0 * (torch.arange(pairs) % 2)  # so that some effects have either sign
    gradient = gradient * (turn * (gradient * change).sum(-1).sign())[:, None]
    right, crossed = (gradient * change).sum(-1), gradient @ change.T
    mistakes = {
        "the sign is wrong: the patch goes from the base to the source": -right,
        "sum over the last dimension: a patch moves all of them at once": gradient * change,
        "a sum, not a mean: every dimension adds its own effect": right / d,
        "times the change, source minus base, not times the source": (gradient * source).sum(-1),
        "times the change, not times the base: that is another question": (gradient * base).sum(-1),
        "keep one number per pair": right.sum(),
        "the mean over pairs comes later: keep one number per pair": right.mean(),
        "that is the size of the effect: its sign says which way": right.abs(),
        "that is every pair with every other: keep those of a pair with itself": crossed,
    }
    return (gradient, base, source), right, mistakes


@exercise("half to each factor, so that nothing is counted twice")
def check_half_rule(draw: Draw) -> tuple:
    """Exercise 2 of lesson 11: `(flow, a, u) -> [2 tokens d_mlp]`, all `[tokens d_mlp]`."""
    shape = draw.size(3), draw.size(4)
    flow, a, u = (draw.normal(*shape) for _ in range(3))
    full = torch.stack([flow * u, flow * a])
    mistakes = {
        "that is the plain product rule: the two shares count the flow twice": full,
        "each factor gets the flow times the *other* factor": full.flip(0) / 2,
        "half, not a quarter": full / 4,
        "the flow from above is missing": torch.stack([u, a]) / 2,
        "half of the flow, times the other factor": torch.stack([flow, flow]) / 2,
    }
    return (flow, a, u), full / 2, mistakes


@exercise("correlated without the cell of the largest effect")
def check_without_top(draw: Draw) -> tuple:
    """Exercise 3 of lesson 11: `(estimate, exact) -> number`, both `[layers pos]`."""
    shape = draw.size(5), draw.size(3)
    exact, estimate = draw.normal(*shape) + 0.7, draw.normal(*shape) - 0.5
    cells = draw.order(exact.numel())[:3]
    exact.view(-1)[cells[0]], exact.view(-1)[cells[1]] = -9.0, 4.0  # the largest by size is below 0
    estimate.view(-1)[cells[0]], estimate.view(-1)[cells[2]] = -5.0, 7.0
    x, y = estimate.flatten(), exact.flatten()
    top = y.abs().argmax()

    rest = torch.arange(len(y)) != top

    def pearson(x: Tensor, y: Tensor) -> Tensor:
        return torch.corrcoef(torch.stack([x, y]))[0, 1]

    def without(cell: Tensor) -> Tensor:
        return pearson(*(values[torch.arange(len(y)) != cell] for values in (x, y)))

    mistakes = {
        "the top cell is still there": pearson(x, y),
        "the largest by size, not the most positive: use abs()": without(y.argmax()),
        "leave out the cell of the largest *exact* effect": without(x.abs().argmax()),
        "zero is a value, too: leave the cell out": pearson(x * rest, y * rest),
        "that is the square of a correlation": without(top) ** 2,
    }
    return (estimate, exact), without(top), mistakes
