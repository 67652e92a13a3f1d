"""The pages for teachers and for self-study: what they say of the lessons, the lessons say."""

import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
LESSONS = {path.name[:2]: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
PAGES = [ROOT / "docs" / name for name in ("teaching.md", "self-study.md")]
TEACHING, SELF_STUDY = (page.read_text(encoding="utf-8") for page in PAGES)
EXERCISE = re.compile(r"### Exercise (\d+) · (.*)\n\n\*Difficulty (\d)/5 · (\d+) minutes")


def cells(number, kind):
    lesson = nbformat.read(LESSONS[number], as_version=4)
    return [cell for cell in lesson.cells if cell.cell_type == kind]


def plain(text):
    """The text without marks of emphasis, line breaks and runs of blanks."""
    return " ".join(text.replace("*", "").split())


def said(number):
    """All that a lesson says: its text, its code and what it prints."""
    sources = [cell.source for kind in ("markdown", "code") for cell in cells(number, kind)]
    outputs = [output for cell in cells(number, "code") for output in cell.outputs]
    printed = [output.get("text") or output["data"]["text/plain"] for output in outputs]
    return plain("\n".join(sources + printed))


def exercises(number):
    """The lesson's exercises, as rows of the teacher's table."""
    found = [EXERCISE.match(cell.source) for cell in cells(number, "markdown")]
    boxes = [match.groups() for match in found if match]
    return [[number, f"{n} {title}", minutes, points] for n, title, points, minutes in boxes]


def points(numbers):
    return sum(int(row[-1]) for number in numbers for row in exercises(number))


def needs(number):
    """Minutes and earlier lessons, as the plan of the lesson names them."""
    (plan,) = [cell.source for cell in cells(number, "markdown") if "**You need:**" in cell.source]
    needed = plan.split("**You need:**")[1].replace("five", "5")
    return re.search(r"(\d+) minutes", needed)[1], re.findall(r"\b0\d\b", needed)


def table(page, *header):
    """The rows of the one table of a page that has this header."""
    tables = re.findall(r"(?:^\|.*\|\n)+", page, flags=re.M)
    rows = [[re.split(r" *\| *", line)[1:-1] for line in found.splitlines()] for found in tables]
    (found,) = [body for head, _, *body in rows if head == list(header)]
    return found


def sections(page):
    """The text below each heading that begins with a lesson's number."""
    parts = re.split(r"^#+ ", page, flags=re.M)
    return {part[:2]: part for part in parts if re.match(r"\d\d ", part)}


def test_the_exercises_are_those_of_the_lessons():
    rows = [row for number in LESSONS for row in exercises(number)]
    assert table(TEACHING, "lesson", "exercise", "minutes", "points") == rows
    assert len(rows) >= 27


def test_every_exercise_heading_is_understood():
    for number in LESSONS:
        headings = "\n".join(cell.source for cell in cells(number, "markdown"))
        assert headings.count("### Exercise ") == len(exercises(number)), number


def test_every_lesson_stands_in_the_table():
    rows = table(TEACHING, "lesson", "minutes", "needs", "points", "goals")
    assert [row[0][1:3] for row in rows] == list(LESSONS)
    for (link, minutes, before, worth, goals), (number, path) in zip(
        rows, LESSONS.items(), strict=True
    ):
        assert link.endswith(f"](../notebooks/{path.name})")
        assert (minutes, re.findall(r"\d\d", before)) == needs(number), number
        assert int(worth) == points([number]), number
        assert 2 <= len(goals.split(";")) <= 4, number


def test_the_plans_count_points_and_hours_correctly():
    week = table(TEACHING, "session", "lessons", "hours", "handed in", "points")
    month = table(TEACHING, "week", "reading", "lessons", "handed in", "points", "discuss")
    for row, handed_in, worth in [*((r, r[3], r[4]) for r in week), *((r, *r[3:5]) for r in month)]:
        assert points(re.findall(r"\d\d", handed_in)) == int(worth), row
    hours = sum(float(row[2]) for row in week)
    assert f"{hours:.0f} hours and {sum(int(row[4]) for row in week)} points" in TEACHING
    of_month = sum(int(row[4]) for row in month)
    assert f"The checks handed in give {of_month} points;" in TEACHING
    term = table(TEACHING, "week of the term", "lessons", "handed in", "points", "discuss")
    taught = [number for row in term for number in re.findall(r"\d\d", row[1])]
    assert taught == list(LESSONS)
    for row in term:
        assert points(re.findall(r"\d\d", row[2])) == int(row[3]), row
    assert f"The checks give {sum(int(row[3]) for row in term)} points;" in TEACHING
    project = TEACHING.split("### How to grade the project")[1]
    assert sum(int(row[0]) for row in table(project, "points", "for")) == of_month


def test_the_paths_count_minutes_correctly():
    for row in table(SELF_STUDY, "path", "lessons", "minutes", "you can then say"):
        chosen = re.findall(r"\d\d", row[1]) or LESSONS
        assert sum(int(needs(number)[0]) for number in chosen) == int(row[2]), row


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page):
    links = re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    assert len(links) >= 10
    for link in links:
        assert link.startswith("https://") or (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_lesson_is_discussed_with_folded_answers(page):
    text = page.read_text(encoding="utf-8")
    assert set(LESSONS) <= set(sections(text)) and list(sections(text)) == sorted(sections(text))
    for number, section in sections(text).items():
        assert section.count("<details>") >= (3 if page == PAGES[0] else 2), number
        assert page != PAGES[0] or section.count('\n- *"') >= 2, number


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_quotations_and_decimals_stand_in_their_lesson(page):
    for number, section in sections(page.read_text(encoding="utf-8")).items():
        source = said(number) if number in LESSONS else ""
        for quotation in re.findall(r"`([^`]+)`", section):
            assert plain(quotation) in source, (number, quotation)
        decimals = re.compile(r"\d+\.\d+")
        assert set(decimals.findall(section)) <= set(decimals.findall(source)), number


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_markdown_that_github_and_myst_both_read(page):
    text = page.read_text(encoding="utf-8")
    levels = [len(marks) for marks in re.findall(r"^(#+) ", text, flags=re.M)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later <= level + 1 for level, later in zip(levels, levels[1:], strict=False))
    folded = re.findall(
        r"^<details><summary>[^<`*]+</summary>\n\n.+?\n\n</details>$", text, re.M | re.S
    )
    assert len(folded) == text.count("<details>") == text.count("</details>") > 0
    for block in re.findall(r"(?:^\|.*\|\n)+", text, flags=re.M):
        assert len({line.count("|") for line in block.splitlines()}) == 1, block
