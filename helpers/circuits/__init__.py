"""Sets of heads that are said to do a task: how to find them, and how to judge them.

path_effects(model, pairs).relative  # what each head says to the answer by itself
mask = find_heads(model, pairs, penalty=0.3)  # which heads carry what base and source differ in?
ablated_logit_difference(model, pairs, mask.chosen, head_means(model, pairs))  # they alone
"""

from helpers.circuits.ablation import (
    ablated_logit_difference,
    every_head,
    head_means,
    random_heads,
    random_subset,
    strongest,
)
from helpers.circuits.masks import find_heads
from helpers.circuits.paths import head_sites, path_effects, specific_only
