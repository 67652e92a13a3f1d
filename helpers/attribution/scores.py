"""Estimates of every patch at once: a coefficient times what the patch would change, in nats.

scores = attribution(model, pairs, ["resid_pre", "mlp_out"], method="relp")
scores["mlp_out"][:, 18, 9]  # of each pair: MLP 18, token 9

A score is the sum of `c (source - base)` over a vector: how far its patch would move the logit
difference, if the model were the line that `c` describes. `c` is the gradient at the base ("atp",
attribution patching), that by rules of `linearised` ("relp", or any rule alone), or the mean over
`steps` gradients from the base's embeddings to the source's ("ig", integrated gradients).

`linearised` treats each nonlinearity as the straight line it is on this prompt (RelP):

    norm      x / scale                  the scale counts as a constant
    identity  act(x) = x (act(x) / x)    the ratio counts as a constant
    half      act(gate) * up             each factor gets half of the gradient
    pattern   attention pattern          counts as a constant, so queries get nothing

With all four the logits are linear in the residual stream, up to biases: at every layer coefficient
times activation sums to the logit. Rules: arXiv 2508.21258 (layerwise relevance propagation).
"""

import functools
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from helpers.models import Model, require
from helpers.patching import Acts, Site, check_sites, recording
from helpers.patching.metrics import logit_difference
from helpers.patching.sites import HOOKS, OF_ONE_HEAD, check_vocabulary
from helpers.patching.suffix import only_columns
from helpers.tasks import Pairs


class Agreement(NamedTuple):
    """Pearson's correlation, that without the cell of the largest exact effect, and the slope of
    the estimates on the exact effects, through the origin: 1 if they have the right size.
    """

    correlation: float
    without_top: float
    slope: float


Scores: TypeAlias = dict[str, Float[Tensor, "pairs layers pos *heads"]]
Seen: TypeAlias = dict[str, Float[Tensor, "batch pos ..."]]  # by the name of a hook
RELP = ("norm", "identity", "half")  # the default of the paper
RULES = (*RELP, "pattern")
REBUILT = "A forward hook edited hook_scale"  # TransformerLens's warning: it is what we want
METHODS = {"atp": (), **{rule: (rule,) for rule in RULES}, "identity+half": RELP[1:]}
METHODS |= {"relp": RELP, "relp+pattern": RULES, "ig": ()}
ENTRY = "blocks.0.hook_resid_pre"  # what leaves the embeddings


@contextmanager
def linearised(model: Model, rules: Sequence[str] = RELP) -> Iterator[None]:
    """Inside, gradients follow the `rules`, some of `RULES`; forward values stay, up to rounding.

    Rules are hooks by name, the same for every architecture and activation function. `half` changes
    nothing in an MLP without a gate. Norms of queries and keys are left alone: no published rule
    speaks of them. Hooks that are added inside see what the rules leave. ValueError: no such rule.
    """
    if isinstance(rules, str) or not set(rules) <= set(RULES):
        raise ValueError(f"rules are some of {RULES}, in a list or a tuple, not {rules!r}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=REBUILT)
        with model.hooks(fwd_hooks=list(_hooks(model, set(rules)))):
            yield


def attribution(
    model: Model, pairs: Pairs, kinds: Sequence[str], *, method: str = "atp", **options: int
) -> Scores:
    """The score of every layer and token of each kind of site, in nats, by kind.

    Two forward passes and one backward ("ig": one of each more for every step). Kinds are those of
    `Site`; those of single heads have one more dimension. Shorter prompts are filled with zeros.
    Options: `steps` (5) of "ig", and `batch_size` (8), which bounds the memory. A ValueError: no
    such kind, hook, method or token, or a pair whose prompts differ in length.
    """
    if isinstance(kinds, str) or not kinds or not set(kinds) <= HOOKS.keys():
        raise ValueError(f"give a list of kinds, some of {list(HOOKS)}, not {kinds!r}")
    n, longest, found = model.cfg.n_layers, max(map(len, pairs.base_tokens)), {}
    sites = {k: [Site(at, k, 0 if k in OF_ONE_HEAD else None) for at in range(n)] for k in kinds}
    for rows, slopes, changes in _batches(model, pairs, sum(sites.values(), []), method, **options):
        for kind, at in sites.items():
            names = [site.hook_name for site in at]
            each = torch.stack([(slopes[x] * changes[x]).sum(-1) for x in names], 1)
            if kind not in found:
                found[kind] = each.new_zeros(len(pairs), n, longest, *each.shape[3:])
            found[kind][rows, :, : each.shape[2]] = each
    return found


def coefficients(
    model: Model, pairs: Pairs, sites: Sequence[Site], *, method: str = "atp", **options: int
) -> list[Acts]:
    """The coefficients of each site at the token that its pairs name, in nats per unit.

    For a direction `u` the estimate is `(c @ u) * ((source - base) @ u)`. By "atp" they are
    `CachedPairs.base_gradient`. Options and errors are those of `attribution`.
    """
    found: dict[Site, Tensor] = {}
    for rows, slopes, _ in _batches(model, pairs, sites, method, **options):
        for site in sites:
            own = pairs.position[rows] if site.position is None else site.position
            at = slopes[site.hook_name][torch.arange(len(rows)), own]
            at = at if site.head is None else at[:, site.head]
            found.setdefault(site, at.new_zeros(len(pairs), at.shape[-1]))[rows] = at
    return [found[site] for site in sites]


def agreement(estimate: Tensor, exact: Tensor) -> Agreement:
    """How well a map of estimates agrees with that of exact effects, of the same shape.

    A ValueError: maps of different shape, or of so few cells that nothing is left to correlate.
    """
    require.finite("a map", estimate, exact)
    if estimate.shape != exact.shape or exact.numel() < 3:
        shapes = f"{tuple(estimate.shape)} and {tuple(exact.shape)}"
        raise ValueError(f"maps of one shape, with three cells at least, are needed, not {shapes}")
    both = torch.stack([estimate.flatten(), exact.flatten()]).double()
    rest = both[:, torch.arange(exact.numel()) != both[1].abs().argmax()]
    numbers = torch.corrcoef(both)[0, 1], torch.corrcoef(rest)[0, 1], both.prod(0).sum()
    return Agreement(*(x.item() for x in (*numbers[:2], numbers[2] / both[1].square().sum())))


def _batches(
    model: Model, pairs: Pairs, sites: Sequence[Site], method: str, steps: int = 5,
    batch_size: int = 8,
) -> Iterator[tuple[Int[Tensor, "batch"], Seen, Seen]]:  # fmt: skip
    """Pairs of one length at a time: which, the coefficients at the sites' hooks, the changes."""
    if method not in list(METHODS):
        raise ValueError(f"no method {method!r}: choose one of {list(METHODS)}")
    require.whole("steps", steps, least=1)
    require.whole("batch_size", batch_size, least=1)
    if not sites:
        raise ValueError("no sites given")
    check_sites(model, sites)
    check_vocabulary(model, torch.cat([*pairs.base_tokens, *pairs.source_tokens]))
    sides = pairs.base_tokens, pairs.source_tokens
    lengths, others = (torch.tensor(list(map(len, side))) for side in sides)
    if (unlike := lengths != others).any():
        reason = "base and source differ in length, so their tokens do not correspond"
        raise ValueError(f"pair {int(unlike.nonzero()[0])}: {reason}")
    names, device = {site.hook_name for site in sites} | {ENTRY}, model.cfg.device
    groups = [(lengths == length).nonzero()[:, 0] for length in lengths.unique()]
    for rows in itertools.chain(*(group.split(batch_size) for group in groups)):
        base, source = (torch.stack([side[row] for row in rows]).to(device) for side in sides)
        labels = torch.stack([pairs.answer[rows], pairs.counterfactual[rows]]).to(device)
        after = _values(model, source, names)
        if method == "ig":
            before = _values(model, base, names)
            ways = [(step + 0.5) / steps for step in range(steps)]
            enters = [before[ENTRY].lerp(after[ENTRY], way) for way in ways]
            each = [_slopes(model, base, labels, names, enter=enter)[1] for enter in enters]
            slopes = {name: torch.stack([x[name] for x in each]).mean(0) for name in names}
        else:
            before, slopes = _slopes(model, base, labels, names, METHODS[method])
        yield rows, slopes, {name: after[name] - before[name] for name in names}


@torch.no_grad()
def _values(model: Model, tokens: Int[Tensor, "batch pos"], names: set[str]) -> Seen:
    with recording(model, names) as seen, only_columns(model, [0]):
        model(tokens)
    return seen


@torch.enable_grad()
def _slopes(
    model: Model, tokens: Int[Tensor, "batch pos"], labels: Int[Tensor, "2 batch"],
    names: set[str], rules: Sequence[str] = (), enter: Tensor | None = None,
) -> tuple[Seen, Seen]:  # fmt: skip
    """What the hooks see, and how the logit difference changes with it by the rules."""
    seen: Seen = {}

    def start(stream: Tensor, hook: object) -> Tensor:
        return (stream if enter is None else enter).detach().clone().requires_grad_()

    keep = functools.partial(_keep, seen=seen)
    hooks = [(ENTRY, start), *((name, functools.partial(keep, key=name)) for name in names)]
    columns, places = labels.unique(return_inverse=True)
    # Hooks run in the order in which they are added: what is kept is what the rules leave.
    with linearised(model, rules), model.hooks(fwd_hooks=hooks), only_columns(model, columns):
        total = logit_difference(model(tokens)[:, -1], *places).sum()
        found = torch.autograd.grad(total, list(seen.values()), allow_unused=True)
    both = zip(seen.items(), found, strict=True)  # None: nothing reads it before the answer
    slopes = {name: torch.zeros_like(x) if g is None else g for (name, x), g in both}
    return {name: x.detach() for name, x in seen.items()}, slopes


def _hooks(model: Model, rules: set[str]) -> Iterator[tuple[str, Callable]]:
    ends = {"norm": "hook_scale", "pattern": "attn.hook_pattern"}
    for end in [end for rule, end in ends.items() if rule in rules]:
        for name in model.hook_dict:
            if name.endswith(end) and not {"q_norm", "k_norm"} & set(name.split(".")):
                yield name, lambda value, hook: value.detach()
    for layer in range(model.cfg.n_layers if rules & {"identity", "half"} else 0):
        seen: dict[str, Tensor] = {}
        for end in ("hook_pre", "hook_pre_linear"):
            if (name := f"blocks.{layer}.mlp.{end}") in model.hook_dict:
                yield name, functools.partial(_keep, seen=seen, key=end)
        yield f"blocks.{layer}.mlp.hook_post", functools.partial(_mlp, seen=seen, rules=rules)


def _keep(value: Tensor, hook: object, *, seen: dict[str, Tensor], key: str) -> Tensor:
    seen[key] = value
    return value  # else what a hook sees of a head is a copy, which nothing reads


def _mlp(hidden: Tensor, hook: object, *, seen: dict[str, Tensor], rules: set[str]) -> Tensor:
    """The hidden activation, with the gradient of its stand-in."""
    gate, up = seen.pop("hook_pre"), seen.pop("hook_pre_linear", None)
    line = hidden
    if "identity" in rules:
        line = gate if up is None else gate * up
        line = line * torch.where(line == 0, 0.0, hidden / line).detach()  # act(x) / x
    if "half" in rules and up is not None:
        line = line / 2
    return hidden.detach() + (line - line.detach())  # in this order: exact in float32
