"""Checks of lesson 06: edits."""

import torch

from helpers.lessons.checks.compare import Draw, exercise, unit


@exercise("reads one vector, writes another, and leaves the matrix as it was")
def check_rank_one(draw: Draw) -> tuple:
    """Exercise 1 of lesson 06: `(W_out [d_mlp d_model], read, write) -> [d_mlp d_model]`."""
    n = draw.size(4)
    W_out = draw.normal(n, n)  # square on purpose
    read, write = draw.normal(2, n)
    change = torch.outer(read, write)
    mistakes = {
        "the outer product is transposed: rows belong to what is read": W_out + change.T,
        "that is the change only: add it to the matrix": change,
        "an elementwise product, the same in every row: use torch.outer": W_out + read * write,
        "a number was added everywhere: use torch.outer": W_out + read @ write,
        "the sign is turned round": W_out - change,
    }
    return (W_out, read, write), W_out + change, mistakes


@exercise("reads 1 at the key, and as little as possible elsewhere")
def check_minimal_reader(draw: Draw) -> tuple:
    """Exercise 2 of lesson 06: `(key [d], second_moment [d d]) -> [d]`."""
    d = draw.size(4)
    key, samples = draw.normal(d), draw.normal(4 * d, d)
    moment = samples.T @ samples / len(samples)
    solved = torch.linalg.solve(moment, key)
    twice = torch.linalg.solve(moment, solved)
    mistakes = {
        "C is not inverted: b is along C^-1 h, not along C h": moment @ key / (key @ moment @ key),
        "that ignores C: it is the shortest b, not the least disturbing one": key / (key @ key),
        "b . h is not 1: divide by h^T C^-1 h": solved,
        "scaled to length 1: it must be b . h = 1": unit(solved),
        "divide by h^T C^-1 h, not by |h|^2": solved / (key @ key),
        "C inverted twice: only one solve is needed": twice / (twice @ key),
    }
    return (key, moment), solved / (solved @ key), mistakes


@exercise("the share of the missing probability that the edit supplied", "score")
def check_rewrite_score(draw: Draw) -> tuple:
    """Exercise 3 of lesson 06: `(original, edited [facts]) -> [facts]`."""
    facts = draw.size(3)
    original = draw.uniform(0.05, 0.5, facts)
    # One edit does harm: its answer had more than that before.
    edited = draw.shuffled(torch.tensor([0.02]), draw.uniform(0.6, 0.95, facts - 1))
    gain = edited - original
    right = gain / (1 - original)
    mistakes = {
        "that is the gain: divide by what could be gained, 1 - original": gain,
        "divide by 1 - original, not by original": gain / original,
        "divide by 1 - original, not by 1 - edited": gain / (1 - edited),
        "the two are swapped: edited minus original": -right,
        "keep one value per fact": right.mean(),
        "an edit may do harm: do not cut off below zero": right.clamp(min=0),
    }
    return (original, edited), right, mistakes
