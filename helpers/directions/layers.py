"""The same experiment at any MLP: for a binary feature, or with facts.

Section 7 of the paper predicts an illusion in every MLP between the layer that writes a feature and
the layer that reads it. `illusions_at_layer` tries one of them, `facts_at_layer` has a direction
for every fact (section 6.1); `tools.jobs` runs a sweep as jobs of a cluster.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers.activations import ACT2FN

from helpers.directions import geometry
from helpers.directions.geometry import (
    cosine,
    moves,
    patch_each,
    patch_subspace,
    read_write_patch,
    row_null_split,
    unit,
)
from helpers.directions.search import find_pair_directions
from helpers.models import Model, load_model, require
from helpers.patching import Acts, CachedPairs, Estimate, Site, cache_sites, check_sites
from helpers.patching.cached import base_gradients
from helpers.patching.metrics import logit_difference
from helpers.tasks import Pairs

Vector: TypeAlias = Float[Tensor, "d"]
Halves: TypeAlias = tuple[Vector, Vector, Vector]  # sensor, actuator and their mix
KINDS = ("pattern", "value")  # columns that say which of the two values a base has


def sign_of(pairs: Pairs) -> Float[Tensor, "pairs"]:
    """1 for bases with the feature's first value, in alphabetical order, and -1 for the others."""
    column = next((name for name in KINDS if name in pairs.table), None)
    if column is None or pairs.table[column].nunique(dropna=False) != 2:
        raise ValueError(f"pairs need one of the columns {KINDS} in their table, with two values")
    first = pairs.table[column] == pairs.table[column].min()
    return torch.where(torch.tensor(first.to_numpy()), 1.0, -1.0)


def mean_gradient(cached: CachedPairs) -> Vector:
    """Where the activation must go for the bases' first value to win: a mean over the pairs."""
    return (_sign(cached) * cached.base_gradient).mean(0)


def mean_difference(cached: CachedPairs) -> Vector:
    """The mean activation of the first value minus that of the second, over bases and sources."""
    return (_sign(cached) * (cached.base - cached.source)).mean(0)


def difference_of_means(x: Float[Tensor, "rows d"], first: Bool[Tensor, "rows"]) -> Vector:
    """The mean of the rows that are `first` minus that of the others."""
    return x[first].mean(0) - x[~first].mean(0)


def halves(difference: Vector, reads: Vector, W: Tensor, *, exact: bool) -> Halves:
    """Sensor, actuator and direction of `construct`; an exact one writes only `reads`."""
    sensor = unit(row_null_split(difference, W).null)
    actuator = unit(geometry.shortest_hidden(W)(reads) if exact else W @ reads)
    return sensor, actuator, unit(sensor + actuator)


def construct(difference: Vector, reads: Vector, W: Float[Tensor, "d d_model"]) -> Vector | None:
    """An illusion without training: half a sensor nobody reads, half an actuator (section 7).

    From the `difference` between the class means of the hidden activation, and the direction of the
    stream behind the MLP that later layers listen to for the first value. None where nothing
    listens or nothing is carried.
    """
    sensor, actuator = row_null_split(difference, W).null, W @ reads
    if sensor.norm() <= 1e-4 * difference.norm() or actuator.norm() < 1e-12:
        return None
    return unit(unit(sensor) + unit(actuator))


class AtLayer(NamedTuple):
    """The same pairs at three activations of one layer."""

    hidden: CachedPairs
    input: CachedPairs
    stream: CachedPairs


def cache_layers(model: Model, pairs: Pairs, layers: Iterable[int]) -> dict[int, AtLayer]:
    """Pairs at the MLPs of several layers: what enters, what is hidden there, what leaves."""
    kinds, layers = ("mlp_hidden", "mlp_in", "resid_post"), list(layers)
    cached = cache_sites(model, pairs, [Site(at, kind) for at in layers for kind in kinds])
    clean = max(cached, key=lambda at: at.site.layer).clean_logit_difference
    for at, gradient in zip(cached, base_gradients(cached), strict=True):  # one pass for all
        vars(at).update(clean_logit_difference=clean, base_gradient=gradient)
    return {at: AtLayer(*cached[3 * n : 3 * n + 3]) for n, at in enumerate(layers)}


def illusions_at_layer(
    train: AtLayer, test: AtLayer, *, seeds: Sequence[int | None] = (None,), epochs: int = 4
) -> pd.DataFrame:
    """What one direction of one MLP can do, by construction and by training, with its controls.

    Directions are made on the pairs `train`, judged on the pairs `test`. `seeds` start the training
    (None: with the constructed direction) of so many `epochs` with one step each; the result with
    the lowest loss counts. Without any seed, nothing is trained.

    Returns a row per test pair and patch, with the columns layer, patch, pair, clean and patched
    (logit differences in nats). The patches are: whole MLP; constructed; trained, and its row (the
    normalised row part) and read null (the null part senses, the whole direction acts); random (a
    direction); random MLP, the construction in an MLP of random weights; whole random MLP. What
    cannot be constructed, because nothing listens or nothing is carried, is left out. Raises
    ValueError: `train` and `test` are of different layers, or there is no epoch.
    """
    if train.hidden.site != test.hidden.site:
        raise ValueError(f"train is at {train.hidden.site}, but test at {test.hidden.site}")
    require.whole("epochs", epochs, least=1)
    hidden, layer = test.hidden, test.hidden.site.layer
    W, reads = hidden.model.blocks[layer].mlp.W_out.detach(), mean_gradient(train.stream)
    directions = {"random": geometry.random_direction(len(W), seed=layer).to(W)}
    carries = moves(train.hidden.base, train.hidden.source).any()
    v = construct(mean_difference(train.hidden), reads, W) if carries else None
    if v is not None:
        directions["constructed"] = v
        if seeds:
            directions["trained"] = _train(train.hidden, v, seeds, epochs)
    base, source = hidden.base, hidden.source
    patched = {patch: patch_subspace(base, source, v) for patch, v in directions.items()}
    patched["whole MLP"] = source
    if (v := directions.get("trained")) is not None:
        row, null = row_null_split(v, W)
        patched["row"] = patch_subspace(base, source, row)
        patched["read null"] = read_write_patch(base, source, null, v)
    tables = [_table(hidden, patched), _table(test.stream, _random_mlp(train, test, reads))]
    return pd.concat(tables, ignore_index=True)


def illusion_tests(of: Mapping[str, Estimate]) -> tuple[bool, ...]:
    """Inert? Does one direction work? By 20 %? Its row keep half at most? Its null read most?"""
    names, nan = ("trained", "whole MLP", "random", "row", "null share"), float("nan")
    one, whole, random, row, null = (of.get(name, Estimate(nan, nan, nan)) for name in names)
    inert, works = abs(whole.value) <= 0.1, one.low > max(whole.high, random.high, 0)
    row_halves = row.value <= 0.5 * one.value
    return inert, works, works and one.value >= 0.2, row_halves, null.low > 0.5


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


class RandomMLP:
    """A stand-in for an MLP with weights that have learned nothing, beside the real one.

    They are drawn with the standard deviations of the real ones, in the same shapes. Only what a
    patch changes in its output is added to the real residual stream.
    """

    def __init__(self, model: Model, layer: int, *, seed: int = 0) -> None:
        check_sites(model, [Site(layer, "mlp_hidden")])
        mlp, generator = model.blocks[layer].mlp, torch.Generator().manual_seed(seed)

        def draw(weight: Tensor) -> Tensor:
            return torch.randn(weight.shape, generator=generator).to(weight) * weight.std()

        self.W_in, self.W_gate = draw(mlp.W_in), draw(mlp.W_gate) if model.cfg.gated_mlp else None
        self.W_out, self.act = draw(mlp.W_out), ACT2FN[model.cfg.act_fn]

    def hidden(self, x: Float[Tensor, "pairs d_model"]) -> Float[Tensor, "pairs d_mlp"]:
        """Its hidden activation on what the real MLP reads."""
        into = x @ self.W_in
        return self.act(into) if self.W_gate is None else self.act(x @ self.W_gate) * into


def _sign(cached: CachedPairs) -> Float[Tensor, "pairs 1"]:
    return sign_of(cached.pairs).to(cached.base)[:, None]


@torch.enable_grad()
def _train(hidden: CachedPairs, start: Vector, seeds: Sequence[int | None], epochs: int) -> Vector:
    """The direction with the lowest loss of several starts, as `find_direction` trains them.

    Side by side, for a pass with all of them costs little more than one of them.
    """
    drawn = [torch.Generator().manual_seed(seed or 0) for seed in seeds]
    noise = [torch.randn(len(start), generator=generator).to(start) for generator in drawn]
    starts = [start if seed is None else x for seed, x in zip(seeds, noise, strict=True)]
    weights = unit(torch.stack(starts)).requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=0.03)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=epochs)
    usable = moves(hidden.base, hidden.source).nonzero()[:, 0]
    rows = usable.repeat(len(seeds))
    for _ in range(epochs):
        directions = weights.repeat_interleave(len(usable), 0)
        patched = patch_each(hidden.base[rows], hidden.source[rows], directions)
        losses = hidden.logit_difference(patched, rows).reshape(len(seeds), -1).mean(1)
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
        schedule.step()
    return unit(weights.detach()[losses.argmin()])


def _random_mlp(train: AtLayer, test: AtLayer, reads: Vector) -> dict[str, Acts]:
    """Patched streams behind a random MLP: one constructed direction of it, and all of it."""
    mlp = RandomMLP(train.input.model, train.input.site.layer)
    change = mlp.hidden(train.input.base) - mlp.hidden(train.input.source)
    v = construct((_sign(train.input) * change).mean(0), reads, mlp.W_out)
    base, source = mlp.hidden(test.input.base), mlp.hidden(test.input.source)
    patched = {"whole random MLP": source}
    if v is not None:
        patched["random MLP"] = patch_subspace(base, source, v)
    return {name: test.stream.base + (moved - base) @ mlp.W_out for name, moved in patched.items()}


@torch.no_grad()
def _table(cached: CachedPairs, patched: Mapping[str, Tensor]) -> pd.DataFrame:
    """A row per pair and patched activation."""
    n = len(cached)
    rows = torch.arange(n).repeat(len(patched))
    after = cached.logit_difference(torch.cat(list(patched.values())), rows)
    patches = [patch for patch in patched for _ in range(n)]
    clean = cached.clean_logit_difference.cpu().repeat(len(patched))
    columns = {"patch": patches, "pair": rows, "clean": clean, "patched": after.cpu()}
    return pd.DataFrame({"layer": cached.site.layer, **columns})
