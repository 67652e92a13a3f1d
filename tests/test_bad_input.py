"""Bad input, as users give it: each gets its own error, and nothing is left behind.

One row per mistake, in tables by module; what the other test files try is not repeated here. After
every row the model has the hooks, weights and gradients that it had, and no folder a new file.
"""

import json
import math
import os
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import build_tiny_model, build_tokenizer
from filelock import FileLock
from safetensors.torch import save_file
from test_patching import overridden, random_pairs

from helpers import patching
from helpers.attribution import scores
from helpers.audit import diagnostics, measure, planted, verdicts
from helpers.circuits import ablation
from helpers.claims import reference, report
from helpers.directions import closed_form, geometry, layers, readers, search
from helpers.directions.layers import facts_at_layer
from helpers.editing import edits, moments, rome
from helpers.models import load
from helpers.patching import metrics
from helpers.patching.sites import Site, check_sites
from helpers.tasks import agreement, facts, ioi, passages, tokens
from helpers.tasks.pairs import Pairs
from helpers.tasks.tokens import encode, single_token
from tools import batches, compare, counterfact, publish, run
from tools import reference as update
from tools.audit import command, sites, vectors
from tools.classroom import assignment, grade
from tools.jobs.work import facts_job
from tools.pair_files import PairFileError, read_pairs
from tools.pictures import pipelines
from tools.report import to_markdown

SITE = Site(1, "mlp_hidden")
D = 96  # of `SITE` in the tiny model
BASE, SOURCE = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
EYE, WEIGHT = torch.eye(6), torch.eye(6)[:, :3]
EDIT = edits.RankOneEdit(0, torch.ones(6), torch.ones(3))
TOKENS = torch.arange(3, 35).reshape(4, 8)
PROMPTS = {
    "base": ["Mary and John"],
    "source": ["John and Mary"],
    "answer": ["Mary"],
    "counterfactual": ["John"],
}
FACTS = pd.DataFrame(
    [("capital", "France", "Paris"), ("capital", "Italy", "Rome")],
    columns=["relation", "subject", "answer"],
).assign(template="The capital of {subject} is")
HEADER, ROW = "base,source,answer,counterfactual", "Mary and John,John and Mary,Mary,John"
NOT_FLOATS = "must be a floating-point tensor"


# ------------------------------------------------------------------- what every row begins with


@pytest.fixture(scope="module")
def shared():
    """A model of our own, with pairs cached at a site."""
    model = build_tiny_model("llama")
    pairs = random_pairs(model)
    pairs = replace(pairs, table=pd.DataFrame({"value": list("ababa")}))
    clean = patching.cache_pairs(model, pairs, SITE).clean_logit_difference
    swap = clean < 0  # so that the model "does the task"
    answer = torch.where(swap, pairs.counterfactual, pairs.answer)
    counterfactual = torch.where(swap, pairs.answer, pairs.counterfactual)
    pairs = replace(pairs, answer=answer, counterfactual=counterfactual)
    parts = patching.cache_sites(model, pairs, [SITE, Site(1, "resid_mid"), Site(1, "resid_post")])
    fact = rome.rome_pairs(model, ["The {}"], ["book"], [3], prefixes=0)
    words = "river rivers box boxes knife knives key keys was were".split()
    gpt2 = build_tiny_model("gpt2")
    tensors = [*model.state_dict().values(), *gpt2.state_dict().values()]
    return SimpleNamespace(
        model=model,
        gpt2=gpt2,
        tokenizer=model.tokenizer,
        pairs=pairs,
        many=random_pairs(model, n=10),
        cached=parts[0],
        planted=parts,
        layers=layers.cache_layers(model, pairs, [1, 2]),
        rome=patching.cache_pairs(model, fact, SITE),
        agreement=build_tokenizer(tuple(words)),
        points=[
            p for m in (model, gpt2) for p in {id(p): p for p in m.hook_dict.values()}.values()
        ],
        parameters=[*model.parameters(), *gpt2.parameters()],
        tensors=tensors,
        weights=[tensor.clone() for tensor in tensors],
    )


@pytest.fixture
def s(shared, tmp_path, monkeypatch):
    """What a row may use. The working folder, the results and all caches are below `tmp_path`."""
    work, files = tmp_path / "work", tmp_path / "files"
    for folder in (work, files, tmp_path / "temporary"):
        folder.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("SUBSPACE_ILLUSION_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("SUBSPACE_ILLUSION_CACHE", str(tmp_path / "cache"))
    for variable in ("SUBSPACE_ILLUSION_MODEL", "SUBSPACE_ILLUSION_DEVICE"):
        monkeypatch.delenv(variable, raising=False)
    (files / "short.txt").write_text("The book is on the school in the city. Mary gave it to John.")
    monkeypatch.setattr(tokens, "TEXTS", files)  # a whole novel takes seconds to encode
    monkeypatch.setattr(reference, "ROOT", tmp_path)
    monkeypatch.setattr(publish.publish, "__defaults__", (tmp_path / "copy",))
    monkeypatch.setattr(command, "load_model", lambda name, device: shared.model)
    monkeypatch.setattr("tools.jobs.work.shared_model", lambda name: shared.model)
    return SimpleNamespace(**vars(shared), files=files, results=tmp_path / "results", root=tmp_path)


@pytest.fixture(autouse=True)
def nothing_is_left(s):
    """The check after every row; files that a row writes as its input lie in `s.files`."""
    before = state(s)
    yield
    assert state(s) == before
    for lock in s.root.rglob("*.lock"):
        FileLock(lock).acquire(timeout=0).lock.release()  # nobody holds it


def state(s) -> dict:
    """All that a mistake could change: hooks, weights, gradients and files."""
    files = [path for path in s.root.rglob("*") if s.files not in path.parents]
    return {
        "hooks": sum(len(point.fwd_hooks) + len(point._forward_hooks) for point in s.points),
        "overridden": overridden(s.model) + overridden(s.gpt2),
        "weights": [torch.equal(*both) for both in zip(s.tensors, s.weights, strict=True)],
        "gradients": [p for p in s.parameters if p.grad is not None or p.requires_grad],
        "cached": (s.cached.base.grad, s.cached.base.requires_grad),
        "files": {p for p in files if not p.is_symlink() and p.suffix != ".lock"},
    }


def write(s, name: str, content: bytes | str) -> Path:
    path = s.files / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def measured(s, content: bytes | str) -> None:
    """Puts a file where the results of the default model are; it counts as input."""
    s.results.symlink_to(s.files, target_is_directory=True)
    write(s, "smollm2-135m/claims.json", content)


# --------------------------------------------------------------------------------- the functions


def changed(name, **changes):
    """Pairs with another value in one of their fields."""
    return lambda s: Pairs(**(vars(s.pairs) | changes))


def site(*arguments, **keywords):
    return lambda s: Site(*arguments, **keywords)


SITES = [
    (site("1", "mlp_hidden"), "layer must be a whole number, not '1'"),
    (site(1.0, "mlp_hidden"), "layer must be a whole number, not 1.0"),
    (site(True, "mlp_hidden"), "layer must be a whole number, not True"),
    (site(torch.tensor(1), "mlp_hidden"), r"layer must be a whole number, not tensor\(1\)"),
    (site(1, "head_output", head=True), "head must be a whole number, not True"),
    (site(1, "head_output", head=0.0), "head must be a whole number, not 0.0"),
    (site(1, "mlp_hidden", position="0"), "position must be a whole number, not '0'"),
    (site(1, "mlp_hidden", position=False), "position must be a whole number, not False"),
    (site(1, "mlp_hidden", head=0), "for no other kind of site"),
    (site(1, ["mlp_hidden"]), "unknown kind of site"),
    (lambda s: check_sites(s.model, [Site(-1, "mlp_hidden")]), "layer -1 is out of range"),
    (lambda s: check_sites(s.model, [Site(1, "head_output", head=-1)]), "head -1 is out of range"),
    (lambda s: sites.parse_site("mlp_hidden." + "9" * 5000), "must have the form mlp_hidden"),
    (lambda s: sites.parse_site("mlp_hidden.\N{FULLWIDTH DIGIT ONE}"), "must have the form"),
]

GEOMETRY = [
    (lambda s: geometry.unit([3.0, 4.0]), f"{NOT_FLOATS}, not list"),
    (lambda s: geometry.unit(np.ones(3)), f"{NOT_FLOATS}, not ndarray"),
    (lambda s: geometry.unit(torch.tensor([3, 4])), f"{NOT_FLOATS}, not torch.int64"),
    (lambda s: geometry.unit(torch.tensor(3.0)), r"not torch.float32 of shape \(\)"),
    (lambda s: geometry.unit(torch.ones(2, 0)), "of no dimensions"),
    (lambda s: geometry.random_direction(0, seed=0), "d must be a whole number from 1 on, not 0"),
    (lambda s: geometry.random_direction(2.5, seed=0), "d must be a whole number"),
    (lambda s: geometry.cosine(torch.ones(3), torch.ones(1)), "1 dimensions but .* has 3"),
    (lambda s: geometry.orthonormal(torch.ones(3)), r"of 2 dimensions, not .*\(3,\)"),
    (lambda s: geometry.orthonormal(torch.ones(3, 0)), "the basis is empty"),
    (lambda s: geometry.orthonormal(torch.eye(3).half()), r"too coarse .*\.float\(\)"),
    (lambda s: geometry.patch_subspace(BASE, SOURCE, [1, 0, 0, 0]), r"one direction \[d\]"),
    (lambda s: geometry.patch_subspace(BASE, SOURCE, torch.ones(4, 2, 2)), r"several \[d, k\]"),
    (lambda s: geometry.patch_subspace(BASE, SOURCE, torch.ones(1, 4)), "1 dimensions but"),
    (lambda s: geometry.patch_subspace(BASE, SOURCE.double(), torch.ones(4)), r"source.to\(base\)"),
    (lambda s: geometry.patch_subspace(BASE.long(), SOURCE.long(), torch.ones(4)), NOT_FLOATS),
    (lambda s: geometry.patch_subspace(BASE, SOURCE, torch.ones(4, 5)), "does not fit in a space"),
    (lambda s: geometry.patch_each(BASE, SOURCE, torch.zeros(3, 4)), "zero vector"),
    (lambda s: geometry.patch_each(BASE, SOURCE, torch.ones(1, 4)), "one direction per pair"),
    (lambda s: geometry.read_write_patch(BASE, SOURCE, [1.0] * 4, BASE[0]), f"read {NOT_FLOATS}"),
    (lambda s: geometry.row_space(torch.ones(4)), "W_out .* of 2 dimensions"),
    (lambda s: geometry.row_space(torch.full((4, 2), torch.nan)), "W_out holds NaN"),
    (lambda s: geometry.row_null_split(torch.full((6,), torch.nan), WEIGHT), "holds NaN"),
    (lambda s: geometry.row_null_split(torch.ones(6), WEIGHT.T), "6 dimensions but .* has 3"),
]

LOGITS, THREE = torch.randn(3, 5, generator=torch.Generator().manual_seed(1)), torch.arange(3)
METRICS = [
    (lambda s: metrics.mean(torch.ones(3, 2)), r"the values must be a tensor \[pairs\]"),
    (lambda s: metrics.mean([1.0, 2.0]), r"the values must be a tensor \[pairs\]"),
    (lambda s: metrics.bootstrap(torch.ones(3), torch.mean), r"tensor \[pairs columns\]"),
    (lambda s: metrics.logit_difference(LOGITS, THREE[:2], THREE), "3 rows .*, not 2"),
    (lambda s: metrics.logit_difference(LOGITS, THREE, THREE + 3), "between 0 and 4"),
    (lambda s: metrics.logit_difference(LOGITS, THREE - 1, THREE), "between 0 and 4"),
    (lambda s: metrics.logit_difference(LOGITS, THREE.float(), THREE), "of whole numbers"),
    (lambda s: metrics.logit_difference(LOGITS[None], THREE, THREE), "of 2 dimensions"),
    (lambda s: metrics.interchange_accuracy(LOGITS, THREE[:1]), "3 rows .*, not 1"),
    (lambda s: metrics.interchange_accuracy(LOGITS * torch.nan, THREE), "logits hold NaN"),
    (lambda s: metrics.share(torch.tensor([0.5, 0.2])), "tensor .* of bool"),
    (
        lambda s: metrics.fractional_logit_difference_decrease(torch.ones(3), torch.ones(3, 1)),
        r"patched must be a tensor \[pairs\]",
    ),
    (
        lambda s: metrics.fractional_logit_difference_decrease(torch.tensor(1.0), torch.ones(1)),
        r"clean must be a tensor \[pairs\]",
    ),
    (
        lambda s: metrics.fractional_logit_difference_decrease(
            torch.ones(2), torch.tensor([1.0, torch.inf])
        ),
        "NaN or infinity",
    ),
]


def prompts(**changes):
    return lambda s: Pairs.from_prompts(s.tokenizer, **(PROMPTS | changes))


PAIRS = [
    (changed("answer", answer=torch.ones(5)), r"answer must be a tensor \[n\] of whole numbers"),
    (changed("answer", answer=[1] * 5), "answer must be .*, not list"),
    (changed("position", position=torch.full((5,), 8.0)), "position must be .* torch.float32"),
    (changed("table", table=[1] * 5), "pandas DataFrame, not list"),
    (changed("tokens", base_tokens=([3] * 9,) * 5), "tokens of a prompt must be .*, not list"),
    (
        changed("tokens", source_tokens=(torch.ones(9),) * 5),
        "tokens of a prompt must be .* torch.float32",
    ),
    (prompts(base="Mary and John"), "base must be a list with one text per pair"),
    (prompts(base=[None]), "a prompt must be one text, not None"),
    (prompts(base=[""], source_position=-1, position=1), "outside the base prompt of pair 0"),
    (prompts(answer=[5]), "an answer must be a word, not 5"),
    (prompts(answer=[""]), "must be a single token"),
    (prompts(answer=["Mary John"]), r"splits into \[' Mary', ' John'\]"),
    (prompts(counterfactual=["Mary"]), "same answer and counterfactual"),
    (prompts(position=1.5), "a position must be a whole number.*not 1.5"),
    (prompts(position="1"), "a position must be a whole number.*not '1'"),
    (prompts(position=[0, 1]), r"one for each of 1 pairs, not \[0, 1\]"),
    (prompts(position=[None]), "a position must be a whole number"),
    (prompts(table={"a": [1]}), "pandas DataFrame, not dict"),
    (lambda s: encode(s.model, ["a", "b"]), r"one text, not \['a', 'b'\]"),
    (lambda s: single_token(s.tokenizer, None), "a word, not None"),
    (lambda s: s.pairs[-9], "out of bounds", IndexError),
    (lambda s: s.pairs[1.5], "integer", IndexError),
]


def cache(**changes):
    """Pairs with another value in one of their fields, cached."""

    def call(s):
        fields = {name: value(s) for name, value in changes.items()}
        patching.cache_pairs(s.model, Pairs(**(vars(s.pairs) | fields)), SITE)

    return call


def too_long(s):
    return tuple(torch.full((65,), 5) for _ in s.pairs.base_tokens)


def patched(**arguments):
    return lambda s: s.cached.patched_logits(**{"activation": s.cached.base, **arguments})


PATCHING = [
    (lambda s: patching.cache_pairs(s.model, s.pairs, "mlp_hidden.1"), "a Site is needed"),
    (lambda s: patching.cache_sites(s.model, s.pairs, []), "no sites given"),
    (lambda s: patching.cache_pairs(s.model, s.pairs, SITE, batch_size=0), "batch_size .* not 0"),
    (lambda s: patching.cache_pairs(s.model, s.pairs, SITE, batch_size=2.5), "batch_size .* 2.5"),
    (
        cache(
            base_tokens=lambda s: (TOKENS[0] + 10**6,) * 5, position=lambda s: THREE.new_zeros(5)
        ),
        "no token 1000003 in the vocabulary of 227",
    ),
    (cache(counterfactual=lambda s: -s.pairs.counterfactual), "no token -.* in the vocabulary"),
    (cache(answer=lambda s: s.pairs.answer + 10**6), "no token 10000.* in the vocabulary"),
    (cache(base_tokens=too_long), "a prompt has 65 tokens, but this model reads 64 at most"),
    (
        lambda s: patching.cache_pairs(s.gpt2, replace(s.pairs, source_tokens=too_long(s)), SITE),
        "a prompt has 65 tokens",
    ),
    (lambda s: s.cached.patched_logits(s.cached.base.tolist()), f"{NOT_FLOATS}, not list"),
    (lambda s: s.cached.patched_logits(s.cached.base.numpy()), f"{NOT_FLOATS}, not ndarray"),
    (lambda s: s.cached.patched_logits(s.cached.base.long()), NOT_FLOATS),
    (lambda s: s.cached.patched_logits(s.cached.base[0]), r"has shape \(96,\)"),
    (lambda s: s.cached.measure(s.cached.base[:2]), r"needs \(5, 96\)"),
    (lambda s: s.cached.outcome(s.cached.base / 0), "NaN or infinity"),
    (patched(rows=torch.tensor([True] * 5)), "of a mask take mask.nonzero"),
    (patched(rows=torch.arange(5.0)), "rows must be .* of whole numbers"),
    (patched(rows=torch.tensor(1)), "rows must be"),
    (patched(rows=torch.arange(5) - 1), "between 0 and 4", IndexError),
    (patched(tokens=torch.tensor([1, 2])), r"tokens must be a tensor \[rows k\] for 5 rows"),
    (patched(tokens=torch.full((5, 1), -1)), "no token -1 in the vocabulary"),
    (patched(tokens=torch.ones(5, 1)), "of whole numbers"),
    (patched(clamp={"mlp_hidden.2": BASE}), "a Site is needed"),
    (patched(clamp={Site(2, "mlp_hidden"): [1.0]}), f"a clamped activation {NOT_FLOATS}"),
    (patched(clamp={Site(2, "mlp_hidden"): torch.ones(5, 95)}), "96 dimensions, not 95"),
    (lambda s: s.cached.record(s.cached.base, "blocks.2.hook_in"), r"\['blocks.2.hook_in'\]"),
    (lambda s: s.cached.record(s.cached.base, ["blocks.9.x"]), "no hook blocks.9.x", KeyError),
    (lambda s: batches.measure_in_batches(s.model, s.pairs, SITE, lambda c: None), NOT_FLOATS),
    (lambda s: next(batches.in_batches(s.model, s.pairs, SITE, memory="1e9")), "bytes, got '1e9'"),
    (lambda s: next(batches.in_batches(s.model, s.pairs, Site(9, "mlp_out"))), "layer 9 is out"),
]


def reads(call, **changes):
    """A reader of two examples, and states that it could read."""
    given = {"sentence": "{} is in", "examples": [("Paris", "France"), ("Rome", "Italy")]}

    def run(s):
        reader = patching.Reader.of(s.model, **(given | changes))
        call(reader, torch.ones(3, 2, 48))

    return run


def states_at(positions):
    return lambda s: patching.states(s.model, s.pairs.base_tokens, positions)


CANDIDATES = torch.tensor([5, 6])
READING = [
    (reads(None, sentence="It is in"), r"needs one {} for its subject, not 'It is in'"),
    (reads(None, sentence="{} or {}"), "needs one {}"),
    (reads(None, sentence=None), "needs one {} for its subject, not None"),
    (reads(None, examples=["Paris"]), "a subject and an object, not 'Paris'"),
    (reads(None, examples=["ab"]), "a subject and an object, not 'ab'"),
    (reads(None, examples=[("Paris", None)]), "a subject and an object, not .'Paris', None"),
    (reads(lambda r, x: r.read(x[0], CANDIDATES)), "states must be .* of 3 dimensions"),
    (reads(lambda r, x: r.read(x.long(), CANDIDATES)), f"the states {NOT_FLOATS}"),
    (reads(lambda r, x: r.read(x[..., 1:], CANDIDATES)), r"has shape \(2, 47\)"),
    (reads(lambda r, x: r.read(x / 0, CANDIDATES)), "NaN or infinity"),
    (reads(lambda r, x: r.read(x, CANDIDATES, layers=[0])), "states of 3 layers, but 1 layers"),
    (reads(lambda r, x: r.read(x, CANDIDATES, into=3)), "layer 3 is out of range"),
    (reads(lambda r, x: r.read(x, CANDIDATES, into=0.5)), "layer must be a whole number"),
    (reads(lambda r, x: r.read(x, CANDIDATES + 10**6)), "no token 1000005 in the vocabulary"),
    (reads(lambda r, x: r.read(x, [5, 6])), "tokens must be a tensor .n. of whole numbers"),
    (reads(lambda r, x: r.read(x[:, :1], CANDIDATES, hold_mlps=True)), "mean over one state"),
    (reads(lambda r, x: r.read(x[:, :0], CANDIDATES)), "no rows to patch"),
    (reads(lambda r, x: r.tell(x[1], 3)), "layer 3 is out of range"),
    (reads(lambda r, x: r.tell(x[1], 1, n_tokens=0)), "n_tokens must be .* from 1 on, not 0"),
    (states_at(torch.full((5,), 9)), "position 9 is out of range in a prompt of 9 tokens"),
    (states_at(torch.tensor([-1] * 5)), "position -1 is out of range"),
    (states_at(torch.tensor([1, 2])), "2 positions for 5 prompts"),
    (states_at([1] * 5), "the positions must be a tensor .n. of whole numbers"),
]


def find(**changes):
    arguments = {"epochs": 1, "progress": False} | changes
    return lambda s: search.find_direction(s.cached, **arguments)


def broken(s):
    return replace(s.cached, base=s.cached.base * torch.nan)


def lost(s):
    raise RuntimeError("a loss of the user's fails")


DAS = [
    (find(epochs=0), "epochs must be a whole number from 1 on, not 0"),
    (find(epochs=1.5), "epochs must be"),
    (find(batch_size=0), "batch_size must be"),
    (find(lr=0.0), "lr must be a positive finite number, not 0.0"),
    (find(lr=-1.0), "lr must be a positive"),
    (find(lr=math.nan), "lr must be a positive"),
    (find(lr="0.1"), "lr must be a positive finite number, not '0.1'"),
    (find(rank=1.5), "rank must be a whole number, not 1.5"),
    (find(rank=True), "rank must be a whole number, not True"),
    (find(rank=D + 1), "rank must lie between 1 and 96"),
    (find(patience=2.5), "patience must be a whole number"),
    (find(init=[1.0] * D), f"init {NOT_FLOATS}"),
    (find(init=torch.zeros(D)), "zero vector"),
    (find(init=torch.full((D,), torch.nan)), "NaN"),
    (find(rank=2, init=torch.ones(D, 2)), "linearly dependent"),
    (find(loss=lambda *_: torch.ones(2)), "the loss must be one number"),
    (find(loss=lambda *_: 1.0), "the loss must be one number"),
    (find(loss=lambda c, a, rows: lost(c)), "a loss of the user's fails", RuntimeError),
    (lambda s: search.find_direction(broken(s), progress=False), "NaN or infinity"),
    (lambda s: search.find_pair_directions(s.cached, lr=math.inf, progress=False), "lr must be"),
    (lambda s: search.find_pair_directions(s.cached, steps=1.5, progress=False), "steps must be"),
]


def many(call):
    """The errors that both functions give, of one site and of several."""
    return [
        lambda s: call(lambda **k: closed_form.best_directions(s.cached, **k)),
        lambda s: call(lambda **k: closed_form.best_directions_at(s.planted, **k)),
    ]


CLOSED_FORM = [
    *((c, "rank must be a whole number, not 1.5") for c in many(lambda best: best(rank=1.5))),
    *((c, "rank must lie between 1 and 5, got 0") for c in many(lambda best: best(rank=0))),
    *((c, "rank must lie between 1 and 5, got 6") for c in many(lambda best: best(rank=6))),
    (lambda s: closed_form.best_directions(broken(s)), "NaN or infinity"),
    (lambda s: closed_form.best_directions(swapped(s)), "does not do this task"),
    (lambda s: closed_form.best_directions_at(s.cached), "not one alone"),
    (lambda s: closed_form.best_directions_at([]), "no sites given"),
    (lambda s: closed_form.best_pair_directions(broken(s)), "NaN or infinity"),
    (lambda s: closed_form.spectrum_ends(BASE, SOURCE, 0), "rank must be .* from 1 on, not 0"),
    (lambda s: closed_form.spectrum_ends(BASE, SOURCE, 5), "rank 5 is more than the 4 dimensions"),
    (lambda s: closed_form.spectrum_ends(BASE, SOURCE[:2]), r"not \(3, 4\) and \(2, 4\)"),
    (lambda s: closed_form.spectrum_ends(BASE[0], SOURCE[0]), "of 2 dimensions"),
]


def swapped(s):
    """The same pairs with their answers named the wrong way round."""
    names = {"answer": s.pairs.counterfactual, "counterfactual": s.pairs.answer}
    return replace(s.cached, pairs=replace(s.pairs, **names))


def named(first, second):
    """Readers' gradients for pairs with these places of the names."""

    def call(s):
        table = pd.DataFrame({"io_position": first, "subject_position": second})
        cached = replace(s.cached, pairs=replace(s.pairs, table=table))
        readers.score_gradients(cached, [(2, 0)])

    return call


READERS = [
    (lambda s: readers.clean_queries(s.cached, [1, 2]), r"a pair \(layer, head\), not 1"),
    (lambda s: readers.clean_queries(s.cached, [(2, 0, 1)]), r"a pair .*, not \(2, 0, 1\)"),
    (lambda s: readers.clean_queries(s.cached, ["2.0"]), "a pair .*, not '2.0'"),
    (lambda s: readers.clean_queries(s.cached, [(2, True)]), "head must be a whole number"),
    (named([1, 2, 3, 4, 99], [1] * 5), "io_position 99 is outside a prompt of 9 tokens"),
    (named([1] * 5, [2, 2, 2, 2, -1]), "subject_position must be a whole number from 0 on"),
    (named(list("abcde"), [1] * 5), "io_position must be a whole number from 0 on, not 'a'"),
    (named([1, 2, 3, 4, None], [5] * 5), "io_position must be a whole number"),
    (named([1] * 5, [1] * 5), "zero vector"),
]


def with_facts(**changes):
    """Pairs of a table of facts with other cells."""
    return lambda s: facts.make_pairs(s.tokenizer, FACTS.assign(**changes), 1)


TASKS = [
    (lambda s: ioi.make_pairs(s.tokenizer, 2.5), "n must be a whole number, not 2.5"),
    (lambda s: ioi.make_pairs(s.tokenizer, "4"), "n must be a whole number, not '4'"),
    (lambda s: ioi.make_pairs(s.tokenizer, 2, seed=-1), "seed must be a whole number from 0 on"),
    (lambda s: ioi.make_pairs(s.tokenizer, 2, seed=None), "seed must be .*, not None"),
    (lambda s: ioi.make_pairs(s.tokenizer, 2, prefix=None), "the prefix must end with a space"),
    (lambda s: ioi.make_pairs(s.tokenizer, 2, templates="none"), r"\['none'\] templates: those"),
    (lambda s: agreement.make_pairs(s.agreement, "number", 2.0), "n must be a whole number"),
    (lambda s: agreement.make_pairs(s.agreement, ["number"], 2), "no feature"),
    (lambda s: agreement.make_pairs(s.agreement, "number", 2, seed=0.5), "seed must be"),
    (lambda s: facts.make_pairs(s.tokenizer, FACTS, 1.5), "n must be a whole number"),
    (lambda s: facts.make_pairs(s.tokenizer, FACTS, 1, seed=-1), "seed must be"),
    (lambda s: facts.make_pairs(s.tokenizer, [1], 1), "a DataFrame with the columns relation"),
    (lambda s: facts.known_facts(s.model, FACTS.drop(columns="answer")), "subject, answer, templ"),
    (lambda s: facts.known_facts(s.model, FACTS, batch_size=0), "batch_size must be"),
    (lambda s: facts.split_subjects(FACTS.drop(columns="subject")), "with the columns"),
    (with_facts(template="The capital is"), r"needs one \{subject\} or \{\}, but fact 0 has"),
    (with_facts(template="{subject} or {subject} is"), r"needs one \{subject\}"),
    (with_facts(answer=["Paris", None]), "fact 1 has no answer: fill every cell"),
    (with_facts(subject=["", "Italy"]), "fact 0 has no subject"),
    (lambda s: facts.reading("city_mayor"), "no examples for 'city_mayor': choose from .'city_c"),
    (lambda s: passages(s.tokenizer, 2.0), "n must be a whole number"),
    (lambda s: passages(s.tokenizer, 2, length=10**9), "gives 1 to 0 passages of 1000000000"),
]

RECORD = {
    "requested_rewrite": {
        "relation_id": "P1", "subject": "a", "prompt": "{}",
        "target_true": {"str": "b"}, "target_new": {"str": "c"},
    },
    "paraphrase_prompts": [], "neighborhood_prompts": [],
}  # fmt: skip


def counterfacts(content):
    return lambda s: counterfact.load_counterfact(write(s, "counterfact.json", content))


COUNTERFACT = [
    (counterfacts(json.dumps([RECORD])[:-20]), "none of the forms of CounterFact"),
    (counterfacts(json.dumps([RECORD]).replace('"b"', "7")), "none of the forms"),
    (counterfacts("[NaN]"), "none of the forms"),
    (counterfacts("[" * 100_000), "none of the forms"),
    (counterfacts(b"\x80\x04binary"), "none of the forms"),
    (lambda s: counterfact.load_counterfact(s.files), "directory", IsADirectoryError),
]


def entered(*held):
    """Goes into the block of an edit."""

    def call(s):
        with edits.rank_one_edit(s.model, *held):
            pytest.fail("the model was edited")

    return call


def edit(layer=1, read=D, write=48, size=1.0):
    return edits.RankOneEdit(layer, torch.full((read,), size), torch.full((write,), size))


EDITING = [
    (lambda s: edits.RankOneEdit(0, [1.0], [1.0]), f"read {NOT_FLOATS}, not list"),
    (lambda s: edits.RankOneEdit(0, torch.ones(6).long(), torch.ones(3)), f"read {NOT_FLOATS}"),
    (entered(edit(layer=True)), "layer must be a whole number, not True"),
    (entered(edit(layer=1.0)), "layer must be a whole number, not 1.0"),
    (entered(edit(layer=-1)), "layer -1 is out of range"),
    (entered(edit(read=48, write=96)), r"takes one edit of shape \(96, 48\)"),
    (entered(edit(size=1e30)), "the edit of layer 1 is too large"),
    (entered(edit(), edit(layer=0, size=1e30)), "the edit of layer 0 is too large"),
    (lambda s: edits.least_read(torch.ones(5), EYE), "6 rows for 5 hidden dimensions"),
    (lambda s: edits.least_read(torch.ones(6).long(), EYE), NOT_FLOATS),
    (lambda s: edits.least_read(torch.ones(6), WEIGHT), "symmetric matrix"),
    (
        lambda s: edits.patch_to_edit(EYE[0], EYE, EYE, EYE[:5], EYE, layer=0),
        "W_out has 5 rows",
    ),
    (
        lambda s: edits.patch_to_edit(EYE[:2], EYE, EYE, EYE, EYE, layer=0),
        "one direction for all",
    ),
    (lambda s: edits.edit_to_patch(EDIT, WEIGHT.T, EYE), "is it transposed"),
    (lambda s: edits.edit_to_patch(EDIT, WEIGHT, EYE, key=torch.ones(5)), "the key has 5"),
    (lambda s: edits.edit_to_patch(EDIT, WEIGHT, EYE, beta=math.nan), "size of beta must be"),
    (lambda s: edits.edit_to_patch(EDIT, WEIGHT, EYE, beta=0.0), "size of beta must be"),
    (lambda s: edits.extra_variance(EDIT, EYE[:5, :5]), "5 rows for 6 hidden dimensions"),
    (
        lambda s: edits.DirectionIntervention(0, torch.ones(6), torch.tensor(2.0)),
        "one sign, 1 or -1",
    ),
    (
        lambda s: edits.DirectionIntervention(0, torch.ones(6), torch.tensor(1.0))(torch.ones(5)),
        "hidden has 5 dimensions, but the edit reads 6",
    ),
    (lambda s: edits.rewrite_score(torch.tensor([torch.nan]), torch.ones(1)), "between 0 and 1"),
]


def second(**changes):
    """Second moments, by the function or by way of the cache."""
    arguments = {"layers": [1], "tokens": TOKENS} | changes
    return [
        lambda s: moments.second_moment(s.model, **arguments),
        lambda s: moments.cached_second_moment(s.model, **arguments),
    ]


MOMENTS = [
    *((call, "skip must be a whole number from 0 on, not -1") for call in second(skip=-1)),
    *((call, "batch_size must be") for call in second(batch_size=0)),
    *((call, "no token .*000 in the vocabulary of 227") for call in second(tokens=TOKENS * 1000)),
    *((call, "of whole numbers") for call in second(tokens=TOKENS.float())),
    *((call, r"tokens of shape \(\)") for call in second(tokens=TOKENS.tolist())),
    *((call, "layer must be a whole number, not True") for call in second(layers=[True])),
    *((call, "layer 9 is out of range") for call in second(layers=[1, 9])),
    (
        lambda s: moments.regularised(EYE, math.nan),
        "zero or a positive finite number, not nan",
    ),
    (lambda s: moments.regularised(WEIGHT), r"a square matrix, not \(6, 3\)"),
    (lambda s: moments.whitener(torch.ones(0, 0)), "symmetric matrix"),
    (lambda s: moments.in_double([1.0]), NOT_FLOATS),
]


def rome_of(**changes):
    arguments = {"templates": ["The {}"], "subjects": ["book"], "targets": [3]} | changes
    return lambda s: rome.rome_pairs(s.model, **arguments)


ROME = [
    (rome_of(targets=[10**6]), "no token 1000000 in the vocabulary of 227"),
    (rome_of(targets=[-1]), "no token -1 in the vocabulary"),
    (rome_of(targets=["Paris"]), "a target must be a whole number, not 'Paris'"),
    (rome_of(subjects=[" "]), "a subject must be a text"),
    (rome_of(prefixes=-1), "prefixes must be a whole number from 0 on"),
    (rome_of(prefix_length=-5), "prefix_length must be"),
    (rome_of(templates=["{} and {}"]), "a template needs one {}"),
    (lambda s: rome.RomeSettings(steps=0), "steps must be a whole number from 1 on"),
    (lambda s: rome.RomeSettings(clamp=-1.0), "clamp must be a positive"),
    (lambda s: rome.RomeSettings(stop_below=math.nan), "stop_below must be zero or a positive"),
    (lambda s: rome.rome_edit(s.rome, EYE, rome.RomeSettings(steps=1)), "6 rows for 96 hidden"),
]


def estimate(**changes):
    """Scores with one argument changed."""
    return lambda s: scores.attribution(
        **{"model": s.model, "pairs": s.pairs, "kinds": ["mlp_out"]} | changes
    )


def ablated(circuit, means=None, pairs=None):
    """A circuit's logit difference, with means or pairs of another kind."""
    return lambda s: ablation.ablated_logit_difference(
        s.model, pairs or s.pairs, circuit,
        ablation.head_means(s.model, s.pairs) if means is None else means,
    )  # fmt: skip


def unequal(s):
    """Pairs whose sources are shorter than their bases."""
    return replace(s.pairs, source_tokens=random_pairs(s.model, length=7).source_tokens,
                   source_position=torch.full((5,), 6))  # fmt: skip


ATTRIBUTION = [
    (estimate(kinds="mlp_out"), "give a list of kinds"),
    (estimate(kinds=[]), "give a list of kinds"),
    (estimate(kinds=["mlp"]), "some of .*'mlp_out'.*, not"),
    (estimate(method="lrp"), "no method 'lrp': choose one of"),
    (estimate(method="ig", steps=0), "steps must be .* from 1 on, not 0"),
    (estimate(batch_size=0), "batch_size must be .* from 1 on"),
    (lambda s: estimate(pairs=unequal(s))(s), "pair 0: base and source differ in length"),
    (lambda s: estimate(pairs=beyond(s))(s), "there is no token"),
    (lambda s: scores.coefficients(s.model, s.pairs, []), "no sites given"),
    (lambda s: scores.coefficients(s.model, s.pairs, [Site(9, "mlp_out")]), "layer 9 is out of"),
    (lambda s: scores.coefficients(s.model, s.pairs, ["mlp_out"]), "a Site is needed"),
    (lambda s: open_rules(s.model, "norm"), "rules are some of"),
    (lambda s: open_rules(s.model, ["norm", "softmax"]), "not .*softmax"),
    (lambda s: scores.agreement(BASE, BASE[:2]), r"not \(3, 4\) and \(2, 4\)"),
    (lambda s: scores.agreement(BASE * math.nan, BASE), "NaN or infinity"),
    (ablated([(9, 0)]), r"no head \(9, 0\)"),
    (ablated([3]), "no head 3: give pairs"),
    (ablated([(0, 0)], torch.zeros(2, 9, 4, 12)), "means must be of shape"),
    (lambda s: ablation.head_means(s.model, unequal(s)), r"prompts of \[7, 9\] tokens"),
    (lambda s: ablation.random_heads(s.model, 0, seed=0), "k must be from 1 to 12 heads"),
    (lambda s: ablation.strongest(BASE, 1), "of 4 dimensions"),
    (lambda s: ablation.strongest(BASE[None, :, None], 13), "there are 12 heads, not 13"),
]


def beyond(s):
    """Pairs with a token that the model does not have."""
    tokens = tuple(tokens + s.model.cfg.d_vocab for tokens in s.pairs.base_tokens)
    return replace(s.pairs, base_tokens=tokens)


def open_rules(model, chosen):
    with scores.linearised(model, chosen):
        pass


def related(s):
    return replace(s.pairs, table=s.pairs.table.assign(relation="a"))


def facts_at(s):
    return replace(s.cached, pairs=related(s))


JUDGING = [
    (lambda s: layers.RandomMLP(s.model, -1), "layer -1 is out of range"),
    (lambda s: layers.illusions_at_layer(s.layers[1], s.layers[1], epochs=0), "epochs must"),
    (lambda s: layers.illusions_at_layer(s.layers[1], s.layers[2]), "test at mlp_hidden.2"),
    (
        lambda s: layers.sign_of(replace(s.pairs, table=pd.DataFrame({"value": [*"abab", None]}))),
        "two values",
    ),
    (lambda s: diagnostics.writing_matrix(s.model, Site(9, "mlp_hidden")), "layer 9 is out"),
    (lambda s: diagnostics.writing_matrix(s.model, "mlp_hidden.1"), "a Site is needed"),
    (lambda s: diagnostics.scores(s.cached, torch.ones(D, 2), None), "linearly dependent"),
    (lambda s: diagnostics.scores(s.cached, [1.0] * D, None), "not list"),
    (lambda s: planted.plant("mediator", *s.planted[::-1], seed=0), "these are at resid_post.1"),
    (
        lambda s: planted.plant("mediator", *s.planted[:2], s.layers[2].stream, seed=0),
        "the same pairs are needed",
    ),
    (lambda s: measure.audit(s.model, "mlp_hidden.1", torch.ones(D), s.many), "a Site is needed"),
    (lambda s: measure.audit(s.model, SITE, "v.npy", s.many), "a vector of numbers .*'v.npy'"),
    (lambda s: measure.audit(s.model, SITE, None, s.many), "a vector of numbers .*None"),
    (
        lambda s: measure.audit(s.model, SITE, torch.ones(D, dtype=torch.complex64), s.many),
        "a vector of real numbers .*complex64",
    ),
    (lambda s: measure.audit(s.model, SITE, torch.ones(D), s.many, batch_size=0), "batch_size"),
    (lambda s: measure.audit(s.model, SITE, torch.ones(D), s.pairs[0]), "1 pairs are too few"),
    (lambda s: facts_job("any", s.pairs, 1), "use pairs of facts"),
    (lambda s: facts_job("any", related(s), 9), "layer 9 is out of range"),
    (lambda s: facts_at_layer(facts_at(s), directions=BASE), "has 4 dimensions"),
    (lambda s: verdicts.conclude(metrics.Estimate(1, 1, 1), [], []), "at least one"),
    (lambda s: load.load_model(device=object()), "cannot be used", load.ModelError),
    (lambda s: load.load_model("a b\nc"), "cannot be loaded", load.ModelError),
    (lambda s: assignment.read_lesson(""), "There is no lesson ''", assignment.ClassroomError),
]


def direction(name, content):
    """Reads a direction from a file with this content: bytes, or what its library saves."""

    def call(s):
        path = s.files / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif path.suffix == ".npy":
            np.save(path, content, allow_pickle=True)
        elif path.suffix == ".pt":
            torch.save(content, path)
        else:
            save_file(content, path)
        vectors.read_directions(path)

    return call


def cut(s):
    save_file({"direction": torch.ones(30)}, s.files / "cut.safetensors")
    os.truncate(s.files / "cut.safetensors", 100)
    vectors.read_directions(s.files / "cut.safetensors")


def unreadable(s):
    (s.files / "v.npy").symlink_to("/proc/self/mem")  # nobody may read it, not even root
    vectors.read_directions(s.files / "v.npy")


def pair_file(content):
    return lambda s: read_pairs(s.model, write(s, "pairs.csv", content))


FILES = [
    (direction("o.npy", np.array([{}], dtype=object)), "is damaged, or holds more than numbers"),
    (direction("s.npy", np.array(["a"])), "holds <U1, not floating-point numbers"),
    (direction("c.npy", np.array([1j])), "holds complex128"),
    (direction("z.npy", b"PK\x03\x04"), "is damaged"),
    (direction("m.pt", torch.nn.Linear(2, 2)), "is damaged, or holds more than numbers"),
    (direction("n.pt", {"direction": {"a": torch.ones(2)}}), "holds dict"),
    (direction("d.pt", torch.ones(3).to_sparse()), "holds no plain tensor"),
    (direction("e.pt", torch.ones(3, device="meta")), "holds no plain tensor"),
    (direction("t.safetensors", {"a": torch.ones(3), "b": torch.ones(3)}), r"\['a', 'b'\]: call"),
    (direction("h.safetensors", b"\xff" * 8 + b"{}"), "is damaged"),
    (cut, "is damaged"),
    (unreadable, "cannot be read: Input/output error"),
]


class Painter(torch.nn.Module):
    """As modules of `diffusers` are: some of them have maps for text."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.attn2 = torch.nn.ModuleList(torch.nn.Module() for _ in range(layers))
        for layer in self.attn2:
            layer.is_cross_attention = True
            layer.to_k = layer.to_v = torch.nn.Identity()

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        return sum(layer.to_k(text) for layer in self.attn2)


def painted(layers=("attn2.0",), rows=None, calls=1, **more):
    """A call of two rows inside of `injected`."""

    def call(s):
        painter = Painter(2)
        with pipelines.injected(painter, layers, {0: 1} if rows is None else rows, **more):
            for _ in range(calls):
                painter(torch.ones(2, 3, 4))

    return call


def picture(*prompts, **options):
    return lambda s: pipelines.localise(
        SimpleNamespace(unet=Painter(2)), *(prompts or ("a cat", "a dog")), **options
    )


PICTURES = [
    (lambda s: pipelines.text_layers(Painter(0)), "Painter has no cross-attention or joint"),
    (lambda s: pipelines.localise("sdxl", "a", "b"), "str is no pipeline .* pip install diffusers"),
    (lambda s: pipelines.localise(Painter(1), "a", "b"), "Painter is no pipeline"),
    (painted("attn2.0"), r"a list of names, not one text: \['attn2.0'\]"),
    (painted(["attn1.0"]), "no text layer 'attn1.0'; there are: attn2.0, attn2.1$"),
    (painted([0]), "no text layer 0"),
    (lambda s: pipelines.check_layers(Painter(70), ["x"]), r"attn2.3, \.\.\., attn2.66"),
    (painted(rows={0: 2}), "row 2 is out of range: the model was called with 2 rows", IndexError),
    (painted(rows={-3: 1}), "row -3 is out of range", IndexError),
    (painted(rows={0: 1.0}), "a row must be a whole number, not 1.0"),
    (painted(rows={0: 1, 1: 0}), "row 0 is both base and source"),
    (painted(rows={0: -2}), "row 0 is both base and source"),
    (painted(first_call=-1), "first_call must be a whole number from 0 on, not -1"),
    (painted(first_call=1), "into attn2.0 in 1 calls of the model, the first 1 left alone"),
    (painted(calls=0), "nothing was injected into attn2.0 in 0 calls"),
    (picture(["a cat"], "a dog"), r"base must be one text, not \['a cat'\]"),
    (picture("a cat", None), "source must be one text, not None"),
    (picture(prompt="a fox"), "prompt is set here"),
    (picture(num_images_per_prompt=2), "num_images_per_prompt is set here"),
    (picture(layers=["attn2.2"]), "no text layer 'attn2.2'"),
    (picture(layers="attn2.0"), "must be a list of names"),
    (picture(steps=0), "steps must be a whole number from 1 on"),
    (picture(steps=4, start=4), "start must be below the number of steps, 4, not 4"),
    (picture(start=-1), "start must be a whole number from 0 on"),
    (picture(seed=0.5), "seed must be a whole number"),
]

TABLES = [
    (pair_file(f"{HEADER}\n{ROW}".replace(",", "\t")), "separate cells by commas"),
    (pair_file(f"sep=,\n{HEADER}\n{ROW}"), "Name the columns in row 1"),
    (pair_file(f"\ufeff\ufeff{HEADER}\n{ROW}"), r"lacks the columns \['base'\]"),
    (pair_file(f"{HEADER}\n{ROW}".encode("utf-32")), "is not UTF-8 text"),
    (pair_file(f"{HEADER}\n".encode() + b"\xed\xa0\x80,b,Mary,John"), "is not UTF-8 text"),
    (pair_file(bytes(range(256))), "is not UTF-8 text"),
    (pair_file(b"\0" * 50), "lacks the columns"),
    (pair_file(f"{HEADER}\n{ROW}\0"), r"row 2: the counterfactual ' John\\x00'"),
    (pair_file(f"{HEADER}\n{'a' * 200_000},b,Mary,John"), "larger than field limit"),
    (pair_file(f'{HEADER}\n"Mary" and,b,Mary,John'), "is not a CSV file"),
    (pair_file(f"{HEADER},answer\r\n{ROW},x\r\n"), r"the columns \['answer'\] more than once"),
    (pair_file(f"{HEADER},position\r{ROW},\N{FULLWIDTH DIGIT ONE}\r"), "must be a whole number"),
    (pair_file(f"{HEADER},position\n{ROW},99999999999"), "must be a whole number"),
    (lambda s: read_pairs(s.model, "/proc/self/mem"), "cannot be read: Input/output error"),
]


def read(content, function=report.recorded):
    """Calls a reader of results with this content of `claims.json`."""

    def call(s):
        measured(s, content)
        function()

    return call


def entry(**changes):
    return json.dumps({"C3": {"verdict": "not", "value": 1.0, "lesson": "03"} | changes})


def site_file(content):
    def call(s):
        s.results.symlink_to(s.files, target_is_directory=True)
        write(s, "smollm2-135m/sites.json", content)
        report.load_site("ioi")

    return call


DAMAGED = [
    *((read(content), "claims.json is damaged: .*run the lessons again")
      for content in ("", "{", "[]", "null", b"\xff\xfe", "[" * 100_000, '{"C3": 1}')),
    (read('{"C3": {"value": 1}}'), "what it says of C3 is no measurement"),
    (read(entry(value="1")), "C3 is no measurement"),
    (read(entry(value=True)), "C3 is no measurement"),
    (read(entry(interval=[1])), "C3 is no measurement"),
    (read(entry(interval="ab")), "C3 is no measurement"),
    (read(entry(verdict=["not"])), "C3 is no measurement"),
    (read(entry(note=5)), "C3 is no measurement"),
    (read("{", report.summary_table), "is damaged"),
    (read("{", reference.drifts), "is damaged"),
    (read("{", to_markdown), "is damaged"),
    (read("{", lambda: compare.compare(["smollm2-135m"])), "is damaged"),
    (read("{", lambda: report.record("C9", 1.0, (0, 2))), "is damaged"),
    (site_file("[]"), "sites.json is damaged"),
    (site_file('{"ioi": {"site": 5}}'), "the entry 'ioi' has no site"),
]  # fmt: skip
RESULTS = [
    *((*row, report.ResultsError) for row in DAMAGED),
    (lambda s: report.record("C3", "1"), "value is '1': pass one number"),
    (lambda s: report.record("C3", torch.ones(2)), "pass one number"),
    (lambda s: report.record("C3", 1.0, (1, 2, 3)), r"pass interval=\(low, high\)"),
    (lambda s: report.record("C3", 1.0, 5), r"The interval is 5: pass interval"),
    (lambda s: report.record("C3", 1.0, (None, 2)), "an end of the interval is None"),
    (lambda s: report.record("C3", 1.0, detail=[1]), "pass numbers by name"),
    (lambda s: report.record("C3", 1.0, detail={"x": 1j}), "1j cannot be stored"),
    (lambda s: report.record_untestable("C3", object()), "cannot be stored"),
    (lambda s: report.save_site("ioi", {"layer": math.nan}, {}), "not JSON compliant: nan"),
    (lambda s: update.update("nobody"), "Nothing was recorded for nobody", FileNotFoundError),
    (lambda s: publish.stamp_lesson("[]", "a.ipynb", publish.Repository()), "is not a notebook"),
    (lambda s: publish.stamp_lesson("{}", "a.ipynb", publish.Repository()), "is not a notebook"),
    (lambda s: publish.parse_repository("https://[::1/me/it"), "Invalid IPv6 URL"),
]  # fmt: skip


ALL = {
    "sites": SITES, "geometry": GEOMETRY, "metrics": METRICS, "pairs": PAIRS, "patching": PATCHING,
    "reading": READING, "das": DAS, "closed form": CLOSED_FORM, "readers": READERS,
    "tasks": TASKS, "counterfact": COUNTERFACT, "editing": EDITING,
    "moments": MOMENTS, "rome": ROME, "judging": JUDGING, "attribution": ATTRIBUTION,
    "files": FILES, "tables": TABLES, "pictures": PICTURES,
    "results": RESULTS,
}  # fmt: skip
KINDS = {"files": vectors.DirectionFileError, "tables": PairFileError}
ROWS = [
    pytest.param(call, message, *(error or [KINDS.get(name, ValueError)]), id=f"{name}-{number}")
    for name, rows in ALL.items()
    for number, (call, message, *error) in enumerate(rows)
]


@pytest.mark.parametrize(("call", "message", "error"), ROWS)
def test_every_mistake_has_its_own_error(s, call, message, error):
    with pytest.raises(error) as caught:
        call(s)
    assert type(caught.value) is error
    assert re.search(message, str(caught.value), flags=re.S)
    assert len(str(caught.value)) < 1000


# ------------------------------------------------------------------------- the command lines


def judged(s, **changes):
    """Arguments for `tools.audit`, with files that are as they should be."""
    np.save(s.files / "v.npy", np.ones(D))
    good = {"site": "mlp_hidden.1", "direction": s.files / "v.npy", "pairs": "ioi"}
    good["pairs"] = write(s, "pairs.csv", f"{HEADER}\n{ROW}\n" * 1)
    options = good | changes
    return [str(part) for name, value in options.items() for part in (f"--{name}", value)]


def handed_in(s, *more):
    write(s, "class/anna.ipynb", "no notebook")
    return ["--submissions", str(s.files / "class"), *more]


def blocked(s):
    """A file where a folder is needed."""
    return str(write(s, "file", ""))


def no_results(s):
    """A file where the results would go."""
    s.results.symlink_to(s.files / "file")
    return blocked(s)


def damaged(s):
    measured(s, "{")
    return "smollm2-135m"


def empty(s):
    (s.files / "none").mkdir(exist_ok=True)
    return s.files / "none"


def ones(s, *shape):
    np.save(s.files / "ones.npy", np.ones(shape))
    return s.files / "ones.npy"


COMMANDS = [
    (command, lambda s: judged(s, direction=empty(s)), 2, "holds no file that ends in .npy"),
    (command, lambda s: [*judged(s, direction=ones(s, D, 2))], 2, "are linearly dependent"),
    (command, lambda s: [*judged(s), "--row", "0"], 2, "--row and --column take part of a matrix"),
    (command, lambda s: [*judged(s), "--key", "W_dec"], 2, "holds one tensor: leave out --key"),
    (command, lambda s: [*judged(s), "--chat"], 2, "has no chat template"),
    (command, lambda s: [*judged(s), "--add", "1e400"], 2, "a finite number that is not 0"),
    (command, lambda s: [*judged(s), "--add", "1e38"], 2, "1 pairs are too few"),
    (command, lambda s: judged(s, direction=write(s, "v.pt", b"\x80\x02c")), 2, "is damaged"),
    (command, lambda s: judged(s, pairs=s.files), 2, "is a folder: name a CSV file"),
    (command, lambda s: judged(s, pairs=write(s, "e.csv", "")), 2, "is empty"),
    (command, lambda s: judged(s), 2, "1 pairs are too few"),
    (command, lambda s: judged(s, site="head_output.1"), 2, "head_output.LAYER.HEAD"),
    (command, lambda s: judged(s, site="mlp_hidden.-1"), 2, "must have the form"),
    (command, lambda s: judged(s, site="mlp_hidden.7"), 2, "layer 7 is out of range"),
    (command, lambda s: judged(s, out=blocked(s)), 2, "is not a folder: choose another"),
    (command, lambda s: judged(s, **{"batch-size": "0"}), 2, "no whole number from 1"),
    (command, lambda s: judged(s, seed="1.5"), 2, "'1.5' is no whole number from 0"),
    (command, lambda s: judged(s, pairs="gender", n="1"), 2, "are single tokens|n must be"),
    (run, lambda s: ["--lesson", "x"], 2, "there is no lesson 0x; there are: 00_start_here"),
    (run, lambda s: ["--lesson", ""], 2, "there is no lesson ''"),
    (run, lambda s: ["--lesson"], 2, "expected at least one argument"),
    (run, lambda s: ["03"], 2, "unrecognized arguments: 03"),
    (run, lambda s: no_results(s) and ["--lesson", "00"], 1, "Results cannot be kept in"),
    (compare, lambda s: ["nobody"], 1, "No results for nobody: run it first"),
    (compare, lambda s: [damaged(s)], 1, "claims.json is damaged"),
    (compare, lambda s: no_results(s) and ["smollm2-135m"], 1, "No results"),
    (update, lambda s: ["--model", "nobody"], 2, "Nothing was recorded for nobody"),
    (update, lambda s: ["--model", damaged(s)], 2, "claims.json is damaged"),
    (update, lambda s: ["smollm2-135m"], 2, "unrecognized arguments"),
    (publish, lambda s: [], 2, "one of the arguments --repo --clear is required"),
    (publish, lambda s: ["--clear", "--repo", "x"], 2, "not allowed with argument"),
    (publish, lambda s: ["--repo", "https://[::1/me/it"], 2, "not the address of a repository"),
    (publish, lambda s: ["--clear"], 1, "There are no lessons in"),
    (assignment, lambda s: [], 2, "--lesson"),
    (assignment, lambda s: ["--lesson", ""], 2, "There is no lesson ''"),
    (assignment, lambda s: ["--lesson", "00"], 2, "Lesson 00 has no exercises"),
    (assignment, lambda s: ["--lesson", "01", "--seed", "-1"], 2, "--seed must be 0 or more"),
    (assignment, lambda s: ["--lesson", "01", "--seed", "x"], 2, "invalid int value: 'x'"),
    (assignment, lambda s: ["--lesson", "01", "--out", blocked(s)], 2, "is there already"),
    (assignment, lambda s: ["--lesson", "01", "--out", blocked(s) + "/x"], 2, "file"),
    (grade, lambda s: handed_in(s, "--lesson", "99"), 2, "There is no lesson 99"),
    (grade, lambda s: handed_in(s, "--seconds", "nan"), 2, "--seconds must be more than 0"),
    (grade, lambda s: handed_in(s, "--seconds", "inf"), 2, "and finite"),
    (grade, lambda s: handed_in(s, "--seed", "-1"), 2, "--seed must be 0 or more"),
    (grade, lambda s: handed_in(s, "--out", blocked(s)), 2, "file"),
    (grade, lambda s: ["--submissions", blocked(s)], 2, "there is no folder"),
]


@pytest.mark.parametrize(
    ("module", "arguments", "status", "message"),
    [
        pytest.param(*row, id=f"{row[0].__name__.split('.')[-1]}-{number}")
        for number, row in enumerate(COMMANDS)
    ],
)
def test_every_command_says_what_is_wrong(s, capsys, module, arguments, status, message):
    arguments = arguments(s)
    before = state(s)
    try:
        found = module.main(arguments)
    except SystemExit as ended:
        found = ended.code
    error = capsys.readouterr().err
    assert found == status
    assert re.search(message, error.splitlines()[-1]) and "Traceback" not in error
    assert state(s) == before
