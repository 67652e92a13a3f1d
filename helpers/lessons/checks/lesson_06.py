"""Checks of lesson 06: edits."""

from collections.abc import Callable

import torch
from torch import Tensor

from helpers.lessons.checks.compare import Draw, call, name_mistake, passed


def check_rank_one(rank_one: Callable[[Tensor, Tensor, Tensor], Tensor], *, seed: int = 0) -> None:
    """Exercise 1 of lesson 06: `(W_out [d_mlp d_model], read, write) -> [d_mlp d_model]`.

    Any `seed` but 0 draws other data of other sizes, for hidden tests.
    """
    draw = Draw(seed)
    n = draw.size(4)
    W_out = draw.normal(n, n)  # square on purpose
    read, write = draw.normal(2, n)
    found = call("rank_one", rank_one, W_out, read, write)
    right = W_out + torch.outer(read, write)
    mistakes = {
        "the outer product is transposed: rows belong to what is read": W_out
        + torch.outer(write, read),
        "that is the change only: add it to the matrix": torch.outer(read, write),
        "an elementwise product, the same in every row: use torch.outer": W_out + read * write,
        "a number was added everywhere: use torch.outer": W_out + read @ write,
        "the sign is turned round": W_out - torch.outer(read, write),
    }
    name_mistake(found, right, mistakes, "rank_one")
    passed("rank_one: reads one vector, writes another, and leaves the matrix as it was")


def check_minimal_reader(
    minimal_reader: Callable[[Tensor, Tensor], Tensor], *, seed: int = 0
) -> None:
    """Exercise 2 of lesson 06: `(key [d], second_moment [d d]) -> [d]`.

    Any `seed` but 0 draws other data of other sizes, for hidden tests.
    """
    draw = Draw(seed)
    d = draw.size(4)
    key, samples = draw.normal(d), draw.normal(4 * d, d)
    moment = samples.T @ samples / len(samples)
    solved = torch.linalg.solve(moment, key)
    mistakes = {
        "C is not inverted: b is along C^-1 h, not along C h": moment @ key / (key @ moment @ key),
        "that ignores C: it is the shortest b, not the least disturbing one": key / (key @ key),
        "b . h is not 1: divide by h^T C^-1 h": solved,
        "scaled to length 1: it must be b . h = 1": solved / solved.norm(),
        "divide by h^T C^-1 h, not by |h|^2": solved / (key @ key),
        "C inverted twice: only one solve is needed": torch.linalg.solve(moment, solved)
        / (torch.linalg.solve(moment, solved) @ key),
    }
    right = solved / (solved @ key)
    found = call("minimal_reader", minimal_reader, key, moment)
    name_mistake(found, right, mistakes, "minimal_reader")
    passed("minimal_reader: reads 1 at the key, and as little as possible elsewhere")


def check_rewrite_score(score: Callable[[Tensor, Tensor], Tensor], *, seed: int = 0) -> None:
    """Exercise 3 of lesson 06: `(original, edited [facts]) -> [facts]`.

    Any `seed` but 0 draws other data of other sizes, for hidden tests.
    """
    draw = Draw(seed)
    facts = draw.size(3)
    original = draw.uniform(0.05, 0.5, facts)
    # One edit does harm: its answer had more than that before.
    edited = draw.shuffled(torch.tensor([0.02]), draw.uniform(0.6, 0.95, facts - 1))
    gain = edited - original
    mistakes = {
        "that is the gain: divide by what could be gained, 1 - original": gain,
        "divide by 1 - original, not by original": gain / original,
        "divide by 1 - original, not by 1 - edited": gain / (1 - edited),
        "the two are swapped: edited minus original": -gain / (1 - original),
        "keep one value per fact": (gain / (1 - original)).mean(),
        "an edit may do harm: do not cut off below zero": (gain / (1 - original)).clamp(min=0),
    }
    found = call("score", score, original, edited)
    name_mistake(found, gain / (1 - original), mistakes, "score")
    passed("score: the share of the missing probability that the edit supplied")
