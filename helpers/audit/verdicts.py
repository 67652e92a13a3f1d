"""What the findings come to: the verdict on a direction, in a word and in a few sentences."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from helpers.audit.criteria import AGAINST, FOR, TESTS, UNITS, WHOLE, Criterion, Finding, mirrored
from helpers.patching.metrics import Estimate

# What all tests together say.
NO_EFFECT = "no effect"
OPPOSITE = "works the other way"
ILLUSION = "likely an illusion"
CONSISTENT = "consistent with a natural pathway"
UNDECIDED = "undecided"

SMALLEST_EFFECT = 0.05  # FLDD, of either sign, below which there is nothing to explain
NOT_CALIBRATED = (  # for anything but single directions at the hidden activation of an MLP
    "The thresholds were set on single directions whose values are exchanged; how often they err "
    "elsewhere has not been measured."
)


class Rules(NamedTuple):
    """How one kind of change is judged: what is asked of it, and what the answers come to."""

    tests: tuple[Criterion, ...]
    conclude: Callable[[Estimate, Sequence[Estimate], Sequence[Finding]], str]  # the verdict
    reasons: Callable[[str, Sequence[Finding]], str]  # why, if it has an effect
    not_shown: Mapping[str, str]  # by each verdict


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
    CONSISTENT: "This does not show that the model uses what was audited: a pathway that the patch "
    "opens within the natural range, or beside a decoy in the same component, passes too.",
    UNDECIDED: "More pairs would make the intervals narrower; where the direction comes from and "
    "what reads it are evidence of another kind.",
}


def _reasons(verdict: str, findings: Sequence[Finding]) -> str:
    """Why an interchange that has an effect is judged so."""
    against, shown = accusers(findings), values_of(findings)
    if verdict in (OPPOSITE, UNDECIDED) and not against:
        but = " for it" if verdict == OPPOSITE else f", but '{WHOLE}' not for one either"
        return f"; no test speaks against a natural pathway{but}"
    if verdict == OPPOSITE:
        return f"; {against} a natural pathway for it"
    if verdict == ILLUSION:
        return f", but {against} a natural pathway"
    acquit = [shown[f.test] for f in findings if f.test in (WHOLE, UNITS) and f.verdict == FOR]
    if verdict == CONSISTENT:
        speak = " and ".join(f"{name} speaks" for name in acquit)
        return f"; {speak} for a natural pathway, and no test against one"
    alone = "which alone is not enough"
    if shown.get(UNITS) in acquit:
        alone = f"but {shown[UNITS]} for one: the units that act move so with the feature by "
        alone += "themselves, and others may undo what they write"
    return f"; {against} a natural pathway, {alone}"


INTERCHANGE = Rules(TESTS, conclude, _reasons, NOT_SHOWN)


def summarise(
    effect: Estimate,
    random: Sequence[Estimate],
    findings: Sequence[Finding],
    *,
    subject: str = "the patch along the direction",
    rules: Rules = INTERCHANGE,
) -> str:
    """The verdict, the findings it rests on and what it does not show, in a few sentences.

    `subject` is what has the effect, judged by the `rules` of its kind.
    """
    verdict = rules.conclude(effect, random, findings)
    toward, chance = (effect, random) if effect.value >= 0 else _turned(effect, random)
    if verdict == NO_EFFECT:
        because = f", less than {SMALLEST_EFFECT:.0%} or not clearly more than a random direction "
        because += f"may (up to {_chance(chance):.1%}), so there is no effect to explain"
    else:
        because = rules.reasons(verdict, findings)
    does = f"{'removes' if effect.value >= 0 else 'adds'} {toward:.1%} of the model's margin"
    return f"{verdict.capitalize()}: {subject} {does}{because}. {rules.not_shown[verdict]}"


def values_of(findings: Sequence[Finding]) -> dict[str, str]:
    """By test, if it applies, its name with the value."""
    return {f.test: f"'{f.test}' ({f.value:.2f})" for f in findings if f.value is not None}


def accusers(findings: Sequence[Finding]) -> str:
    """The tests that speak against, as the beginning of a sentence; empty if none does."""
    shown = values_of(findings)
    against = [shown[f.test] for f in findings if f.verdict == AGAINST]
    verb = "speaks" if len(against) == 1 else "speak"
    return f"{' and '.join(against)} {verb} against" if against else ""


def _chance(random: Sequence[Estimate]) -> float:
    if not random:
        raise ValueError("no random directions: compare with at least one")
    return max(other.high for other in random)


def _turned(effect: Estimate, random: Sequence[Estimate]) -> tuple[Estimate, Sequence[Estimate]]:
    """Both with the other sign: what a patch adds to the margin."""
    return mirrored(effect), [mirrored(other) for other in random]
