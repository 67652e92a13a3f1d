"""What each test of an audit says, or why it does not apply."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from helpers.audit import criteria
from helpers.audit.criteria import Finding
from helpers.audit.diagnostics import (
    OF_KERNEL,
    Score,
    Writer,
    has_kernel,
    later_sites,
    writing_matrix,
)
from helpers.audit.interventions import Intervention
from helpers.models import Model
from helpers.patching import Estimate, Site


def findings(
    model: Model,
    site: Site,
    what: Intervention,
    W: Writer,
    found: Mapping[str, Score],
    seed: int,
    effect: Estimate,
) -> tuple[Finding, ...]:
    """What each test says; that it does not apply, if nothing was found: there is no effect."""
    said = []
    for test in what.rules.tests:
        score = found.get(test.name)
        reason = _not_of_this_kind(what, test.name)
        if not reason and (found or test.name in OF_KERNEL and not has_kernel(W)):
            reason = why_not(model, site, test.name, score)
        if not reason and not found:
            reason = f"The patch removes {effect.value:.1%} of the margin: too little to ask how."
        if not reason:
            said.append(criteria.measured(test, found[test.name].estimate(seed)))
            continue
        no_value = (None, criteria.DOES_NOT_APPLY)
        said.append(Finding(test.name, test.question, *no_value, reason, test.limits))
    return tuple(said)


def _not_of_this_kind(what: Intervention, name: str) -> str:
    """Why a test does not apply to such a patch, wherever it is; empty if it does."""
    if not what.exchanges and name in (criteria.WHOLE, "not necessary"):
        return "What is written is not the source's, so the whole component is no comparison."
    if not what.exchanges and name in ("read by the null part", "lost by the row part"):
        return "Nothing of the source is read, and what the output matrix ignores does nothing."
    if not what.is_linear and name == "cross term":
        return "What the patch does is not a sum of what parts of the change do."
    return ""


def why_not(model: Model, site: Site, name: str, score: Score | None) -> str:
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
    if may_be_zero(score.below):
        return f"The effect is {nats(score.below)}: too little to take a share of."
    return ""


def may_be_zero(values: Float[Tensor, "pairs"]) -> bool:
    """Whether the mean is not clearly above or below zero, so that shares are not numbers."""
    return bool(values.mean().abs() <= 2 * values.std() / len(values) ** 0.5)


def nats(values: Float[Tensor, "pairs"]) -> str:
    error = values.std() / len(values) ** 0.5
    return f"{values.mean():.2f} nats with a standard error of {error:.2f}"
