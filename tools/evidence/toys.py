"""Toys whose computation is known: what activations, or a perfect reconstruction, tell about it.

    python -m tools.evidence.toys           measure what is missing, then print the tables
    python -m tools.evidence.toys --print   only print them

The rules of claims T1 to T3 stood in `data/claims.json` before the first run with these bases.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float
from sklearn.linear_model import Lasso
from torch import Tensor

from helpers.circuits.transcoders import Transcoders, train_transcoders
from helpers.claims.report import every_claim, judge
from helpers.patching.metrics import RESAMPLES
from tools.evidence.store import Evidence, command
from tools.pages import markdown_table

NETWORKS = ((2, 101), (2, 102), (2, 103), (3, 104), (3, 105))  # pairs of bits, seed of the basis
SEEDS, FIRST = 8, 100  # of coders, in one batch; those of the prototype were below 10
CODERS = {
    "PLT": {"across": False, "penalty": 0.01},
    "CLT": {"across": True, "penalty": 0.01},
    "PLT, no penalty": {"across": False, "penalty": 0.0},
    "CLT, no penalty": {"across": True, "penalty": 0.0},
    "CLT, penalty .1": {"across": True, "penalty": 0.1},
    "CLT, decoders apart": {"across": True, "penalty": 0.01, "joint": False},
    "PLT, interventions": {"across": False, "penalty": 0.01, "taught": True},
    "CLT, interventions": {"across": True, "penalty": 0.01, "taught": True},
}
SIZES, TABLES = (5, 5), (101, 102, 103)  # animals and styles; seeds of bases and readers
RULES = (
    "Chain: MLP 1 writes B_i = a_i xor b_i of two or three pairs of bits, MLP 2 writes C1 = [B_1] "
    "and C2 = B_1 and B_2; random orthonormal directions, two unused; all inputs.",
    "Coders: 8 ReLU features per pair of bits in each layer, squared error + penalty x value x "
    "norm of all that a feature writes (apart: the sum of its two norms), Adam, 1,000 steps.",
    "Flip: B_1 is flipped in the stream that MLP 2 reads, and what layer 2's features then change "
    "in C1 or C2 is divided by what MLP 2 changes (least squares through 0). Features of layer 1 "
    "read before the flip. Unused: the length of what a flip along an unused direction changes in "
    "C1 and C2, as a share of the length of what MLP 2 changes for B_1.",
    "L0: features whose value times norm exceeds .05, per input. Error: share of the variance.",
    "Interventions: a half, drawn, of all inputs whose middle is set by hand to one of its states, "
    "answered by MLP 2; flips and unused are judged on inputs whose flip is in the other half.",
    "Readers: h = E[animal] + F[style], 25 inputs; tables and vectors are Gaussian.",
)


# ----------------------------------------------------------------------------- a two-step network


@dataclass(frozen=True)
class Chain:
    """Bits, and the directions of bits, middles B and ends C in the stream."""

    pairs: int
    seed: int

    @cached_property
    def basis(self) -> Float[Tensor, "d d"]:
        d, generator = 3 * self.pairs + 4, torch.Generator().manual_seed(self.seed)
        return torch.linalg.qr(torch.randn(d, d, generator=generator)).Q

    @property
    def ways(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Directions of the bits, of B, of C, and unused ones."""
        return self.basis.split([2 * self.pairs, self.pairs, 2, 2])

    @cached_property
    def start(self) -> Float[Tensor, "inputs d"]:
        bits = torch.tensor(list(itertools.product([0.0, 1.0], repeat=2 * self.pairs)))
        return bits @ self.ways[0]

    def first(self, stream: Tensor) -> Tensor:
        bits, middle, _, _ = self.ways
        a, b = (stream @ bits.T).unflatten(-1, (self.pairs, 2)).unbind(-1)
        return ((a - b).relu() + (b - a).relu()) @ middle

    def second(self, stream: Tensor) -> Tensor:
        _, middle, ends, _ = self.ways
        one, other = (stream @ middle.T)[..., :2].unbind(-1)
        return torch.stack([(2 * one - 1).relu(), (one + other - 1).relu()], -1) @ ends

    def run(self, start: Tensor, middle: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What the two MLPs read and write, `[2 inputs d]` each; the middle may be set by hand."""
        first = self.first(start)
        stream = start + (first if middle is None else middle)
        return torch.stack([start, stream]), torch.stack([first, self.second(stream)])

    @cached_property
    def held(self) -> Bool[Tensor, "states inputs"]:
        """A half, drawn, of all inputs with a state of the middle: never taught."""
        n, generator = len(self.start) * 2**self.pairs, torch.Generator().manual_seed(self.seed)
        return (torch.randperm(n, generator=generator) < n // 2).view(-1, len(self.start))

    def taught(self) -> tuple[Tensor, Tensor]:
        """The inputs, and the other half with states of the middle that are set by hand."""
        states = torch.tensor(list(itertools.product([0.0, 1.0], repeat=self.pairs)))
        middles = (states @ self.ways[1]).repeat_interleave(len(self.start), 0)
        starts, kept = self.start.repeat(len(states), 1), ~self.held.flatten()
        runs = [self.run(self.start), self.run(starts[kept], middles[kept])]
        return tuple(torch.cat(parts, 1) for parts in zip(*runs, strict=True))

    @property
    def unseen(self) -> Bool[Tensor, "inputs"]:
        """Of which inputs the flip of B_1 is in the half that is never taught."""
        middle = (self.first(self.start) @ self.ways[1].T).round()
        middle[:, 0] = 1 - middle[:, 0]
        powers = 2 ** torch.arange(self.pairs - 1, -1, -1)
        return self.held[(middle.abs() @ powers.float()).long(), torch.arange(len(middle))]


def flipped(chain: Chain, direction: Tensor) -> Float[Tensor, "2 inputs d"]:
    """What the MLPs read when the middle is flipped along a direction, 0 to 1 and 1 to 0."""
    streams, _ = chain.run(chain.start)
    value = streams[1] @ direction
    return torch.stack([streams[0], streams[1] + (1 - 2 * value)[:, None] * direction])


def responses(
    chain: Chain, coders: Transcoders, rows: Tensor | slice = slice(None)
) -> dict[str, list[float]]:
    """Of every seed, what flips of B_1 and of an unused direction change in the coders' C, on
    these inputs."""
    streams = chain.run(chain.start)[0][:, rows]
    _, middle, ends, unused = chain.ways
    new, other = (flipped(chain, way)[:, rows] for way in (middle[0], unused[0]))
    true = (chain.second(new[1]) - chain.second(streams[1])) @ ends.T
    clean = coders.outputs(streams)[:, 1]
    found, leak = ((coders.outputs(x)[:, 1] - clean) @ ends.T for x in (new, other))
    share = (found * true).sum(1) / true.square().sum(0)
    leak = leak.square().sum((1, 2)).sqrt() / true.norm()
    return {"C1": share[:, 0].tolist(), "C2": share[:, 1].tolist(), "unused": leak.tolist()}


def one_coder(chain: Chain, *, taught: bool = False, **options: object) -> dict[str, list[float]]:
    """Everything about coders of a chain, a number for every seed."""
    data = chain.taught() if taught else chain.run(chain.start)
    coders = train_transcoders(*data, features=8 * chain.pairs, seeds=SEEDS, first=FIRST, **options)
    streams, outputs = chain.run(chain.start)
    values = coders.values(streams)
    error = (coders.write(values) - outputs).square().sum((1, 2, 3))
    variance = (outputs - outputs.mean(1, keepdim=True)).square().sum()
    active = values * coders.norms()[:, :, None] > 0.05
    return {
        "error": (error / variance).tolist(),
        "L0": active.sum((1, 3)).float().mean(1).tolist(),
        "L1": coders.cost(values).tolist(),
    } | responses(chain, coders, chain.unseen if taught else slice(None))


# ------------------------------------------------------------------------------ exact penalties


def by_hand(chain: Chain, name: str) -> tuple[Tensor, Tensor]:
    """Values `[inputs features]` and, for each, what it writes to B and C, of a solution."""
    pairs, bits = chain.pairs, chain.start @ chain.ways[0].T
    a, b = bits.unflatten(1, (pairs, 2)).unbind(-1)
    middle = (a - b).abs()
    one_way = torch.stack([(a - b).relu(), (b - a).relu()], -1).flatten(1)  # of each pair, two
    writes = torch.zeros(2 * pairs, pairs + 2)
    writes[torch.arange(2 * pairs), torch.arange(2 * pairs) // 2] = 1
    copies = middle[:, :1], torch.eye(pairs + 2)[pairs : pairs + 1]
    both = (middle[:, 0] * middle[:, 1])[:, None], torch.eye(pairs + 2)[pairs + 1 :]
    if name == "honest":
        return torch.cat([one_way, copies[0], both[0]], 1), torch.cat([writes, copies[1], both[1]])
    if name == "by states":  # a feature for B_1 alone, and one for both
        alone = middle[:, :1] - both[0]
        ends = torch.cat([copies[1], copies[1] + both[1]])
        return torch.cat([one_way, alone, both[0]], 1), torch.cat([writes, ends])
    if name == "C1 jumps":
        writes[:2, pairs] = 1
        return torch.cat([one_way, both[0]], 1), torch.cat([writes, both[1]])
    ends = torch.stack([middle[:, 0], middle[:, 0] * middle[:, 1]], 1)
    return torch.eye(len(bits)), torch.cat([middle, ends], 1)  # a table: a feature for each input


def penalties(chain: Chain) -> dict[str, dict[str, float]]:
    """L0 and L1 of solutions without error, per input, and the error, which must be 0."""
    found = {}
    _, right = by_hand(chain, "table")
    for name in ("honest", "by states", "C1 jumps", "table"):
        values, writes = by_hand(chain, name)
        norms = writes.norm(dim=1)
        found[name] = {
            "L0": ((values > 1e-3) & (norms > 1e-3)).sum(1).float().mean().item(),
            "L1": (values @ norms).mean().item(),
            "error": (values @ writes - right).abs().max().item(),
        }
    return found


# --------------------------------------------------------------------------- three readers of h


@dataclass(frozen=True)
class Readers:
    """h = E[animal] + F[style], and three functions of it."""

    seed: int

    @cached_property
    def parts(self) -> tuple[Tensor, ...]:
        """E, F, a value for each animal and for each style, and a free table, all float64."""
        animals, styles = SIZES
        generator = torch.Generator().manual_seed(self.seed)
        d = animals + styles
        basis = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q
        sizes = (animals,), (styles,), SIZES
        drawn = (torch.randn(s, generator=generator, dtype=torch.float64) for s in sizes)
        return *basis.split(SIZES), *drawn

    @property
    def h(self) -> Float[Tensor, "animals styles d"]:
        animal, style, *_ = self.parts
        return animal[:, None] + style

    def factors(self, h: Tensor) -> Tensor:
        animal, style, u, v, _ = self.parts
        return h @ animal.T @ u + h @ style.T @ v

    def conjunctions(self, h: Tensor, table: Tensor) -> Tensor:
        """One neuron for each pair of an animal and a style."""
        animal, style, *_ = self.parts
        on = 2 * ((h @ animal.T)[..., :, None] + (h @ style.T)[..., None, :]) - 3
        return (on.relu() * table).sum((-1, -2))

    def all(self) -> dict[str, Callable[[Tensor], Tensor]]:
        _, _, u, v, free = self.parts
        return {
            "factors": self.factors,
            "additive": lambda h: self.conjunctions(h, u[:, None] + v),
            "free": lambda h: self.conjunctions(h, free),
        }

    def tests(self) -> dict[str, dict[str, float]]:
        """What each test says of each reader."""
        animal, style, u, v, _ = self.parts
        h, truth = self.h, self.factors(self.h)
        found = {}
        for name, read in self.all().items():
            swapped = h[:, :, None] + (animal[None, None] - animal[:, None, None])
            effect = read(swapped) - read(h)[..., None]  # [animal style new animal]
            depends = effect - effect.mean(1, keepdim=True)
            ways = h.clone().requires_grad_()
            (slope,) = torch.autograd.grad(read(ways).sum(), ways)
            varies = slope - slope.mean((0, 1))
            whole, half = (read(h) - read(h - dose * style) for dose in (1.0, 0.5))
            found[name] = {
                "differs": (read(h) - truth).abs().max().item(),
                "interchange": (depends.square().sum() / effect.square().sum()).item(),
                "gradient": (varies.square().sum() / slope.square().sum()).item(),
                "half dose": ((half * whole).sum() / whole.square().sum()).item(),
            }
        missing = (u[:, None] + v).clone()
        missing[0, 0] = 0  # the neuron that was never built
        found["truth"] = {"unseen": truth[0, 0].item()}
        found["factors"]["unseen"] = self.factors(h[0, 0]).item()
        found["additive"]["unseen"] = self.conjunctions(h[0, 0], missing).item()
        return found

    def dictionary(self, alpha: float = 0.05) -> dict[str, float]:
        """The non-negative lasso with atoms of both kinds: mass on conjunctions, atoms in use."""
        animal, style, *_ = self.parts
        d = sum(SIZES)
        both = (animal[:, None] + style).reshape(-1, d) / 2**0.5
        atoms = torch.cat([animal, style, both])
        lasso = Lasso(alpha=alpha / d, positive=True, fit_intercept=False, tol=1e-8)
        codes = [lasso.fit(atoms.T.numpy(), x.numpy()).coef_ for x in self.h.reshape(-1, d)]
        codes = torch.from_numpy(np.stack(codes))
        used = (codes > 1e-6).sum(1).double().mean().item()
        return {"mass": (codes[:, d:].sum() / codes.sum()).item(), "used": used}


# --------------------------------------------------------------------------- claims and tables


def pooled(evidence: dict, coder: str, key: str) -> Float[Tensor, "seeds"]:
    """One number for each seed of each network."""
    found = [evidence["chains"][f"{pairs} {seed}"][coder][key] for pairs, seed in NETWORKS]
    return torch.tensor(sum(found, []))


def middle_of(values: Float[Tensor, "n"]) -> dict[str, float]:
    """The median and its percentile bootstrap interval."""
    generator = torch.Generator().manual_seed(0)
    draws = values[torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)]
    low, high = draws.median(1).values.quantile(torch.tensor([0.025, 0.975])).tolist()
    return {"value": values.median().item(), "low": low, "high": high}


def measured(evidence: dict) -> dict[str, dict[str, float]]:
    """What each claim's rule asks for."""
    errors = [pooled(evidence, coder, "error").median().item() for coder in ("PLT", "CLT")]
    gaps, errors_of = [], []
    for pairs, seed in NETWORKS:
        exact = evidence["penalties"][f"{pairs} {seed}"]
        gaps.append(exact["honest"]["L1"] - exact["C1 jumps"]["L1"])
        errors_of += [of["error"] for of in exact.values()]
    readers = [evidence["readers"][str(seed)] for seed in TABLES]
    return {
        "T1": middle_of(pooled(evidence, "CLT", "C1"))
        | {"plt": pooled(evidence, "PLT", "C1").median().item(), "error": max(errors)},
        "T2": {"value": min(gaps), "error": max(errors_of)},
        "T3": {
            "value": min(of["dictionary"]["mass"] for of in readers),
            "interchange": max(of["tests"]["additive"]["interchange"] for of in readers),
            "gradient": min(of["tests"]["additive"]["gradient"] for of in readers),
        },
    }


def run(evidence: Evidence) -> None:
    """Everything that is missing."""
    evidence.put(list(RULES), "rules")
    for seed in TABLES:
        if evidence.missing("readers", str(seed)):
            readers = Readers(seed)
            found = {"tests": readers.tests(), "dictionary": readers.dictionary()}
            evidence.put(found, "readers", str(seed))
    for pairs, seed in NETWORKS:
        chain, key = Chain(pairs, seed), f"{pairs} {seed}"
        if evidence.missing("penalties", key):
            evidence.put(penalties(chain), "penalties", key)
        for name, options in CODERS.items():
            if evidence.missing("chains", key, name):
                evidence.put(one_coder(chain, **options), "chains", key, name)


def show(evidence: Evidence) -> None:
    """The tables as Markdown, and the verdicts."""
    keys = ("error", "L0", "L1", "C1", "C2", "unused")
    rows = []
    for coder in CODERS:
        found = [pooled(evidence, coder, key) for key in keys]
        rows.append([coder, *(f"{x.median():.3f} [{x.min():.2f}, {x.max():.2f}]" for x in found)])
    print(markdown_table(["coder", *keys], rows))
    for kind in ("penalties", "readers"):
        for key, found in evidence[kind].items():
            for name, of in found.items():
                print(kind, key, name, of)
    for claim, of in measured(evidence).items():
        numbers = ", ".join(f"{key} {number:.3g}" for key, number in of.items())
        print(f"{claim} {judge(every_claim()[claim]['rule'], of)}: {numbers}")


if __name__ == "__main__":
    command("toys", __doc__, run, show)
