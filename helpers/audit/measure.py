"""What an audit measures: `audit(model, Site(21, "mlp_hidden"), direction, pairs).summary`."""

import importlib.metadata
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from helpers import __version__
from helpers.audit import criteria
from helpers.audit.criteria import SMALLEST_EFFECT, TESTS, Finding
from helpers.audit.diagnostics import ONLY_READ, Score, later_sites, scores, writing_matrix
from helpers.directions import best_directions, patch_subspace, random_direction, unit
from helpers.directions.closed_form import linear_effect
from helpers.directions.search import progress_bar
from helpers.models import Model
from helpers.patching import CachedPairs, Estimate, Site, cache_pairs, check_sites
from helpers.patching.sites import HOOKS, OF_ONE_HEAD, present
from helpers.tasks import Pairs

FEWEST_PAIRS, N_RANDOM = 8, 3
PACKAGES = ("torch", "transformer_lens", "transformers")


class Effects(NamedTuple):
    """An `Effect` without its pairs, so that audits can be compared."""

    fldd: Estimate
    interchange_accuracy: Estimate


class Spectrum(NamedTuple):
    """What directions at the site do to first order, as shares of the margin; below 0: they add."""

    most: float  # of all directions, found on the pairs that it is measured on
    least: float
    removing: float  # the sum of all eigenvalues above 0
    adding: float  # of those below 0: both together are what the whole component does
    direction: float  # what the audited one does

    def __str__(self) -> str:
        ends = f"any direction removes at most {self.most:.1%}, adds at most {-self.least:.1%}"
        whole, larger = self.removing + self.adding, max(self.removing, -self.adding)
        kind = "balanced" if abs(whole) < larger / 4 else "one-sided"
        sums = f"what removes, {self.removing:.1%}, and what adds, {-self.adding:.1%}, is {kind}"
        return f"to first order, {ends}, and this one removes {self.direction:.1%}; {sums}"


@dataclass(frozen=True)
class Audit:
    """What was measured about a direction and the whole component, and what it says."""

    model: str
    site: Site
    n_pairs: int  # distinct ones, whose base and source differ
    seed: int  # of the random directions and of the findings' intervals
    effect: Effects
    whole: Effects
    random: tuple[Estimate, ...]  # FLDD of random directions
    findings: tuple[Finding, ...]  # in the order of `helpers.audit.criteria.TESTS`
    versions: Mapping[str, str]  # of the packages that measured it
    notes: tuple[str, ...] = ()  # what to know about the pairs
    spectrum: Spectrum | None = None  # None where the answer does not depend on the site

    @property
    def verdict(self) -> str:
        """The verdict of `helpers.audit.criteria.conclude`."""
        return criteria.conclude(self.effect.fldd, self.random, self.findings)

    @property
    def summary(self) -> str:
        """The verdict with its reasons, by `helpers.audit.criteria.summarise`."""
        return criteria.summarise(self.effect.fldd, self.random, self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, with the verdict and the summary."""
        return {"verdict": self.verdict, "summary": self.summary, **_plain(vars(self))}


def _plain(value: Any) -> Any:
    """Sites, findings and named tuples as dictionaries, tuples as lists, all the way down."""
    if isinstance(value, Site):
        return value.as_dict()
    if isinstance(value, Finding):
        value = vars(value)
    elif hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return list(map(_plain, value)) if isinstance(value, tuple) else value


def audit(
    model: Model,
    site: Site,
    direction: Float[Tensor, "d"],
    pairs: Pairs,
    *,
    seed: int = 0,
    batch_size: int = 64,
    name: str | None = None,
    progress: bool = True,
) -> Audit:
    """Measure what the patch along a direction, of any length, does at `site`, and how.

    At least 8 pairs are needed, better 50: ranges and intervals are taken over them. `seed` is that
    of the random directions (`seed`, `seed + 1`, ...) and of the intervals, `batch_size` the
    prompts per forward pass: less needs less memory. `name` is what to call the model, by default
    what its configuration does. `progress` shows a bar of the steps, which TQDM_DISABLE=1 hides,
    too. Repeated pairs count once, and those whose base is the source are left out; `notes` says
    so.

    Raises ValueError: the direction is zero, holds NaN or has the wrong dimension; there are too
    few pairs; base and source are the same, or seem to be swapped; the model or a prompt has no
    such site, or the site writes nothing; or the model does not clearly do the task.
    """
    direction = _checked(model, site, direction)
    pairs, notes = distinct(pairs)
    if len(pairs) < FEWEST_PAIRS:
        few = f"{len(pairs)} pairs are too few: take at least {FEWEST_PAIRS}, better 50"
        raise ValueError(". ".join([few, *notes]))
    W = writing_matrix(model, site)
    others = [random_direction(len(direction), seed=seed + i) for i in range(N_RANDOM)]
    cached = cache_pairs(model, pairs, site, batch_size=batch_size)
    _check_margin(cached.clean_logit_difference)
    base, source = cached.base, cached.source
    patched = [source, *(patch_subspace(base, source, v) for v in (direction, *others))]
    steps = progress_bar(len(patched), "audit", progress)
    found = [cached.measure(patched[step]) for step in steps]
    whole, effect, *random = [Effects(e.fldd, e.interchange_accuracy) for e in found]
    findings = _findings(model, site, scores(cached, direction, W), seed, effect.fldd)
    versions = {"subspace-illusion": __version__, "python": platform.python_version()}
    versions |= {package: importlib.metadata.version(package) for package in PACKAGES}
    name = re.split(r"[/\\]", (name or model.cfg.model_name).rstrip("/\\"))[-1]
    chance = tuple(other.fldd for other in random)
    measured = (effect, whole, chance, findings, versions, notes, _spectrum(cached, direction))
    return Audit(name, site, len(pairs), seed, *measured)


def distinct(pairs: Pairs) -> tuple[Pairs, tuple[str, ...]]:
    """The pairs that differ from each other and in themselves, and notes on what was left out.

    A ValueError if base and source are the same up to the patched token in every pair.
    """
    ends = zip(pairs.position.tolist(), pairs.source_position.tolist(), strict=True)
    both = zip(pairs.base_tokens, pairs.source_tokens, ends, strict=True)
    sides = [(tuple(b.tolist()), tuple(s.tolist()), i, j) for b, s, (i, j) in both]
    differ = [b[: i + 1] != s[: j + 1] for b, s, i, j in sides]
    if len(pairs) and not any(differ):
        raise ValueError("base and source are the same up to the patched token in every pair: "
                         "there is nothing to patch")  # fmt: skip
    labels = zip(pairs.answer.tolist(), pairs.counterfactual.tolist(), strict=True)
    keys = [(*side, *label) for side, label in zip(sides, labels, strict=True)]
    first = {key: row for row, key in reversed(list(enumerate(keys))) if differ[row]}
    turned = sum((s, b, j, i, c, a) in first for b, s, i, j, a, c in first)
    same, repeated = differ.count(False), sum(differ) - len(first)
    notes = {
        f"Pairs with the same base and source were left out: {same}.": same,
        f"Repeated pairs were counted once: {repeated} left out.": repeated,
        f"Pairs that are here the other way round, too: {turned}. They share prompts, so the "
        "intervals are too narrow.": turned,
    }
    return pairs[sorted(first.values())], tuple(text for text, count in notes.items() if count)


def _spectrum(cached: CachedPairs, direction: Tensor) -> Spectrum | None:
    if not cached.base_gradient.any():
        return None
    values = best_directions(cached).spectrum
    sums = values.clamp(min=0).sum().item(), values.clamp(max=0).sum().item()
    ends = values.max().item(), values.min().item()
    return Spectrum(*ends, *sums, linear_effect(cached, direction))


def dimension(model: Model, site: Site) -> int:
    """How many dimensions the activation at a site has."""
    W = writing_matrix(model, site)
    return model.cfg.d_model if W is None else W.shape[0]


def _checked(model: Model, site: Site, direction: Tensor) -> Float[Tensor, "d"]:
    """The direction as a unit vector, if it fits the site."""
    check_sites(model, [site])
    try:
        direction = torch.as_tensor(direction).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"a direction is one vector of numbers [d], not {direction!r}") from error
    if direction.ndim != 1 or direction.is_complex():
        kind = f"{direction.dtype} of shape {tuple(direction.shape)}"
        raise ValueError(f"a direction is one vector of real numbers [d], not {kind}")
    found, needed = len(direction), dimension(model, site)
    if found != needed:
        kinds = [kind for kind in HOOKS if kind not in ONLY_READ]
        sites = [Site(site.layer, kind, head=0 if kind in OF_ONE_HEAD else None) for kind in kinds]
        fitting = ", ".join(str(s) for s in present(model, sites) if dimension(model, s) == found)
        meant = f"do you mean {fitting}?" if fitting else "was it found in another model?"
        raise ValueError(f"the direction has {found} dimensions, but {site} has {needed}: {meant}")
    return unit(direction.float())


def _check_margin(clean: Float[Tensor, "pairs"]) -> None:
    """Refuse pairs without a margin; those with a negative one by another message."""
    if not _may_be_zero(clean) and clean.mean() > 0:
        return
    reason = "not clearly a margin that a patch could remove"
    advice = "Use more pairs, or pairs whose answers the model knows"
    if not _may_be_zero(clean):
        reason = "the model prefers the counterfactual after the base prompts"
        advice = "Are base and source swapped, or answer and counterfactual?"
    raise ValueError(f"the mean clean logit difference is {_nats(clean)}: {reason}. {advice}")


def _may_be_zero(values: Float[Tensor, "pairs"]) -> bool:
    """Whether the mean is not clearly above or below zero, so that shares are not numbers."""
    return bool(values.mean().abs() <= 2 * values.std() / len(values) ** 0.5)


def _nats(values: Float[Tensor, "pairs"]) -> str:
    error = values.std() / len(values) ** 0.5
    return f"{values.mean():.2f} nats with a standard error of {error:.2f}"


def _findings(
    model: Model, site: Site, found: Mapping[str, Score], seed: int, effect: Estimate
) -> tuple[Finding, ...]:
    """What each test says; that it does not apply, if the direction has no effect."""
    findings = []
    for test in TESTS:
        reason = _why_not(model, site, test.name, found.get(test.name))
        if not reason and abs(effect.value) < SMALLEST_EFFECT:
            reason = f"The patch removes {effect.value:.1%} of the margin: too little to ask how."
        if not reason:
            findings.append(criteria.measured(test, found[test.name].estimate(seed)))
            continue
        no_value = (None, criteria.DOES_NOT_APPLY)
        findings.append(Finding(test.name, test.question, *no_value, reason, test.limits))
    return tuple(findings)


def _why_not(model: Model, site: Site, name: str, score: Score | None) -> str:
    """Why a test does not apply; empty if it does."""
    if score is None and name == criteria.UNITS:
        return "Only a hidden activation of an MLP has units that mean something one by one."
    if score is None and writing_matrix(model, site) is None:
        part = "there is no part that nobody reads by construction"
        return f"The activation is used as it stands: nothing is lost on the way, so {part}."
    if score is None:
        owner = "a head" if site.head is not None else "this MLP"
        return f"The output matrix of {owner} loses nothing."
    if name in ("lost in range", "far downstream") and not later_sites(model, site):
        if site.layer == model.cfg.n_layers - 1:
            return "This is the last layer: there is no later MLP."
        return "No later layer has an MLP with one hidden activation."
    if _may_be_zero(score.below):
        return f"The effect is {_nats(score.below)}: too little to take a share of."
    return ""
