"""What each test of a direction says: thresholds and findings.

All thresholds stand in `TESTS`. They were set by hand on planted models (lesson 09);
`tools.evidence.audit` fits others and reports the errors of both on models of other features and
layers. A test without a threshold is reported and not judged.
"""

from dataclasses import dataclass

from helpers.patching.metrics import Estimate

# What one test says of a natural pathway.
AGAINST = "speaks against"
FOR = "speaks for"
OPEN = "says nothing"
REPORTED = "reported, not judged"
DOES_NOT_APPLY = "does not apply"

# What the value of a test is measured in.
SHARE, WIDTHS, DISTANCES = "share of the effect", "widths of the range", "usual distances"
LENGTH = "length"


@dataclass(frozen=True)
class Criterion:
    """A test of `helpers.audit.diagnostics.scores`, by its name there, and how to read it."""

    name: str
    question: str
    limits: str  # when it is fooled
    against: float | None = None  # values from here on speak against a natural pathway, if judged
    acquits: float | None = None  # values down to here speak for one
    two_sided: bool = False  # whether a value below zero means as much as one above
    unit: str = SHARE

    @property
    def floor(self) -> float | None:
        """What the interval must lie above if the test is to speak against."""
        if self.against is None or self.acquits is not None:
            return self.acquits
        return self.against / 2


WHOLE = "whole does less"
UNITS = "lost unit by unit"
DOWNSTREAM = "far downstream"
TESTS = (
    Criterion(
        WHOLE,
        "How much of the direction's effect does the whole component not have?",
        "Fooled by a decoy: a component that carries the feature elsewhere too has a large effect "
        "of its own, which hides that this direction's is not natural.",
        against=0.75,
        acquits=0.5,
    ),
    Criterion(
        "lost off natural changes",
        "How much of the effect is lost if the patch moves only as real inputs do?",
        "Needs many pairs to see how inputs move; fooled if the part that acts varies naturally, "
        "for reasons that have nothing to do with the feature.",
        against=0.75,
        acquits=0.5,
        two_sided=True,
    ),
    Criterion(
        UNITS,
        "How much of the effect is lost if no unit moves the other way than the feature moves it "
        "on average, or further than half as much again?",
        "Fooled if sensing and acting part share their units, or if what acts moves with the "
        "feature for another reason; and if the feature is not what moves most from pair to pair.",
        against=0.3,
        acquits=0.15,
    ),
    Criterion(
        "cross term",
        "How much of the effect has neither of two parts alone, that along the mean natural "
        "change and the rest, but only both together?",
        "Sees only what lies within natural changes. Fooled by a natural pathway that another one "
        "in the component undoes.",
        against=0.75,
        acquits=0.5,
    ),
    Criterion(
        "beyond range",
        "By how many widths does the patch leave the range of what real inputs write?",
        "Silent if the pathway that the patch opens lies within the natural range.",
        against=0.1,
        unit=WIDTHS,
    ),
    Criterion(
        "lost by the row part",
        "How much of the effect is lost without the part that the output matrix ignores?",
        "Fooled if the matrix reads the disconnected part although nobody uses what it writes, "
        "and if a natural unit writes in the same direction.",
        against=0.5,
        acquits=0.25,
    ),
    Criterion(
        DOWNSTREAM,
        "How far are the units of the next MLP from real states, in usual distances?",
        "Fooled by a decoy; and a strong patch along a natural direction goes far, too.",
        against=1.1,
        acquits=0.9,
        unit=DISTANCES,
    ),
    Criterion(
        "far at the site",
        "How far is the patched activation from real ones, in usual distances?",
        "One unit in a thousand hardly changes a distance.",
        unit=DISTANCES,
    ),
    Criterion(
        "lost in range",
        "How much of the effect is lost if later MLP units stay in their natural range?",
        "Sees only pathways through later MLP units, and only those outside their natural range.",
        against=0.5,
        two_sided=True,
    ),
    Criterion(
        "null norm",
        "How long is the part of the unit direction that the output matrix ignores?",
        "A natural direction has such a part too.",
        unit=LENGTH,
    ),
    Criterion(
        "read by the null part",
        "How much of the effect is triggered by the part that the output matrix ignores?",
        "A natural direction is triggered by such a part too.",
    ),
    Criterion(
        "not necessary",
        "How much of the direction's effect does the whole component keep without it?",
        "As long as effects add up, near 0 for every direction, natural or not.",
    ),
)


@dataclass(frozen=True)
class Finding:
    """What one test found: the value with its interval over pairs, if it applies, and why."""

    test: str
    question: str
    value: Estimate | None
    verdict: str
    reason: str
    limits: str


def judge(test: Criterion, value: Estimate) -> str:
    """What a value says of a natural pathway, by the thresholds of its test."""
    if test.against is None:
        return REPORTED
    if test.two_sided and value.value < 0:
        value = mirrored(value)
    if value.value >= test.against and value.low > test.floor:
        return AGAINST
    bounded = not test.two_sided or value.low > -test.against
    clear = test.acquits is not None and value.value <= test.acquits and value.high < test.against
    return FOR if clear and bounded else OPEN


def mirrored(value: Estimate) -> Estimate:
    """The same with the other sign."""
    return Estimate(-value.value, -value.high, -value.low)


def measured(test: Criterion, value: Estimate) -> Finding:
    """The finding of a test that applies."""
    verdict = judge(test, value)
    reasons = {
        AGAINST: f"at least {test.against}, and the interval is above {test.floor}"
        + (" (either sign counts)" if test.two_sided else ""),
        FOR: f"at most {test.acquits}, and the interval is below {test.against}",
        OPEN: f"not clearly {test.against} or more"
        + ("" if test.acquits is None else f", and not clearly {test.acquits} or less"),
        REPORTED: "no threshold is set for it",
    }
    reason = f"It is {value}: {reasons[verdict]}."
    return Finding(test.name, test.question, value, verdict, reason, test.limits)
