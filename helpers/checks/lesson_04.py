"""Checks of lesson 04: the faithful subspace."""

from collections.abc import Callable

import torch
from torch import Tensor

from helpers.checks.compare import name_mistake, passed, require


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
    name_mistake(mean_difference(activation, is_abb), right, mistakes, "mean_difference")
    passed("mean_difference: a unit vector from BAB to ABB")


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
    name_mistake(first_minus_second(scores, io, subject), right, mistakes, "first_minus_second")
    passed("first_minus_second: by place, so that both orders agree")


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
    name_mistake(seen_by(direction, W_Q, gain), right, mistakes, "seen_by")
    passed("seen_by: the part of the direction that can change these heads' queries")


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
    require(unchanged, "through_one_head changes one of its inputs in place: make a new tensor")
    right = stream + (z_source - z_base) @ W_O
    mistakes = {
        "the head's base output is still in the stream: take it away": stream + z_source @ W_O,
        "base and source are swapped": stream + (z_base - z_source) @ W_O,
        "that is the change only: add it to the stream": (z_source - z_base) @ W_O,
        "that is the head's output, without the rest of the stream": z_source @ W_O,
    }
    name_mistake(found, right, mistakes, "through_one_head")
    passed("through_one_head: one term of the sum exchanged, the rest as it was")
