"""What jobs do: `facts` and `prevalence` at one layer, `audit` of some directions at one site.

    jobs = [joblib.delayed(facts_job)(model_name(), pairs, layer) for layer in layers]
    table = pd.concat(joblib.Parallel(n_jobs=2)(jobs))

Jobs load the model by its name, so that any worker can do them; each process keeps it.
"""

import functools
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from helpers.audit import Intervention, audit_each
from helpers.directions import cache_layers, facts_at_layer, shared_model
from helpers.directions.layers import illusions_at_layer
from helpers.models import Model, load_model, model_slug
from helpers.patching import Site, cache_pairs, metrics
from helpers.tasks import Pairs, agreement, facts, ioi
from tools.audit import command, provenance, table

FEATURES = ("order", "number", "gender")


def facts_job(name: str, pairs: Pairs, layer: int, *, steps: int = 10) -> pd.DataFrame:
    """`facts_at_layer` of a model that is loaded by name; see there."""
    return facts_with(shared_model(name), pairs, layer, steps)


def facts_with(model: Model, pairs: Pairs, layer: int, steps: int) -> pd.DataFrame:
    """The same, with a model."""
    return facts_at_layer(cache_pairs(model, pairs, Site(layer, "mlp_hidden")), steps=steps)


@functools.lru_cache(maxsize=1)
def loaded(name: str, weights: str | None) -> Model:
    """The model with this name and hash: a worker that lives long may see a folder's change."""
    return load_model(name)


def model_of(about: dict[str, Any], name: str) -> Model:
    return loaded(name, about["model"]["weights sha256"])


def facts_at(about: dict[str, Any], name: str) -> list[dict]:
    """The rows of `facts_at_layer` for the layer, pairs, seed and steps of `about`."""
    model = model_of(about, name)
    pairs = fact_pairs(model, about["n"], about["seed"])
    return facts_with(model, pairs, about["layer"], about["steps"]).to_dict("records")


@functools.lru_cache(maxsize=1)
def fact_pairs(model: Model, n: int, seed: int) -> Pairs:
    """Pairs of the facts that the model knows, which takes a run of all of them."""
    return facts.make_pairs(model, facts.known_facts(model), n, seed=seed)


def prevalence_at(about: dict[str, Any], name: str) -> list[dict]:
    """The FLDD of each patch of `illusions_at_layer`, with its interval, as lesson 08 takes it."""
    model, layer = model_of(about, name), about["layer"]
    train, test = (
        cache_layers(model, pairs_of(model, about, split, about["seed"] + more), [layer])[layer]
        for more, split in enumerate(("train", "test"))
    )
    seeds = (None, about["seed"])
    sweep = illusions_at_layer(train, test, seeds=seeds, epochs=about["epochs"])
    rows = []
    for (at, patch), group in sweep.groupby(["layer", "patch"])[["clean", "patched"]]:
        clean, patched = torch.tensor(group.to_numpy()).unbind(-1)
        estimate = metrics.fractional_logit_difference_decrease(clean, patched)
        rows.append({"layer": at, "patch": patch, **estimate._asdict()})
    return rows


def pairs_of(model: Model, about: dict[str, Any], split: str, seed: int) -> Pairs:
    """Pairs of a feature: the order of two names, a subject's number or gender."""
    if about["feature"] == "order":
        return ioi.make_pairs(model, about["n"], split=split, seed=seed)
    return agreement.make_pairs(model, about["feature"], about["n"], split=split, seed=seed)


def audit_of(
    about: dict[str, Any], name: str, options: Namespace, site: Site,
    each: Sequence[Intervention], pair_file: bytes | None,
) -> dict[str, Any]:  # fmt: skip
    """The entries of `tools.audit.table` for some directions at one site, and what is known of the
    pairs: those of the options, or of what their file holds.
    """
    model = model_of(about, name)
    with tempfile.TemporaryDirectory() as folder:
        if pair_file is not None:
            path = Path(folder) / Path(options.pairs).name
            path.write_bytes(pair_file)
            options = Namespace(**vars(options) | {"pairs": str(path)})
        pairs = command.load_pairs(model, options)
    sizes = {"seed": options.seed, "batch_size": options.batch_size, "progress": False}
    audits = audit_each(model, site, each, pairs, name=model_slug(name), **sizes)
    entries = [table.entry_of(*one) for one in zip(about["names"], audits, strict=True)]
    known = {"device": str(model.cfg.device), **provenance.of_pairs(model, options, pairs)}
    return {"entries": entries, "provenance": known}
