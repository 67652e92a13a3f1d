"""A benchmark for any test of a direction: models with planted pathways, where the truth is known.

    def my_test(cached, direction) -> float: ...  # larger is more suspicious
    score(my_test)

One table with your test and all of the audit's: how well each tells opened pathways from natural
ones, over all families and against each.
"""

import functools
import itertools
from collections.abc import Callable

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from helpers.audit.diagnostics import scores
from helpers.audit.planted import FAMILIES, OPENED, PlantedPairs, plant
from helpers.directions import patch_subspace
from helpers.models import Model, load_model, require
from helpers.patching import Acts, Site, cache_sites
from helpers.tasks import ioi

KINDS = ("mlp_hidden", "resid_mid", "resid_post")
DRAWS = 500  # of the intervals
Values = Float[Tensor, "*draws models"]


def score(
    test: Callable[[PlantedPairs, Tensor], float], *,
    model: Model | None = None, layer: int | None = None, seeds: int = 4, n_pairs: int = 24,
) -> pd.DataFrame:  # fmt: skip
    """The AUROC of a test, and of the audit's own, over planted models of every family.

    `test(cached, direction)` is given pairs like `CachedPairs`, with the weights that the site's
    activation writes by as `cached.W`; larger is more suspicious. A row for each test and family
    ("all" are all of them) with the ends of the 95 % interval, by drawing planted models. The
    models are `seeds` of each family on IOI pairs in an MLP two thirds up (`layer`), made once for
    each setting; with the packaged model it takes a minute or two. A ValueError if the test returns
    no finite number.
    """
    require.whole("seeds", seeds, least=1)
    model = load_model() if model is None else model
    layer = round(0.72 * (model.cfg.n_layers - 1)) if layer is None else layer
    made = planted_models(model, layer, seeds, n_pairs)
    own = torch.tensor([float(test(planted, v.clone())) for _, planted, v, *_ in made])
    require.finite("what the test returns", own)
    values = {getattr(test, "__name__", "your test"): own}
    values |= {name: torch.tensor([row[-1][name] for row in made]) for name in made[0][-1]}
    opened = torch.tensor([row[3] > 0.5 for row in made])
    family = [row[0] for row in made]
    groups = {"all": opened} | {f: opened & torch.tensor([x == f for x in family]) for f in OPENED}
    rows = []
    for (name, found), (of, guilty) in itertools.product(values.items(), groups.items()):
        if guilty.any():
            rows.append((name, of, *_with_interval(found[guilty], found[~opened])))
    columns = ["test", "family", "AUROC", "low", "high"]
    return pd.DataFrame(rows, columns=columns).set_index(["test", "family"])


def auroc(opened: Values, natural: Values) -> Float[Tensor, "*draws"]:
    """How often an opened model has the larger value, ties half: 1 is perfect, 0.5 is chance."""
    one, other = opened[..., :, None], natural[..., None, :]
    return ((one > other).float() + 0.5 * (one == other).float()).mean((-1, -2))


@functools.lru_cache(maxsize=4)
def planted_models(model: Model, layer: int, seeds: int, n_pairs: int) -> tuple:
    """Of each: the family, the pairs, the direction, the share opened, and the audit's values."""
    pairs = ioi.make_pairs(model, n_pairs, split="test", seed=5)
    at, made = cache_sites(model, pairs, [Site(layer, kind) for kind in KINDS]), []
    for family, seed in itertools.product(FAMILIES, range(seeds)):
        planted, v = plant(family, *at, seed=seed)
        share = share_opened(planted, patch_subspace(planted.base, planted.source, v))
        found = {name: one.value for name, one in scores(planted, v, planted.W).items()}
        made.append((family, planted, v, share, found))
    return tuple(made)


def share_opened(planted: PlantedPairs, patched: Acts) -> float:
    """The truth: the share of a patch's effect that is gone with the planted units held that do not
    carry the feature.
    """
    rows = torch.arange(len(planted)).repeat(2)
    both = torch.cat([patched, planted.without_planted(patched)])
    with torch.no_grad():
        after = planted.logit_difference(both, rows)
    full, shut = (planted.clean_logit_difference.mean() - x.mean() for x in after.chunk(2))
    return (1 - shut / full).item()


def _with_interval(opened: Tensor, natural: Tensor) -> tuple[float, float, float]:
    generator = torch.Generator().manual_seed(0)
    again = [x[torch.randint(len(x), (DRAWS, len(x)), generator=generator)]
             for x in (opened, natural)]  # fmt: skip
    ends = auroc(*again).quantile(torch.tensor([0.025, 0.975]))
    return auroc(opened, natural).item(), *ends.tolist()
