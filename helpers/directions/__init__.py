"""Directions and subspaces: patch along them, take them apart, find them, sweep over layers.

    v = find_direction(cached).direction
    cached.measure(patch_subspace(cached.base, cached.source, v))

trains a direction and patches it.
"""

from helpers.directions.closed_form import (
    BestDirections,
    best_directions,
    best_directions_at,
    linear_effect,
)
from helpers.directions.geometry import (
    chance_norms,
    cosine,
    orthonormal,
    patch_each,
    patch_subspace,
    random_direction,
    read_write_patch,
    row_null_split,
    row_space,
    unit,
)
from helpers.directions.layers import (
    cache_layers,
    construct,
    fldd_table,
    illusions_at_layer,
    mean_difference,
    mean_gradient,
    sign_of,
)
from helpers.directions.readers import clean_queries, score_gradients
from helpers.directions.search import (
    Fit,
    answer_logit_difference,
    cross_entropy,
    find_direction,
    find_pair_directions,
)
from helpers.directions.sweeps import facts_at_layer, facts_job, over_pairs, shared_model
