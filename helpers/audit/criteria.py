"""What the tests of a direction say: thresholds, findings, and the verdict they lead to.

All thresholds stand in `TESTS`. They were set by hand on planted models (lesson 09);
`tools.evidence.audit` fits others and reports the errors of both on models of other features and
layers. A test without a threshold is reported and not judged.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from helpers.patching.metrics import Estimate

# What one test says of a natural pathway.
AGAINST = "speaks against"
FOR = "speaks for"
OPEN = "says nothing"
REPORTED = "reported, not judged"
DOES_NOT_APPLY = "does not apply"

# What all of them together say.
NO_EFFECT = "no effect"
OPPOSITE = "works the other way"
ILLUSION = "likely an illusion"
CONSISTENT = "consistent with a natural pathway"
UNDECIDED = "undecided"


@dataclass(frozen=True)
class Criterion:
    """A test of `helpers.audit.diagnostics.scores`, by its name there, and how to read it."""

    name: str
    question: str
    limits: str  # when it is fooled
    against: float | None = None  # values from here on speak against a natural pathway, if judged
    acquits: float | None = None  # values down to here speak for one
    two_sided: bool = False  # whether a value below zero means as much as one above

    @property
    def floor(self) -> float | None:
        """What the interval must lie above if the test is to speak against."""
        if self.against is None or self.acquits is not None:
            return self.acquits
        return self.against / 2


SMALLEST_EFFECT = 0.05  # FLDD, of either sign, below which there is nothing to explain
WHOLE = "whole does less"
UNITS = "lost unit by unit"
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
        "far downstream",
        "How far are the units of the next MLP from real states, in usual distances?",
        "Fooled by a decoy; and a strong patch along a natural direction goes far, too.",
        against=1.1,
        acquits=0.9,
    ),
    Criterion(
        "far at the site",
        "How far is the patched activation from real ones, in usual distances?",
        "One unit in a thousand hardly changes a distance.",
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


CALIBRATION = (  # of the verdict at the hidden activation of an MLP
    "On planted models that nothing was fitted on (other features and layers, 32 to 400 pairs, a "
    "second model) 0 of 42 (0% to 8%) natural directions were called an illusion, and 0 of 64 (0% "
    "to 6%) that open a pathway were called consistent: of 100 like them, 8 and 6 at most."
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
        value = _mirrored(value)
    if value.value >= test.against and value.low > test.floor:
        return AGAINST
    bounded = not test.two_sided or value.low > -test.against
    clear = test.acquits is not None and value.value <= test.acquits and value.high < test.against
    return FOR if clear and bounded else OPEN


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


def conclude(effect: Estimate, random: Sequence[Estimate], findings: Sequence[Finding]) -> str:
    """The verdict on a direction.

    `NO_EFFECT` unless its FLDD is at least `SMALLEST_EFFECT`, with either sign, and the interval
    lies beyond that of every random direction. `OPPOSITE` if the patch adds to the margin instead,
    whatever the tests say of the way it takes. Where the test of the single units speaks for the
    direction, `CONSISTENT` if no other speaks against it, else `UNDECIDED`: another pathway in the
    component may undo what it does. Otherwise `ILLUSION` if that test or the whole component's
    speaks against it, or any two do, and `CONSISTENT` if the latter speaks for it and none against.
    Else `UNDECIDED`. `effect` and `random` are FLDD of the direction and of random ones: at least
    one, or it is a ValueError.
    """
    toward, chance = (effect, random) if effect.value >= 0 else _turned(effect, random)
    if toward.value < SMALLEST_EFFECT or toward.low <= _chance(chance):
        return NO_EFFECT
    if effect.value < 0:
        return OPPOSITE
    said = {finding.test: finding.verdict for finding in findings}
    against = [test for test, verdict in said.items() if verdict == AGAINST]
    if said.get(UNITS) == FOR:  # what acts carries the feature, whatever undoes it
        return UNDECIDED if against else CONSISTENT
    if {WHOLE, UNITS} & set(against) or len(against) >= 2:
        return ILLUSION
    return CONSISTENT if said.get(WHOLE) == FOR and not against else UNDECIDED


NOT_SHOWN = {
    NO_EFFECT: "This does not show that the site plays no part: another direction, token or layer "
    "may do what this one does not.",
    OPPOSITE: "This is an effect, but not the one that the pairs ask for: it makes the model surer "
    "of the base prompt's answer. The tests ask by what pathway, not in which direction.",
    ILLUSION: "This does not show that the component plays no part in the task, only that this "
    "patch is no evidence that it does.",
    CONSISTENT: "This does not show that the model uses this direction: a pathway that the patch "
    "opens within the natural range, or beside a decoy in the same component, passes too.",
    UNDECIDED: "More pairs would make the intervals narrower; where the direction comes from and "
    "what reads it are evidence of another kind.",
}


def summarise(effect: Estimate, random: Sequence[Estimate], findings: Sequence[Finding]) -> str:
    """The verdict, the findings it rests on and what it does not show, in a few sentences."""
    verdict = conclude(effect, random, findings)
    shown = {f.test: f"'{f.test}' ({f.value:.2f})" for f in findings if f.value is not None}
    against = [shown[f.test] for f in findings if f.verdict == AGAINST]
    accusers = f"{' and '.join(against)} {'speaks' if len(against) == 1 else 'speak'} against"
    decisive = [f for f in findings if f.test in (WHOLE, UNITS) and f.verdict == FOR]
    acquit = [f"{shown[f.test]} speaks" for f in decisive]
    alone = "which alone is not enough"
    if UNITS in [f.test for f in decisive]:
        alone = f"but {shown[UNITS]} for one: the units that act move so with the feature by "
        alone += "themselves, and others may undo what they write"
    toward, chance = (effect, random) if effect.value >= 0 else _turned(effect, random)
    because = {
        NO_EFFECT: f", less than {SMALLEST_EFFECT:.0%} or not clearly more than a random "
        f"direction may (up to {_chance(chance):.1%}), so there is no effect to explain",
        OPPOSITE: f"; {accusers} a natural pathway for it"
        if against
        else "; no test speaks against a natural pathway for it",
        ILLUSION: f", but {accusers} a natural pathway",
        CONSISTENT: f"; {' and '.join(acquit)} for a natural pathway, and no test against one",
        UNDECIDED: f"; {accusers} a natural pathway, {alone}"
        if against
        else f"; no test speaks against a natural pathway, but '{WHOLE}' not for one either",
    }
    does = f"{'removes' if effect.value >= 0 else 'adds'} {toward:.1%} of the model's margin"
    removed = f"the patch along the direction {does}"
    return f"{verdict.capitalize()}: {removed}{because[verdict]}. {NOT_SHOWN[verdict]}"


def _chance(random: Sequence[Estimate]) -> float:
    if not random:
        raise ValueError("no random directions: compare with at least one")
    return max(other.high for other in random)


def _mirrored(value: Estimate) -> Estimate:
    return Estimate(-value.value, -value.high, -value.low)


def _turned(effect: Estimate, random: Sequence[Estimate]) -> tuple[Estimate, Sequence[Estimate]]:
    """Both with the other sign: what a patch adds to the margin."""
    return _mirrored(effect), [_mirrored(other) for other in random]
