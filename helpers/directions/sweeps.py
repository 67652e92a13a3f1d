"""A sweep of facts over layers; `tools.jobs` runs one as jobs of a cluster."""

import functools

import pandas as pd
import torch

from helpers.directions.geometry import cosine, patch_each, read_write_patch, row_null_split
from helpers.directions.search import find_pair_directions
from helpers.models import Model, load_model
from helpers.patching import Acts, CachedPairs
from helpers.patching.metrics import logit_difference


@functools.cache
def shared_model(name: str) -> Model:
    """The model of this name, loaded once in each process."""
    return load_model(name)


@torch.no_grad()
def facts_at_layer(
    cached: CachedPairs, *, steps: int = 10, directions: Acts | None = None
) -> pd.DataFrame:
    """One direction per pair in the MLP of one layer, and what its parts do (section 6.1).

    `cached` are pairs of facts at an `mlp_hidden` site, or it is a ValueError. `directions` may
    have been fitted already, each to its pair alone, else they are in so many `steps`.

    Returns a row per pair and patch, with the columns layer, pair, relation, patch, flipped (the
    top token is the counterfactual answer), logit_difference (nats, after the patch), clean (before
    it), null_norm (of the direction's null part), cos_null and cos_row (cosines of the activation
    difference with the two parts). The patches are: direction; row, its row part normalised; read
    row, which reads the row part and writes the direction; null, its null part normalised; whole
    MLP.
    """
    if "relation" not in cached.pairs.table:
        raise ValueError("the table of the pairs has no relation: use pairs of facts")
    if cached.site.kind != "mlp_hidden":
        raise ValueError(f"cache the pairs at an mlp_hidden site, not at {cached.site}")
    pairs, layer, base, source = cached.pairs, cached.site.layer, cached.base, cached.source
    if directions is None:
        directions = find_pair_directions(cached, steps=steps, progress=False)
    v = directions.to(base)
    row, null = row_null_split(v, cached.model.blocks[layer].mlp.W_out)
    patched = {
        "direction": patch_each(base, source, v),
        "row": patch_each(base, source, row),
        "read row": read_write_patch(base, source, row, v),
        "null": patch_each(base, source, null),
        "whole MLP": source,
    }
    shared = {
        "layer": layer,
        "pair": range(len(pairs)),
        "relation": pairs.table["relation"],
        "clean": cached.clean_logit_difference.cpu(),
        "null_norm": null.norm(dim=-1).cpu(),
        "cos_null": cosine(source - base, null).abs().cpu(),
        "cos_row": cosine(source - base, row).abs().cpu(),
    }
    rows = torch.arange(len(pairs)).repeat(len(patched))
    logits = cached.patched_logits(torch.cat(list(patched.values())), rows).cpu()
    answer, counterfactual = pairs.answer[rows], pairs.counterfactual[rows]
    table = pd.concat([pd.DataFrame(shared)] * len(patched), ignore_index=True)
    return table.assign(
        patch=[patch for patch in patched for _ in range(len(pairs))],
        flipped=(logits.argmax(-1) == counterfactual).numpy(),
        logit_difference=logit_difference(logits, answer, counterfactual).numpy(),
    )


def over_pairs(sweep: pd.DataFrame) -> pd.DataFrame:
    """The means of a sweep over its pairs, by layer and patch; columns of text are left out."""
    return sweep.drop(columns="pair").groupby(["layer", "patch"]).mean(numeric_only=True).round(4)
