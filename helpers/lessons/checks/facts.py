"""Checks of lessons 06 and 07: facts and edits."""

from collections.abc import Callable

import torch
from torch import Tensor

from helpers.lessons.checks.compare import NUMBERS, Draw, exercise, passed, require, unit


def check_last_subject_token(
    last_subject_token: Callable[[list[tuple[int, int]], int, int], int], *, seed: int = 0
) -> None:
    """Exercise 1 of lesson 06: `(offsets, subject_stop, n_before) -> position`."""
    draw = Draw(seed)
    # Seed 0: "Mount", " Fu", "ji", "san", " is", " high". Two tokens follow the subject.
    widths = torch.tensor([5, 3, 2, 3, 3, 5]) if draw.visible else draw.integers(1, 7, draw.size(6))
    stops = widths.cumsum(0).tolist()
    offsets = list(zip([0, *stops], stops, strict=False))
    after = 2 if draw.visible else int(draw.integers(2, 3))
    n_subject, n_bos = len(offsets) - after, draw.size(2)
    long, short = stops[n_subject - 1], stops[0]
    for stop, n_before in [(long, 0), (long, n_bos), (short, n_bos)]:
        right = next(t for t, (a, b) in enumerate(offsets) if a < stop <= b) + n_before
        found = last_subject_token(offsets, stop, n_before)
        require(found is not None, "your function returns nothing: does any token match?")
        whole = not isinstance(found, float | list | tuple)
        require(whole, f"return one position, a whole number, not {found!r}")
        # Where two positions agree the last one is named, a forgotten BOS: the first round has none
        # and has caught the others.
        mistakes = {
            stop - 1: "that is the place of a character: which token covers it?",
            len(offsets) - 1 + n_before: "that is the last token of the text, not of the subject",
            n_before: "that is the subject's first token: take the last",
            right + 1: "that is the token after the subject: `subject_stop` is not part of it",
            right - 1: "that is one token too early: the subject's last token, not an earlier one",
            right - n_before: "count the tokens that stand before the text, too (BOS)",
        }
        mistake = mistakes.get(int(found), f"expected {right}")
        require(found == right, f"{mistake} (stop {stop}, got {found})")
    sizes = f"one and {NUMBERS[n_subject]} tokens"
    passed(
        f"last_subject_token: right with and without BOS, for subjects of {sizes}",
        last_subject_token,
    )


@exercise("half sensor, half actuator, for every pair", either_sign=True)
def check_start(draw: Draw) -> tuple:
    """Exercise 2 of lesson 06: `(base, source, gradient [pairs d]) -> unit vectors [pairs d]`."""
    base, source, gradient = draw.normal(3, draw.size(4), draw.size(5))
    change = 2 * (source - base)
    right = unit(unit(change) - unit(gradient))
    rising = unit(unit(change) + unit(gradient))
    one_length = change / change.norm() - gradient / gradient.norm()
    one_for_all = unit(unit(change.mean(0)) - unit(gradient.mean(0)))
    mistakes = {
        "that only senses: take away the gradient, at length 1": unit(change),
        "that only acts: add the difference of the activations, at length 1": -unit(gradient),
        "one direction for all pairs: each pair has its own": one_for_all,
        "that makes the logit difference rise: against the gradient": rising,
        "the sensor points the wrong way: source minus base": unit(unit(-change) - unit(gradient)),
        "scale both parts to length 1 before you mix them": unit(change - gradient),
        "the sum is not of length 1: scale it again": unit(change) - unit(gradient),
        "each pair has its own length: norm(dim=-1, keepdim=True)": one_length / one_length.norm(),
    }
    return (base, base + change, gradient), right, mistakes


@exercise("every pair along its own direction")
def check_patch_each(draw: Draw) -> tuple:
    """Exercise 3 of lesson 06: `(base, source, directions [pairs d]) -> [pairs d]`."""
    n = draw.size(4)
    base, source, directions = draw.normal(3, n, n)  # square on purpose
    length = directions.norm(dim=-1, keepdim=True)

    def along(x: Tensor) -> Tensor:
        return (x * directions).sum(-1, keepdim=True) * directions

    change, right = along(source - base), base + along(source - base) / length**2
    along_all = (source - base) @ directions.T @ directions
    one_length, added = change / directions.norm() ** 2, along(source) / length**2
    spread = ((source - base) * directions).sum(-1) / length[:, 0] ** 2 * directions
    mistakes = {
        "a number of each pair must meet its row: sum(-1, keepdim=True)": base + spread,
        "that is the whole source: move along the direction only": source,
        "the directions may have any length: divide by |v|², row by row": base + change,
        "divide by |v|², not by |v|": base + change / length,
        "that patches every pair along all directions: multiply row by row": base + along_all,
        "one length for all pairs: the sum of squares needs dim=-1": base + one_length,
        "you added the source's component without taking the base's away": base + added,
        "you return only the change: add it to the base": change / length**2,
        "base and source are swapped": base - change / length**2,
    }
    return (base, source, directions), right, mistakes


@exercise("reads one vector, writes another, and leaves the matrix as it was")
def check_rank_one(draw: Draw) -> tuple:
    """Exercise 1 of lesson 07: `(W_out [d_mlp d_model], read, write) -> [d_mlp d_model]`."""
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
    """Exercise 2 of lesson 07: `(key [d], second_moment [d d]) -> [d]`."""
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
    """Exercise 3 of lesson 07: `(original, edited [facts]) -> [facts]`."""
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


@exercise("the smaller beta, the harder the blow")
def check_moved(draw: Draw) -> tuple:
    """Exercise 4 of lesson 07: `(z, beta, key)`, `[facts d]` and `[facts]` -> `[facts]`."""
    facts, d = draw.size(4), draw.size(5)
    z, key = draw.normal(2, facts, d)
    beta = draw.shuffled(-draw.uniform(0.05, 0.5, 1), draw.uniform(0.05, 0.5, facts - 1))
    read, size = (z * key).sum(-1), key.norm(dim=-1)
    moved, b = read.abs() * z.norm(dim=-1), beta.abs()  # by how much, if beta were 1
    right = moved / b / size
    mistakes = {
        "a length is never negative: take the absolute value of beta": moved / beta / size,
        "a length is never negative: take the absolute value": right * (read * beta).sign(),
        "that is |Δx|: divide by the length of the key": moved / b,
        "multiply by the length of z: Δx is a number times z": read.abs() / b / size,
        "divide by beta, not multiply: small betas move more": moved * b / size,
        "divide by |beta|, not by its root: alpha comes in twice": moved / b.sqrt() / size,
        "divide by |beta|, not by its square": moved / b**2 / size,
        "beta is missing": moved / size,
        "one number per fact": right.mean(),
    }
    return (z, beta, key), right, mistakes
