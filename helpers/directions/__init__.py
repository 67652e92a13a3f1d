"""Directions and subspaces: patch along them, take them apart, find them, sweep over layers.

v = find_direction(cached).direction
cached.measure(patch_subspace(cached.base, cached.source, v))
"""

from helpers.directions.closed_form import (
    best_directions,
    best_directions_at,
    linear_effect,
    spectrum_ends,
)
from helpers.directions.geometry import (
    chance_norms,
    cosine,
    four_point_products,
    orthonormal,
    patch_each,
    patch_subspace,
    project,
    random_direction,
    read_write_patch,
    row_null_split,
    row_space,
    shortest_hidden,
    unit,
)
from helpers.directions.layers import (
    cache_layers,
    difference_of_means,
    facts_at_layer,
    halves,
    illusion_tests,
    illusions_at_layer,
    mean_difference,
    mean_gradient,
    over_pairs,
    shared_model,
    sign_of,
)
from helpers.directions.readers import (
    attention_preference,
    clean_queries,
    input_space,
    score_gradients,
)
from helpers.directions.search import answer_logit_difference, find_direction, find_pair_directions
