"""Every lesson on tiny models of other architectures: it runs to its end or says what is missing.

The models are chosen by the setting alone, as a user's would be. `tiny_folders` says how they are
made; to run one through the whole program: `python tests/tiny_folders.py llama /tmp/tiny-llama`,
then `make run MODEL=/tmp/tiny-llama`.
"""

import functools
import gc
import sys
from collections.abc import Sequence

import matplotlib
import nbformat
import pytest
from conftest import build_hf_model, build_tokenizer
from tiny_folders import SETTINGS, lesson_words, make_folder

from helpers.claims import report, sizes
from helpers.lessons import notebook

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LESSONS = sorted((report.ROOT / "notebooks").glob("[01][0-9]_*.ipynb"))
WITH_MODEL = [path.stem for path in LESSONS if path.name[:2] not in ("01", "10", "15")]
ARCHITECTURES = ("gpt2", "llama", "gemma3")
# Lessons that take a quarter of a minute each are not run on every architecture.
SLOW = {"07": ("gpt2", "llama"), "08": ("gpt2", "gemma3"), "09": ("gemma3",)}
CASES = [
    (architecture, stem)
    for stem in WITH_MODEL
    for architecture in SLOW.get(stem[:2], ARCHITECTURES)
]


def marks(architecture: str, stem: str) -> Sequence[pytest.MarkDecorator]:
    """`make test` runs each lesson on one of its architectures in turn, `make test-long` on all."""
    possible = SLOW.get(stem[:2], ARCHITECTURES)
    turn = possible[int(stem[:2]) % len(possible)]
    return () if architecture == turn else (pytest.mark.long,)


SMALL = sizes.Sizes(24, 40, 2, 12, pair_steps=2, layers=3)
# Lesson 02 may find no site in weights that are random: the others get this one. Its readers see
# all tokens in Gemma 3, too, where other layers have a window.
SITE = {"layer": 2, "kind": "resid_post", "readers": [[5, 0], [5, 3]]}
# What these models may lack, by lesson: anything else that is missing is a mistake of ours.
MAY_LACK = {
    "02": "no layer holds the order",
    "06": "too few continents",
    "08": "in no layer, or in",
    "09": "do nothing that could be tested",
    "11": "does not do this task",
    "12": "its adapters are of the packaged model",
    "13": "does not do this task",
    "16": "the transcoders are those of the packaged model",
}


def run_lesson(stem: str) -> str | None:
    """Run the code of a lesson; the reason if it ends early because something is not there."""
    (path,) = (path for path in LESSONS if path.stem.startswith(stem))
    names = {"__name__": "__main__", "display": print}
    try:
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                exec(compile(cell.source, f"{stem}: {cell.id}", "exec"), names)
                plt.close("all")
    except notebook.NotTestable as end:
        return str(end)
    finally:
        names.clear()
        plt.close("all")
        gc.collect()  # models hold cycles


def claims_of(stem: str) -> set[str]:
    return {name for name, claim in report.every_claim().items() if claim["lesson"] == stem[:2]}


@pytest.fixture
def setting(tmp_path, monkeypatch):
    """Chooses a folder as the model of all lessons, as a user would; few pairs, few steps."""

    def choose(folder):
        monkeypatch.setenv("SUBSPACE_ILLUSION_MODEL", str(folder))

    for name in ("DEVICE", "SIZES"):
        monkeypatch.delenv(f"SUBSPACE_ILLUSION_{name}", raising=False)
    monkeypatch.setenv("SUBSPACE_ILLUSION_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("SUBSPACE_ILLUSION_STATIC", "1")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setattr(sys, "path", list(sys.path))  # the setup cell adds to it
    monkeypatch.chdir(report.ROOT / "notebooks")
    monkeypatch.setitem(sizes.SIZES, "quick", SMALL)
    return choose


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`folder(architecture)`: a tiny model of it, made once."""

    @functools.cache
    def make(architecture):
        path = tmp_path_factory.mktemp("models") / f"tiny-{architecture}"
        return make_folder(architecture, path)

    return make


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("architecture", "stem"), [pytest.param(*case, marks=marks(*case)) for case in CASES]
)
def test_a_lesson_runs_to_its_end(architecture, stem, folder, setting):
    setting(folder(architecture))
    report.save_site("ioi", SITE, {})
    reason = run_lesson(stem)
    assert claims_of(stem) <= report.recorded().keys()
    assert reason is None or MAY_LACK.get(stem[:2], "?") in reason


@pytest.mark.filterwarnings("ignore")
def test_lessons_say_that_a_random_model_can_do_nothing(tmp_path, setting):
    tokenizer = build_tokenizer(lesson_words(), True)
    model = build_hf_model("gpt2", len(tokenizer), **SETTINGS)
    model.save_pretrained(tmp_path / "random")
    tokenizer.save_pretrained(tmp_path / "random")
    setting(tmp_path / "random")
    for stem in WITH_MODEL:
        assert run_lesson(stem), stem
        measured = {name for name, entry in report.recorded().items() if "value" in entry}
        assert claims_of(stem) <= report.recorded().keys()
        without_task = {"C2", "C32", "C34", "T1", "T2", "T3"}
        assert measured & claims_of(stem) <= without_task
