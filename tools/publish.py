"""Write the address of the published repository into the lessons, and badges that open them.

    python -m tools.publish --repo https://github.com/user/name [--branch main]
    python -m tools.publish --clear

A lesson opened alone, on Colab say, then fetches the helpers in a folded first cell. Doing it again
changes nothing, another address replaces the first, and `--clear` takes everything out again.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

import nbformat
from nbformat.v4 import new_code_cell

from helpers.output import files
from helpers.output.files import ROOT

# Nothing that a shell, a URL or Markdown would take for more than a name.
NAMES = re.compile(r"[A-Za-z0-9_.~][A-Za-z0-9_.~-]*(/[A-Za-z0-9_.~][A-Za-z0-9_.~-]*)*")
HOST = re.compile(r"[a-z0-9][a-z0-9.-]*(:\d+)?")
START, END = "<!-- badges -->", "<!-- /badges -->"
BETWEEN_MARKERS = re.compile(f"{START}.*?{END}", flags=re.S)
FIRST_BADGE = "[![Open in Colab]"
FIRST_LESSON = "00_start_here.ipynb"
# A lesson's row in the README's tables: its link, and the badge that may follow it.
ROW = re.compile(r"^(\| \[\d\d [^]]+\]\(notebooks/([^)]+)\))[^|\n]* \|", flags=re.M)
EXAMPLE = "https://github.com/user/name"
# name: (image, link)
SERVICES = {
    "Colab": (
        "https://colab.research.google.com/assets/colab-badge.svg",
        "https://colab.research.google.com/github/{repo}/blob/{branch}/{file}",
    ),
    "Kaggle": (
        "https://kaggle.com/static/images/open-in-kaggle.svg",
        "https://kaggle.com/kernels/welcome"
        "?src=https://raw.githubusercontent.com/{repo}/{branch}/{file}",
    ),
    "Binder": (
        "https://mybinder.org/badge_logo.svg",
        "https://mybinder.org/v2/gh/{repo}/{quoted}?labpath={file}",
    ),
}

# The first code of a published lesson, folded; Colab shows a form with its title.
FETCH_METADATA = {"cellView": "form", "jupyter": {"source_hidden": True}}
FETCH = """# @title Fetch the helpers, if this lesson was opened alone
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = "{address}"
CLONE, ROOTS = Path("subspace-illusion"), (Path(".."), Path(), Path("../.."))
near = [folder for folder in (*ROOTS, CLONE) if (folder / "helpers/lessons").exists()]
if not near:
    shutil.rmtree(CLONE, ignore_errors=True)  # what an interrupted clone has left
    subprocess.run(["git", "clone", "-q", "--depth=1", REPOSITORY, CLONE], check=True)
sys.path.insert(0, str([*near, CLONE][0].resolve()))"""


@dataclass(frozen=True)
class Repository:
    """Where the lessons are published.

    Attributes:
        address: What `git clone` takes; empty if they are not published.
        github: "user/name" if it is on GitHub, else empty: only there do badges lead anywhere.
        branch: The branch that the badges open.
    """

    address: str = ""
    github: str = ""
    branch: str = "main"

    def badges(self, lesson: str) -> str:
        """Markdown that opens this notebook on each service; empty off GitHub."""
        if not self.github:
            return ""
        parts = {
            "repo": self.github,
            "branch": self.branch,
            "quoted": quote(self.branch, safe=""),
            "file": f"notebooks/{lesson}",
        }
        return " ".join(
            f"[![Open in {name}]({image})]({link.format(**parts)})"
            for name, (image, link) in SERVICES.items()
        )


def parse_repository(text: str, branch: str = "main") -> Repository:
    """The repository of an address: https, or a folder of this computer (to try things out).

    Raises:
        ValueError: Nobody could clone from there; the message says what an address looks like.
    """
    if not _plain(branch):
        raise ValueError(f"{branch!r} is not the name of a branch.")
    if text.startswith(("/", ".", "~", "file:///")):
        return Repository(_local(text), branch=branch)
    if "@" in text:  # not repeated: it may hold a password
        raise ValueError(f"The address holds a user or a password: give one like {EXAMPLE}.")
    if not text.startswith("https://"):
        raise ValueError(f"{text!r} does not start with https://: give an address like {EXAMPLE}.")
    try:
        parts = urlsplit(text)
    except ValueError as error:  # half an IPv6 address
        raise ValueError(f"{text!r} is not the address of a repository: {error}.") from error
    host, names = parts.netloc.lower(), parts.path.strip("/")
    if parts.query or parts.fragment or not HOST.fullmatch(host) or not _plain(names):
        raise ValueError(f"{text!r} is not the address of a repository: one is {EXAMPLE}.")
    if host not in ("github.com", "www.github.com"):
        return Repository(f"https://{host}/{names}", branch=branch)
    github = names.removesuffix(".git")
    if github.count("/") != 1 or github.endswith("/"):
        raise ValueError(f"{text!r} is a page of GitHub, not a repository: one is {EXAMPLE}.")
    return Repository(f"https://github.com/{github}", github, branch)


def _plain(names: str) -> bool:
    """Whether this is one name or several between slashes, of plain characters."""
    return bool(NAMES.fullmatch(names)) and ".." not in names


def _local(text: str) -> str:
    """The file:// address of a git repository in a folder."""
    folder = Path(text.removeprefix("file://")).expanduser().resolve()
    if not (folder / "HEAD").exists() and not (folder / ".git").exists():
        raise ValueError(f"{folder} is not a git repository.")
    if not _plain(folder.as_posix().lstrip("/")):
        raise ValueError(f"{folder} has unusual characters: move the repository elsewhere.")
    return f"file://{folder.as_posix()}"


def stamp_lesson(text: str, name: str, repository: Repository) -> str:
    """The text of a notebook file with this address and these badges, instead of any it had.

    Raises:
        ValueError: It is no notebook, or lacks the cells that carry them.
    """
    try:
        notebook = nbformat.reads(text, as_version=4)
    except Exception as error:  # nbformat raises whatever it stumbles over
        raise ValueError(f"{name} is not a notebook, or is damaged: {error}") from error
    notebook.cells = [cell for cell in notebook.cells if cell.id != "fetch"]
    cells = {cell.id: cell for cell in notebook.cells}
    if "nav" not in cells or "setup" not in cells:
        raise ValueError(f"{name} needs a cell `nav` and a cell `setup`.")
    if repository.address:
        source = FETCH.format(address=repository.address)
        fetch = new_code_cell(source, id="fetch", metadata=FETCH_METADATA)
        notebook.cells.insert(notebook.cells.index(cells["setup"]), fetch)
    navigation = cells["nav"].source.split(FIRST_BADGE)[0].rstrip()
    badges = repository.badges(name)
    cells["nav"].source = f"{navigation}\n\n{badges}" if badges else navigation
    return nbformat.writes(notebook) + "\n"


def stamp_readme(text: str, repository: Repository) -> str:
    """The text of the README with badges, if there are any: the first lesson's between the
    markers, and one for Colab in every lesson's row.
    """
    badges = repository.badges(FIRST_LESSON)
    inside = f"\n{badges}\n" if badges else "\n"
    text = BETWEEN_MARKERS.sub(lambda _: f"{START}{inside}{END}", text)

    def with_badge(row: re.Match) -> str:
        colab, *_ = repository.badges(row[2]).split(" [![")
        return f"{row[1]} {colab}".rstrip() + " |"

    return ROW.sub(with_badge, text)


def publish(repository: Repository, root: Path = ROOT) -> list[Path]:
    """Stamp every lesson and the README; returns the files that changed.

    Raises:
        ValueError: A file cannot be stamped. None has been changed then.
        OSError: A file is missing or cannot be read (nothing has been changed), or written.
    """
    new = {
        path: stamp_lesson(path.read_text(encoding="utf-8"), path.name, repository)
        for path in sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    }
    if not new:
        raise ValueError(f"There are no lessons in {root / 'notebooks'}.")
    readme = root / "README.md"
    new[readme] = stamp_readme(readme.read_text(encoding="utf-8"), repository)
    changed = [path for path in new if new[path] != path.read_text(encoding="utf-8")]
    for path in changed:
        files.write(path, new[path])
    return changed


def describe(repository: Repository, root: Path = ROOT) -> str:
    """What the user should know of the result, besides the files."""
    if not repository.address:
        return "The lessons carry no address: they run inside the repository only."
    if not repository.github:
        return f"The lessons fetch from {repository.address}. Badges need GitHub: there are none."
    if not BETWEEN_MARKERS.search((root / "README.md").read_text(encoding="utf-8")):
        return f"For badges in README.md, put these two lines under its title:\n{START}\n{END}"
    return f"The lessons and README.md have badges; they fetch from {repository.address}."


def parse(arguments: Sequence[str] | None) -> Repository:
    """The command line; a bad address ends the program and says why."""
    parser = argparse.ArgumentParser(
        "python -m tools.publish", description="Write the address of the repository into lessons."
    )
    parser.add_argument("--branch", default="main", help="its default branch (default: main)")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--repo", metavar="ADDRESS", help=f"such as {EXAMPLE}")
    what.add_argument("--clear", action="store_true", help="take the address and badges out again")
    options = parser.parse_args(arguments)
    try:
        return Repository() if options.clear else parse_repository(options.repo, options.branch)
    except ValueError as error:
        parser.error(str(error))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m tools.publish`; returns its exit status."""
    repository = parse(arguments)
    try:
        changed = publish(repository)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"Not all files could be stamped: {error}. Make {ROOT} writable, then run it again.",
            file=sys.stderr,
        )
        return 1
    print(f"{len(changed)} files changed. {describe(repository)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
