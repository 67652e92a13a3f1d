"""Claims and verdicts: `record("C9", 95.1, (93.8, 96.3))` judges a measurement and stores it.

The verdict follows from the claim's rule, which `data/claims.json` fixed before anything was
measured; nobody types a verdict.
"""

import contextlib
import difflib
import functools
import json
import math
import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from helpers.models import model_slug
from helpers.output import files
from helpers.output.files import ROOT

UNTESTABLE = "not testable here"
UNMEASURED = "not measured"
DEPENDS = "depends on a choice"  # that the claim's source does not state
VERDICTS = ("replicated", "partly", "not", DEPENDS, UNTESTABLE, UNMEASURED)

Claim = Mapping[str, Any]  # an entry of data/claims.json
Rule = Mapping[str, Any]  # its "rule": the conditions for "replicated" and for "partly"
Entry = Mapping[str, Any]  # what is stored under a name, such as a measurement
COMPARE = {
    "<=": operator.le, "<": operator.lt, ">=": operator.ge, ">": operator.gt, "==": operator.eq,
}  # fmt: skip


class ResultsError(ValueError):
    """Results cannot be kept or read; the message says why and what to do."""


@dataclass(frozen=True)
class Verdict:
    """What `record` returns: the verdict on one claim, and the measurement behind it."""

    claim: str
    verdict: str
    value: float | None = None
    interval: tuple[float, float] | None = None


def record(
    claim: str,
    value: float,
    interval: Sequence[float] | None = None,
    *,
    detail: Mapping[str, Any] | None = None,
    lesson: str | None = None,
    note: str | None = None,
    model: str | None = None,
) -> Verdict:
    """Store a measurement in `results/<model>/claims.json`, print it and return its verdict.

    `claim` is its id, such as "C4", `value` the measured number, as the claim's `quantity`
    describes it, `interval` the two ends of its 95 % interval. `detail` has further numbers by
    name; those that the claim's rule names are needed. Pass `lesson` and `model` if they are not
    the lesson that is planned for it and the current model, as `note` anything a reader of the
    report should know.

    Raises ValueError: there is no such claim, or what is passed cannot be judged or stored.
    """
    spec, value, ends = find_claim(claim), _finite("value", value), None
    if detail is not None and not isinstance(detail, Mapping):
        raise ValueError(f"detail is {detail!r}: pass numbers by name, such as {{'iia': 90.0}}.")
    numbers = {**(detail or {}), "value": value}
    if interval is not None:
        try:
            low, high = interval
        except (TypeError, ValueError) as error:
            raise ValueError(f"The interval is {interval!r}: pass interval=(low, high).") from error
        ends = _finite("an end of the interval", low), _finite("an end of the interval", high)
        if low > high:
            raise ValueError(f"The interval is reversed: pass interval=({high:g}, {low:g}).")
        numbers["low"], numbers["high"] = ends
    verdict = judge_choices(spec, _needed(spec, numbers))
    measured = {"value": value, "interval": ends, "detail": detail or {}}
    return _store(Verdict(claim, verdict, value, ends), measured, lesson, note, model)


def record_untestable(claim: str, reason: str, *, model: str | None = None) -> Verdict:
    """Store that a claim cannot be tested on this model, and why."""
    return _store(Verdict(claim, UNTESTABLE), {}, None, reason, model)


def recorded(model: str | None = None) -> dict[str, dict[str, Any]]:
    """What the lessons have recorded on a model so far, by claim."""
    return read_measured(results_folder(model) / "claims.json")


def summary_table(model: str | None = None) -> pd.DataFrame:
    """What the lessons have recorded on a model so far: the table of `claims_table`."""
    return claims_table(recorded(model))


def claims_table(found: Mapping[str, Entry]) -> pd.DataFrame:
    """One row per claim: what it says, the paper's number, ours, the verdict and the lesson."""
    rows = []
    for claim, spec in claims().items():
        entry = {"verdict": UNMEASURED, "lesson": spec["lesson"]} | found.get(claim, {})
        paper = show_paper(spec).removeprefix("paper ")
        ours = show_ours(spec, entry)
        rows.append((claim, spec["title"], paper, ours, entry["verdict"], entry["lesson"]))
    return pd.DataFrame(rows, columns=["claim", "what", "paper", "ours", "verdict", "lesson"])


def save_site(name: str, site: Entry, evidence: Entry, model: str | None = None) -> None:
    """Store a patching site (layer, heads, ...) and the evidence it was derived from."""
    update_json(results_folder(model) / "sites.json", name, {"site": site, "evidence": evidence})


def load_site(name: str, model: str | None = None) -> dict[str, Any]:
    """The site saved under this name.

    A published site (the paper's, for GPT-2) comes first, then the one our own results derived,
    then the one shipped in `data/`. A FileNotFoundError if there is none.
    """
    results, found = results_folder(model), []
    for path in (ROOT / "data" / "sites" / f"{results.name}.json", results / "sites.json"):
        if entry := read_json(path).get(name):
            if not isinstance(entry.get("site"), dict):
                raise _damaged(path, f"the entry {name!r} has no site")
            found.append(entry)
    if found:
        return found[0 if found[0].get("published") else -1]["site"]
    model = model or os.environ.get("SUBSPACE_ILLUSION_MODEL") or results.name
    raise FileNotFoundError(f"No site {name!r} for {model}: first make run LESSON=02 MODEL={model}")


@functools.cache
def every_claim() -> dict[str, Claim]:
    """Every claim of `data/claims.json` by its id, in order."""
    listed = files.shipped(ROOT / "data" / "claims.json")["claims"]
    return {claim["id"]: claim for claim in listed}


@functools.cache
def claims() -> dict[str, Claim]:
    """The claims of part I, which the report of lesson 10 is about; later ones show their own."""
    return {claim: spec for claim, spec in every_claim().items() if spec.get("part", 1) == 1}


def find_claim(claim: str) -> Claim:
    """The entry of one claim; an unknown id is a ValueError that lists similar ones."""
    if claim not in every_claim():
        near = difflib.get_close_matches(str(claim).upper(), every_claim(), cutoff=0)
        raise ValueError(f"There is no claim {claim!r}. Did you mean one of {', '.join(near)}?")
    return every_claim()[claim]


def judge(rule: Rule, numbers: Mapping[str, float]) -> str:
    """The verdict of a rule on the numbers it names: "replicated", "partly" or "not"."""

    def holds(condition: Sequence) -> bool:
        left, compare, right = condition
        return COMPARE[compare](_evaluate(left, numbers), _evaluate(right, numbers))

    for verdict in ("replicated", "partly"):
        if rule[verdict] and all(map(holds, rule[verdict])):
            return verdict
    return "not"


def judge_choices(spec: Claim, numbers: Mapping[str, float]) -> str:
    """The verdict of a claim's rule; `DEPENDS` if other choices, as good as ours, have another.

    They are the numbers named in the claim's "choice", each judged in place of the value.
    """
    verdicts = {judge(spec["rule"], numbers)}
    for name in spec.get("choice", ()):
        verdicts.add(judge(spec["rule"], {**numbers, "value": numbers[name]}))
    return verdicts.pop() if len(verdicts) == 1 else DEPENDS


def rule_names(rule: Rule) -> set[str]:
    """Every name that the conditions of a rule use."""
    conditions = rule["replicated"] + rule["partly"]
    sides = [side for left, _, right in conditions for side in (left, right)]
    names = [side[1] if isinstance(side, list) else side for side in sides]
    return {name.strip("|") for name in names if isinstance(name, str)}


def show_paper(spec: Claim) -> str:
    """The published number with its unit, and whose it is."""
    paper = spec["paper"]
    if paper["value"] is None:
        return "no number"
    return f"{paper['source']} {_show(paper['value'], paper['unit'])} {paper['unit']}".strip()


def show_ours(spec: Claim, entry: Entry) -> str:
    """Our number with its unit and interval, or why there is none."""
    if entry.get("value") is None:
        return entry.get("note", "")
    unit = spec["paper"]["unit"]
    value = f"{_show(entry['value'], unit)} {unit}".strip()
    ends = ", ".join(_show(end, unit) for end in entry.get("interval") or ())
    return f"{value} [{ends}]" if ends else value


def results_folder(model: str | None = None) -> Path:
    """Where a model's results go: below `$SUBSPACE_ILLUSION_RESULTS`, else in `results/`."""
    base = os.environ.get("SUBSPACE_ILLUSION_RESULTS") or ROOT / "results"
    return Path(base).expanduser() / model_slug(model)


@contextlib.contextmanager
def saving(folder: Path) -> Iterator[None]:
    """Turn what goes wrong with files in a results folder into a ResultsError."""
    try:
        yield
    except OSError as error:
        raise ResultsError(
            f"Results cannot be kept in {folder}: {error}. Make room there, or set the environment "
            "variable SUBSPACE_ILLUSION_RESULTS to a folder where you can write."
        ) from error


def read_measured(path: Path) -> dict[str, dict[str, Any]]:
    """What a file says of our claims, by claim; nothing if there is no file."""
    entries = {c: entry for c, entry in read_json(path).items() if c in every_claim()}
    for claim, entry in entries.items():
        if not _is_measured(entry):
            raise _damaged(path, f"what it says of {claim} is no measurement with a verdict")
    return entries


def _store(
    result: Verdict, measured: Mapping, lesson: str | None, note: str | None, model: str | None
) -> Verdict:
    spec = find_claim(result.claim)
    entry = {"verdict": result.verdict, **measured, "lesson": lesson or spec["lesson"]}
    entry |= {"note": note} if note else {}
    update_json(results_folder(model) / "claims.json", result.claim, entry)
    paper = f" ({show_paper(spec)})" if spec["paper"]["value"] is not None else ""
    print(f"{spec['id']} · {spec['title']}: {show_ours(spec, entry)}{paper} -> {result.verdict}")
    return result


def _needed(spec: Claim, numbers: Mapping[str, Any]) -> dict[str, float]:
    """The numbers that the claim's rule names; an error says what to pass if one is missing."""
    names = rule_names(spec["rule"]) | set(spec.get("choice", ()))
    missing = sorted(names - numbers.keys())
    if {"low", "high"} & set(missing):
        raise ValueError(f"The rule of {spec['id']} needs interval=(low, high).")
    if missing:
        wanted = "; ".join(f"{name!r}: {spec['detail'][name]}" for name in missing)
        raise ValueError(f"The rule of {spec['id']} needs more numbers in detail: {wanted}.")
    return {name: _finite(name, numbers[name]) for name in names}


def _finite(name: str, number: Any) -> float:
    try:
        finite = math.isfinite(number)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name} is {number!r}: pass one number.") from error
    if not finite:
        raise ValueError(f"{name} is {number}: only finite numbers can be recorded.")
    return float(number)


def _evaluate(term: float | str | list, numbers: Mapping[str, float]) -> float:
    """The number a term stands for: itself, a name, a name in bars, or [factor, name]."""
    if isinstance(term, str):
        return abs(numbers[term.strip("|")]) if term.startswith("|") else numbers[term]
    return term[0] * _evaluate(term[1], numbers) if isinstance(term, list) else term


def _show(number: float, unit: str) -> str:
    """A number with as many digits as a reader can use: 95.1 for percentages, 0.753 for others."""
    return f"{number:.1f}" if unit == "%" and abs(number) >= 0.05 else f"{number:.3g}"


def update_json(path: Path, key: str, entry: Entry) -> None:
    """Set one entry of a JSON file; lessons that run at the same time wait for each other."""
    # Before anything is made: what cannot be stored must leave no trace.
    plain = json.loads(json.dumps(entry, indent=2, allow_nan=False, default=_plain))
    with saving(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            content = read_json(path) | {key: plain}
            files.write(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    """A tensor or array as numbers in lists."""
    if not hasattr(value, "tolist"):
        raise ValueError(f"{value!r} cannot be stored: pass numbers, texts, lists or tensors.")
    return value.tolist()


def read_json(path: Path) -> dict[str, dict[str, Any]]:
    """The entries of a JSON file by name; none if there is no file."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(content, dict) or not all(isinstance(e, dict) for e in content.values()):
        raise _damaged(path, "it holds no names with entries")
    return content


def _damaged(path: Path, reason: str) -> ResultsError:
    return ResultsError(f"{path} is damaged: {reason}. Delete it, and run the lessons again.")


def _is_measured(entry: Entry) -> bool:
    """Whether an entry has a verdict, and all else that it holds is of its kind."""
    ends = entry.get("interval")
    numbers = [entry[name] for name in ("value", "tolerance") if entry.get(name) is not None]
    numbers += ends if isinstance(ends, list) else []
    return (
        entry.get("verdict") in VERDICTS
        and all(isinstance(entry.get(name, ""), str) for name in ("lesson", "note"))
        and isinstance(entry.get("detail", {}), dict)
        and (ends is None or (isinstance(ends, list) and len(ends) == 2))
        and all(type(n) is float or (type(n) is int and abs(n) < 1e300) for n in numbers)
    )
