"""Checks of lesson 06: edits."""

from collections.abc import Callable

import torch
from torch import Tensor

from helpers.checks.compare import name_mistake, passed, require


def check_rank_one(rank_one: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Exercise 1 of lesson 06: `(W_out [d_mlp d_model], read, write) -> [d_mlp d_model]`."""
    generator = torch.Generator().manual_seed(11)
    W_out = torch.randn(4, 4, generator=generator)  # square on purpose
    read, write = torch.randn(2, 4, generator=generator)
    before = [x.clone() for x in (W_out, read, write)]
    found = rank_one(W_out, read, write)
    unchanged = all(map(torch.equal, (W_out, read, write), before))
    require(unchanged, "rank_one changes one of its inputs in place: make a new tensor")
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


def check_minimal_reader(minimal_reader: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Exercise 2 of lesson 06: `(key [d], second_moment [d d]) -> [d]`."""
    generator = torch.Generator().manual_seed(12)
    key, samples = torch.randn(4, generator=generator), torch.randn(9, 4, generator=generator)
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
    name_mistake(minimal_reader(key, moment), right, mistakes, "minimal_reader")
    passed("minimal_reader: reads 1 at the key, and as little as possible elsewhere")


def check_rewrite_score(score: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Exercise 3 of lesson 06: `(original, edited [facts]) -> [facts]`."""
    original, edited = torch.tensor([0.2, 0.01, 0.5]), torch.tensor([0.6, 0.9, 0.3])
    gain = edited - original
    mistakes = {
        "that is the gain: divide by what could be gained, 1 - original": gain,
        "divide by 1 - original, not by original": gain / original,
        "divide by 1 - original, not by 1 - edited": gain / (1 - edited),
        "the two are swapped: edited minus original": -gain / (1 - original),
        "keep one value per fact": (gain / (1 - original)).mean(),
        "an edit may do harm: do not cut off below zero": (gain / (1 - original)).clamp(min=0),
    }
    name_mistake(score(original, edited), gain / (1 - original), mistakes, "score")
    passed("score: the share of the missing probability that the edit supplied")
