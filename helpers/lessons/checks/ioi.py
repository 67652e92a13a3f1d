"""Checks of lessons 02 to 05: IOI, the illusion, the faithful subspace and the trial."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from helpers.lessons.checks.compare import Draw, exercise, passed, require, unit

VISIBLE_NAMES = ("Anna", "Paul", "Tom", "Kate")
HIDDEN_NAMES = ("Laura", "Mark", "Peter", "Lucy", "Emma", "Jack", "Alice", "Dan")

MakePair: TypeAlias = Callable[[str, str], tuple[str, str, str, str]]


def check_make_pair(make_pair: MakePair, *, seed: int = 0) -> None:
    """Exercise 1 of lesson 02: `(io, subject) -> (base, source, answer, counterfactual)`."""
    draw = Draw(seed)
    template = "Then, {} and {} went home. {} thanked"
    names = VISIBLE_NAMES if draw.visible else [HIDDEN_NAMES[n] for n in draw.order(8)]
    for io, subject in zip(names[::2], names[1::2], strict=True):
        found = make_pair(io, subject)
        require(isinstance(found, tuple | list) and len(found) == 4, "return four things")
        base, source, answer, counterfactual = found
        right_base = template.format(io, subject, subject)
        require(base == right_base, f"the ABB base is {right_base!r}, not {base!r}")
        mistakes = {
            template.format(io, subject, io): "you changed who comes again, so the answer changes "
            "with the position: swap the first two names instead",
            template.format(subject, io, io): "you swapped the roles too: the subject stays the "
            "name that comes again",
            right_base: "the source equals the base",
        }
        require(source not in mistakes, f"source: {mistakes.get(source)}")
        right_source = template.format(subject, io, subject)
        require(source == right_source, f"the source is {right_source!r}, not {source!r}")
        require(answer == io, f"answer: the model should say {io} on both prompts")
        takes = f"with the source's position the model takes the name at the other place, {subject}"
        require(counterfactual == subject, f"counterfactual: the label is the base's: {takes}")
    passed("make_pair: one change, and both answers labelled by the base", make_pair)


@exercise("a ratio of means")
def check_fldd(draw: Draw) -> tuple:
    """Exercise 2 of lesson 02: `(clean [pairs], patched [pairs]) -> fraction`."""
    pairs = draw.size(3)
    # In these ranges, with one clean value near 0, no two of the results below come close.
    clean = draw.shuffled(torch.tensor([0.0001]), draw.uniform(3, 4, pairs - 1))
    patched = draw.uniform(-0.6, -0.2, pairs)
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
    return (clean, patched), 1 - ratio, mistakes


@exercise("each pair read at its own positions")
def check_name_preference(draw: Draw) -> tuple:
    """Exercise 3 of lesson 02: `(pattern [pairs heads keys], io, subject [pairs]) -> [heads]`."""
    pairs, heads = draw.size(4), draw.size(3)
    pattern = draw.normal(pairs, heads, pairs + 3).softmax(-1)
    io, subject = draw.two_places(pairs, pairs + 3)
    rows = torch.arange(pairs)
    to_io, to_subject = pattern[rows, :, io], pattern[rows, :, subject]
    right = (to_io - to_subject).mean(0)
    of_first = pattern[:, :, io[0]] - pattern[:, :, subject[0]]
    of_all = (pattern[:, :, io] - pattern[:, :, subject]).mean((0, 2))
    mistakes = {
        "IO and subject are swapped": -right,
        "average over pairs: the result has one number per head": to_io - to_subject,
        "you averaged over heads: keep them, average over pairs": (to_io - to_subject).mean(1),
        "you read every pair at the positions of the first one": of_first.mean(0),
        "that is only the attention to the IO: subtract that to the subject": to_io.mean(0),
        "you used every pair's positions for every pair: select one row per pair": of_all,
    }
    return (pattern, io, subject), right, mistakes


@exercise("the parts add up, and W_out does not see the null part", "split")
def check_row_null(draw: Draw) -> tuple:
    """Exercise 1 of lesson 03: `(direction [d_mlp], W_out [d_mlp d_model]) -> (row, null)`."""
    d_model = draw.size(3)
    d_mlp = 2 * d_model + 1
    direction, W_out = draw.normal(d_mlp), draw.normal(d_mlp, d_model)
    q, _ = torch.linalg.qr(W_out)
    row, columns = direction @ q @ q.T, unit(W_out.T)
    mistakes = {
        "W_out is not orthonormal: take a basis of its columns first": direction @ W_out @ W_out.T,
        "columns of length 1 are not orthogonal yet: use qr": direction @ columns.T @ columns,
        "that is what the MLP writes, [d_model]: go back to the hidden space": direction @ W_out,
        "those are coordinates in the basis: multiply by q.T to get a vector": direction @ q,
        "`full_matrices=True` (or `mode='complete'`) adds the null space to the basis: with it "
        "nothing is invisible": direction,
    }
    return (direction, W_out), (row, direction - row), mistakes


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
        "you divided by |read|²: here the lengths matter": base + change / (read @ read),
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


@exercise("a unit vector from BAB to ABB")
def check_mean_difference(draw: Draw) -> tuple:
    """Exercise 1 of lesson 04: `(activation [pairs d], is_abb [pairs]) -> unit [d]`."""
    n_abb = draw.size(4)
    n_bab = n_abb - 2  # unequal, so that sums are not means
    activation = 10 * draw.normal(n_abb + n_bab, draw.size(4))  # no difference of length 1
    is_abb = draw.order(n_abb + n_bab) < n_abb
    difference = activation[is_abb].mean(0) - activation[~is_abb].mean(0)
    right = unit(difference)
    sums = activation[is_abb].sum(0) - activation[~is_abb].sum(0)
    centred = activation[is_abb].mean(0) - activation.mean(0)
    mistakes = {
        "that points from ABB to BAB, which patches alike but projects the other way": -right,
        "scale the difference to length 1": difference,
        "sums instead of means: the larger class would win": unit(sums),
        "sums instead of means, and not of length 1": sums,
        "subtract the mean of BAB, not the mean of all": centred,
    }
    return (activation, is_abb), right, mistakes


@exercise("by place, so that both orders agree")
def check_first_minus_second(draw: Draw) -> tuple:
    """Exercise 2 of lesson 04: `(scores [pairs keys], io, subject [pairs]) -> [pairs]`."""
    pairs = draw.size(4)
    scores = draw.normal(pairs, pairs + 3)
    io, subject = draw.two_places(pairs, pairs + 3)
    rows = torch.arange(pairs)
    first, second = torch.minimum(io, subject), torch.maximum(io, subject)
    right = scores[rows, first] - scores[rows, second]
    by_role = scores[rows, io] - scores[rows, subject]
    of_first_pair = scores[:, first[0]] - scores[:, second[0]]
    mistakes = {
        "by role (IO minus S): the gradients of ABB and BAB would cancel. Use the place": by_role,
        "by role (S minus IO): the gradients of ABB and BAB would cancel. Use the place": -by_role,
        "the sign is turned round: first minus second": -right,
        "keep one value per pair": right.mean(),
        "that is the first name alone: subtract the second": scores[rows, first],
        "every pair has its own positions; you used those of the first pair for all": of_first_pair,
    }
    return (scores, io, subject), right, mistakes


@exercise("the part of the direction that can change these heads' queries")
def check_seen_by(draw: Draw) -> tuple:
    """Exercise 3 of lesson 04: `(direction [d_model], W_Q [heads d_model d_head], gain) -> [d]`."""
    heads, d_head = draw.size(2), draw.size(2)
    d_model = heads * d_head + 5  # the heads see a part of the stream only
    direction, W_Q = draw.normal(d_model), draw.normal(heads, d_model, d_head)
    gain = draw.uniform(0.5, 1.5, d_model)[:, None]

    def project(columns: Tensor) -> Tensor:
        q, _ = torch.linalg.qr(columns)
        return direction @ q @ q.T

    stacked = torch.cat(list(W_Q), dim=1)
    read = gain * stacked
    right, divided, even = project(read), project(stacked / gain), unit(read.T)
    mistakes = {
        "the gain of the norm is missing: multiply the rows of W_Q by it": project(stacked),
        "divide by the gain? The head reads x * gain, so its rows are multiplied": divided,
        "that is what the heads do NOT see": direction - right,
        "only the first head: stack the columns of all": project(gain * W_Q[0]),
        "the columns are not orthonormal: take a basis of them first": direction @ read @ read.T,
        "columns of length 1 are not orthogonal yet: take a basis": direction @ even.T @ even,
        "those are queries, not a part of the direction: project back": direction @ read,
    }
    return (direction, W_Q, gain[:, 0]), right, mistakes


@exercise("one term of the sum exchanged, the rest as it was")
def check_through_one_head(draw: Draw) -> tuple:
    """Exercise 4 of lesson 04: `(stream [pairs d], z_base, z_source, W_O) -> [pairs d]`."""
    pairs, d_model, d_head = draw.size(3), draw.size(5), draw.size(2)
    stream, W_O = draw.normal(pairs, d_model), draw.normal(d_head, d_model)
    z_base, z_source = draw.normal(2, pairs, d_head)
    change = (z_source - z_base) @ W_O
    mistakes = {
        "the head's base output is still in the stream: take it away": stream + z_source @ W_O,
        "base and source are swapped": stream - change,
        "that is the change only: add it to the stream": change,
        "that is the head's output, without the rest of the stream": z_source @ W_O,
    }
    return (stream, z_base, z_source, W_O), stream + change, mistakes


@exercise("a ratio of mean movements")
def check_share_moved(draw: Draw) -> tuple:
    """Exercise 1 of lesson 05: `(moved, base, source [pairs d], direction, toward) -> fraction`."""
    pairs, d = draw.size(6), draw.size(4)
    direction, toward = unit(draw.normal(d)), torch.where(torch.arange(pairs) % 3 == 0, -1.0, 1.0)
    base, noise = draw.normal(2, pairs, d)
    # How far each pair moves in full, and by the run: a mean of ratios is another number.
    full, part = draw.uniform(1, 9, pairs), draw.uniform(0.5, 2.5, pairs)
    across = noise - (noise @ direction)[:, None] * direction
    source = base + across + (toward * full)[:, None] * direction
    moved = base + across / 2 + (toward * part)[:, None] * direction
    by_run, in_full = ((x - base) @ direction for x in (moved, source))
    right = (by_run * toward).mean() / (in_full * toward).mean()
    cancelled = by_run.mean() / in_full.mean()
    far, whole = ((x - base).norm(dim=-1).mean() for x in (moved, source))
    here, there = ((x @ direction * toward).mean() for x in (moved, source))
    mistakes = {
        "multiply by `toward` first: movements of the two orders cancel": cancelled,
        "a mean of ratios: average over pairs first, divide then": (by_run / in_full).mean(),
        "one value per pair: average over pairs first": by_run / in_full,
        "project on the direction: you compared whole distances": far / whole,
        "take the base away: you compared positions, not movements": here / there,
        "that is in percent: return a fraction": 100 * right,
        "the ratio is upside down": 1 / right,
    }
    return (moved, base, source, direction, toward), right, mistakes


@exercise("orthogonal to the direction, in the plane of its parts", either_sign=True)
def check_partner(draw: Draw) -> tuple:
    """Exercise 2 of lesson 05: `(row, null [d])`, parts of a unit vector, `-> unit vector [d]`."""
    d = draw.size(5)
    q = torch.linalg.qr(draw.normal(d, 2)).Q
    angle = torch.tensor(draw.number(0.5, 0.3, 0.7))
    row, null = angle.cos() * q[:, 0], angle.sin() * q[:, 1]
    right = angle.sin() * q[:, 0] - angle.cos() * q[:, 1]
    shorter = null.norm() * row - row.norm() * null
    mistakes = {
        "r - n is orthogonal to v only if both are equally long": row - null,
        "r - n is orthogonal to v only if both are equally long, and it needs length 1 "
        "as well": unit(row - null),
        "scale the parts to length 1 first: |n| r - |r| n is shorter": shorter,
        "that is the direction itself": row + null,
    }
    return (row, null), right, mistakes


@exercise("a sum over dimensions, a mean over pairs")
def check_whole_effect(draw: Draw) -> tuple:
    """Exercise 3 of lesson 05: `(gradient, difference [pairs d]) -> nats`."""
    gradient, difference = draw.normal(2, draw.size(5), draw.size(4))
    products, of_means = (gradient * difference).sum(-1), gradient.mean(0) @ difference.mean(0)
    mistakes = {
        "the sign is turned round: a fall is positive": products.mean(),
        "one value per pair: average over pairs": -products,
        "you averaged over dimensions: sum over them": -(gradient * difference).mean(),
        "you summed over pairs: average over them": -products.sum(),
        "you averaged gradient and difference first: multiply within each pair": -of_means,
    }
    return (gradient, difference), -products.mean(), mistakes
