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


def check_row_null(split: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    """Exercise 1 of lesson 03: `(direction [d_mlp], W_out [d_mlp d_model]) -> (row, null)`."""
    generator = torch.Generator().manual_seed(2)
    direction = torch.randn(7, generator=generator)
    W_out = torch.randn(7, 3, generator=generator)
    found = split(direction, W_out)
    _require(isinstance(found, tuple) and len(found) == 2, "split returns a pair: (row, null)")
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
    _name_mistake(found[0], row, mistakes, "row part")
    rescaled = {"the null part is rescaled to length 1: leave it as it is": null / null.norm()}
    _name_mistake(found[1], null, rescaled, "null part")
    _passed("split: the parts add up, and W_out does not see the null part")


def check_read_write(read_write: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> None:
    """Exercise 2 of lesson 03: `(base, source [pairs d], read, write [d]) -> [pairs d]`."""
    generator = torch.Generator().manual_seed(3)
    base, source = torch.randn(2, 5, 4, generator=generator)
    read, write = torch.randn(2, 4, generator=generator)
    before = [x.clone() for x in (base, source, read, write)]
    found = read_write(base, source, read, write)
    unchanged = all(map(torch.equal, (base, source, read, write), before))
    _require(unchanged, "read_write changes one of its inputs in place: make a new tensor")
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
    _name_mistake(found, base + sensed[:, None] * write, mistakes, "read_write")
    _passed("read_write: senses along one vector, acts along the other, inputs untouched")


def check_share_lost(share_lost: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Exercise 3 of lesson 03: `(clean, patched, clamped) [pairs]`, in nats -> fraction."""
    clean = torch.tensor([4.0, 2.0, 3.0])
    patched, clamped = torch.tensor([1.0, 1.5, 2.0]), torch.tensor([3.5, 2.25, 2.5])
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
    _name_mistake(share_lost(clean, patched, clamped), lost, mistakes, "share_lost")
    _passed("share_lost: a ratio of effects, and of means")


def check_build_illusion(build_illusion: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Exercise 4 of lesson 03: `(difference [d_mlp], W_out, reader [d_model]) -> unit [d_mlp]`."""
    generator = torch.Generator().manual_seed(4)
    difference = 3 * torch.randn(7, generator=generator)
    W_out = torch.randn(7, 3, generator=generator)
    reader = torch.randn(3, generator=generator)
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
    found = build_illusion(difference, W_out, reader)
    _name_mistake(found, right, mistakes, "build_illusion")
    _passed("build_illusion: half a sensor nobody sees, half an actuator nobody moves")


def check_mean_difference(mean_difference: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Exercise 1 of lesson 04: `(activation [pairs d], is_abb [pairs]) -> unit [d]`."""
    activation = torch.randn(6, 4, generator=torch.Generator().manual_seed(5))
    is_abb = torch.tensor([True, False, True, True, False, True])  # unequal: 4 and 2
    difference = activation[is_abb].mean(0) - activation[~is_abb].mean(0)
    right = difference / difference.norm()
    sums = activation[is_abb].sum(0) - activation[~is_abb].sum(0)
    centred = activation[is_abb].mean(0) - activation.mean(0)
    mistakes = {
        "that points from ABB to BAB: turn the sign round": -right,
        "scale the difference to length 1": difference,
        "sums instead of means: the larger class would win": sums / sums.norm(),
        "sums instead of means, and not of length 1": sums,
        "subtract the mean of BAB, not the mean of all": centred,
    }
    _name_mistake(mean_difference(activation, is_abb), right, mistakes, "mean_difference")
    _passed("mean_difference: a unit vector from BAB to ABB")


def check_first_minus_second(
    first_minus_second: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> None:
    """Exercise 2 of lesson 04: `(scores [pairs keys], io, subject [pairs]) -> [pairs]`."""
    scores = torch.randn(4, 7, generator=torch.Generator().manual_seed(6))
    io, subject = torch.tensor([2, 5, 1, 4]), torch.tensor([4, 3, 6, 2])
    rows = torch.arange(4)
    first, second = torch.minimum(io, subject), torch.maximum(io, subject)
    right = scores[rows, first] - scores[rows, second]
    by_role = scores[rows, io] - scores[rows, subject]
    mistakes = {
        "by role (IO minus S): the gradients of ABB and BAB would cancel. Use the place": by_role,
        "by role (S minus IO): the gradients of ABB and BAB would cancel. Use the place": -by_role,
        "the sign is turned round: first minus second": -right,
        "keep one value per pair": right.mean(),
        "that is the first name alone: subtract the second": scores[rows, first],
        "every pair has its own positions; you used those of the first pair for all": scores[
            :, first[0]
        ]
        - scores[:, second[0]],
    }
    _name_mistake(first_minus_second(scores, io, subject), right, mistakes, "first_minus_second")
    _passed("first_minus_second: by place, so that both orders agree")


def check_seen_by(seen_by: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Exercise 3 of lesson 04: `(direction [d_model], W_Q [heads d_model d_head], gain) -> [d]`."""
    generator = torch.Generator().manual_seed(7)
    direction, W_Q = torch.randn(9, generator=generator), torch.randn(2, 9, 2, generator=generator)
    gain = 0.5 + torch.rand(9, generator=generator)

    def project(columns: Tensor) -> Tensor:
        q, _ = torch.linalg.qr(columns)
        return direction @ q @ q.T

    stacked = torch.cat(list(W_Q), dim=1)
    right = project(gain[:, None] * stacked)
    mistakes = {
        "the gain of the norm is missing: multiply the rows of W_Q by it": project(stacked),
        "divide by the gain? The head reads x * gain, so its rows are multiplied": project(
            stacked / gain[:, None]
        ),
        "that is what the heads do NOT see": direction - right,
        "only the first head: stack the columns of all": project(gain[:, None] * W_Q[0]),
        "the columns are not orthonormal: take a basis of them first": direction
        @ (gain[:, None] * stacked)
        @ (gain[:, None] * stacked).T,
        "those are queries, not a part of the direction: project back": direction
        @ (gain[:, None] * stacked),
    }
    _name_mistake(seen_by(direction, W_Q, gain), right, mistakes, "seen_by")
    _passed("seen_by: the part of the direction that can change these heads' queries")


def check_through_one_head(
    through_one_head: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
) -> None:
    """Exercise 4 of lesson 04: `(stream [pairs d], z_base, z_source, W_O) -> [pairs d]`."""
    generator = torch.Generator().manual_seed(8)
    stream = torch.randn(3, 5, generator=generator)
    z_base, z_source = torch.randn(2, 3, 2, generator=generator)
    W_O = torch.randn(2, 5, generator=generator)
    before = [x.clone() for x in (stream, z_base, z_source, W_O)]
    found = through_one_head(stream, z_base, z_source, W_O)
    unchanged = all(map(torch.equal, (stream, z_base, z_source, W_O), before))
    _require(unchanged, "through_one_head changes one of its inputs in place: make a new tensor")
    right = stream + (z_source - z_base) @ W_O
    mistakes = {
        "the head's base output is still in the stream: take it away": stream + z_source @ W_O,
        "base and source are swapped": stream + (z_base - z_source) @ W_O,
        "that is the change only: add it to the stream": (z_source - z_base) @ W_O,
        "that is the head's output, without the rest of the stream": z_source @ W_O,
    }
    _name_mistake(found, right, mistakes, "through_one_head")
    _passed("through_one_head: one term of the sum exchanged, the rest as it was")


def check_last_subject_token(
    last_subject_token: Callable[[list[tuple[int, int]], int, int], int],
) -> None:
    """Exercise 1 of lesson 05: `(offsets, subject_stop, n_before) -> position`."""
    # "Mount Fujisan is high" in six tokens: "Mount", " Fu", "ji", "san", " is", " high"
    offsets = [(0, 5), (5, 8), (8, 10), (10, 13), (13, 16), (16, 21)]
    for stop, n_before in [(13, 0), (13, 2), (5, 2)]:
        right = next(t for t, (a, b) in enumerate(offsets) if a < stop <= b) + n_before
        found = last_subject_token(offsets, stop, n_before)
        _require(found is not None, "your function returns nothing: does any token match?")
        mistakes = {
            right + 1: "that is the token after the subject: `subject_stop` is not part of it",
            right - n_before: "count the tokens that stand before the text, too (BOS)",
            right - 1: "that is one token too early: the subject's last token, not an earlier one",
            n_before: "that is the subject's first token: take the last",
        }
        _require(
            found == right, f"{mistakes.get(found, f'expected {right}')} (stop {stop}, got {found})"
        )
    _passed("last_subject_token: right with and without BOS, for subjects of one and four tokens")


def check_start(start: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Exercise 2 of lesson 05: `(base, source, gradient [pairs d]) -> unit vectors [pairs d]`."""
    generator = torch.Generator().manual_seed(9)
    base, source, gradient = torch.randn(3, 4, 5, generator=generator)
    change = 2 * (source - base)
    source = base + change

    def unit(x: Tensor) -> Tensor:
        return x / x.norm(dim=-1, keepdim=True)

    right = unit(unit(change) - unit(gradient))
    mistakes = {
        "that makes the logit difference rise: against the gradient": unit(
            unit(change) + unit(gradient)
        ),
        "the sensor points the wrong way: source minus base": unit(unit(-change) - unit(gradient)),
        "scale both parts to length 1 before you mix them": unit(change - gradient),
        "the sum is not of length 1: scale it again": unit(change) - unit(gradient),
        "each pair has its own length: norm(dim=-1, keepdim=True)": (
            change / change.norm() - gradient / gradient.norm()
        )
        / (change / change.norm() - gradient / gradient.norm()).norm(),
    }
    _name_mistake(start(base, source, gradient), right, mistakes, "start")
    _passed("start: half sensor, half actuator, for every pair")


def check_patch_each(patch_each: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Exercise 3 of lesson 05: `(base, source, directions [pairs d]) -> [pairs d]`."""
    generator = torch.Generator().manual_seed(10)
    base, source, directions = torch.randn(3, 4, 4, generator=generator)  # square on purpose
    before = [x.clone() for x in (base, source, directions)]
    found = patch_each(base, source, directions)
    unchanged = all(map(torch.equal, (base, source, directions), before))
    _require(unchanged, "patch_each changes one of its inputs in place: make a new tensor")
    change = source - base
    sensed = (change * directions).sum(-1, keepdim=True)
    length = directions.norm(dim=-1, keepdim=True)
    right = base + sensed / length**2 * directions
    mistakes = {
        "the directions may have any length: divide by |v|², row by row": base
        + sensed * directions,
        "divide by |v|², not by |v|": base + sensed / length * directions,
        "that patches every pair along all directions: multiply row by row": base
        + change @ directions.T @ directions,
        "one length for all pairs: the sum of squares needs dim=-1": base
        + sensed / directions.norm() ** 2 * directions,
        "you added the source's component without taking the base's away": base
        + (source * directions).sum(-1, keepdim=True) / length**2 * directions,
        "you return only the change: add it to the base": sensed / length**2 * directions,
        "base and source are swapped": base - sensed / length**2 * directions,
    }
    _name_mistake(found, right, mistakes, "patch_each")
    _passed("patch_each: every pair along its own direction")
