"""The oldest packages are those that pyproject.toml names as lower bounds."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent


def pinned(file: str) -> dict[str, Version]:
    """The packages of a requirements file, all of them with one exact version."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {requirement.name: exact(requirement, "==") for requirement in requirements}


def exact(requirement: Requirement, operator: str) -> Version:
    """The version behind `operator`, which stands exactly once in the requirement."""
    (version,) = (part.version for part in requirement.specifier if part.operator == operator)
    return Version(version)


def lower_bounds() -> dict[str, Version]:
    """What the project and the extras `run`, `lab` and `test` ask for at least."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    requirements = map(
        Requirement, sum((extras[name] for name in ("run", "lab", "test")), project["dependencies"])
    )
    return {requirement.name: exact(requirement, ">=") for requirement in requirements}


def test_the_oldest_packages_are_the_lower_bounds():
    oldest, bounds = pinned("requirements-oldest.txt"), lower_bounds()
    del oldest["torch"], bounds["torch"]  # the test below
    assert oldest == bounds


def test_torch_is_the_tested_one():
    tested = pinned("requirements-tested.txt")
    assert pinned("requirements-oldest.txt")["torch"] == tested["torch"] >= lower_bounds()["torch"]
