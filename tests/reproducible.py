"""One pass through all that draws, trains or lists files, on a tiny model with a real tokenizer.

As a script it prints the results as JSON, every number with all its digits, so that another
process can compare its own: see `test_reproducible`.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers
from conftest import build_hf_model

from helpers.audit.planted import FAMILIES, plant
from helpers.claims.page import record_cells
from helpers.directions.geometry import patch_subspace
from helpers.directions.layers import cache_layers, illusions_at_layer
from helpers.directions.search import find_direction, find_pair_directions
from helpers.editing.moments import second_moment
from helpers.models.load import load_model
from helpers.models.smollm import packaged_folder
from helpers.patching.caching import cache_pairs, cache_sites
from helpers.patching.metrics import mean
from helpers.patching.sites import Site
from helpers.tasks import agreement, facts, ioi, passages
from helpers.tasks.pairs import Pairs
from tools.jobs.work import facts_job
from tools.schedule import find_lessons
from tools.training import load_untrained

LAYER, PAIRS = 1, 8
NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


def results() -> dict[str, Any]:
    """Every result by name, in lists, numbers and texts alone."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "tiny")  # called the same in every process
        tokenizer = transformers.AutoTokenizer.from_pretrained(packaged_folder())
        build_hf_model("llama", len(tokenizer)).save_pretrained(path)
        tokenizer.save_pretrained(path)
        tasks = draw(tokenizer)
        found = train(path, tasks) | sweep(path, tasks)
    drawn = {f"{name} pairs": pairs.table for name, pairs in tasks.items()}
    listed = {"lessons": list(find_lessons(NOTEBOOKS)), "records": record_cells()}
    pieces = {"passages": passages(tokenizer, 2, length=20, seed=0)}
    return {name: plain(value) for name, value in (drawn | listed | pieces | found).items()}


def draw(tokenizer: transformers.PreTrainedTokenizerBase) -> dict[str, Pairs]:
    """Pairs of every task."""
    return {
        "IOI": ioi.make_pairs(tokenizer, PAIRS, seed=7),
        "number": agreement.make_pairs(tokenizer, "number", PAIRS, seed=7),
        "gender": agreement.make_pairs(tokenizer, "gender", PAIRS, seed=7),
        "facts": facts.make_pairs(tokenizer, facts.load_facts(), PAIRS, seed=7),
    }


def train(path: str, tasks: dict[str, Pairs]) -> dict[str, Any]:
    """Logits, directions and planted models, on the IOI pairs at one layer."""
    model = load_model(path, device="cpu")
    kinds = ("mlp_hidden", "resid_mid", "resid_post")
    hidden, *others = cache_sites(model, tasks["IOI"], [Site(LAYER, kind) for kind in kinds])
    fit = find_direction(hidden, rank=2, epochs=2, batch_size=3, progress=False)
    patched = patch_subspace(hidden.base, hidden.source, fit.basis)
    planted = {name: plant(name, hidden, *others, seed=3) for name in FAMILIES}
    blank = load_untrained(path, device="cpu", seed=3)
    return {
        "logits": hidden.patched_logits(hidden.source)[:, ::100],
        "fit": [fit.basis, fit.losses],
        "pair directions": find_pair_directions(hidden, steps=2, progress=False),
        "bootstrap": mean(hidden.logit_difference(patched)),
        "planted": {name: [made.base, made.W, v] for name, (made, v) in planted.items()},
        "untrained": cache_pairs(blank, tasks["IOI"], hidden.site).base,
        "moment": second_moment(model, [LAYER], torch.stack(tasks["IOI"].base_tokens[:1])),
    }


def sweep(path: str, tasks: dict[str, Pairs]) -> dict[str, Any]:
    """Tables over layers."""
    model = load_model(path, device="cpu")
    numbers = cache_layers(model, tasks["number"], [0, LAYER])
    return {
        "number sweep": pd.concat(
            [illusions_at_layer(at, at, epochs=2) for at in numbers.values()]
        ),
        "facts sweep": facts_job(path, tasks["facts"], LAYER, steps=2),
    }


def plain(value: Any) -> Any:
    """The same as JSON can hold it; floats keep all their digits."""
    if isinstance(value, pd.DataFrame):
        return [list(value.columns), *plain(value.to_numpy().tolist())]
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return [[plain(key), plain(entry)] for key, entry in value.items()]  # order counts
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return value


if __name__ == "__main__":
    json.dump(results(), sys.stdout)
