"""Transcoders: sparse features that read what MLPs read and write what they write.

    values = relu(stream @ enc + bias),  outputs = rest + values @ dec

Of a per-layer transcoder (PLT) features write for their own layer, of a cross-layer one (CLT) for
later ones, too, and pay: value times the norm of all they write. Seeds train in one batch.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Transcoders(NamedTuple):
    """The weights of several seeds; `dec` is zero wherever a feature must not write."""

    enc: Float[Tensor, "seeds layers d features"]
    bias: Float[Tensor, "seeds layers features"]
    dec: Float[Tensor, "seeds layers to features d"]
    rest: Float[Tensor, "seeds layers d"]

    def values(self, streams: Float[Tensor, "*seeds layers n d"]) -> Tensor:
        """How active every feature is, `[seeds layers n features]`."""
        return (streams @ self.enc + self.bias[:, :, None]).relu()

    def write(self, values: Float[Tensor, "seeds layers n features"]) -> Tensor:
        """What the layers write with these values, `[seeds layers n d]`."""
        return torch.einsum("slnf,sltfd->stnd", values, self.dec) + self.rest[:, :, None]

    def outputs(self, streams: Float[Tensor, "*seeds layers n d"]) -> Tensor:
        """What stands for the layers' outputs, `[seeds layers n d]`."""
        return self.write(self.values(streams))

    def norms(self, joint: bool = True) -> Float[Tensor, "seeds layers features"]:
        """How much a feature writes: to all layers together, or the sum of each."""
        squares = self.dec.square().sum(4)
        squares = squares.sum(2, keepdim=True) if joint else squares
        return squares.clamp(min=1e-12).sqrt().sum(2)

    def cost(self, values: Float[Tensor, "seeds layers n features"], joint: bool = True) -> Tensor:
        """The penalty for each seed: values times norms, per input."""
        return torch.einsum("slnf,slf->s", values, self.norms(joint)) / values.shape[2]


def train_transcoders(
    streams: Float[Tensor, "layers n d"], outputs: Float[Tensor, "layers n d"], *, features: int,
    across: bool, penalty: float, seeds: int = 1, first: int = 0, steps: int = 1000,
    rate: float = 0.02, batch: int | None = None, joint: bool = True,
) -> Transcoders:  # fmt: skip
    """Transcoders of what these layers read and write.

    Args:
        across: Whether features write to later layers, too (CLT), or only to their own (PLT).
        seeds, first: How many start from draws of their own, and the first one's seed.
        batch: Rows for a step, drawn anew; all of them by default.
        joint: Whether a feature pays for the norm of all it writes, or for each layer by itself.

    Minimises the squared error, summed over layers and averaged over rows, plus `penalty` times
    the cost. Raises ValueError: streams and outputs of different shapes.
    """
    if streams.shape != outputs.shape or streams.ndim != 3:
        raise ValueError(f"[layers n d] each, not {[*streams.shape]} and {[*outputs.shape]}")
    layers, n, d = streams.shape
    drawn = [torch.Generator().manual_seed(first + seed) for seed in range(seeds)]
    start = torch.stack([torch.randn(layers, features, d, generator=g) for g in drawn])
    start = start / start.norm(dim=-1, keepdim=True)
    mask = (torch.ones(layers, layers).triu() if across else torch.eye(layers))[:, :, None, None]
    parts = [start.mT, torch.full((seeds, layers, features), 0.2), start[:, :, None] * mask / 10]
    parts = [*parts, outputs.mean(1).expand(seeds, -1, -1)]
    enc, bias, dec, rest = weights = [x.clone().contiguous().requires_grad_() for x in parts]
    optimizer = torch.optim.Adam(weights, lr=rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, 2 - 2 * step / steps)  # falls to zero
        rows = slice(None) if batch is None else torch.randint(n, (batch,), generator=drawn[0])
        coders = Transcoders(enc, bias, dec * mask, rest)
        values = coders.values(streams[:, rows])
        error = (coders.write(values) - outputs[:, rows]).square().sum((1, 3)).mean(1)
        optimizer.zero_grad()
        (error + penalty * coders.cost(values, joint)).sum().backward()
        optimizer.step()
    return Transcoders(*(x.detach() for x in (enc, bias, dec * mask, rest)))
