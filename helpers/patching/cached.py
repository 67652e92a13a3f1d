"""Pairs that have been run: `cached.logit_difference(patched)` costs what a patch can change.

At the sites of one `cache_sites` call, such as every layer, `logit_differences`, `effects` and
`base_gradients` share forward passes: each site has some of the rows to itself. Few pairs at many
layers gain most, since a processor multiplies large matrices faster than small ones.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from helpers.models import Model, require
from helpers.patching.metrics import Effect, Hits, PerPair, logit_difference
from helpers.patching.sites import Site, check_sites, check_vocabulary
from helpers.patching.suffix import ALL, Rows, Suffix, Write
from helpers.patching.writes import Running
from helpers.tasks.pairs import Pairs

Acts: TypeAlias = Float[Tensor, "pairs d"]  # what stands at a site, a row per pair
Clamp: TypeAlias = Mapping[Site, Acts | Running]
Sites: TypeAlias = "Sequence[CachedPairs]"  # the same pairs at several sites
AtSites: TypeAlias = Sequence[Acts] | None  # what to write at each of several sites
ROWS_PER_FORWARD = 256  # bounds the memory of one patched forward pass, not its result
TOKENS_PER_FORWARD = 192  # of several sites together: more are no faster, and need more memory


class Patchable:
    """What follows from `base` and `logit_difference`, for any pairs that have both."""

    @cached_property
    @torch.no_grad()
    def clean_logit_difference(self) -> PerPair:
        """Answer minus counterfactual logit of the unpatched base prompts; computed once."""
        return self.logit_difference(self.base)

    @cached_property
    def base_gradient(self) -> Acts:
        """How each logit difference changes with the base's activation, in nats; computed once."""
        return gradients(self, self.base)


@dataclass(frozen=True, eq=False)
class CachedPairs(Patchable):
    """Pairs whose prompts have been run: what stands at a site, and a way to patch it."""

    model: Model
    pairs: Pairs
    site: Site
    base: Acts
    source: Acts
    _groups: tuple[Suffix, ...]
    _group_of: Rows
    _row_of: Rows

    def __len__(self) -> int:
        return len(self.pairs)

    def patched_logits(
        self, activation: Acts, rows: Rows | None = None, *,
        tokens: Int[Tensor, "rows k"] | None = None, clamp: Clamp | None = None,
    ) -> Float[Tensor, "rows k"]:  # fmt: skip
        """Next-token logits of the base prompts with `activation` written at the site.

        Equal to a full forward pass with a hook, and differentiable in `activation`. Hooks of your
        own see only the tokens that are rerun; set them before `cache_pairs` and keep them.

        Args:
            rows: Which pairs; all of them in order by default.
            tokens: Compute the logits of these only; of the whole vocabulary by default.
            clamp: Activations to hold fixed at sites above this one (above `resid_pre`, also in
                its own layer), at the same token. With `record` this patches one path only, or cuts
                it. A `Mix` keeps a share of what comes by, `Along` what is not in a subspace.

        Raises ValueError: an activation of the wrong shape or with NaN, a clamped site below, or
        tokens that are not in the vocabulary. IndexError: no such row.
        """
        rows, clamp = self._rows(rows), dict(clamp or {})
        self._check(activation, rows, clamp)
        if tokens is not None:
            if not isinstance(tokens, Tensor) or tokens.ndim != 2 or len(tokens) != len(rows):
                raise ValueError(f"tokens must be a tensor [rows k] for {len(rows)} rows")
            check_vocabulary(self.model, tokens.flatten())
        pieces = []
        for group, part in self._parts(rows):
            columns = where = None
            if tokens is not None:
                columns, where = tokens.to(rows.device)[part].unique(return_inverse=True)
            writes = self._writes(activation, clamp, part)
            logits = group.rerun(self._row_of[rows[part]], writes, columns=columns)
            pieces.append(logits if where is None else logits.gather(-1, where))
        return self._in_order(pieces, rows)

    def record(
        self, activation: Acts, names: Sequence[str], rows: Rows | None = None, *,
        clamp: Clamp | None = None,
    ) -> dict[str, Float[Tensor, "rows ..."]]:  # fmt: skip
        """What TransformerLens hooks see at the patched token while `activation` is written.

        Differentiable in `activation`. Attention patterns and scores have one column per token of
        the longest prompt, filled with zeros. `rows` and `clamp` are those of `patched_logits`,
        and so are the errors; one of them is a hook below the site. KeyError: no such hook.
        """
        rows, clamp = self._rows(rows), dict(clamp or {})
        if isinstance(names, str):
            raise ValueError(f"give a list of hooks, [{names!r}], not a name alone")
        names = list(dict.fromkeys(names))
        if unknown := [name for name in names if name not in self._groups[0].hook_points]:
            raise KeyError(f"the model has no hook {unknown[0]}: see model.hook_dict")
        if last_only := [name for name in names if "unembed" in name]:
            raise ValueError(f"{last_only} see the last token only: use patched_logits for logits")
        self._check(activation, rows, clamp)
        longest = max(group.tokens.shape[1] for group in self._groups)
        pieces: dict[str, list[Tensor]] = {name: [] for name in names}
        for group, part in self._parts(rows):
            seen, writes = dict.fromkeys(names), self._writes(activation, clamp, part)
            group.rerun(self._row_of[rows[part]], writes, columns=rows[:1], record=seen)
            for name in names:
                if seen[name] is None:
                    raise ValueError(f"{name} is not recomputed: choose hooks above {self.site}")
                pieces[name].append(group.at_patched_token(name, seen[name], longest))
        return {name: self._in_order(found, rows) for name, found in pieces.items()}

    def logit_difference(
        self, activation: Acts, rows: Rows | None = None, *, clamp: Clamp | None = None
    ) -> Float[Tensor, "rows"]:
        """Answer minus counterfactual logit under the patch, in nats, from those two columns only.
        Arguments and errors are those of `patched_logits`.
        """
        tokens = _answers(self).T[self._rows(rows)]
        logits = self.patched_logits(activation, rows, tokens=tokens, clamp=clamp)
        return logits[:, 0] - logits[:, 1]

    @torch.no_grad()
    def measure(self, activation: Acts, *, clamp: Clamp | None = None) -> Effect:
        """The effect of writing `activation` at the site of every pair, with intervals."""
        return Effect.of(self.clean_logit_difference, *self.outcome(activation, clamp=clamp))

    @torch.no_grad()
    def outcome(self, activation: Acts, *, clamp: Clamp | None = None) -> tuple[PerPair, Hits]:
        """Of each pair the logit difference, in nats, and whether the counterfactual is on top."""
        logits, answers = self.patched_logits(activation, clamp=clamp), _answers(self)
        return logit_difference(logits, *answers), logits.argmax(-1) == answers[1]

    def _writes(self, activation: Tensor, clamp: Clamp, part: Tensor) -> list[Write]:
        """What a forward pass of some of the rows has to write."""
        return [(site, x[part], ALL) for site, x in {self.site: activation, **clamp}.items()]

    def _parts(self, rows: Tensor) -> list[tuple[Suffix, Tensor]]:
        """The rows that can share a forward pass, as places in `rows`, with their prompts."""
        return [
            (group, part)
            for index, group in enumerate(self._groups)
            for part in (self._group_of[rows] == index).nonzero()[:, 0].split(ROWS_PER_FORWARD)
            if len(part)
        ]

    def _in_order(self, pieces: list[Tensor], rows: Tensor) -> Tensor:
        """The results of the parts, put back in the order of the rows."""
        order = torch.cat([part for _, part in self._parts(rows)])
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)[order.argsort()]

    def _rows(self, rows: Tensor | None) -> Rows:
        if rows is None:
            return torch.arange(len(self), device=self.base.device)
        rows = torch.as_tensor(rows, device=self.base.device)
        require.ids("rows", rows)
        if len(rows) and not (0 <= rows.min() and rows.max() < len(self)):
            raise IndexError(f"rows must lie between 0 and {len(self) - 1}")
        return rows

    def _check(self, activation: Tensor, rows: Tensor, clamp: Clamp) -> None:
        """Refuse what cannot be written; errors as for `patched_logits`."""
        if len(rows) == 0:
            raise ValueError("no rows to patch")
        require.finite("the new activation", activation)
        expected = (len(rows), self.base.shape[1])
        if tuple(activation.shape) != expected:
            shapes = f"{tuple(activation.shape)}, but {self.site} of these rows needs {expected}"
            raise ValueError(f"the new activation has shape {shapes}")
        check_sites(self.model, clamp)
        for site, value in clamp.items():
            first = self.site.layer + (self.site.kind != "resid_pre" or site.kind == "resid_pre")
            if site.layer < first or site.kind == "resid_mid":
                raise ValueError(f"{site} cannot be clamped: choose a site above {self.site}")
            if site.position not in (None, self.site.position):
                raise ValueError(f"{site} cannot be clamped at another token than the patched one")
            value = value.other if isinstance(value, Running) else value
            require.floats("a clamped activation", value)
            if value.ndim != 2 or len(value) != len(rows) or not torch.isfinite(value).all():
                needed = f"finite activations [rows d] for {len(rows)} rows"
                raise ValueError(f"clamping {site} needs {needed}, got shape {tuple(value.shape)}")


@torch.enable_grad()
def gradients(cached: Patchable, activation: Acts) -> Acts:
    """How each logit difference changes with its activation where that is `activation`, in nats."""
    found = []
    for rows in torch.arange(len(activation), device=activation.device).split(ROWS_PER_FORWARD):
        part = activation[rows].detach().clone().requires_grad_()
        total = cached.logit_difference(part, rows).sum()
        found.append(torch.autograd.grad(total, part)[0])
    return torch.cat(found)


@torch.no_grad()
def logit_differences(cached: Sites, activations: AtSites = None) -> Float[Tensor, "sites pairs"]:
    """`logit_difference` of each site of a `cache_sites` call, in nats; not differentiable.

    `activations` are what to write at each; by default the source's, the whole component. A
    ValueError unless all are the same pairs, cached by one call, and the activations fit.
    """
    columns, places = _answers(_first(cached, activations)).unique(return_inverse=True)
    found = cached[0].base.new_empty(len(cached), len(cached[0]))
    for site, rows, logits in _patched_together(cached, activations, columns):
        found[site, rows] = logit_difference(logits, *places[:, rows])
    return found


@torch.no_grad()
def effects(cached: Sites, activations: AtSites = None) -> list[Effect]:
    """`measure` at each site of a `cache_sites` call; arguments and errors as above."""
    answers = _answers(_first(cached, activations))
    patched = cached[0].base.new_empty(len(cached), len(cached[0]))
    flipped = torch.empty_like(patched, dtype=torch.bool)
    for site, rows, logits in _patched_together(cached, activations, None):
        patched[site, rows] = logit_difference(logits, *answers[:, rows])
        flipped[site, rows] = logits.argmax(-1) == answers[1, rows]
    clean = cached[0].clean_logit_difference
    return [Effect.of(clean, *both) for both in zip(patched, flipped, strict=True)]


def base_gradients(cached: Sites) -> list[Acts]:
    """`base_gradient` at each site of a `cache_sites` call, all from one backward pass.

    Nothing is added to each site, and the gradient with respect to that nothing is taken: the base
    run is the same for all sites.
    """
    first = _first(cached, None)
    found = [torch.empty_like(at.base) for at in cached]
    for group, part in first._parts(first._rows(None)):
        for rows in part.split(max(1, TOKENS_PER_FORWARD // group.tokens_rerun)):
            zeros = [torch.zeros_like(at.base[rows]).requires_grad_() for at in cached]
            writes = [(at.site, zero, ALL) for at, zero in zip(cached, zeros, strict=True)]
            columns, places = _answers(first)[:, rows].unique(return_inverse=True)
            with torch.enable_grad():
                logits = group.rerun(first._row_of[rows], writes, columns=columns, add=True)
                total = logit_difference(logits, *places).sum()
            for at, gradient in zip(found, torch.autograd.grad(total, zeros), strict=True):
                at[rows] = gradient
    return found


def _answers(cached: CachedPairs) -> Int[Tensor, "2 pairs"]:
    """The answers and the counterfactual ones, where the activations are."""
    return torch.stack([cached.pairs.answer, cached.pairs.counterfactual]).to(cached.base.device)


def _first(cached: Sites, activations: AtSites) -> CachedPairs:
    """One of the sites, all of which can share forward passes."""
    if isinstance(cached, CachedPairs):
        raise ValueError("give a list of cached sites, not one alone")
    if not cached:
        raise ValueError("no sites given")
    first = cached[0]
    if any(at._groups is not first._groups or at.pairs is not first.pairs for at in cached):
        raise ValueError("cache the same pairs at all sites, by one call of cache_sites")
    if activations is not None and len(activations) != len(cached):
        raise ValueError(f"{len(activations)} activations for {len(cached)} sites")
    return first


def _patched_together(
    cached: Sites, activations: AtSites, columns: Tensor | None
) -> Iterator[tuple[int, Rows, Float[Tensor, "rows columns"]]]:
    """Each site's number with some of the pairs and their logits."""
    new = [at.source for at in cached] if activations is None else activations
    every_pair = cached[0]._rows(None)
    for at, activation in zip(cached, new, strict=True):
        at._check(activation, every_pair, {})
    # Neighbours in depth together: a pass starts at the lowest of its sites.
    order = sorted(range(len(cached)), key=lambda index: cached[index].site.layer)
    for group, rows in cached[0]._parts(every_pair):
        n, together = len(rows), max(1, TOKENS_PER_FORWARD // (len(rows) * group.tokens_rerun))
        for first in range(0, len(order), together):
            sites = order[first : first + together]
            writes = [
                (cached[site].site, new[site][rows], slice(place * n, place * n + n))
                for place, site in enumerate(sites)
            ]
            prompts = cached[0]._row_of[rows].repeat(len(sites))
            logits = group.rerun(prompts, writes, columns=columns).split(n)
            yield from ((site, rows, x) for site, x in zip(sites, logits, strict=True))
