"""Sets of heads that are said to do a task, judged by what is left when only they still work.

circuit = strongest(scores["head_output"], 20)
faithfulness(model, pairs, [circuit], head_means(model, pairs))  # 1: as the whole model
"""

from helpers.circuits.ablation import (
    ablated_logit_difference,
    every_head,
    faithfulness,
    head_means,
    random_heads,
    strongest,
)
