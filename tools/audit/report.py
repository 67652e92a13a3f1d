"""An audit as Markdown, as one HTML page, as a figure, and as files.

`audit.provenance` may hold anything that JSON can: plain values, lists and dictionaries of them are
listed, and of `examples` (dictionaries with `base`, `source`, their `position`, `source_position`)
the tokens are shown with the patched one marked.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from helpers.audit import criteria, verdicts
from helpers.audit.criteria import AGAINST, FOR, OPEN, Finding
from helpers.audit.measure import Audit, Effects
from helpers.output import files
from helpers.patching import Site
from tools import pages
from tools.audit.drawing import figure, figure_in_words, the

PROMPTS = ("pair", "base", "source", "answer", "counterfactual")
COLUMNS = ("test", "verdict", "question", "why", "what fools it")
SIGN = {AGAINST: "✗", FOR: "✓", OPEN: "?", criteria.REPORTED: "·", criteria.DOES_NOT_APPLY: "–"}
CALIBRATION = (  # of the verdict at the hidden activation of an MLP
    "On planted models that nothing was fitted on (other features and layers, 32 to 400 pairs, a "
    "second model) 0 of 42 (0% to 8%) natural directions were called an illusion, and 0 of 64 (0% "
    "to 6%) that open a pathway were called consistent: of 100 like them, 8 and 6 at most."
)
MARKED = "\u25b8{}\u25c2"  # around the token that is patched, or read


def to_dict(audit: Audit) -> dict[str, Any]:
    """Everything as plain values."""
    return _plain(vars(audit))


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


def to_json(audit: Audit) -> str:
    """Everything that was measured, as JSON."""
    return json.dumps(to_dict(audit), indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def to_markdown(audit: Audit) -> str:
    """The summary, the effects and a table of the findings."""
    name = audit.model.replace("`", "'")
    lines = [f"# Audit of {audit.what} at {audit.site} of `{name}`\n", f"{audit.summary}\n"]
    lines += [f"- {line}" for line in _effect_lines(audit)]
    lines += ["", pages.markdown_table(list(COLUMNS), rows_of(audit)), f"\n{_footer(audit)}\n"]
    if sources := _sources(audit.provenance):
        lines += [pages.markdown_table(["where it comes from", ""], sources), ""]
    if prompts := _prompts(audit.provenance):
        lines += [pages.markdown_table(list(PROMPTS), prompts), ""]
    return "\n".join(lines)


def to_html(audit: Audit) -> str:
    """One page with the figure in it, which needs no other file."""
    lines = "\n".join(f"<li>{escape(line)}</li>" for line in _effect_lines(audit))
    caption = "What each test says of a natural pathway"
    parts = [
        f'<p class="verdict">{escape(audit.summary)}</p>\n<ul>\n{lines}\n</ul>',
        pages.image(_png(audit), figure_in_words(audit)),
        pages.html_table(caption, list(COLUMNS), rows_of(audit)),
        f"<p>{escape(_footer(audit))}</p>",
    ]
    if sources := _sources(audit.provenance):
        caption = "Where it comes from"
        parts.append(pages.folded(caption, pages.html_table(caption, ["what", "value"], sources)))
    if prompts := _prompts(audit.provenance):
        caption = "The first prompts, token by token"
        parts.append(pages.folded(caption, pages.html_table(caption, list(PROMPTS), prompts)))
    title = f"Audit of {audit.what} at {audit.site} of {audit.model}"
    return pages.html_page(title, "\n".join(parts))


def save(audit: Audit, folder: str | Path) -> list[Path]:
    """Write audit.json, audit.md, audit.html and audit.png, or an OSError; the paths come back."""
    kinds = {"json": to_json, "md": to_markdown, "html": to_html, "png": _png}
    contents = {Path(folder) / f"audit.{kind}": make(audit) for kind, make in kinds.items()}
    for path, content in contents.items():
        files.write(path, content)
    return list(contents)


def _png(audit: Audit) -> bytes:
    return pages.png(figure(audit), dpi=150)


def rows_of(audit: Audit) -> list[list[str]]:
    """The cells of the table of findings, below `COLUMNS`."""
    found = [(f, f"{SIGN[f.verdict]} {f.verdict}") for f in audit.findings]
    return [[f.test, verdict, f.question, f.reason, f.limits] for f, verdict in found]


def _effect_lines(audit: Audit) -> list[str]:
    def both(effect: Effects) -> str:
        return f"FLDD {effect.fldd:.1%}, interchange accuracy {effect.interchange_accuracy:.1%}"

    return [
        f"unpatched: a margin of {audit.margin:.2f} nats",
        f"{the(audit, 'this')}: {both(audit.effect)}",
        f"the whole component: {both(audit.whole)}",
        f"random ones in its place: FLDD {', '.join(f'{other:.1%}' for other in audit.random)}",
        *([f"the opposite change: FLDD {audit.opposite:.1%}"] if audit.opposite else []),
        *([f"{audit.spectrum}"] if audit.spectrum else []),
        *audit.notes,
    ]


def _footer(audit: Audit) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in audit.versions.items())
    sizes = f"{audit.n_pairs} pairs, seed {audit.seed}; 95 % intervals over pairs"
    about = (
        f"{sizes}. FLDD: the share of the model's mean margin that a patch removes, 100 % if it is "
        "gone, 200 % if it is turned round; interchange accuracy: how often the counterfactual is "
        "then the likeliest of all tokens"
    )
    calibrated = audit.what == "a direction"
    known = CALIBRATION if calibrated else verdicts.NOT_CALIBRATED
    return f"{known} {about}. {versions}."


def _sources(provenance: Mapping[str, Any]) -> list[list[str]]:
    """What is known of where it comes from, a row for each."""
    rows = []
    for name, value in provenance.items():
        if name in ("examples", "prompts"):
            continue
        for part in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(part, Mapping):
                part = ", ".join(f"{key} {x}" for key, x in part.items() if x is not None)
            rows.append([name, f"{part}"])
    return rows


def _prompts(provenance: Mapping[str, Any]) -> list[list[str]]:
    """The examples, below `PROMPTS`."""
    rows = []
    for number, pair in enumerate(provenance.get("examples", []), start=1):
        sides = (("base", "position"), ("source", "source_position"))
        texts = [_tokens(pair[side], pair[position]) for side, position in sides]
        rows.append([f"{number}", *texts, f"{pair['answer']!r}", f"{pair['counterfactual']!r}"])
    return rows


def _tokens(tokens: Sequence[str], position: int) -> str:
    """Tokens with bars between them and marks around one; a line break is shown as one."""
    shown = [token.replace("\n", "\u21b5") for token in tokens]
    shown[position] = MARKED.format(shown[position])
    return "|".join(shown)
