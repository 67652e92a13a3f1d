"""Numbers of lessons, sections and exercises lead where they say."""

import re
from pathlib import Path

import nbformat
import pytest

from helpers.claims import report
from helpers.lessons import checks

ROOT = Path(__file__).resolve().parent.parent
LESSONS = {path.name[:2]: path for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))}
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "data").glob("*.md")]
TO_LESSON = re.compile(r"\[(?:[Ll]esson )?(\d\d)[^\]]*\]\([^)]*?(\d\d)_\w+\.ipynb\)")
# "lesson 03 (section 5)", "lesson 03, section 5", "section 5 of lesson 03"
SECTIONS = (
    re.compile(r"[Ll]esson (?P<lesson>\d\d)\]?(?:\([^)]*\))?,? \(?sections? (?P<section>\d)"),
    re.compile(r"[Ss]ection (?P<section>\d) of \[?lesson (?P<lesson>\d\d)"),
)


def cells(number: str, kind: str) -> list[str]:
    found = nbformat.read(LESSONS[number], as_version=4).cells
    return [cell.source for cell in found if cell.cell_type == kind]


def prose() -> dict[str, str]:
    """All text that refers to lessons, by file."""
    found = {path.name: path.read_text(encoding="utf-8") for path in PAGES}
    return found | {path.name: "\n".join(cells(n, "markdown")) for n, path in LESSONS.items()}


def test_links_to_lessons_carry_their_number():
    wrong = [
        f"{page}: {link[0]}"
        for page, text in prose().items()
        for link in TO_LESSON.finditer(text)
        if link[1] != link[2]
    ]
    assert not wrong


def test_every_link_text_that_names_a_lesson_names_its_title():
    titles = {n: cells(n, "markdown")[1].split("\n")[0].removeprefix("# ") for n in LESSONS}
    for page, text in prose().items():
        for number, title in re.findall(r"\[(?:← )?(\d\d) ([^\]→]+?)(?: →)?\]\([^)]*ipynb\)", text):
            assert title == titles[number], f"{page}: {number} {title}"


def test_sections_that_are_named_exist():
    headings = {
        number: set(re.findall(r"^## (\d)\. ", "\n".join(cells(number, "markdown")), flags=re.M))
        for number in LESSONS
    }
    wrong = [
        f"{page}: {found[0]}"
        for page, text in prose().items()
        for pattern in SECTIONS
        for found in pattern.finditer(text)
        if found["section"] not in headings.get(found["lesson"], ())
    ]
    assert not wrong


@pytest.mark.parametrize("claim", report.every_claim())
def test_a_claim_is_recorded_in_its_lesson(claim):
    """Or at least named there: some record several claims in a loop. Rules may stand here before
    their lesson is written, as they must before its run.
    """
    if report.every_claim()[claim]["lesson"] > max(LESSONS):
        return
    code = "\n".join(cells(report.every_claim()[claim]["lesson"], "code"))
    assert re.search(rf"[\"']{claim}[\"']", code)


@pytest.mark.parametrize("name", checks.__all__)
def test_a_check_names_the_exercise_that_calls_it(name):
    named = re.match(r"Exercise (\d) of lesson (\d\d)", getattr(checks, name).__doc__)
    exercise, lesson = named.groups()
    calls = [source for source in cells(lesson, "code") if f"checks.{name}(" in source]
    assert calls, f"lesson {lesson} does not call {name}"
    order = [source for source in cells(lesson, "code") if "checks.check_" in source]
    assert order.index(calls[0]) == int(exercise) - 1


def printed(number: str) -> str:
    """What the stored run of a lesson printed, and its prose."""
    found = nbformat.read(LESSONS[number], as_version=4).cells
    outputs = [output for cell in found for output in cell.get("outputs", ())]
    texts = [
        out.get("text", "") + str(out.get("data", {}).get("text/plain", "")) for out in outputs
    ]
    return "\n".join([*texts, *cells(number, "markdown")])


# Where a lesson says the numbers of its answer in the README: what is captured, in order.
ANSWERS = {
    "00": (r"takes away (\d+)% \[", r"random direction 0 +FLDD (\d+)%"),
    "01": (r"source output (\d)", r"base output (\d)"),
    "02": (r"For three layers of (\d+)", r"the readers +(\d+)%", r"of their layers +(\d+)%"),
    "03": (r"C4 · .*: (\S+) %", r"C3 · .*: -(\S+) %"),
    "04": (r"C11 · .*: (\S+) %", r"C12 · .*: (\S+) %"),
    "05": (r"E3 · .*: (\S+) %", r"C20 · .*: (\S+) %"),
    "06": (
        r"its own direction +(\d+)%",
        r"fitted for a third answer +(\d+)%",
        r"a random direction +(\d+)%",
    ),
    "07": (
        r"rewrite score at layer 2, %: (\d+)",
        r"rewrite score at layer (2), %",
        r"rewrite score at layer 27, %: (\d+)",
        r"rewrite score at layer (27), %",
    ),
    "08": (
        r"more than the whole in (\d+) of",
        r"of the (\d+) MLPs inside",
        r"in (\d+) the recipe works as well with random",
    ),
    "09": (r"none of (\d+) innocent", r"none of (\d+) guilty"),
    "10": (r"PASS +of those that could fail: (\d+)", r"Of (\d+) claims that could have failed"),
    "11": (
        r"MLP outputs: AtP \S+, RelP (\d\.\d+);",
        r"MLP outputs: AtP (\d\.\d+),",
        r"without one cell \S+, (\d\.\d+)",
        r"without one cell (\d\.\d+)",
    ),
    "12": (r"value fetchers bring (\d+) %", r"random sets at most (\d+) %"),
    "13": (r"keeps (\d+) % of the margin", r"\(all (\d\.\d+)\)", r"right (\d\.\d+) \(all"),
    "14": (
        r"layer (8): read",
        r"layer 8: read (\d+) %",
        r"held (\d+) \(layer 0",
        r"\(layer (0) ",
        r"\(layer 0 (\d+) and",
        r"\(layer 0 \d+ and (\d+)\)",
    ),
    "15": (r"one layer of six: (\d+) %", r"all but it: (\d+) %"),
    "16": (r"PLT answers \S+, CLT (\d\.\d+)", r"PLT answers (\d\.\d+)"),
}


@pytest.mark.parametrize("number", LESSONS)
def test_answers_of_the_readme_are_those_of_the_lessons(number):
    """Every number of the column `answer`, rounded as it is there; `.31` is `0.31`."""
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    row = rf"^\| \[{number} [^|]+\|[^|]+\| ([^|]+) \| \d+ \|$"
    (answer,) = re.findall(row, page, flags=re.M)
    told = re.findall(r"(?<![\w.])\d*\.?\d+", answer)
    text = printed(number)
    found = [re.search(pattern, text) for pattern in ANSWERS[number]]
    assert all(found), [p for p, hit in zip(ANSWERS[number], found, strict=True) if not hit]
    digits = [len(x.partition(".")[2]) for x in told]
    rounded = [round(float(x[1]), n) for x, n in zip(found, digits, strict=True)]
    assert list(map(float, told)) == rounded
