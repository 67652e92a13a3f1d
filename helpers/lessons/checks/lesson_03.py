"""Checks of lesson 03: the illusion."""

from collections.abc import Callable

import torch
from torch import Tensor

from helpers.lessons.checks.compare import Draw, call, name_mistake, passed, require


def check_row_null(
    split: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], *, seed: int = 0
) -> None:
    """Exercise 1 of lesson 03: `(direction [d_mlp], W_out [d_mlp d_model]) -> (row, null)`.

    Any `seed` but 0 draws other data of other sizes, for hidden tests.
    """
    draw = Draw(seed)
    d_model = draw.size(3)
    d_mlp = 2 * d_model + 1
    direction, W_out = draw.normal(d_mlp), draw.normal(d_mlp, d_model)
    found = call("split", split, direction, W_out)
    require(isinstance(found, tuple) and len(found) == 2, "split returns a pair: (row, null)")
    q, _ = torch.linalg.qr(W_out)
    row = direction @ q @ q.T
    null = direction - row
    mistakes = {
        "row and null are swapped": null,
        "the row part is rescaled to length 1: leave it as it is": row / row.norm(),
        "W_out is not orthonormal: take a basis of its columns first": direction @ W_out @ W_out.T,
        "that is what the MLP writes, [d_model]: go back to the hidden space": direction @ W_out,
        "those are coordinates in the basis: multiply by q.T to get a vector": direction @ q,
        "`full_matrices=True` (or `mode='complete'`) adds the null space to the basis: with it "
        "nothing is invisible": direction,
    }
    name_mistake(found[0], row, mistakes, "row part")
    rescaled = {"the null part is rescaled to length 1: leave it as it is": null / null.norm()}
    name_mistake(found[1], null, rescaled, "null part")
    passed("split: the parts add up, and W_out does not see the null part")


def check_read_write(
    read_write: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], *, seed: int = 0
) -> None:
    """Exercise 2 of lesson 03: `(base, source [pairs d], read, write [d]) -> [pairs d]`.

    Any `seed` but 0 draws other data of other sizes, for hidden tests.
    """
    draw = Draw(seed)
    pairs, d = draw.size(5), draw.size(4)
    base, source = draw.normal(2, pairs, d)
    read, write = draw.normal(2, d)
    found = call("read_write", read_write, base, source, read, write)
    sensed = (source - base) @ read
    mistakes = {
        "read and write are swapped": base + ((source - base) @ write)[:, None] * read,
        "you normalised `read`: here the lengths matter": base
        + (sensed / read.norm())[:, None] * write,
        "you normalised `write`: here the lengths matter": base
        + sensed[:, None] * write / write.norm(),
        "you normalised both: here the lengths matter": base
        + (sensed / read.norm())[:, None] * write / write.norm(),
        "base and source are swapped in the difference": base - sensed[:, None] * write,
        "you sense the source alone: take the base's part away": base
        + (source @ read)[:, None] * write,
        "you return only the change: add it to the base": sensed[:, None] * write,
        "you wrote along `read`: write along `write`": base + sensed[:, None] * read,
    }
    name_mistake(found, base + sensed[:, None] * write, mistakes, "read_write")
    passed("read_write: senses along one vector, acts along the other, inputs untouched")


def check_share_lost(
    share_lost: Callable[[Tensor, Tensor, Tensor], Tensor], *, seed: int = 0
) -> None:
    """Exercise 3 of lesson 03: `(clean, patched, clamped) [pairs]`, in nats -> fraction.

    Any `seed` but 0 draws other data of other sizes, for hidden tests.
    """
    draw = Draw(seed)
    pairs = draw.size(3)
    # One small effect, which the clamp more than undoes: it would rule a mean of ratios. In these
    # ranges no two of the results below come close.
    effect = torch.cat([torch.tensor([0.02]), draw.uniform(2, 3, pairs - 1)])
    undone = torch.cat([torch.tensor([4.0 * pairs]), draw.uniform(0.8, 0.9, pairs - 1)])
    clean = draw.uniform(3.5, 4.5, pairs)
    patched = clean - effect
    clamped = patched + undone * effect
    lost = (clamped.mean() - patched.mean()) / (clean.mean() - patched.mean())
    ratios = (clamped - patched) / (clean - patched)
    mistakes = {
        "a mean of ratios: average over pairs first, divide then": ratios.mean(),
        "one value per pair: average over pairs first": ratios,
        "that is the share that is left: subtract it from 1": 1 - lost,
        "compare effects, not logit differences: take the clean value away first": 1
        - patched.mean() / clamped.mean(),
        "divide by the effect of the patch (clean minus patched), not by the clean value": (
            clamped.mean() - patched.mean()
        )
        / clean.mean(),
        "that is in percent: return a fraction": 100 * lost,
        "the sign is turned round": -lost,
        "that is in nats: divide by the effect of the patch": clamped.mean() - patched.mean(),
    }
    found = call("share_lost", share_lost, clean, patched, clamped)
    name_mistake(found, lost, mistakes, "share_lost")
    passed("share_lost: a ratio of effects, and of means")


def check_build_illusion(
    build_illusion: Callable[[Tensor, Tensor, Tensor], Tensor], *, seed: int = 0
) -> None:
    """Exercise 4 of lesson 03: `(difference [d_mlp], W_out, reader [d_model]) -> unit [d_mlp]`.

    Any `seed` but 0 draws other data of other sizes, for hidden tests.
    """
    draw = Draw(seed)
    d_model = draw.size(3)
    d_mlp = 2 * d_model + 1
    difference, W_out = 3 * draw.normal(d_mlp), draw.normal(d_mlp, d_model)
    reader = draw.normal(d_model)
    q, _ = torch.linalg.qr(W_out)
    visible = difference @ q @ q.T
    sensor, actuator = difference - visible, reader @ torch.linalg.pinv(W_out)

    def mixed(one: Tensor, other: Tensor) -> Tensor:
        total = one / one.norm() + other / other.norm()
        return total / total.norm()

    right, unequal = mixed(sensor, actuator), sensor + actuator
    mistakes = {
        "the parts are mixed in their own units: scale each to length 1 first": unequal
        / unequal.norm(),
        "the sum is not a unit vector: scale it to length 1 (or divide by √2)": right * 2**0.5,
        "the sensor is the whole difference: keep only its null part": mixed(difference, actuator),
        "you kept the part of the difference that W_out *does* read": mixed(visible, actuator),
        "that actuator writes a lot along the reader, but not only: use the pseudo-inverse": mixed(
            sensor, W_out @ reader
        ),
        "the sign of the actuator is turned round: this patch would help the model": mixed(
            sensor, -actuator
        ),
        "that is the sensor alone: nothing downstream sees it": sensor / sensor.norm(),
        "that is the actuator alone: it senses nothing": actuator / actuator.norm(),
    }
    found = call("build_illusion", build_illusion, difference, W_out, reader)
    name_mistake(found, right, mistakes, "build_illusion")
    passed("build_illusion: half a sensor nobody sees, half an actuator nobody moves")
