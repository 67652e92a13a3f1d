"""What an audit measures: `audit(model, Site(21, "mlp_hidden"), direction, pairs).summary`."""

import importlib.metadata
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from helpers import __version__
from helpers.audit import verdicts
from helpers.audit.criteria import TESTS, WHOLE, Finding
from helpers.audit.diagnostics import ONLY_READ, later_natural_units, scores, writing_matrix
from helpers.audit.findings import findings, may_be_zero, nats
from helpers.audit.interventions import Intervention, Subspace, intervention
from helpers.audit.verdicts import SMALLEST_EFFECT
from helpers.directions import best_directions
from helpers.directions.closed_form import linear_effect
from helpers.directions.search import progress_bar
from helpers.models import Model
from helpers.patching import Acts, CachedPairs, Estimate, Site, cache_pairs, check_sites
from helpers.patching.sites import HOOKS, OF_ONE_HEAD, present
from helpers.tasks import Pairs
from helpers.tasks.tokens import start_token

FEWEST_PAIRS, N_RANDOM = 8, 3
CRITERIA = {test.name: test for test in TESTS}
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

    verdict: str
    summary: str  # the verdict with its reasons
    model: str
    site: Site
    n_pairs: int  # distinct ones, whose base and source differ
    seed: int  # of the random directions and of the findings' intervals
    effect: Effects
    whole: Effects
    random: tuple[Estimate, ...]  # FLDD of random directions
    findings: tuple[Finding, ...]  # in the order in which they are asked
    versions: Mapping[str, str]  # of the packages that measured it
    notes: tuple[str, ...] = ()  # what to know about the pairs
    spectrum: Spectrum | None = None  # None where the answer does not depend on the site
    what: str = "a direction"  # that was audited
    exchanges: bool = True  # whether it writes what the source holds
    opposite: Estimate | None = None  # FLDD of the opposite change, of what does not exchange
    margin: float = 0.0  # the mean clean logit difference of the base prompts, in nats
    provenance: Mapping[str, Any] = field(default_factory=dict)  # whatever the caller knows of it


def audit(
    model: Model,
    site: Site,
    what: Float[Tensor, "d *k"] | Intervention,
    pairs: Pairs,
    **options: Any,
) -> Audit:
    """Measure what a patch does at `site`, and how; `options` are those of `audit_each`.

    `what` is a direction `[d]` of any length or the basis of a subspace `[d, k]`, whose value is
    exchanged, or another of `helpers.audit.interventions`. At least 8 pairs are needed, better 50:
    ranges and intervals are taken over them. `seed` is that of the random directions (`seed`,
    `seed + 1`, ...) and of the intervals, `batch_size` the prompts per forward pass: less needs
    less memory. `name` is what to call the model, by default what its configuration does.
    `progress` shows a bar of the steps, which TQDM_DISABLE=1 hides, too. Repeated pairs count once,
    and those whose base is the source are left out; `notes` says so.

    Raises ValueError: the direction is zero, holds NaN or has the wrong dimension; there are too
    few pairs; base and source are the same, or seem to be swapped; the model or a prompt has no
    such site, or the site writes nothing; or the model does not clearly do the task.
    """
    return audit_each(model, site, [what], pairs, **options)[0]


def audit_each(
    model: Model,
    site: Site,
    each: Sequence[Float[Tensor, "d *k"] | Intervention],
    pairs: Pairs,
    *,
    seed: int = 0,
    batch_size: int = 64,
    name: str | None = None,
    progress: bool = True,
) -> list[Audit]:
    """`audit` of several at one site: prompts and the whole component are run once for all."""
    each = _checked_all(model, site, each)
    pairs, notes = _enough(model, pairs)
    W = writing_matrix(model, site)
    cached = cache_pairs(model, pairs, site, batch_size=batch_size)
    _check_margin(cached.clean_logit_difference)
    base, source = cached.base, cached.source
    whole, margin = _effects(cached, source), cached.clean_logit_difference.mean().item()
    name = re.split(r"[/\\]", (name or model.cfg.model_name).rstrip("/\\"))[-1]
    spectrum = best_directions(cached).spectrum if cached.base_gradient.any() else None
    natural = later_natural_units(cached)
    audits, chances = [], {}
    for number in progress_bar(len(each), "audit", progress):
        what = each[number]
        effect = _effects(cached, what(base, source))
        # Random subspaces of one dimension are the same for all of that dimension.
        kind = what.rank if isinstance(what, Subspace) else -1 - number
        if kind not in chances:
            others = (what.random(seed + i)(base, source) for i in range(N_RANDOM))
            chances[kind] = tuple(_effects(cached, other).fldd for other in others)
        large = abs(effect.fldd.value) >= SMALLEST_EFFECT
        found = scores(cached, what, W, natural) if large else {}
        said = findings(model, site, what, W, found, seed, effect.fldd)
        known = (what.in_words(base, source), _could_fail(what, whole), *notes)
        of = _spectrum(cached, what, spectrum), str(what), what.exchanges
        turned = None if what.exchanges else _effects(cached, 2 * base - what(base, source)).fldd
        measured = (effect, whole, chances[kind], said, _versions(), tuple(filter(None, known)))
        judged = _judged(what, effect.fldd, chances[kind], said)
        audits.append(Audit(*judged, name, site, len(pairs), seed, *measured, *of, turned, margin))
    return audits


def _enough(model: Model, pairs: Pairs) -> tuple[Pairs, tuple[str, ...]]:
    """The distinct pairs with notes on them; a ValueError if they are too few."""
    pairs, notes = distinct(pairs)
    if len(pairs) < FEWEST_PAIRS:
        few = f"{len(pairs)} pairs are too few: take at least {FEWEST_PAIRS}, better 50"
        raise ValueError(". ".join([few, *notes]))
    return pairs, notes + _without_start(model, pairs)


def _judged(
    what: Intervention, effect: Estimate, random: Sequence[Estimate], said: Sequence[Finding]
) -> tuple[str, str]:
    """The verdict, and the summary by `helpers.audit.verdicts.summarise`."""
    name, known = str(what), ""
    subject = "the patch along the direction"
    if name != "a direction":
        subject = f"the {name.split(' ', 1)[1]}" + ("," if "," in name else "")
        known = f" {verdicts.NOT_CALIBRATED}"
    told = verdicts.summarise(effect, random, said, subject=subject, rules=what.rules)
    return what.rules.conclude(effect, random, said), told + known


def _could_fail(what: Intervention, whole: Effects) -> str:
    """From which effect on the comparison with the whole component could speak against it."""
    if not what.exchanges or whole.fldd.value <= SMALLEST_EFFECT:
        return ""
    limit = whole.fldd.value / (1 - CRITERIA[WHOLE].against)
    return f"{WHOLE!r} could speak against it only if it removed {limit:.0%} or more."


def _versions() -> dict[str, str]:
    """Of what measured it."""
    versions = {"subspace-illusion": __version__, "python": platform.python_version()}
    return versions | {package: importlib.metadata.version(package) for package in PACKAGES}


def _effects(cached: CachedPairs, activation: Acts) -> Effects:
    effect = cached.measure(activation)
    return Effects(effect.fldd, effect.interchange_accuracy)


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


def _without_start(model: Model, pairs: Pairs) -> tuple[str, ...]:
    """A note if the prompts do not begin as the model's own prompts do."""
    start, prompts = start_token(model), (*pairs.base_tokens, *pairs.source_tokens)
    without = sum(int(tokens[0]) != start for tokens in prompts)
    if start is None or not without:
        return ()
    token = model.tokenizer.decode([start])
    advice = "Pairs.from_prompts(model, ...) adds it, another tokenizer may not"
    return (
        f"{without} prompts lack the start token {token!r} that this model is given: {advice}.",
    )


def _spectrum(
    cached: CachedPairs, what: Intervention, values: Float[Tensor, "values"] | None
) -> Spectrum | None:
    """What a subspace does to first order, beside the ends and sums of the spectrum."""
    if values is None or not isinstance(what, Subspace) or what.rank > 1:
        return None  # the ends bound single directions
    sums = values.clamp(min=0).sum().item(), values.clamp(max=0).sum().item()
    ends = values.max().item(), values.min().item()
    return Spectrum(*ends, *sums, linear_effect(cached, what.basis))


def dimension(model: Model, site: Site) -> int:
    """How many dimensions the activation at a site has."""
    W = writing_matrix(model, site)
    return model.cfg.d_model if W is None else W.shape[0]


def _checked_all(model: Model, site: Site, each: Sequence[Any]) -> list[Intervention]:
    if not len(each):
        raise ValueError("nothing to audit: give at least one direction")
    return [_checked(model, site, what) for what in each]


def _checked(model: Model, site: Site, what: Any) -> Intervention:
    """What is to be audited, if it fits the site, in float32."""
    check_sites(model, [site])
    if not isinstance(what, Intervention):
        what = _tensor(what)
    what = intervention(what).to(torch.zeros(0))
    found, needed = len(what.writes), dimension(model, site)
    if found != needed:
        kinds = [kind for kind in HOOKS if kind not in ONLY_READ]
        sites = [Site(site.layer, kind, head=0 if kind in OF_ONE_HEAD else None) for kind in kinds]
        fitting = ", ".join(str(s) for s in present(model, sites) if dimension(model, s) == found)
        meant = f"do you mean {fitting}?" if fitting else "was it found in another model?"
        subject = f"the {str(what).split(' ', 1)[1]}"
        raise ValueError(f"{subject} has {found} dimensions, but {site} has {needed}: {meant}")
    return what


def _tensor(direction: Any) -> Float[Tensor, "d *k"]:
    """A direction or the basis of a subspace, whatever it comes as."""
    shapes = "[d], or several [d, k] that span a subspace"
    try:
        direction = torch.as_tensor(direction).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        wanted = f"a direction is a vector of numbers {shapes}"
        raise ValueError(f"{wanted}, not {direction!r}") from error
    if direction.ndim not in (1, 2) or direction.is_complex():
        kind = f"{direction.dtype} of shape {tuple(direction.shape)}"
        raise ValueError(f"a direction is a vector of real numbers {shapes}, not {kind}")
    return direction.float()


def _check_margin(clean: Float[Tensor, "pairs"]) -> None:
    """Refuse pairs without a margin; those with a negative one by another message."""
    if not may_be_zero(clean) and clean.mean() > 0:
        return
    reason = "not clearly a margin that a patch could remove"
    advice = "Use more pairs, or pairs whose answers the model knows"
    if not may_be_zero(clean):
        reason = "the model prefers the counterfactual after the base prompts"
        advice = "Are base and source swapped, or answer and counterfactual?"
    raise ValueError(f"the mean clean logit difference is {nats(clean)}: {reason}. {advice}")
