"""Checks of lesson 03: the illusion."""

from collections.abc import Callable

import torch

from helpers.lessons.checks.compare import Draw, call, compare_parts, exercise, passed, unit


def check_row_null(split: Callable, *, seed: int = 0) -> None:
    """Exercise 1 of lesson 03: `(direction [d_mlp], W_out [d_mlp d_model]) -> (row, null)`."""
    draw = Draw(seed)
    d_model = draw.size(3)
    d_mlp = 2 * d_model + 1
    direction, W_out = draw.normal(d_mlp), draw.normal(d_mlp, d_model)
    q, _ = torch.linalg.qr(W_out)
    row = direction @ q @ q.T
    mistakes = {
        "W_out is not orthonormal: take a basis of its columns first": direction @ W_out @ W_out.T,
        "that is what the MLP writes, [d_model]: go back to the hidden space": direction @ W_out,
        "those are coordinates in the basis: multiply by q.T to get a vector": direction @ q,
        "`full_matrices=True` (or `mode='complete'`) adds the null space to the basis: with it "
        "nothing is invisible": direction,
    }
    compare_parts(call("split", split, direction, W_out), row, direction - row, mistakes)
    passed("split: the parts add up, and W_out does not see the null part")


@exercise("senses along one vector, acts along the other, inputs untouched")
def check_read_write(draw: Draw) -> tuple:
    """Exercise 2 of lesson 03: `(base, source [pairs d], read, write [d]) -> [pairs d]`."""
    pairs, d = draw.size(5), draw.size(4)
    base, source = draw.normal(2, pairs, d)
    read, write = draw.normal(2, d)
    change = torch.outer((source - base) @ read, write)
    swapped = torch.outer((source - base) @ write, read)
    alone = torch.outer(source @ read, write)
    along_read = torch.outer((source - base) @ read, read)
    mistakes = {
        "read and write are swapped": base + swapped,
        "you normalised `read`: here the lengths matter": base + change / read.norm(),
        "you normalised `write`: here the lengths matter": base + change / write.norm(),
        "you normalised both: here the lengths matter": base + change / read.norm() / write.norm(),
        "base and source are swapped in the difference": base - change,
        "you sense the source alone: take the base's part away": base + alone,
        "you return only the change: add it to the base": change,
        "you wrote along `read`: write along `write`": base + along_read,
    }
    return (base, source, read, write), base + change, mistakes


@exercise("a ratio of effects, and of means")
def check_share_lost(draw: Draw) -> tuple:
    """Exercise 3 of lesson 03: `(clean, patched, clamped) [pairs]`, in nats -> fraction."""
    pairs = draw.size(3)
    # One small effect, which the clamp more than undoes: it would rule a mean of ratios. In these
    # ranges no two of the results below come close.
    effect = torch.cat([torch.tensor([0.02]), draw.uniform(2, 3, pairs - 1)])
    undone = torch.cat([torch.tensor([4.0 * pairs]), draw.uniform(0.8, 0.9, pairs - 1)])
    clean = draw.uniform(3.5, 4.5, pairs)
    patched = clean - effect
    clamped = patched + undone * effect
    back = clamped.mean() - patched.mean()
    lost = back / (clean.mean() - patched.mean())
    ratios = (clamped - patched) / (clean - patched)
    of_values, of_clean = 1 - patched.mean() / clamped.mean(), back / clean.mean()
    mistakes = {
        "a mean of ratios: average over pairs first, divide then": ratios.mean(),
        "one value per pair: average over pairs first": ratios,
        "that is the share that is left: subtract it from 1": 1 - lost,
        "compare effects, not logit differences: take the clean value away first": of_values,
        "divide by the effect of the patch (clean minus patched), not by the clean value": of_clean,
        "that is in percent: return a fraction": 100 * lost,
        "the sign is turned round": -lost,
        "that is in nats: divide by the effect of the patch": back,
    }
    return (clean, patched, clamped), lost, mistakes


@exercise("half a sensor nobody sees, half an actuator nobody moves")
def check_build_illusion(draw: Draw) -> tuple:
    """Exercise 4 of lesson 03: `(difference [d_mlp], W_out, reader [d_model]) -> unit [d_mlp]`."""
    d_model = draw.size(3)
    d_mlp = 2 * d_model + 1
    difference, W_out = 3 * draw.normal(d_mlp), draw.normal(d_mlp, d_model)
    reader = draw.normal(d_model)
    q, _ = torch.linalg.qr(W_out)
    visible = difference @ q @ q.T
    sensor, actuator = unit(difference - visible), reader @ torch.linalg.pinv(W_out)
    mixed, actuator = unit(difference - visible + actuator), unit(actuator)
    right, reversed_ = unit(sensor + actuator), unit(sensor - actuator)
    whole, read = unit(unit(difference) + actuator), unit(unit(visible) + actuator)
    impure = unit(sensor + unit(W_out @ reader))
    mistakes = {
        "the parts are mixed in their own units: scale each to length 1 first": mixed,
        "the sum is not a unit vector: scale it to length 1 (or divide by √2)": right * 2**0.5,
        "the sensor is the whole difference: keep only its null part": whole,
        "you kept the part of the difference that W_out *does* read": read,
        "that actuator writes a lot along the reader, but not only: use the pseudo-inverse": impure,
        "the sign of the actuator is turned round: this patch would help the model": reversed_,
        "that is the sensor alone: nothing downstream sees it": sensor,
        "that is the actuator alone: it senses nothing": actuator,
    }
    return (difference, W_out, reader), right, mistakes
