"""Tests of a direction: numbers that may tell a natural pathway from one that a patch opens.

Every test is scored so that a larger number is more suspicious; lesson 09 scores them all on models
where the truth is known, and `helpers.audit.criteria` judges by those that earned it. What is
tested is a direction `[d]`, a subspace `[d, k]` or another of `helpers.audit.interventions`.
`cached` is a `CachedPairs`, or `PlantedPairs`. `W` is the matrix that takes the site's activation
to the residual stream, `[d d_model]`; None where the activation is in the stream as it stands.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from helpers.audit.interventions import Intervention, Subspace, intervention
from helpers.directions.geometry import project, row_space
from helpers.models import Model
from helpers.patching import Acts, CachedPairs, Estimate, Site, check_sites
from helpers.patching.cached import Patchable
from helpers.patching.metrics import PerPair, bootstrap
from helpers.patching.sites import OF_CIRCUITS, present

Writer: TypeAlias = Float[Tensor, "d d_model"] | None
Vector: TypeAlias = Float[Tensor, "d *k"]

ONLY_READ = ("mlp_in", "head_query", *OF_CIRCUITS)
OF_KERNEL = ("null norm", "read by the null part", "lost by the row part", "lost unit by unit")
COINCIDE = 1e-3  # of the largest distance among natural states: closer ones are the same
ROWS_TOGETHER = 512  # of a table of distances, so that many pairs fit into memory
REACH = 1.5  # times its mean natural change, how far a unit may go in the test of single units
SHORTEST_ROW = 1e-5  # a row part of a unit vector that is shorter is rounding
NATURAL_SHARE = 0.95  # of the squared change from base to source that `natural_changes` keeps


class Score(NamedTuple):
    """A test's result, still by pair: its value is the mean of `above` over that of `below`."""

    above: PerPair
    below: PerPair

    @property
    def value(self) -> float:
        return (self.above.mean() / self.below.mean()).item()

    def estimate(self, seed: int = 0) -> Estimate:
        """The value with its bootstrap interval over pairs."""
        samples = torch.stack([self.above, self.below], -1)
        return bootstrap(samples, lambda means: means[..., 0] / means[..., 1], seed=seed)


def writing_matrix(model: Model, site: Site) -> Writer:
    """What takes the activation to the residual stream; None for what is in it already."""
    check_sites(model, [site])
    block = model.blocks[site.layer]
    if site.kind == "mlp_hidden":
        return block.mlp.W_out.detach()
    if site.kind == "head_output":
        return block.attn.W_O[site.head].detach()
    if site.kind in ONLY_READ:
        raise ValueError(f"{site} writes nothing into the residual stream: choose another site")
    return None


def has_kernel(W: Writer) -> bool:
    """Whether something of the activation is lost on its way to the stream."""
    return W is not None and W.shape[0] > W.shape[1]


def scores(
    cached: Patchable,
    what: Intervention | Vector,
    W: Writer,
    later: Sequence[Mapping[Site, Tensor]] | None = None,
) -> dict[str, Score]:
    """All tests that apply, by name; larger is more suspicious.

    `helpers.audit.criteria.TESTS` says what each asks. Effects are falls of the logit difference;
    shares are of the direction's effect. not necessary: 1 minus the effect that the whole component
    loses without the direction, over the direction's. not reversed: 1 minus what the opposite
    change adds, over the effect, where the change is not the source's (a steering vector, a clamp);
    whatever compares with the whole component or asks what is sensed is left out there. Those of
    the row and null part only where `W` has a kernel (section 4.3 of the paper, in both
    conventions), which a hidden activation has, so that of its units only there. `later` are
    `later_natural_units`, if they are known. Raises ValueError: the direction is zero, holds NaN or
    does not fit the site.
    """
    what = intervention(what).to(cached.base)
    patched = patches(cached, what, W)
    fall, moved = falls(cached, patched), patched["direction"]
    held, far = downstream(cached, moved, later)
    effect, ones = fall["direction"], torch.ones(len(cached))
    natural = torch.cat([cached.base, cached.source])
    found = {}
    if what.exchanges:
        found["whole does less"] = Score(effect - fall["whole"], effect)
        found["not necessary"] = Score(effect - fall["whole"] + fall["whole without"], effect)
    found["lost off natural changes"] = Score(effect - fall["natural changes"], effect)
    if "rest" in fall:
        crossed = fall["natural changes"] - fall["mean part"] - fall["rest"]
        found["cross term"] = Score(crossed, effect)
    if "opposite" in fall:
        found["not reversed"] = Score(effect + fall["opposite"], effect)
    found["beyond range"] = Score(beyond_range(cached, moved, W), ones)
    found["far at the site"] = Score(distance_ratio(natural, moved), ones)
    found["far downstream"] = Score(far, ones)
    found["lost in range"] = Score(effect - held, effect)
    if has_kernel(W):
        null = what.writes - project(what.writes.T, row_space(W).to(what.writes)).T
        found["null norm"] = Score(null.norm().cpu() / null.shape[1] ** 0.5 * ones, ones)
        if what.exchanges:
            found["read by the null part"] = Score(fall["read null"], effect)
            found["lost by the row part"] = Score(effect - fall["row"], effect)
        found["lost unit by unit"] = Score(effect - fall["unit by unit"], effect)
    return found


def patches(cached: Patchable, what: Intervention | Vector, W: Writer) -> dict[str, Acts]:
    """The patched activations that the tests compare, by name.

    natural changes: what the direction moves, projected on `natural_changes`. Mean part and rest:
    as far as the direction lies there, its part along `mean_change` alone, and the other alone.
    Opposite: the change turned round, where it is not the source's. Where `W` has a kernel also
    row: along the normalised row part; read null: the null part senses, the whole direction acts;
    unit by unit: no unit goes further than `REACH` times its `mean_change`, or against it.
    """
    what = intervention(what).to(cached.base)
    base, source = cached.base, cached.source
    axes, mean = natural_changes(cached), mean_change(cached)
    moved = what(base, source)
    patched = {
        "direction": moved,
        "whole": source,
        "natural changes": base + (moved - base) @ axes @ axes.T,
    }
    if what.exchanges:
        patched["whole without"] = source - (moved - base)
    else:
        patched["opposite"] = base - (moved - base)
    if what.is_linear:
        usual = normalize(mean[0] @ axes @ axes.T, dim=0)
        inside = axes @ (axes.T @ what.writes)
        along = usual[:, None] * (usual @ inside)
        patched["mean part"] = _along(base, source, along)
        patched["rest"] = _along(base, source, inside - along)
    if has_kernel(W):
        if what.exchanges:
            patched |= _row_and_null(base, source, what, row_space(W).to(base))
        ends = REACH * mean.clamp(max=0), REACH * mean.clamp(min=0)
        patched["unit by unit"] = base + (moved - base).clamp(*ends)
    return patched


def _along(base: Acts, source: Acts, columns: Float[Tensor, "d k"]) -> Acts:
    """Senses and acts along the same columns, as long as they are."""
    return base + (source - base) @ columns @ columns.T


def _row_and_null(
    base: Acts, source: Acts, what: Intervention, space: Float[Tensor, "d rank"]
) -> dict[str, Acts]:
    """The patches of the row part alone, and of the whole sensed by the null part alone."""
    seen = project(source - base, space)
    patched = {"row": what(base, base + seen), "read null": what(base, source - seen)}
    if isinstance(what, Subspace):  # the convention of section 4.3: the row part, normalised
        u, s, _ = torch.linalg.svd(project(what.writes.T, space).T, full_matrices=False)
        patched["row"] = _along(base, source, u[:, s > SHORTEST_ROW])
    return patched


@torch.no_grad()
def falls(cached: Patchable, patched: Mapping[str, Acts]) -> dict[str, PerPair]:
    """How far the logit difference of each pair falls under each patch, in nats."""
    rows = torch.arange(len(cached), device=cached.base.device).repeat(len(patched))
    after = cached.logit_difference(torch.cat(list(patched.values())), rows).chunk(len(patched))
    clean = cached.clean_logit_difference
    return {name: (clean - left).cpu() for name, left in zip(patched, after, strict=True)}


def natural_changes(cached: Patchable) -> Float[Tensor, "d k"]:
    """Orthonormal directions that hold most of the squared change from base to source."""
    _, s, axes = torch.linalg.svd(cached.source - cached.base, full_matrices=False)
    held = s.square().cumsum(0) / s.square().sum()
    return axes[: int((held < NATURAL_SHARE).sum()) + 1].T


def mean_change(cached: Patchable) -> Acts:
    """What the feature moves on average, with each pair's sign: from base to source or back."""
    change = cached.source - cached.base
    sign = signs(change)
    return sign * (sign * change).mean(0)


def signs(change: Acts) -> Float[Tensor, "pairs 1"]:
    """1 or -1: which way each pair goes along the axis on which the pairs change most."""
    axis = torch.linalg.svd(change, full_matrices=False)[2][0]
    return torch.where(change @ axis < 0, -1.0, 1.0).to(change)[:, None]


def beyond_range(cached: Patchable, patched: Acts, W: Writer) -> PerPair:
    """How far the patch drives what is written out of its natural range, in widths of that range.

    Along the direction in which the patch changes the stream; natural is what prompts of these
    pairs write there. 0: within the range; 1: beyond it by as much as it is wide.
    """
    write = torch.eye(cached.base.shape[1]).to(cached.base) if W is None else W
    axis = torch.linalg.svd((patched - cached.base) @ write, full_matrices=False)[2][0]
    natural = torch.cat([cached.base, cached.source]) @ (write @ axis)
    value, low, high = patched @ (write @ axis), natural.min(), natural.max()
    excess = (value - high).clamp(min=0) + (low - value).clamp(min=0)
    return (excess / (high - low).clamp(min=1e-6)).cpu()


def distance_ratio(natural: Float[Tensor, "natural d"], patched: Acts) -> PerPair:
    """Distance of each patched state to the nearest natural one, over the usual such distance.

    `natural` begins with the bases in the order of the pairs. A patched state is not compared with
    the base it was made from, nor a natural state with itself or one that coincides with it (of a
    prompt in two pairs). Where all natural states coincide, there is no usual distance: 0 for a
    state that does not move, and a huge number for one that does.
    """
    kind, (natural, patched) = patched.dtype, _precise(natural, patched)
    parts = [slice(at, at + ROWS_TOGETHER) for at in range(0, len(natural), ROWS_TOGETHER)]
    largest = max(torch.cdist(natural[part], natural).max() for part in parts)
    nearest, usual = [], []
    for part in parts:
        among, to_natural = (torch.cdist(x[part], natural) for x in (natural, patched))
        if largest > 0:
            same = among <= COINCIDE * largest
            to_natural = to_natural.masked_fill(same[: len(to_natural)], torch.inf)
            among = among.masked_fill(same, torch.inf)
        nearest.append(to_natural.amin(-1))
        usual.append(among.amin(-1))
    far = torch.cat(usual)
    found = torch.cat(nearest) / far[far.isfinite()].mean().clamp(min=1e-9)
    return found.to(kind).cpu()


def _precise(*states: Tensor) -> list[Tensor]:
    """Around their middle and in float64, so that distances by matrix products are exact enough."""
    middle = states[0].mean(0)
    there = "cpu" if middle.device.type == "mps" else middle.device  # which lacks float64
    return [(x - middle).to(there).double() for x in states]


@torch.no_grad()
def downstream(
    cached: Patchable, patched: Acts, natural: Sequence[Mapping[Site, Tensor]] | None = None
) -> tuple[PerPair, PerPair]:
    """What happens above the site: the fall with later units held in range, and how far they are.

    The hidden units of all MLPs above the site are clipped, at the patched token, to what they do
    on some base prompt, as it is or with the source's whole activation at the site; all at once,
    to the values of the patched run (after the planted pathways of Liu and Chen). The distance is
    `distance_ratio` in the units of the next MLP; 1 where there is none.
    """
    natural = later_natural_units(cached) if natural is None else natural
    clamp, far = {}, torch.ones(len(cached))
    for number, (site, values) in enumerate(later_units(cached, patched).items()):
        seen = torch.cat([units[site] for units in natural])
        clamp[site] = values.clamp(seen.amin(0), seen.amax(0))
        far = distance_ratio(seen, values) if number == 0 else far
    held = cached.logit_difference(patched, clamp=clamp)
    return (cached.clean_logit_difference - held).cpu(), far


def later_natural_units(cached: Patchable) -> list[dict[Site, Tensor]]:
    """`later_units` of the base prompts, as they are and with the source's whole activation."""
    with torch.no_grad():
        return [later_units(cached, activation) for activation in (cached.base, cached.source)]


def later_sites(model: Model, site: Site) -> list[Site]:
    """The hidden activations of the MLPs above a site, where these have one, at its token."""
    layers = range(site.layer + 1, model.cfg.n_layers)
    return present(model, [Site(n, "mlp_hidden", position=site.position) for n in layers])


def later_units(cached: Patchable, activation: Acts) -> dict[Site, Tensor]:
    """Hidden activations of all MLPs above the site, at the patched token, under a patch."""
    if not isinstance(cached, CachedPairs):  # planted pairs may have units there, too
        return cached.later_units(activation)
    sites = later_sites(cached.model, cached.site)
    seen = cached.record(activation, [site.hook_name for site in sites])
    return {site: seen[site.hook_name] for site in sites}
