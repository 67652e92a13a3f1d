"""Stamping a copy of the lessons, and running one from nothing but its stamped file."""

import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import nbformat
import pytest
from test_hosted import make_origin

from tools import execution, publish
from tools.publish import Repository, parse_repository

ROOT = Path(__file__).resolve().parent.parent
MINE = parse_repository("https://github.com/me/patching")
MARKED = "# Title\n\n<!-- badges -->\n<!-- /badges -->\n\nText.\n"


@pytest.fixture
def copy(tmp_path):
    """The lessons, not published, beside a short README with markers."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    (tmp_path / "README.md").touch()
    publish.publish(Repository(), tmp_path)
    (tmp_path / "README.md").write_text(MARKED, encoding="utf-8")
    return tmp_path


def snapshot(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def cells(path):
    return {cell.id: cell for cell in nbformat.read(path, as_version=4).cells}


def lessons(root):
    return sorted((root / "notebooks").glob("*.ipynb"))


# ---- addresses


@pytest.mark.parametrize(
    "text",
    [
        "https://github.com/me/patching",
        "https://github.com/me/patching/",
        "https://github.com/me/patching.git",
        "https://github.com/me/patching.git/",
        "https://www.GitHub.com/me/patching",
    ],
)
def test_one_form_of_github_addresses(text):
    assert parse_repository(text) == Repository(MINE.address, "me/patching", "main")
    assert MINE.address == "https://github.com/me/patching"


@pytest.mark.parametrize("host", ["gitlab.com/group/part", "example.org:8443/~me", "codeberg.org"])
def test_other_hosts_are_kept_as_they_are(host):
    repository = parse_repository(f"https://{host}/name.git/")
    assert repository == Repository(f"https://{host}/name.git", github="")
    assert repository.badges("01.ipynb") == ""


@pytest.mark.parametrize(
    "text, why",
    [
        ("", "does not start with https://"),
        ("me/patching", "does not start with https://"),
        ("http://github.com/me/patching", "does not start with https://"),
        ("git@github.com:me/patching.git", "a user or a password"),
        ("https://me:secret@github.com/me/patching", "a user or a password"),
        ("https://github.com/me/my patching", "not the address of a repository"),
        ("https://github.com/me/patching?tab=readme", "not the address of a repository"),
        ("https://github.com/me/patching#readme", "not the address of a repository"),
        ('https://github.com/me/"; rm -rf x', "not the address of a repository"),
        ("https://github.com/$(id)/patching", "not the address of a repository"),
        ("https://git hub.com/me/patching", "not the address of a repository"),
        ("https://github.com", "not the address of a repository"),
        ("https://github.com/me/../patching", "not the address of a repository"),
        ("https://github.com/me", "a page of GitHub, not a repository"),
        ("https://github.com/me/.git", "a page of GitHub, not a repository"),
        ("https://github.com/me/patching/tree/main", "a page of GitHub, not a repository"),
        ("/no/such/folder", "is not a git repository"),
    ],
)
def test_bad_addresses_are_explained_and_change_nothing(copy, monkeypatch, capsys, text, why):
    before = snapshot(copy)
    monkeypatch.setattr(publish.publish, "__defaults__", (copy,))
    with pytest.raises(SystemExit) as stop:
        publish.main(["--repo", text])
    shown = capsys.readouterr().err
    assert stop.value.code == 2 and why in shown and "secret" not in shown
    assert snapshot(copy) == before


@pytest.mark.parametrize("branch", ["", "a b", "-f", "a..b", "a;b", "/a"])
def test_bad_branches(branch):
    with pytest.raises(ValueError, match="is not the name of a branch"):
        parse_repository(MINE.address, branch)


def test_a_local_repository(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", str(tmp_path / "here")], check=True)
    expected = Repository(f"file://{tmp_path.resolve()}/here")
    assert parse_repository(str(tmp_path / "here")) == expected
    assert parse_repository(expected.address) == expected
    monkeypatch.chdir(tmp_path)
    assert parse_repository("./here") == expected
    subprocess.run(["git", "init", "-q", "--bare", str(tmp_path / "odd name")], check=True)
    with pytest.raises(ValueError, match="unusual characters"):
        parse_repository("./odd name")


# ---- stamping


def test_every_lesson_gets_address_and_badges(copy):
    before = {path: cells(path) for path in lessons(copy)}
    changed = publish.publish(MINE, copy)
    assert changed == [*lessons(copy), copy / "README.md"]
    for path in lessons(copy):
        after = cells(path)
        values = {}
        exec(after["fetch"].source.split("near =")[0], values)
        assert values["REPOSITORY"] == "https://github.com/me/patching"
        assert list(after).index("fetch") + 1 == list(after).index("setup")
        assert after["fetch"].metadata["jupyter"]["source_hidden"]
        first, badges = after["nav"].source.split("\n\n")
        assert first == before[path]["nav"].source
        assert re.findall(r"\[!\[Open in (\w+)\]", badges) == ["Colab", "Kaggle", "Binder"]
        for name, cell in after.items():  # nothing else changes
            if name not in ("fetch", "nav"):
                assert cell == before[path][name]


def test_badges_lead_to_the_notebook():
    badges = parse_repository(MINE.address, "next/one").badges("01_x.ipynb")
    pattern = r"\[!\[Open in \w+\]\(https://\S+\.svg\)\]\((\S+)\)"
    colab, kaggle, binder = (urlsplit(link) for link in re.findall(pattern, badges))
    assert colab.netloc == "colab.research.google.com"
    assert colab.path == "/github/me/patching/blob/next/one/notebooks/01_x.ipynb"
    raw = "https://raw.githubusercontent.com/me/patching/next/one/notebooks/01_x.ipynb"
    assert (kaggle.netloc, kaggle.path) == ("kaggle.com", "/kernels/welcome")
    assert parse_qs(kaggle.query) == {"src": [raw]}
    assert (binder.netloc, binder.path) == ("mybinder.org", "/v2/gh/me/patching/next%2Fone")
    assert parse_qs(binder.query) == {"labpath": ["notebooks/01_x.ipynb"]}


def test_only_the_lines_concerned_change_in_the_files(copy):
    for path in lessons(copy):
        before = path.read_text(encoding="utf-8").splitlines()
        publish.publish(MINE, copy)
        after = path.read_text(encoding="utf-8").splitlines()
        assert len(set(before) - set(after)) <= 1  # the last line of `nav`
        publish.publish(Repository(), copy)


def test_the_readme_gets_badges_between_its_markers(copy):
    publish.publish(MINE, copy)
    title, badges, text = (copy / "README.md").read_text(encoding="utf-8").split("\n\n")
    assert (title, text) == ("# Title", "Text.\n")
    marker, line, end = badges.splitlines()
    assert (marker, end) == ("<!-- badges -->", "<!-- /badges -->")
    assert line == MINE.badges("00_start_here.ipynb")


def test_every_row_of_the_readme_gets_a_badge_of_its_own(copy):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    stamped = publish.stamp_readme(text, MINE)
    rows = [line for line in stamped.splitlines() if re.match(r"\| \[\d\d ", line)]
    assert len(rows) == len(lessons(ROOT))
    for path, row in zip(lessons(ROOT), rows, strict=True):
        links = re.findall(r"\[!\[Open in (\w+)\]\([^)]+\)\]\(([^)]+)\)", row)
        (name, link), *others = links
        assert name == "Colab" and not others and link.endswith(f"/notebooks/{path.name}")
    assert publish.stamp_readme(stamped, MINE) == stamped
    assert publish.stamp_readme(stamped, Repository()) == text


def test_again_and_replaced_and_cleared(copy):
    start = snapshot(copy)
    publish.publish(MINE, copy)
    first = snapshot(copy)
    assert publish.publish(MINE, copy) == [] and snapshot(copy) == first
    publish.publish(parse_repository("https://github.com/you/other", "dev"), copy)
    assert all(b"me/patching" not in content for content in snapshot(copy).values())
    publish.publish(parse_repository("https://gitlab.com/me/patching"), copy)
    assert all(b"Open in" not in content for content in snapshot(copy).values())
    publish.publish(MINE, copy)
    assert snapshot(copy) == first
    publish.publish(Repository(), copy)
    assert snapshot(copy) == start


def test_a_lesson_that_cannot_be_stamped_leaves_all_as_they_were(copy):
    last = lessons(copy)[-1]
    text = last.read_text(encoding="utf-8")
    before = snapshot(copy)
    last.write_text(text.replace('"id": "setup"', '"id": "start"'), encoding="utf-8")
    with pytest.raises(ValueError, match=f"{last.name} needs a cell `nav` and a cell `setup`"):
        publish.publish(MINE, copy)
    last.write_text(text.replace('"id": "nav"', '"id": "top"'), encoding="utf-8")
    with pytest.raises(ValueError, match=f"{last.name} needs a cell `nav`"):
        publish.publish(MINE, copy)
    last.write_bytes(before[last])
    assert snapshot(copy) == before
    with pytest.raises(ValueError, match="no lessons"):
        publish.publish(MINE, copy / "notebooks")


def test_the_command_line_says_what_was_done(copy, monkeypatch, capsys):
    monkeypatch.setattr(publish.publish, "__defaults__", (copy,))
    monkeypatch.setattr(publish.describe, "__defaults__", (copy,))
    assert publish.main(["--repo", MINE.address]) == 0
    number = len(lessons(copy)) + 1
    assert f"{number} files changed. The lessons and README.md" in capsys.readouterr().out
    assert publish.main(["--repo", "https://gitlab.com/me/patching"]) == 0
    assert "Badges need GitHub: there are none" in capsys.readouterr().out
    (copy / "README.md").write_text("# Title\n", encoding="utf-8")
    assert publish.main(["--repo", MINE.address]) == 0
    assert "put these two lines under its title:\n<!-- badges -->" in capsys.readouterr().out
    assert publish.main(["--clear"]) == 0
    assert "carry no address" in capsys.readouterr().out
    lessons(copy)[0].write_text('{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}')
    assert publish.main(["--repo", MINE.address]) == 1
    assert "needs a cell `nav`" in capsys.readouterr().err


# ---- a lesson on its own


def test_lesson_01_runs_from_nothing_but_its_file(copy, tmp_path_factory, monkeypatch):
    for variable in ("SUBSPACE_ILLUSION_RESULTS", "SUBSPACE_ILLUSION_MODEL", "PYTHONPATH"):
        monkeypatch.delenv(variable, raising=False)
    address = make_origin(tmp_path_factory.mktemp("published"))
    publish.publish(parse_repository(address), copy)
    (lesson,) = [path for path in lessons(copy) if path.name.startswith("01_")]
    alone = tmp_path_factory.mktemp("empty") / lesson.name
    shutil.move(lesson, alone)
    problem = execution.execute(nbformat.read(alone, as_version=4), alone)
    assert problem is None
    clone = alone.parent / "subspace-illusion"
    assert "C1" in (clone / "results" / "smollm2-135m" / "claims.json").read_text(encoding="utf-8")
