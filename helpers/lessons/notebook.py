"""What every lesson does first and last."""

import importlib.metadata
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

import helpers
from helpers.claims import reference, report
from helpers.claims.sizes import sizes, sizes_name
from helpers.models.load import PACKAGED, model_name
from helpers.output import plots
from helpers.patching import metrics

__all__ = ["expect", "load_site", "needs", "needs_margin", "sizes", "start"]


def start(seed: int = 0) -> None:
    """Seed torch, set the figure style and print what this lesson runs on.

    The helpers take explicit seeds and never read the global generator: it is seeded for the code
    you add.
    """
    torch.manual_seed(seed)
    plots.use_style()
    packages = ("torch", "transformer_lens", "transformers")
    shown = [f"{package} {importlib.metadata.version(package)}" for package in packages]
    print(" · ".join([f"helpers {helpers.__version__}", *shown, f"model {model_name()}"]))


class NotTestable(RuntimeError):
    """What a lesson studies is not there in this model; the message says what is missing."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows in place of a traceback: nothing is broken."""
        return [f"NotTestable: on this model the rest of the lesson cannot be run: {self}"]


def needs(there: object, reason: str, *, claims: Sequence[str]) -> None:
    """Go on if `there`; else record the claims as not testable on this model: the lesson ends."""
    if there:
        return
    for claim in claims:
        report.record_untestable(claim, reason)
    raise NotTestable(reason)


def needs_margin(clean: Float[Tensor, "pairs"], *, claims: Sequence[str]) -> None:
    """As `needs`: go on if the mean logit difference before any patch is surely positive."""
    margin = metrics.mean(clean)
    reason = f"the model does not do this task: its mean margin is {margin:.2f} nats"
    needs(margin.low > 0, reason, claims=claims)


def load_site(*, claims: Sequence[str]) -> dict[str, Any]:
    """The site that lesson 02 derived; as `needs` if it found that this model has none."""
    c9 = report.recorded().get("C9", {})
    needs(c9.get("verdict") != report.UNTESTABLE, c9.get("note", ""), claims=claims)
    return report.load_site("ioi")


def expect(name: str, value: float, expected: float, *, tolerance: float) -> None:
    """Compare a headline number with the one this lesson's text speaks of.

    The text was written for the packaged model, so on any other model the number is only shown.
    With the sizes "small" the number has a reference of its own, with the same tolerance. Raises
    AssertionError: on the packaged model, the number is further off than `tolerance`.
    """
    if model_name() != PACKAGED:
        print(f"{name}: {value:.3g} (the text says {expected:g}, for {PACKAGED})")
        return
    says, text = "the text says", expected
    if sizes_name() == "small":
        reference.record_headline(name, value)
        found = reference.headlines().get(name)
        if found is None:
            print(f"NEW   {name}: {value:.4g} has no reference for small sizes yet")
            return
        says, expected = "the reference for small sizes is", found
    if not abs(value - expected) <= tolerance:  # so that NaN fails, too
        raise AssertionError(f"{name}: {value:.4g}, but {says} {expected:g} ± {tolerance:g}")
    print(f"PASS  {name}: {text:g} ± {tolerance:g}")  # the same line with all sizes
