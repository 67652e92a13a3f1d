"""Checks of the exercises: each names the likely mistake.

A check raises AssertionError with the likely mistake in its message, or prints one line.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def _passed(name: str) -> None:
    print(f"PASS  {name}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _close(found: object, expected: Tensor, atol: float = 1e-5) -> bool:
    """Equal up to rounding, with anything that is not a tensor of that shape counted as unequal."""
    _require(found is not None, "your function returns nothing: end it with `return`")
    if not isinstance(found, Tensor):
        found = torch.as_tensor(found)
    if found.shape != expected.shape:
        return False
    return torch.allclose(found.to(expected.dtype), expected, rtol=1e-4, atol=atol)


def _name_mistake(found: Tensor, expected: Tensor, mistakes: dict[str, Tensor], what: str) -> None:
    """Passes a right answer; otherwise raises with the listed mistake that gives this result."""
    if _close(found, expected):
        return
    for message, wrong in mistakes.items():
        _require(not _close(found, wrong), f"{what}: {message}")
    _require(False, f"{what}: expected {expected.tolist()}, got {found}")


def check_patch_direction(patch_direction: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Exercise 1 of lesson 01: `(base [pairs d], source [pairs d], direction [d]) -> [pairs d]`."""
    generator = torch.Generator().manual_seed(0)
    base, source = torch.randn(2, 5, 4, generator=generator)
    for length in (1.0, 3.0):
        v = torch.randn(4, generator=generator)
        v = length * v / v.norm()
        before = base.clone(), source.clone(), v.clone()
        found = patch_direction(base, source, v)
        _require(found is not None, "patch_direction returns nothing: end it with `return`")
        unchanged = all(map(torch.equal, (base, source, v), before))
        _require(unchanged, "patch_direction changes one of its inputs in place: make a new tensor")
        u, sensed = v / v.norm(), (source - base) @ v
        mistakes = {
            "the direction may have any length: divide by |v|² (exercise uses |v| = 3)": base
            + sensed[:, None] * v,
            "you divided by |v| once; it takes |v|² (one for reading, one for writing)": base
            + sensed[:, None] * v / v.norm(),
            "you added the source's component without taking the base's away": base
            + (source @ u)[:, None] * u,
            "base and source are swapped": source + ((base - source) @ u)[:, None] * u,
            "you return only the change: add it to the base": ((source - base) @ u)[:, None] * u,
            "that is the whole source, not its component along v": source,
        }
        expected = base + ((source - base) @ u)[:, None] * u
        _name_mistake(found, expected, mistakes, f"direction of length {length:g}")
    _passed("patch_direction: right for directions of length 1 and 3, inputs untouched")


def check_predicted_output(predicted_output: Callable[[Tensor], Tensor]) -> None:
    """Exercise 2 of lesson 01: angle in radians `[n]` -> output of the patched network `[n]`."""
    a = torch.linspace(0, math.pi / 2, 7)
    mistakes = {
        "you forgot the output of the base before the patch, 1": 4 * torch.sin(2 * a),
        "unit 2 counts twice: its weight is 2": 1 + 2 * torch.sin(2 * a),
        "the patch senses only 4 cos a, not 4": 1 + 8 * a.sin(),
        "the angle is in radians already": 1 + 4 * torch.sin(2 * a.deg2rad()),
        "you have the cosine where the sine belongs: at 45° the effect is largest": 1
        + 4 * torch.cos(2 * a),
    }
    _name_mistake(predicted_output(a), 1 + 4 * torch.sin(2 * a), mistakes, "predicted_output")
    _passed("predicted_output: right at seven angles")


def check_split(split: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    """Exercise 3 of lesson 01: `(direction [d], w_out [d]) -> (row [d], null [d])`."""
    generator = torch.Generator().manual_seed(1)
    direction, w = torch.randn(2, 5, generator=generator)
    found = split(direction, w)
    _require(isinstance(found, tuple) and len(found) == 2, "split returns a pair: (row, null)")
    row = (direction @ w) * w / (w @ w)
    null = direction - row
    mistakes = {
        "row and null are swapped": null,
        "the row part is rescaled to length 1: leave it as it is": row / row.norm(),
        "w_out may have any length: divide by |w_out|²": (direction @ w) * w,
        "divide by |w_out|², not by |w_out|": (direction @ w) * w / w.norm(),
    }
    _name_mistake(found[0], row, mistakes, "row part")
    rescaled = {"the null part is rescaled to length 1: leave it as it is": null / null.norm()}
    _name_mistake(found[1], null, rescaled, "null part")
    _passed("split: the parts add up, one parallel to w_out and one invisible to it")


def check_my_illusion(direction: Tensor) -> None:
    """Exercise 4 of lesson 01: a unit vector `[3]` for the network with output `4 h2 + h3`."""
    direction = torch.as_tensor(direction, dtype=torch.float32)
    _require(direction.shape == (3,), f"give three numbers, got shape {tuple(direction.shape)}")
    _require(abs(direction[2]) < 1e-6, "unit 3 is the mediator: use units 1 and 2 only")
    _require(abs(direction.norm() - 1) < 1e-3, f"length {direction.norm():.3f}: scale it to 1")
    output = 1 + 16 * direction[0] * direction[1]
    hint = " (45° overshoots here: unit 2 has weight 4)" if output > 8.9 else ""
    _require(abs(output - 5) < 1e-2, f"the patched output is {output:.2f}, not 5{hint}")
    _passed("my_illusion: base 1 gives the output 5 of the source, and the mediator never moved")


def check_make_pair(make_pair: Callable[[str, str], tuple[str, str, str, str]]) -> None:
    """Exercise 1 of lesson 02: `(io, subject) -> (base, source, answer, counterfactual)`."""
    template = "Then, {} and {} went home. {} thanked"
    for io, subject in [("Anna", "Paul"), ("Tom", "Kate")]:
        found = make_pair(io, subject)
        _require(isinstance(found, tuple) and len(found) == 4, "return four things, as a tuple")
        base, source, answer, counterfactual = found
        right_base = template.format(io, subject, subject)
        _require(base == right_base, f"the ABB base is {right_base!r}, not {base!r}")
        mistakes = {
            template.format(io, subject, io): "you changed who comes again, so the answer changes "
            "with the position: swap the first two names instead",
            template.format(subject, io, io): "you swapped the roles too: the subject stays the "
            "name that comes again",
            right_base: "the source equals the base",
        }
        _require(source not in mistakes, f"source: {mistakes.get(source)}")
        right_source = template.format(subject, io, subject)
        _require(source == right_source, f"the source is {right_source!r}, not {source!r}")
        _require(answer == io, f"answer: the model should say {io} on both prompts")
        _require(
            counterfactual == subject,
            "counterfactual: the label is the base's: with the source's position the model takes "
            f"the name at the other place, {subject}",
        )
    _passed("make_pair: one change, and both answers labelled by the base")


def check_fldd(fldd: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Exercise 2 of lesson 02: `(clean [pairs], patched [pairs]) -> fraction`."""
    clean, patched = torch.tensor([4.0, 2.0, 0.01]), torch.tensor([1.0, -2.0, 0.5])
    ratio = patched.mean() / clean.mean()
    mistakes = {
        "a mean of ratios: average over pairs first, divide then": (1 - patched / clean).mean(),
        "one value per pair: average over pairs first": 1 - patched / clean,
        "that is the share that is left: subtract it from 1": ratio,
        "clean and patched are swapped in the ratio": 1 - 1 / ratio,
        "that is in percent: return a fraction": 100 * (1 - ratio),
        "the sign is turned round: a decrease is positive": ratio - 1,
        "that is in nats: divide by the clean mean": clean.mean() - patched.mean(),
    }
    _name_mistake(fldd(clean, patched), 1 - ratio, mistakes, "fldd")
    _passed("fldd: a ratio of means")


def check_name_preference(name_preference: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Exercise 3 of lesson 02: `(pattern [pairs heads keys], io, subject [pairs]) -> [heads]`."""
    pattern = torch.rand(4, 3, 7, generator=torch.Generator().manual_seed(0)).softmax(-1)
    io, subject = torch.tensor([2, 4, 1, 2]), torch.tensor([4, 2, 3, 5])
    rows = torch.arange(4)
    to_io, to_subject = pattern[rows, :, io], pattern[rows, :, subject]
    right = (to_io - to_subject).mean(0)
    mistakes = {
        "IO and subject are swapped": -right,
        "average over pairs: the result has one number per head": to_io - to_subject,
        "you averaged over heads: keep them, average over pairs": (to_io - to_subject).mean(1),
        "you read every pair at the positions of the first one": (
            pattern[:, :, io[0]] - pattern[:, :, subject[0]]
        ).mean(0),
        "that is only the attention to the IO: subtract that to the subject": to_io.mean(0),
        "you used every pair's positions for every pair: select one row per pair": (
            pattern[:, :, io] - pattern[:, :, subject]
        ).mean((0, 2)),
    }
    _name_mistake(name_preference(pattern, io, subject), right, mistakes, "name_preference")
    _passed("name_preference: each pair read at its own positions")
