"""Checks of lesson 04: the faithful subspace."""

import torch
from torch import Tensor

from helpers.lessons.checks.compare import Draw, exercise, unit


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
        "that points from ABB to BAB: turn the sign round": -right,
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
    right, divided = project(read), project(stacked / gain)
    mistakes = {
        "the gain of the norm is missing: multiply the rows of W_Q by it": project(stacked),
        "divide by the gain? The head reads x * gain, so its rows are multiplied": divided,
        "that is what the heads do NOT see": direction - right,
        "only the first head: stack the columns of all": project(gain * W_Q[0]),
        "the columns are not orthonormal: take a basis of them first": direction @ read @ read.T,
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
