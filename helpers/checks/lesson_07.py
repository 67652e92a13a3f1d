"""Checks of lesson 07: how common the illusion is."""

from collections.abc import Callable

import torch
from torch import Tensor

from helpers.checks.compare import name_mistake, passed, require
from helpers.metrics import Estimate


def check_inner_products(inner_products: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Exercise 1 of lesson 07: `(x [tokens d], four [n 4]) -> [n]`."""
    generator = torch.Generator().manual_seed(0)
    x, four = torch.randn(9, 5, generator=generator), torch.tensor([[0, 3, 5, 8], [2, 1, 7, 4]])
    a, b, c, e = x[four].unbind(1)
    right = ((a - b) * (c - e)).sum(-1)
    mistakes = {
        "sum over the last dimension: an inner product is one number": (a - b) * (c - e),
        "an inner product is a sum, not a mean": ((a - b) * (c - e)).mean(-1),
        "you multiplied the activations: take the differences first": (a * c).sum(-1),
        "the pairs are (a, b) and (c, e), not (a, c) and (b, e)": ((a - c) * (b - e)).sum(-1),
        "one of the differences has the wrong sign": -right,
        "that is one product over all foursomes: keep one per row": right.sum(),
        "that is a cosine: lengths belong to an inner product": torch.cosine_similarity(
            a - b, c - e
        ),
    }
    name_mistake(inner_products(x, four), right, mistakes, "inner_products")
    passed("inner_products: of differences, one number per foursome")


def check_smallest_hidden(smallest_hidden: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Exercise 2 of lesson 07: `(d [d_model], W_out [d_mlp d_model]) -> [d_mlp]`."""
    generator = torch.Generator().manual_seed(1)
    d, W_out = torch.randn(3, generator=generator), torch.randn(7, 3, generator=generator)
    right = d @ torch.linalg.pinv(W_out)
    mistakes = {
        "W_out @ d pushes in a good direction, but does not write d: use the pseudo-inverse": (
            W_out @ d
        ),
        "keep the length of d in it: it belongs to what shall be written": right / d.norm(),
        "do not normalise: the length is the answer": right / right.norm(),
    }
    found = smallest_hidden(d, W_out)
    if isinstance(found, Tensor) and found.shape == right.shape:
        writes = torch.allclose(found @ W_out, d, atol=1e-4)
        longer = writes and found.norm() > right.norm() + 1e-4
        require(not longer, "smallest_hidden: it writes d, but a shorter one does, too")
    name_mistake(found, right, mistakes, "smallest_hidden")
    passed("smallest_hidden: the shortest vector that writes d")


def check_is_illusion(is_illusion: Callable[..., bool]) -> None:
    """Exercise 3 of lesson 07: `(one, whole, random, row, null_share) -> bool`."""
    good = {
        "one": Estimate(0.36, 0.33, 0.38),
        "whole": Estimate(-0.03, -0.04, -0.02),
        "random": Estimate(0.0, -0.01, 0.01),
        "row": Estimate(0.17, 0.16, 0.18),
        "null_share": Estimate(0.55, 0.54, 0.56),
    }
    require(bool(is_illusion(**good)), "is_illusion: MLP 21 of lesson 03 passes all four tests")
    wrong = {
        "the whole MLP has an effect of its own here": {"whole": Estimate(0.12, 0.1, 0.14)},
        "an effect of the whole MLP may be negative as well: take abs()": {
            "whole": Estimate(-0.4, -0.5, -0.3)
        },
        "15 % is less than the 20 % asked for": {
            "one": Estimate(0.15, 0.14, 0.16),
            "row": Estimate(0.05, 0.04, 0.06),
        },
        "the interval must lie above that of the random direction": {
            "random": Estimate(0.3, 0.2, 0.34)
        },
        "the interval must lie above that of the whole MLP": {
            "one": Estimate(0.25, 0.05, 0.45),
            "whole": Estimate(0.08, 0.04, 0.12),
            "row": Estimate(0.1, 0.05, 0.2),
        },
        "the interval must lie above 0": {
            "one": Estimate(0.25, -0.01, 0.5),
            "whole": Estimate(-0.05, -0.07, -0.03),
            "random": Estimate(-0.1, -0.12, -0.08),
            "row": Estimate(0.1, 0.05, 0.2),
        },
        "the row part keeps more than half": {"row": Estimate(0.2, 0.18, 0.22)},
        "the low end of the null part's share must lie above one half": {
            "null_share": Estimate(0.55, 0.45, 0.65)
        },
    }
    for message, change in wrong.items():
        require(not is_illusion(**(good | change)), f"is_illusion: {message}")
    passed("is_illusion: inert as a whole, strong in one direction, read by the null part")
